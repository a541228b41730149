"""PASHA: promotion under a ceiling that grows while the ranking of the best trials is not stable.

A value that is not finite counts as the worst, equal to others that are not; it says nothing of the noise.

Source: Bohdal et al., arXiv:2207.06940, soft ranking with automatically estimated epsilon (sections 4.2 and 4.3).
"""

from __future__ import annotations

import bisect
import math
import operator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hpo.core.rungs import Rung
from lightning_hpo.core.schedulers.base import Ruling
from lightning_hpo.core.schedulers.hyperband import PromotionAsha

_Floats: TypeAlias = npt.NDArray[np.float64]
_Rows: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]


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
    """Ceiling of one rung system."""

    def __init__(self, rungs: dict[int, Rung], max_t: int, later_first: bool) -> None:
        self._rungs = list(rungs.values())
        self._max_t = max_t
        self._top = min(2, len(self._rungs))
        self.resource = max_t if len(self._rungs) < 2 else self._rungs[self._top - 1].level
        self._noise = _Noise(later_first)
        self._ranking = _Ranking()

    @property
    def epsilon(self) -> float:
        return self._noise.epsilon

    def update(self, trial_id: int, epoch: int, value: float) -> None:
        if len(self._rungs) < 2:
            return
        top, below = self._rungs[self._top - 1], self._rungs[self._top - 2]
        self._noise.report(trial_id, epoch, value, (below.level, top.level))
        if self.resource == self._max_t:
            return
        if trial_id in top:
            self._ranking.add(trial_id, top, below)
        if not self._noise.reaches(self._ranking.difference):
            self._grow()

    def _grow(self) -> None:
        if self._top == len(self._rungs):
            self.resource = self._max_t
            self._noise.rest()
            return
        self._top += 1
        top, below = self._rungs[self._top - 1], self._rungs[self._top - 2]
        self.resource = top.level
        self._ranking = _Ranking()
        for entry in top.ranked():
            self._ranking.add(entry.trial_id, top, below)


class _Ranking:
    """The trials of the upper rung, ranked by their values there and by those at the lower rung.

    Attributes:
        difference: the largest difference, at the lower rung, between the trial that is i-th at the upper rung and the
            one that is i-th at the lower one. The ranking is stable if epsilon is not less: the trials within epsilon
            of the latter are its neighbours in a sorted list, and for every i the former has to be one of them.
    """

    def __init__(self) -> None:
        self.difference = 0.0
        self._trials: set[int] = set()
        self._above: list[float] = []
        """Values at the upper rung, sorted."""
        self._of_above: list[float] = []
        """The same trials' values at the lower rung; infinite if they were never there, so near to nobody."""
        self._below: list[float] = []
        """Values at the lower rung, sorted."""

    def add(self, trial_id: int, top: Rung, below: Rung) -> None:
        """A trial has reached the upper rung. Equal ones are to be added in the order in which they came there."""
        if trial_id in self._trials:
            return
        self._trials.add(trial_id)
        value, lower = top.value_of(trial_id), math.inf
        if trial_id in below:
            lower = below.value_of(trial_id)
            bisect.insort(self._below, lower)
        place = bisect.bisect_right(self._above, value)
        if math.isinf(value):
            # Who diverged is as bad as the others that did: their order is the one that they had below.
            place = bisect.bisect_right(self._of_above, lower, lo=bisect.bisect_left(self._above, value))
        self._above.insert(place, value)
        self._of_above.insert(place, lower)
        self.difference = max(map(abs, map(operator.sub, self._of_above, self._below)), default=0.0)


