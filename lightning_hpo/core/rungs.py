"""Rung levels and rungs.

=========  ==============================================================
``r_j``    level of rung ``j``, increasing; ``max_t`` follows the last one
``q_j``    promotion quantile ``r_j / r_{j+1}`` (``1/eta`` for geometric levels)
``n``      entries of a rung: every trial that ever reported there
=========  ==============================================================

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning (arXiv:1810.05934).
Values are minimised; a value that is not finite counts as ``+inf``, the worst.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_hpo.errors import OptionError


def rung_levels(
    max_t: int,
    grace_period: int | None = None,
    reduction_factor: float | None = None,
    rung_increment: int | None = None,
    levels: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Levels strictly below ``max_t``, increasing.

    Args:
        max_t: largest resource of a trial.
        grace_period: lowest level, 1 by default.
        reduction_factor: ratio eta >= 2 of neighbouring levels, may be fractional; 3 if ``rung_increment`` is not
            given either.
        rung_increment: difference of neighbouring levels; used if no reduction factor is given.
        levels: explicit levels, at least two, strictly increasing, none above ``max_t``; the other arguments are
            ignored then.

    Raises:
        OptionError: if the arguments give no valid levels.
    """
    if levels is not None:
        return _checked_levels(levels, max_t)
    grace = 1 if grace_period is None else grace_period
    if grace < 1:
        raise OptionError(f"grace_period={grace} is not a resource. Set grace_period to an integer of at least 1.")
    if max_t <= grace:
        raise OptionError(
            f"max_t={max_t} is not larger than grace_period={grace}, so there is no rung to compare trials at. "
            "Raise max_t, lower grace_period, or use algorithm=random, which trains every trial to the end."
        )
    if reduction_factor is None and rung_increment is not None:
        if rung_increment < 1:
            raise OptionError(f"rung_increment={rung_increment} is not positive. Set it to an integer of at least 1.")
        return tuple(range(grace, max_t, rung_increment))
    eta = 3 if reduction_factor is None else reduction_factor
    if not eta >= 2:
        raise OptionError(f"reduction_factor={eta} is below 2. Set it to 2 or more; 3 and 4 are usual.")
    exact: float = grace
    found: list[int] = []
    while exact < max_t:
        found.append(round(exact))
        exact = grace * eta ** len(found)
    if found[-1] == max_t:
        found.pop()
    return tuple(found)


def _checked_levels(levels: Sequence[int], max_t: int) -> tuple[int, ...]:
    given = tuple(levels)
    wrong = None
    if any(isinstance(r, bool) or r != int(r) or r < 1 for r in given):
        wrong = "are not all positive integers"
    elif len(given) < 2:
        wrong = "has fewer than two entries"
    elif any(a >= b for a, b in itertools.pairwise(given)):
        wrong = "is not strictly increasing"
    elif given[-1] > max_t:
        wrong = f"goes beyond max_t={max_t}"
    if wrong:
        raise OptionError(
            f"rung_levels={list(given)} {wrong}. Give at least two increasing levels up to max_t, such as [1, 3, 9]."
        )
    return tuple(int(r) for r in given if r != max_t)


def quantiles(levels: Sequence[int], max_t: int) -> tuple[float, ...]:
    """``q_j = r_j / r_{j+1}``, one per level; ``max_t`` follows the last level."""
    return tuple(a / b for a, b in zip(levels, [*levels[1:], max_t], strict=True))


class Entry(NamedTuple):
    """A trial in a rung. Sorts best first, equal values in the order of insertion."""

    value: float
    order: int
    trial_id: int


class Rung:
    """The values of all trials that reported at one level. Entries are never removed.

    Args:
        level: resource of the rung.
        next_level: resource of the rung above, or ``max_t``.
        min_entries: ``"ratio"``: no cutoff while ``n * level < next_level`` (no decision below ``eta`` entries for
            geometric levels); ``"two"``: a cutoff from two entries on.
    """

    def __init__(self, level: int, next_level: int, min_entries: str = "ratio") -> None:
        self.level = level
        self.next_level = next_level
        self._min_entries = min_entries
        self._entries: list[Entry] = []
        self._waiting: list[Entry] = []
        self._by_trial: dict[int, Entry] = {}
        self._promoted: set[int] = set()
        self._inserted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._by_trial

    @property
    def quantile(self) -> float:
        return self.level / self.next_level

    @property
    def num_promoted(self) -> int:
        return len(self._promoted)

    def entries(self) -> list[tuple[int, float, bool]]:
        """``(trial_id, value, was_promoted)``, best first; a promoted entry stands behind its equals."""
        return [(e.trial_id, e.value, e.trial_id in self._promoted) for e in self._entries]

    def ranked(self) -> list[Entry]:
        """All entries, best first. Not a copy: do not change it."""
        return self._entries

    def waiting(self) -> list[Entry]:
        """Entries that were not promoted, best first. Not a copy: do not change it."""
        return self._waiting

    def value_of(self, trial_id: int) -> float:
        return self._by_trial[trial_id].value

    def add(self, trial_id: int, value: float) -> None:
        """Insert a trial; its value counts for the cutoff for good."""
        entry = Entry(value if math.isfinite(value) else math.inf, self._inserted, trial_id)
        self._inserted += 1
        bisect.insort(self._entries, entry)
        bisect.insort(self._waiting, entry)
        self._by_trial[trial_id] = entry

    def mark_promoted(self, trial_id: int) -> None:
        """The trial has gone on; twice is once."""
        if trial_id in self._promoted:
            return
        old = self._by_trial[trial_id]
        del self._entries[bisect.bisect_left(self._entries, old)]
        del self._waiting[bisect.bisect_left(self._waiting, old)]
        new = Entry(old.value, self._inserted, trial_id)
        self._inserted += 1
        bisect.insort(self._entries, new)
        self._by_trial[trial_id] = new
        self._promoted.add(trial_id)

    def cutoff(self) -> float | None:
        """The ``q``-quantile of the values (linear interpolation), None while there are too few.

        If ``(n-1) q`` is an integer up to rounding, the cutoff is that very value, so that its trial passes.
        """
        n = len(self._entries)
        if n < 2 or (self._min_entries == "ratio" and n * self.level < self.next_level):
            return None
        position = (n - 1) * self.quantile
        below = round(position)
        if abs(position - below) < 1e-9:
            return self._entries[below].value
        below = math.floor(position)
        low, high = self._entries[below].value, self._entries[below + 1].value
        if low == high or math.isinf(high):
            return high
        # Rounding must not lift it to the value above, which does not pass.
        return min(low + (position - below) * (high - low), math.nextafter(high, low))

    def passes(self, value: float) -> bool | None:
        """Is the value among the best ``q``? Ties pass, values that are not finite never do.

        None: too few entries to tell.
        """
        cutoff = self.cutoff()
        if cutoff is None:
            return None
        return math.isfinite(value) and value <= cutoff

    def rank(self, value: float) -> int:
        """Number of entries that are strictly better, plus one."""
        return bisect.bisect_left(self._entries, (value, -1, -1)) + 1

    def best_promotable(self, is_available: Callable[[int], bool]) -> int | None:
        """The best trial that was not promoted yet, is available, and passes the cutoff."""
        cutoff = self.cutoff()
        if cutoff is None:
            return None
        for entry in self._waiting:
            if entry.value > cutoff or math.isinf(entry.value):
                return None
            if is_available(entry.trial_id):
                return entry.trial_id
        return None
