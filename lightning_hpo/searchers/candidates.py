"""Candidates of an acquisition function: where they come from, and which one is proposed."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np

from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Config
from lightning_hpo.searchers.base import allowed_configs
from lightning_hpo.searchers.feasibility import Feasibility

_REFINED = 5
"""At most so many of the best candidates are refined: where five refined ones are known already, another is no help."""


@dataclass(frozen=True)
class Candidates:
    """Random points of the space, or some of the restricted configurations."""

    space: SearchSpace
    excluded: Set[str]
    encoded: np.ndarray
    """(n, width)"""
    configs: list[Config] | None = None
    """The restricted configurations themselves: decoding would change the last digits of their floats."""

    feasibility: Feasibility | None = None
    """What it bars comes last; None: nothing is barred."""

    @classmethod
    def draw(
        cls,
        view: SearchView,
        options: SearcherOptions,
        excluded: Set[str],
        rng: np.random.Generator,
        feasibility: Feasibility | None = None,
    ) -> Candidates:
        """``num_init_candidates`` draws; known ones among them are sorted out when they would be chosen.

        Args:
            feasibility: of the view; None: to be found out, if the options want it.
        """
        allowed = allowed_configs(view, options, excluded)
        if allowed is None:
            encoded = view.space.sample_encoded(rng, options.num_init_candidates)
            chosen = None
        else:
            chosen = [allowed[i] for i in rng.permutation(len(allowed))[: options.num_init_candidates]]
            encoded = view.space.encode_many(chosen)
        heeded = (feasibility or Feasibility.of(view, options)).heeded(rng)
        return cls(view.space, excluded, encoded, chosen, heeded)

    def choose(self, scores: np.ndarray, refine: Callable[[np.ndarray], np.ndarray] | None) -> Config | None:
        """The first configuration that is not excluded, by increasing score; those that are barred come last.

        Args:
            scores: (n,) lower is better.
            refine: moves a point (width,) to a better one nearby, which is tried first, unless that is barred. Not
                used for restricted configurations.
        """
        barred = self._bars(self.encoded)
        for rank, index in enumerate(np.lexsort((scores, barred))):
            if refine is not None and self.configs is None and rank < _REFINED:
                refined = self.space.decode(refine(self.encoded[index]))
                is_worse = not barred[index] and self._bars(self.space.encode(refined)[None])[0]
                if not is_worse and self.space.match_key(refined) not in self.excluded:
                    return refined
            config = self.space.decode(self.encoded[index]) if self.configs is None else self.configs[index]
            if self.space.match_key(config) not in self.excluded:
                return config
        return None

    def _bars(self, encoded: np.ndarray) -> np.ndarray:
        if self.feasibility is None:
            return np.zeros(len(encoded), dtype=bool)
        return self.feasibility.bars(encoded)
