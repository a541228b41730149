"""Where trials diverge or fail: what is not worth proposing, and which paused trials wait in vain.

A trial that diverged has no observation, so models hear nothing of it and go on proposing where whole regions diverge
or do not fit into memory. To tell them a bad value instead would spoil what they know of the others, above all where
single trials fail for no reason of their own. So the models see what was reported, and what they may propose is
restricted: a place is barred if the trial nearest to it came to nothing, and one of the next two did as well (nearest
neighbours: Cover, Hart, *Nearest neighbor pattern classification*, IEEE Trans. Inf. Theory 13(1), 1967). Where a tenth
of the trials fails at random that is so at two places in a hundred; where a region is bad it is known after a few. What
is as near to a good trial as to a bad one is not barred: values of a choice are equally far from each other.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.searcher_options import SearcherOptions

_NEEDED = 3
"""Fewer trials that came to nothing bar nothing."""
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
    """Paused trials that are barred by those that were trained further; the nearer half of a rung at most, and
    none that waits there alone, as long as all of those came to nothing."""

    @classmethod
    def of(cls, view: SearchView, options: SearcherOptions) -> Feasibility:
        """Of a study as it stands; nothing is barred without ``avoid_infeasible``."""
        infeasible = view.infeasible if options.avoid_infeasible else {}
        if len(infeasible) < _NEEDED:
            return cls(np.empty((0, view.space.width)), np.empty(0, dtype=bool), frozenset())
        paused, configs = view.paused, view.configs
        reached = {trial: max(view.curve(trial), default=0) for trial in configs}
        trials = [trial for trial, resource in reached.items() if resource or trial in infeasible]
        encoded = view.space.encode_many([configs[trial] for trial in trials])
        is_infeasible = np.array([trial in infeasible for trial in trials])
        # How far a trial tells of others: where it was still trained, or where it showed that it cannot be.
        known_to = np.array([infeasible.get(trial, reached[trial]) for trial in trials])
        waits_at = np.array([paused.get(trial, 0) for trial in trials])
        waits_in_vain = np.zeros(len(trials), dtype=bool)
        for resource in set(paused.values()):
            waiting, further = waits_at == resource, known_to > resource
            is_barred = _are_barred(encoded[further], is_infeasible[further], encoded[waiting])
            if not (further & ~is_infeasible).any():
                # Any place is nearest to what came to nothing where nothing else is known: what is far from it is to
                # show whether it does too.
                distances = _two_nearest(encoded[further], encoded[waiting])[:, 0]
                is_barred &= distances < np.median(distances)
            waits_in_vain[waiting] = is_barred
        in_vain = frozenset(np.array(trials)[waits_in_vain].tolist())
        return cls(encoded, is_infeasible | waits_in_vain, in_vain)

    def bars(self, encoded: np.ndarray) -> np.ndarray:
        """Which of the configurations lie where trials come to nothing.

        Args:
            encoded: (m, width)

        Returns:
            (m,)
        """
        return _are_barred(self.encoded, self.is_hopeless, encoded)

    def heeded(self, rng: np.random.Generator) -> Feasibility | None:
        """Itself; None for one proposal in ten, and where there is nothing to heed."""
        return self if self.is_hopeless.any() and rng.uniform() >= _UNHEEDED else None


def _are_barred(known: np.ndarray, is_bad: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of every place, whether the nearest of what is known is bad, and one of the next two; in doubt it is not."""
    if is_bad.sum() < 2 or not len(places):
        return np.zeros(len(places), dtype=bool)
    bad, good = _two_nearest(known[is_bad], places), _two_nearest(known[~is_bad], places)
    # Two of the nearest three are bad if the second bad one is nearer than the second good one.
    barred: np.ndarray = (bad < good).all(1)
    return barred


def _two_nearest(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Distances to the nearest and the next, ``(m, 2)``; infinite where there is none."""
    if not points.size:
        return np.full((len(places), 2), np.inf)
    # Imported here: most studies have nothing that is infeasible.
    from scipy.spatial import KDTree

    distances: np.ndarray = KDTree(points).query(places, 2)[0]
    return distances
