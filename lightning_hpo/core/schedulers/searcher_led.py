"""Promotion and stopping by the searcher: its model decides which trial goes on.

Who may go on is no question of rank here: a model that knows new and paused trials alike says which of them is worth
more (:mod:`lightning_hpo.searchers.freeze_thaw`; Swersky, Snoek, Adams, arXiv:1406.3896). The searcher also names the
milestone. Those of this package name the next rung; a searcher may let trials run through rungs, as earlier versions of
ours did, whose studies are continued.

Where trials are stopped instead of paused, the answer must be there when a trial reports. So with every suggestion the
searcher says of each running trial with which values at the rungs before it that one is still worth more than a new
one (:mod:`lightning_hpo.searchers.rate_choice`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lightning_hpo.core.events import Limit, Verdict
from lightning_hpo.core.observations import bounded, settled_value
from lightning_hpo.core.rungs import Rung
from lightning_hpo.core.schedulers.base import Promotion, Ruling
from lightning_hpo.core.schedulers.hyperband import AsynchronousHyperband, PromotionAsha, StoppingAsha

_PATIENCE = 3
"""After so many suggestions in a row that were not the model's, the model has failed."""


class _SearcherLed(AsynchronousHyperband):
    """Knows whether the searcher leads at present.

    Args:
        args, options: as for :class:`~lightning_hpo.core.schedulers.hyperband.AsynchronousHyperband`.
    """

    is_searcher_led = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since_model = _PATIENCE

    def follow(self, origin: str, limits: Iterable[Limit]) -> None:
        self._since_model = 0 if origin == "model" else self._since_model + 1

    @property
    def _is_led(self) -> bool:
        return self._since_model < _PATIENCE and not self._is_closed


class SearcherLedPromotion(_SearcherLed, PromotionAsha):
    """A trial pauses at the milestone the searcher chose, and goes on when the searcher says so.

    The rank of a trial within its rung decides, as in :class:`PromotionAsha`, where no model does: before its first
    suggestion, if it fails, and once no new trial will be started. If that leaves no trial that was trained to the end,
    the best goes on to it.

    Args:
        args, options: as for :class:`PromotionAsha`.
    """

    def aim(self, trial_id: int, milestone: int) -> int:
        job = self._jobs[trial_id]
        job.milestone = self._level(milestone)
        return job.milestone

    def _level(self, milestone: int) -> int:
        """The milestone itself if it is one, else the next one above it."""
        return next((level for level in self.levels if level >= milestone), self.max_t)

    def promote(self, bracket: int, is_paused: Callable[[int], bool]) -> Promotion | None:
        return None if self._is_led else super().promote(bracket, is_paused)

    def last_resort(self, is_paused: Callable[[int], bool]) -> Promotion | None:
        """The best of the highest rung: in a study of few trials no rank may have sent one on to the end."""
        (rungs,) = self._systems
        for rung in reversed(rungs.values()):
            found = next((e for e in rung.waiting() if is_paused(e.trial_id) and math.isfinite(e.value)), None)
            if found is not None:
                return self.resume(found.trial_id, self.max_t)
        return None

    def resume(self, trial_id: int, milestone: int) -> Promotion | None:
        rung = self._rung_of(trial_id)
        if rung is None:
            return None
        value = rung.value_of(trial_id)
        rung.mark_promoted(trial_id)
        job = self._jobs[trial_id]
        job.resume_from, job.milestone = rung.level, max(self._level(milestone), rung.next_level)
        reason = f"rank {rung.rank(value)} of {len(rung)} at rung {rung.level}"
        return Promotion(trial_id, rung.level, job.milestone, reason)

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        job = self._jobs[trial_id]
        if not math.isfinite(value) and job.resume_from < resource < job.milestone and resource in self.levels:
            job.milestone = resource  # a rung that it was to run through; nothing better is to come
        return super().report(trial_id, resource, value, cost)

    def held_back(self, trial_id: int) -> str | None:
        return None if self._is_led else super().held_back(trial_id)


class SearcherLedStopping(_SearcherLed, StoppingAsha):
    """A trial goes on past a rung if its value there is within the limit that the searcher has set for it.

    While all that run go on, no worker is free, nothing is suggested, and limits grow old: so what is worse than a
    trial that went on from the rung, of which the searcher did not know when it was last asked, does not go on. Its
    worker gets a new trial, and those that run get new limits with it. Not so in batches, where it would get none.

    The rank of a trial within its rung decides, as in :class:`StoppingAsha`, where there is no limit: before the first
    suggestion of a model, if it fails, and for what the searcher did not choose. While new trials are started, no more
    than the quantile of a rung are sent on then, but one at least: the first ones are not all trained to the end
    because there are too few to compare them with, and one is, from which the model learns what the rungs tell.

    Args:
        args, options: as for :class:`StoppingAsha`.
        in_batches: new trials are started in batches.
    """

    wants_limits = True

    def __init__(self, *args: Any, in_batches: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_batches = in_batches
        self._limits: dict[int, dict[int, float]] = {}
        """Trial -> rung -> the highest value with which it goes on."""
        self._curves: dict[int, dict[int, float]] = {}
        """Finite reports of the trials that run."""
        self._unknown: dict[int, float] = {}
        """Rung -> the lowest value with which a trial went on, of which the searcher's last answer knows nothing."""
        self._since_asked: dict[int, float] = {}
        """The same since the searcher was asked."""

    def asked(self) -> None:
        self._since_asked = {}

    def follow(self, origin: str, limits: Iterable[Limit]) -> None:
        super().follow(origin, limits)
        self._unknown = dict(self._since_asked)
        for trial_id, level, value in limits:
            self._limits.setdefault(trial_id, {})[level] = value

    def aim(self, trial_id: int, milestone: int) -> int:
        return self._jobs[trial_id].milestone  # every rung judges

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        curve = self._curves.setdefault(trial_id, {})
        if math.isfinite(value):
            curve[resource] = bounded(value)
        ruling = super().report(trial_id, resource, value, cost)
        if ruling.completed or ruling.verdict is Verdict.STOP:
            self._forget(trial_id)
        return ruling

    def fail(self, trial_id: int) -> None:
        super().fail(trial_id)
        self._forget(trial_id)

    def _forget(self, trial_id: int) -> None:
        self._curves.pop(trial_id, None)
        self._limits.pop(trial_id, None)

    def _judge(self, trial_id: int, rung: Rung, value: float) -> tuple[bool, str]:
        limit = self._limits.get(trial_id, {}).get(rung.level)
        settled = settled_value(self._curves[trial_id], rung.level)
        if limit is None or settled is None or not self._is_led:
            goes_on, why = self._judge_by_rank(trial_id, rung, value)
        elif settled > limit:
            goes_on, why = False, "promises less than a new trial"
        elif settled > self._unknown.get(rung.level, math.inf) and not self._in_batches:
            goes_on, why = False, "another has just done better, and its limit is older than that"
        else:
            goes_on, why = True, "promises more than a new trial"
            self._unknown[rung.level] = self._since_asked[rung.level] = settled
        if goes_on:
            rung.mark_promoted(trial_id)
        return goes_on, why

    def _judge_by_rank(self, trial_id: int, rung: Rung, value: float) -> tuple[bool, str]:
        if not self._is_closed and rung.num_promoted >= max(1.0, rung.quantile * len(rung)):
            return False, "the rung has sent on its share"
        return super()._judge(trial_id, rung, value)
