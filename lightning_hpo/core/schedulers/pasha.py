"""PASHA: promotion under a ceiling that grows while the ranking of the best trials is not stable.

A value that is not finite counts as the worst, equal to others that are not; it says nothing of the noise.

Source: Bohdal et al., arXiv:2207.06940, soft ranking with automatically estimated epsilon (sections 4.2 and 4.3).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hpo.core.rungs import Rung
from lightning_hpo.core.schedulers.base import Ruling
from lightning_hpo.core.schedulers.hyperband import PromotionAsha

Array: TypeAlias = npt.NDArray[np.float64]


class Pasha(PromotionAsha):
    """Promotion type with a growing ceiling.

    Args:
        args, options: as for :class:`PromotionAsha`.
        mode: the sense of the metric before it was turned into a value to be minimised. It decides how two trials
            with equal values are ordered when their curves are compared (the later trial first for ``max``), as in
            the reference implementation.
    """

    def __init__(self, *args: Any, mode: str = "min", **options: Any) -> None:
        super().__init__(*args, **options)
        self._ceilings = [_Ceiling(rungs, self.max_t, later_first=mode == "max") for rungs in self._systems]

    def ceiling(self, system: int = 0) -> int:
        """Largest resource to which trials of the system are promoted at present."""
        return self._ceilings[system].resource

    def epsilon(self, system: int = 0) -> float:
        """Difference of values below which two trials count as equally good."""
        return self._ceilings[system].epsilon

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        ruling = super().report(trial_id, resource, value, cost)
        if resource < self.max_t:
            self._ceilings[self.system_of(self._jobs[trial_id].bracket)].update(trial_id, resource, value)
        return ruling

    def repeat(self, trial_id: int, resource: int, value: float) -> None:
        if resource < self.max_t:
            self._ceilings[self.system_of(self._jobs[trial_id].bracket)].update(trial_id, resource, value)

    def _ceiling_of(self, trial_id: int) -> int:
        return self.ceiling(self.system_of(self._jobs[trial_id].bracket))

    def _may_promote_from(self, system: int, level: int) -> bool:
        return level < self._ceilings[system].resource


class _Ceiling:
    """Ceiling and noise estimate of one rung system."""

    def __init__(self, rungs: dict[int, Rung], max_t: int, later_first: bool) -> None:
        self._later_first = later_first
        self._rungs = list(rungs.values())
        self._max_t = max_t
        self._top = min(2, len(self._rungs))
        self.resource = max_t if len(self._rungs) < 2 else self._rungs[self._top - 1].level
        self._epsilon = 0.0
        self._curves: dict[int, dict[int, float]] = {}
        self._largest_epoch = 0
        self._is_due = False
        self._window = (0, 0)
        self._gaps: dict[tuple[int, int], float] = {}
        self._ordered_gaps = np.empty(0)
        self._disorder = 0.0
        self._disorder_of: tuple[int, int, int] | None = None
        """What the disorder is of: it is looked for again only where that has changed."""
        self._in_window: dict[int, None] = {}
        """Trials that reported in the window; only these have to be compared."""

    def update(self, trial_id: int, epoch: int, value: float) -> None:
        curve = self._curves.setdefault(trial_id, {})
        is_new = epoch not in curve
        curve[epoch] = value if math.isfinite(value) else math.inf
        self._largest_epoch = max(self._largest_epoch, epoch)
        if len(self._rungs) < 2:
            return
        if self.resource == self._max_t:
            self._is_due = True  # the ceiling cannot grow any more: epsilon is worked out only if somebody asks
            return
        self._update_epsilon(trial_id if is_new else None)
        self._grow_unless_stable()

    @property
    def epsilon(self) -> float:
        """See :meth:`Pasha.epsilon`."""
        if self._is_due:
            self._window, self._is_due = (0, 0), False
            self._update_epsilon(None)
        return self._epsilon

    def _update_epsilon(self, trial_id: int | None) -> None:
        top, below = self._rungs[self._top - 1].level, self._rungs[self._top - 2].level
        window = (min(below, self._largest_epoch), min(top, self._largest_epoch))
        if window != self._window:
            # The epochs that count have moved: every pair has to be looked at again.
            self._window = window
            ids = sorted(i for i, curve in self._curves.items() if self._reaches_window(curve))
            self._in_window = dict.fromkeys(ids)
            found = {pair: gap for pair in itertools.combinations(ids, 2) if (gap := self._gap(*pair)) is not None}
            self._gaps, self._ordered_gaps = found, np.sort(list(found.values()))
        elif trial_id is not None and self._reaches_window(self._curves[trial_id]):
            self._in_window[trial_id] = None
            pairs = [(min(trial_id, i), max(trial_id, i)) for i in self._in_window if i != trial_id]
            gone = [gap for pair in pairs if (gap := self._gaps.pop(pair, None)) is not None]
            new = {pair: gap for pair in pairs if (gap := self._gap(*pair)) is not None}
            self._gaps |= new
            self._ordered_gaps = _exchanged(self._ordered_gaps, gone, list(new.values()))
        if self._gaps:
            self._epsilon = _percentile_90(self._ordered_gaps)

    def _reaches_window(self, curve: dict[int, float]) -> bool:
        low, high = self._window
        return any(e in curve for e in range(high, low, -1))

    def _gap(self, first: int, second: int) -> float | None:
        """The pair's difference if its curves crossed twice before their last common epoch of the window."""
        a, b = self._curves[first], self._curves[second]
        if self._later_first:
            a, b = b, a
        low, high = self._window
        gap: float | None = None
        order = crossed = False
        for epoch in range(high, 0, -1):
            if epoch not in a or epoch not in b:
                continue
            if gap is None:
                gap, order = abs(a[epoch] - b[epoch]), a[epoch] > b[epoch]
                # How far a trial that diverged is from another says nothing of the noise.
                if epoch <= low or not math.isfinite(gap):
                    return None
            elif (a[epoch] > b[epoch]) != order:
                crossed = True
            elif crossed:
                return gap
        return None

    def _grow_unless_stable(self) -> None:
        top, below = self._rungs[self._top - 1], self._rungs[self._top - 2]
        if not len(top) or not len(below):
            return
        # Who is in the upper rung was promoted from the lower one before: nothing else changes their order.
        disorder_of = self._top, len(top), below.num_promoted
        if disorder_of != self._disorder_of:
            self._disorder, self._disorder_of = _disorder(top, below), disorder_of
        if self._disorder <= self._epsilon:
            return
        if self._top < len(self._rungs):
            self._top += 1
            self.resource = self._rungs[self._top - 1].level
        else:
            self.resource = self._max_t


