"""Differential evolution on the slots of synchronous Hyperband.

Source: Awad, Mallik, Hutter, *DEHB: Evolutionary Hyperband for Scalable, Robust and Efficient Hyperparameter
Optimization*, IJCAI 2021: mutation rand/1, binomial crossover of whole hyperparameters. The scheduler does the
selection: the target keeps its slot unless the offspring is strictly better.
"""

from __future__ import annotations

import numpy as np

from lightning_hpo.core.searcher import SearchView, Slot, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.trial import Config
from lightning_hpo.searchers.base import distinct_trials, excluded_keys, random_suggestion
from lightning_hpo.searchers.random import RandomEncodedSearcher

_TRIES = 50
"""Draws until a configuration is new; the second half is purely random."""


class DifferentialEvolution:
    """Offspring of the slot's target and three parents; uniform in the encoded space where there is no target.

    Options: ``mutation_factor``, ``crossover_probability``, ``allow_duplicates``.
    """

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options
        self._first_population = RandomEncodedSearcher(options)

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        slot = request.slot
        if slot is None or slot.target is None:
            return self._first_population.suggest(view, request)
        excluded = excluded_keys(view, self._options)
        rng = generator(view.seed, Stream.CONFIGURATION, request.trial_id)
        pool = parent_pool(view, slot)
        why = "too few parents"
        if self._options.restrict_configurations is not None:
            why = "offspring are not among restrict_configurations"
        elif view.space.width and len(pool) >= 3:
            target = view.space.encode(view.configs[slot.target])
            vectors = view.space.encode_many([view.configs[i] for i in pool])
            for attempt in range(_TRIES):
                if 2 * attempt < _TRIES:
                    chosen = rng.choice(len(pool), size=3, replace=False)
                    mutant = mutate(vectors[chosen], self._options.mutation_factor, rng)
                    config = self._cross(view, target, mutant, rng)
                    parents = ", ".join(str(pool[i]) for i in chosen)
                    reason = f"offspring of trial {slot.target} and a mutant of trials {parents}"
                else:
                    config, reason = view.space.decode(rng.uniform(size=view.space.width)), "random: no new offspring"
                if view.space.match_key(config) not in excluded:
                    return Suggestion(config, reason, origin="evolution")
            why = "every offspring is known already"
        return random_suggestion(view, request, self._options, f"random: {why}", excluded)

    def _cross(self, view: SearchView, target: np.ndarray, mutant: np.ndarray, rng: np.random.Generator) -> Config:
        columns = [view.space.columns(name) for name in view.space.encoded_names]
        return view.space.decode(cross(target, mutant, columns, self._options.crossover_probability, rng))


def parent_pool(view: SearchView, slot: Slot) -> list[int]:
    """Trials to draw parents from: the slot's; if these are too few, also those observed at its level, or anywhere."""
    pool = distinct_trials(slot.parents)
    if len(pool) < 3:
        pool = distinct_trials([*pool, *(o.trial_id for o in view.observations if o.resource == slot.level)])
    if len(pool) < 3:
        pool = distinct_trials([*pool, *(o.trial_id for o in view.observations)])
    return pool


def mutate(parents: np.ndarray, mutation_factor: float, rng: np.random.Generator) -> np.ndarray:
    """The mutant ``a + F (b - c)`` of three encoded parents (3, width); coordinates outside [0, 1] are drawn anew."""
    mutant: np.ndarray = parents[0] + mutation_factor * (parents[1] - parents[2])
    outside = (mutant < 0.0) | (mutant > 1.0)
    mutant[outside] = rng.uniform(size=int(outside.sum()))
    return mutant


def cross(
    target: np.ndarray,
    mutant: np.ndarray,
    columns: list[slice],
    crossover_probability: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The target (width,) with each hyperparameter from the mutant with the given probability, and at least one."""
    from_mutant = rng.uniform(size=len(columns)) < crossover_probability
    from_mutant[rng.integers(len(columns))] = True
    offspring = target.copy()
    for column, taken in zip(columns, from_mutant, strict=True):
        if taken:
            offspring[column] = mutant[column]
    return offspring
