"""What a searcher may learn from, and what it is to expect.

============================  =====================================================================================
``searcher_data``             observations; pending evaluations of a running trial
============================  =====================================================================================
``rungs`` (default)           reports at a rung level or ``max_t``; its next milestone
``all``                       every report; every resource up to its next milestone
``rungs_and_last``            as ``all``, but only the last observation stays of those between milestones
============================  =====================================================================================

With ``register_pending_myopic`` (no effect on ``rungs``) only the next unit of resource is pending.
Source: Klein et al., arXiv:2003.10865, section 3 (pending evaluations are part of the model).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from lightning_hpo.core.searcher import Observation, Pending
from lightning_hpo.errors import OptionError

KINDS = ("rungs", "all", "rungs_and_last")
LARGEST = 1e100
"""Size at which values are cut for searchers: squares of larger ones overflow, and no trial is worse than diverged."""


def bounded(value: float) -> float:
    """The value, cut to +-:data:`LARGEST`."""
    return max(-LARGEST, min(value, LARGEST))


def settled_value(curve: Mapping[int, float], level: int) -> float | None:
    """What a trial reached at a rung: the median of the second half of its curve up to there. Single epochs are noisy.

    Args:
        curve: finite reports, resource -> value.
        level: resource of the rung.

    Returns:
        None without a report in that half: a trial that ended by itself may have ended before.
    """
    # Where not every unit is reported, it may be a later report that counted for the rung.
    until = min((resource for resource in curve if resource >= level), default=level)
    late = [value for resource, value in curve.items() if level // 2 < resource <= until]
    return statistics.median(late) if late else None


class SearcherData:
    """Observations and pending evaluations, kept up to date event by event.

    Args:
        kind: ``rungs``, ``all`` or ``rungs_and_last``.
        levels: rung levels below ``max_t``.
        max_t: largest resource, None if unknown.
        myopic: see ``register_pending_myopic`` above.
        at_completion: the searcher learns from the last report of a complete trial only (FIFO).
    """

    def __init__(
        self,
        kind: str = "rungs",
        levels: Collection[int] = (),
        max_t: int | None = None,
        myopic: bool = False,
        at_completion: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise OptionError(f"searcher_data={kind!r} is unknown. Choose one of {', '.join(KINDS)}.")
        self._kind = kind
        self._levels = sorted(levels)
        self._observed_levels = frozenset([*levels, *([max_t] if max_t else [])])
        self._max_t = max_t
        self._myopic = myopic and kind != "rungs"
        self._at_completion = at_completion
        self._observations: dict[tuple[int, int], float] = {}
        self._pending: dict[tuple[int, int], None] = {}
        self._pending_of: dict[int, set[int]] = {}
        self._listed: list[Observation] | None = None
        """The observations as they were last asked for, None if others have come since."""
        self._droppable: dict[int, int] = {}
        """Trial -> resource of the observation that the next one replaces (``rungs_and_last``)."""

    def observations(self) -> Sequence[Observation]:
        """In the order of arrival."""
        if self._listed is None:
            self._listed = [Observation(trial, r, value) for (trial, r), value in self._observations.items()]
        return self._listed

    def pending(self) -> Sequence[Pending]:
        """In the order of registration."""
        return [Pending(trial, resource) for trial, resource in self._pending]

    def __len__(self) -> int:
        return len(self._observations)

    # -- events

    def start(self, trial_id: int, milestone: int) -> None:
        """A trial runs from the beginning towards its first milestone."""
        self._expect(trial_id, 0, milestone)

    def resume(self, trial_id: int, from_resource: int, milestone: int) -> None:
        """A paused trial goes on."""
        self._droppable.pop(trial_id, None)
        self._expect(trial_id, from_resource, milestone)

    def report(
        self, trial_id: int, resource: int, value: float, level: int | None, milestone: int | None, continues: bool
    ) -> None:
        """A running trial reported.

        Args:
            value: to be minimised; values that are not finite are no observations.
            level: the milestone for which the report counted, if any.
            milestone: the next milestone, if the trial continues past one.
            continues: the trial was told to go on.
        """
        if self._at_completion:
            return
        if level is not None or milestone is not None:
            # A level that was jumped over will never be reported.
            for passed in [r for r in self._pending_of.get(trial_id, ()) if r <= resource]:
                self._forget(trial_id, passed)
        self._forget(trial_id, resource)
        observed = level if level is not None and self._kind == "rungs" else resource
        if (self._kind != "rungs" or observed in self._observed_levels) and math.isfinite(value):
            self._observe(trial_id, observed, bounded(value), at_milestone=level is not None)
        if not continues:
            self.drop_pending(trial_id)
        elif milestone is not None:
            self._expect(trial_id, resource, milestone)
        elif self._myopic:
            self._expect(trial_id, resource, resource + 1)

    def complete(self, trial_id: int, resource: int, value: float) -> None:
        """A trial ended by itself with this last report."""
        self.drop_pending(trial_id)
        if not math.isfinite(value) or resource < 1:
            return
        value = bounded(value)
        self._listed = None
        if self._at_completion:
            self._observations[trial_id, resource] = value
        elif self._kind == "rungs":
            # It ended between two levels, for good: this is the value it would have at the next one.
            level = next((r for r in self._levels if r >= resource), self._max_t or resource)
            self._observations.setdefault((trial_id, level), value)
        else:
            self._observations.setdefault((trial_id, resource), value)

    def drop_pending(self, trial_id: int) -> None:
        """Nothing more is expected of the trial; its observations stay."""
        for resource in self._pending_of.pop(trial_id, ()):
            self._pending.pop((trial_id, resource), None)

    # -- details

    def _observe(self, trial_id: int, resource: int, value: float, at_milestone: bool) -> None:
        self._listed = None
        if self._kind == "rungs_and_last":
            dropped = self._droppable.pop(trial_id, None)
            if dropped is not None:
                self._observations.pop((trial_id, dropped), None)
            if not at_milestone:
                self._droppable[trial_id] = resource
        self._observations[trial_id, resource] = value

    def _expect(self, trial_id: int, known: int, milestone: int) -> None:
        if self._kind == "rungs" or self._at_completion:
            expected: Sequence[int] = (milestone,)
        elif self._myopic:
            expected = (known + 1,)
        else:
            expected = range(known + 1, milestone + 1)
        for resource in expected:
            self._pending[trial_id, resource] = None
            self._pending_of.setdefault(trial_id, set()).add(resource)

    def _forget(self, trial_id: int, resource: int) -> None:
        self._pending.pop((trial_id, resource), None)
        self._pending_of.get(trial_id, set()).discard(resource)