class _Noise:
    """Epsilon: the 90th percentile of the gaps between trials whose curves cross back and forth.

    Counted is each pair of trials that both reported in the window of epochs from the lower rung (without it) to the
    upper one, and whose order changed at least twice until their last common epoch there. Its gap is the difference of
    their values at that epoch. A report changes the pairs of one trial only, and only if its epoch is new; a trial's
    epochs come in increasing order.
    """

    def __init__(self, later_first: bool) -> None:
        self._later_first = later_first
        self._curves: dict[int, dict[int, float]] = {}
        self._largest_epoch = 0
        self._low = self._high = 0
        self._epsilon: float | None = 0.0
        """None: the gaps have changed since it was last computed."""
        self._is_resting = self._is_stale = False
        self._forget_pairs()

    def _forget_pairs(self) -> None:
        self._gaps = _Multiset()
        self._rows: dict[int, int] = {}
        """Trials of the window, numbered from 0 on."""
        self._ids = np.zeros(0, dtype=np.int64)
        self._values: dict[int, _Floats] = {}
        """Epoch -> value by row, NaN where there is none."""
        self._changes = np.zeros((0, 0), dtype=np.uint8)
        """How often the order of two rows changed; more than two counts as two."""

    @property
    def epsilon(self) -> float:
        if self._is_stale:
            self._is_stale = False
            self._find_pairs()
        if self._epsilon is None:
            self._epsilon = float(np.percentile(self._gaps.sorted(), 90))
        return self._epsilon

    def reaches(self, difference: float) -> bool:
        """Is epsilon at least as large?

        The percentile lies between two neighbouring gaps. Unless the difference does so, too, counting is enough.
        """
        if self._epsilon is not None:
            return difference <= self._epsilon
        neighbour = int((len(self._gaps) - 1) * 0.9)
        smaller = self._gaps.count_below(difference)
        if smaller == neighbour + 1:
            return difference <= self.epsilon
        return smaller <= neighbour

    def rest(self) -> None:
        """Nothing depends on epsilon any more: it is worked out only if somebody asks.

        If by then every pair has gone because trials diverged, it is what it was last known to be.
        """
        self._epsilon = self.epsilon
        self._is_resting = True
        self._forget_pairs()

    def report(self, trial_id: int, epoch: int, value: float, window: tuple[int, int]) -> None:
        """A trial reported; what it has reported before it only repeats.

        Args:
            window: levels of the lower and the upper rung. Epochs that nobody has reached yet do not count.
        """
        curve = self._curves.setdefault(trial_id, {})
        is_new = epoch not in curve
        curve.setdefault(epoch, value if math.isfinite(value) else math.inf)
        self._largest_epoch = max(self._largest_epoch, epoch)
        low, self._high = min(window[0], self._largest_epoch), min(window[1], self._largest_epoch)
        if self._is_resting:
            self._is_stale = True
        elif low != self._low:
            self._epsilon = self.epsilon
            self._low = low
            self._find_pairs()
        elif is_new and trial_id in self._rows and epoch <= self._high:
            self._compare(self._rows[trial_id], epoch, curve[epoch])
        elif is_new and self._low < epoch <= self._high:
            self._enter(trial_id)

    def _find_pairs(self) -> None:
        """Compare all trials anew. If no pair is counted, epsilon stays."""
        before = self._epsilon
        self._forget_pairs()
        for trial_id in self._curves:
            self._enter(trial_id)
        self._epsilon = None if len(self._gaps) else before

    def _enter(self, trial_id: int) -> None:
        """Compare the trial with all others of the window, if it has reported there itself."""
        epochs = [e for e in sorted(self._curves[trial_id]) if e <= self._high]
        if not epochs or epochs[-1] <= self._low:
            return
        row = self._rows[trial_id] = len(self._rows)
        if row == len(self._ids):
            more = 16 + row // 4
            self._ids = np.pad(self._ids, (0, more))
            self._changes = np.pad(self._changes, (0, more))
            self._values = {e: np.pad(v, (0, more), constant_values=math.nan) for e, v in self._values.items()}
        self._ids[row] = trial_id
        for epoch in epochs:
            self._compare(row, epoch, self._curves[trial_id][epoch])

    def _compare(self, row: int, epoch: int, value: float) -> None:
        """Compare a trial with all others that have reported at the epoch, now that it has, too."""
        if epoch not in self._values:
            self._values[epoch] = np.full(len(self._ids), math.nan)
        met: _Rows = np.flatnonzero(~np.isnan(self._values[epoch]))
        self._values[epoch][row] = value
        gone: list[_Floats] = []
        left = met
        for last in range(epoch - 1, 0, -1):
            if not len(left):
                break
            if last not in self._values or math.isnan(self._values[last][row]):
                continue
            had = ~np.isnan(self._values[last][left])
            both, left = left[had], left[~had]
            if last > self._low:
                gone.append(self._crossed_gaps(row, both, last))
            changed = self._order(row, both, epoch) != self._order(row, both, last)
            self._changes[row, both] = np.minimum(self._changes[row, both] + changed, 2)
            self._changes[both, row] = self._changes[row, both]
        if epoch > self._low:
            self._replace(gone, self._crossed_gaps(row, met, epoch))

    def _order(self, row: int, others: _Rows, epoch: int) -> _Flags:
        """Of each pair, is the one that counts as the first worse?"""
        values = self._values[epoch]
        mine, theirs = values[row], values[others]
        others_first = (self._ids[others] < self._ids[row]) != self._later_first
        is_first_worse: _Flags = np.where(others_first, theirs > mine, mine > theirs)
        return is_first_worse

    def _crossed_gaps(self, row: int, others: _Rows, epoch: int) -> _Floats:
        crossed = others[self._changes[row, others] >= 2]
        values = self._values[epoch]
        with np.errstate(invalid="ignore", over="ignore"):
            gaps: _Floats = np.abs(values[crossed] - values[row])
        finite: _Floats = gaps[np.isfinite(gaps)]  # how far a trial that diverged is from another is not noise
        return finite

    def _replace(self, gone: list[_Floats], new: _Floats) -> None:
        removed = np.concatenate([*gone, np.zeros(0)])
        if not len(removed) and not len(new):
            return
        if len(removed) == len(self._gaps) and not len(new):
            self._epsilon = self.epsilon  # stays while there is no pair
            self._gaps = _Multiset()
            return
        self._gaps.add(new)
        self._gaps.remove(removed)
        self._epsilon = None


class _Multiset:
    """Numbers of which many come and go at a time.

    Those that came and those that went are kept in sorted runs, each at least twice as long as the next. So few of
    them have to be merged for new ones, and counting takes a bisection of each run.
    """

    def __init__(self) -> None:
        self._came: list[_Floats] = []
        self._went: list[_Floats] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, values: _Floats) -> None:
        self._size += len(values)
        _merge(self._came, values)

    def remove(self, values: _Floats) -> None:
        """All of them must be there."""
        self._size -= len(values)
        _merge(self._went, values)
        if sum(map(len, self._went)) > self._size:
            self._came, self._went = [self.sorted()], []

    def count_below(self, value: float) -> int:
        came = sum(int(run.searchsorted(value)) for run in self._came)
        return came - sum(int(run.searchsorted(value)) for run in self._went)

    def sorted(self) -> _Floats:
        came, went = (np.sort(np.concatenate([*runs, np.zeros(0)]), kind="stable") for runs in (self._came, self._went))
        # The n-th of equal numbers that went takes with it the n-th of those that came.
        nth = np.arange(len(went)) - np.searchsorted(went, went)
        return np.delete(came, np.searchsorted(came, went) + nth)


def _merge(runs: list[_Floats], values: _Floats) -> None:
    while runs and len(runs[-1]) < 2 * len(values):
        values = np.concatenate([runs.pop(), values])
    if len(values):
        runs.append(np.sort(values, kind="stable"))  # which is fast where there are sorted runs
