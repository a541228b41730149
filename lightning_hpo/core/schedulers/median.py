"""The median stopping rule.

Source: Golovin et al., Google Vizier: A Service for Black-Box Optimization, KDD 2017, section 3.2.2.
"""

from __future__ import annotations

import math
from statistics import median

from lightning_hpo.core.events import Verdict
from lightning_hpo.core.schedulers.base import Ruling, Scheduler


class MedianStopping(Scheduler):
    """Stop a trial whose best value is worse than the median of the other trials' running averages.

    Averages are those up to the same resource.

    Args:
        max_t: resource at which a trial is complete.
        grace_period: no trial is stopped before it has reported at this resource.
        min_trials: no trial is stopped before this many others have a running average at the resource.
    """

    def __init__(self, max_t: int, grace_period: int = 1, min_trials: int = 5) -> None:
        self.max_t: int = max_t
        self._grace_period = grace_period
        self._min_trials = min_trials
        self._sums: dict[int, tuple[int, float]] = {}
        self._best: dict[int, float] = {}
        self._averages: dict[int, dict[int, float]] = {}

    def first_milestone(self, bracket: int) -> int:
        return self.max_t

    def start(self, trial_id: int, bracket: int) -> int:
        return self.max_t

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        if not math.isfinite(value):
            is_over = resource >= self.max_t
            return Ruling(Verdict.STOP, f"the metric is {value} at {resource}", completed=is_over)
        count, total = self._sums.get(trial_id, (0, 0.0))
        self._sums[trial_id] = (count + 1, total + value)
        best = self._best[trial_id] = min(value, self._best.get(trial_id, math.inf))
        averages = self._averages.setdefault(resource, {})
        others = list(averages.values())
        averages[trial_id] = (total + value) / (count + 1)
        if resource >= self.max_t:
            return Ruling(Verdict.STOP, f"trained to max_t={self.max_t}", level=self.max_t, completed=True)
        if resource < self._grace_period or len(others) < self._min_trials:
            return Ruling(Verdict.CONTINUE, f"too few trials to judge at {resource}")
        middle = median(others)
        against = f"the median of {len(others)} running averages at {resource}"
        if best > middle:
            return Ruling(Verdict.STOP, f"its best value is worse than {against}")
        return Ruling(Verdict.CONTINUE, f"its best value is not worse than {against}")
