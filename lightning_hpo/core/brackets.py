"""Brackets: where a trial begins to be judged.

Bracket ``s`` skips the ``s`` lowest levels; bracket ``len(levels)`` has none and trains straight to ``max_t``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_hpo.errors import OptionError


def num_brackets(brackets: int, levels: Sequence[int]) -> int:
    """``brackets``, but not more than the levels allow."""
    if brackets < 1:
        raise OptionError(f"brackets={brackets} is not positive. Set it to 1 (successive halving) or more.")
    return min(brackets, len(levels) + 1)


def milestones(levels: Sequence[int], max_t: int, bracket: int) -> tuple[int, ...]:
    """Levels at which a trial of the bracket is judged, ``max_t`` last."""
    return (*levels[bracket:], max_t)


def default_distribution(levels: Sequence[int], max_t: int, brackets: int) -> tuple[float, ...]:
    """Probability of each bracket: its share of the slots in synchronous Hyperband.

    Proportional to ``S / ((S - s) R[s])`` with ``R = levels + [max_t]``, ``S = len(R)``
    (Li et al., arXiv:1603.06560, section 3: bracket ``s`` has about ``S/(S-s) * R[S-1]/R[s]`` configurations).
    """
    ladder = [*levels, max_t]
    size = len(ladder)
    weights = [size / ((size - s) * ladder[s]) for s in range(brackets)]
    total = sum(weights)
    return tuple(w / total for w in weights)


def draw_bracket(weights: Sequence[float], generator: np.random.Generator) -> int:
    """One bracket from the distribution. A single bracket costs no random number."""
    if len(weights) == 1:
        return 0
    cumulative = np.cumsum(np.asarray(weights, dtype=np.float64))
    return int(min(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"), len(weights) - 1))