def _disorder(top: Rung, below: Rung) -> float:
    """How far the i-th trial of the upper rung is from the i-th of the lower one, for the i where that is most.

    Their values in the lower rung tell; 0 if both rungs have the same order.
    """
    under = [e for e in below.ranked() if e.trial_id in top]
    position = {e.trial_id: i for i, e in enumerate(under)}
    above = [e.trial_id for e in top.ranked() if math.isfinite(e.value)]
    diverged = [e.trial_id for e in top.ranked() if not math.isfinite(e.value)]
    above += sorted(diverged, key=lambda i: position.get(i, len(under)))  # equally bad: in the order they had below
    most = 0.0
    for i, trial_id in enumerate(above[: len(under)]):
        own = position.get(trial_id)
        if own != i:
            gap = math.inf if own is None else abs(under[own].value - under[i].value)
            most = max(most, math.inf if math.isnan(gap) else gap)
    return most


def _exchanged(ordered: Array, gone: list[float], new: list[float]) -> Array:
    """The numbers without some of them and with others, in order again."""
    if gone:
        leaving = np.sort(gone)
        same = np.arange(len(leaving)) - np.searchsorted(leaving, leaving)  # of equal ones each has a place of its own
        ordered = np.delete(ordered, np.searchsorted(ordered, leaving) + same)
    if new:
        coming = np.sort(new)
        ordered = np.insert(ordered, np.searchsorted(ordered, coming), coming)
    return ordered


def _percentile_90(ordered: Array) -> float:
    """What ``numpy.percentile(ordered, 90)`` returns, to the last bit, without a look at all of them."""
    position = (len(ordered) - 1) * 0.9
    lower = math.floor(position)
    low, high = float(ordered[lower]), float(ordered[min(lower + 1, len(ordered) - 1)])
    share = position - lower
    return high - (high - low) * (1.0 - share) if share >= 0.5 else low + (high - low) * share
