"""Where trials diverge or fail: what is not worth proposing, and which paused trials wait in vain.

A trial that diverged has no observation, so models hear nothing of it and go on proposing where whole regions diverge
or do not fit into memory. To tell them a bad value instead would spoil what they know of the others, above all where
single trials fail for no reason of their own. So the models see what was reported, and what they may propose is
restricted: a place is barred if the trial nearest to it came to nothing, and one of the next two did as well (nearest
neighbours: Cover, Hart, *Nearest neighbor pattern classification*, IEEE Trans. Inf. Theory 13(1), 1967). Where a tenth
of the trials fails at random that is so at two places in a hundred; where a region is bad it is known after a few.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from lightning_hpo.core.searcher import SearchView

_NEIGHBOURS = 3
_UNHEEDED = 0.1
"""Share of the proposals for which nothing is barred: what was taken for bad too early is to be found again."""


@dataclass(frozen=True)
class Feasibility:
    """What the trials of a study tell of places in its space."""

    encoded: np.ndarray
    """(n, width) configurations of the trials that reported something finite or are infeasible."""
    is_hopeless: np.ndarray
    """(n,) those that are infeasible or wait in vain."""
    waiting_in_vain: Set[int]
    """Paused trials that are barred by those that were trained further."""

    @classmethod
    def of(cls, view: SearchView) -> Feasibility:
        """Of a study as it stands."""
        if len(view.infeasible) < _NEIGHBOURS:
            return cls(np.empty((0, view.space.width)), np.empty(0, dtype=bool), frozenset())
        infeasible = view.infeasible
        reached = {trial: max(view.curve(trial), default=0) for trial in view.configs}
        trials = [trial for trial, resource in reached.items() if resource or trial in infeasible]
        encoded = view.space.encode_many([view.configs[trial] for trial in trials])
        is_infeasible = np.array([trial in infeasible for trial in trials])
        # How far a trial tells of others: where it was still trained, or where it showed that it cannot be.
        known_to = np.array([infeasible.get(trial, reached[trial]) for trial in trials])
        in_vain: set[int] = set()
        for resource in set(view.paused.values()):
            waiting = np.array([view.paused.get(trial) == resource for trial in trials])
            further = known_to > resource
            bad = _are_bad(encoded[further], is_infeasible[further], encoded[waiting])
            in_vain.update(np.array(trials)[waiting][bad].tolist())
        return cls(encoded, is_infeasible | np.isin(trials, list(in_vain)), in_vain)

    def allows(self, encoded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which of the configurations may be proposed; all, if none is left, and now and then.

        Args:
            encoded: (m, width)

        Returns:
            (m,)
        """
        if not self.is_hopeless.any() or rng.uniform() < _UNHEEDED:
            return np.ones(len(encoded), dtype=bool)
        allowed = ~_are_bad(self.encoded, self.is_hopeless, encoded)
        return allowed if allowed.any() else ~allowed


def _are_bad(known: np.ndarray, is_bad: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of every place, whether the nearest of what is known is bad, and another of the nearest; no, if few are known."""
    if len(known) < _NEIGHBOURS:
        return np.zeros(len(places), dtype=bool)
    # Imported here: most studies have nothing that is infeasible.
    from scipy.spatial import KDTree

    _, nearest = KDTree(known).query(places, _NEIGHBOURS)
    bad = is_bad[nearest]
    barred: np.ndarray = bad[:, 0] & (bad.sum(1) > 1)
    return barred
