"""Would a trial that goes on still beat the best value?

Being among the best of a rung is no reason to train on: where the rungs above are full of better values already, most
promotions improve nothing. How far values fall between two levels is learned from the trials that were trained from one
to the other, and says how probable it is that another one falls as far as it has to.

==============  ===================================================================================================
``v``           the trial's value at level ``r``
``best``        the lowest value any trial has reported, at any resource
``fall``        of a trial trained from ``r`` to ``r'``: its value at ``r`` minus its lowest value in between
``m, s, k``     mean, standard deviation and number of the falls of the (at most 6) trials whose value at ``r`` was
                nearest to ``v``
==============  ===================================================================================================

The falls are taken for normal, so that the next one, standardised by ``s sqrt(1 + 1/k)``, has Student's distribution
with ``k - 1`` degrees of freedom. The probability to improve is that of a fall of more than ``v - best``, for the level
``r'`` at which it is largest. It is unknown as long as fewer than three trials have been trained from ``r`` to each
level above, or ended on the way: what ends falls no further.

Only trials that went on teach anything, so that what lies far above is learned from those that were good all the way;
and a kind of trial that looks bad at first and is never sent on is judged by the others for good.

Source: the prediction interval of a normal sample (Student, *The probable error of a mean*, 1908). That a paused trial
is to be judged by what it may still reach is the idea of Swersky, Snoek, Adams, *Freeze-Thaw Bayesian Optimization*,
arXiv:1406.3896.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from lightning_hpo.core.observations import bounded

_NEIGHBOURS = 6
_NEEDED = 3
"""Falls below this number say too little of the next one."""


class Prospects:
    """Learns from the reports of all trials how probable it is that one of them improves on the best value.

    Args:
        levels: at which trials are judged, increasing, ``max_t`` included.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self._levels = tuple(levels)
        self._best = math.inf
        self._passed: dict[int, dict[int, list[float]]] = {}
        """Trial -> level -> its value there, and its lowest value since."""
        self._falls: dict[tuple[int, int], list[tuple[float, float]]] = {}
        """Level, level above -> (value at the level, fall), sorted."""

    def report(self, trial_id: int, value: float, level: int | None) -> None:
        """A trial reported.

        Args:
            value: to be minimised; with one that is not finite at a level, the trial has ended.
            level: at which the report counts, if any.
        """
        if not math.isfinite(value):
            for since in self._passed.get(trial_id, {}).values():
                since[1] = min(since)
            if level is not None:
                self.end(trial_id)
            return
        value = bounded(value)
        self._best = min(self._best, value)
        passed = self._passed.setdefault(trial_id, {})
        for since in passed.values():
            since[1] = min(since[1], value)
        if level is None:
            return
        for below, since in passed.items():
            self._learn(below, level, since)
        passed[level] = [value, math.inf]

    def end(self, trial_id: int) -> None:
        """The trial will report no more: wherever it did not get, it has fallen as far as it has until now."""
        passed = self._passed.pop(trial_id, {})
        for above in self._levels[bisect.bisect(self._levels, max(passed, default=0)) :]:
            for below, since in passed.items():
                if since[1] < math.inf:
                    self._learn(below, above, since)

    def _learn(self, below: int, above: int, since: Sequence[float]) -> None:
        there, lowest = since
        bisect.insort(self._falls.setdefault((below, above), []), (there, there - lowest))

    def improvement(self, trial_id: int, level: int, ceiling: int) -> float | None:
        """Probability that a trial which was judged at ``level`` improves on the best value; None: unknown.

        Args:
            ceiling: highest level to which trials go.
        """
        if level not in self._passed.get(trial_id, {}):
            return None
        there = self._passed[trial_id][level][0]
        needed = there - self._best
        chances = []
        for above in self._levels[bisect.bisect(self._levels, level) : bisect.bisect(self._levels, ceiling)]:
            falls = self._falls.get((level, above), [])
            if len(falls) < _NEEDED:
                return None
            chances.append(_probability(_nearest(falls, there), needed))
        return max(chances, default=None)


def _nearest(falls: Sequence[tuple[float, float]], value: float) -> list[float]:
    """Falls of the trials whose values were nearest, at most six."""
    low = high = bisect.bisect(falls, (value, math.inf))
    while high - low < min(_NEIGHBOURS, len(falls)):
        if high == len(falls) or (low > 0 and value - falls[low - 1][0] <= falls[high][0] - value):
            low -= 1
        else:
            high += 1
    return [fall for _, fall in falls[low:high]]


def _probability(falls: Sequence[float], needed: float) -> float:
    """That the next fall is more than ``needed``."""
    # Python's statistics would compute with exact fractions, a hundred times slower.
    k = len(falls)
    mean = math.fsum(falls) / k
    scale = math.hypot(*(fall - mean for fall in falls)) * math.sqrt((1.0 + 1.0 / k) / (k - 1))
    missing = needed - mean
    if scale == 0.0:
        return float(missing < 0.0)
    return student_tail(missing / scale, k - 1)


def student_tail(t: float, freedom: int) -> float:
    """Probability that Student's variable with ``freedom`` degrees of freedom is larger than ``t``.

    The sum is finite: Abramowitz, Stegun, *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    squared = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 0.0
    for j in range(1, freedom // 2 + 1):
        total += term
        term *= squared * ((2 * j) / (2 * j + 1) if odd else (2 * j - 1) / (2 * j))
    total *= math.sin(angle)
    central = (angle + math.cos(angle) * total) * 2.0 / math.pi if odd else total
    return min(1.0, max(0.0, 0.5 * (1.0 - central)))
