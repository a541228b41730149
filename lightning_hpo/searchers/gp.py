"""Bayesian optimisation with Gaussian processes: single fidelity, and MOBSTER over configurations and resources.

Sources: Snoek, Larochelle, Adams, *Practical Bayesian Optimization of Machine Learning Algorithms*, NIPS 2012
(fantasies of pending evaluations, integrated out); Klein, Tiao, Lienart, Archambeau, Seeger, *Model-based Asynchronous
Hyperparameter and Neural Architecture Search*, arXiv:2003.10865 (MOBSTER); Falkner, Klein, Hutter, *BOHB*, ICML 2018
(at which resource the acquisition function is evaluated).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import DEFAULT_MODELS, SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.errors import SurrogateError
from lightning_hpo.searchers.base import random_suggestion
from lightning_hpo.searchers.history import too_early

if TYPE_CHECKING:
    from lightning_hpo.searchers.gp_model import FittedModel

_FIT, _ENSEMBLE, _PROPOSAL, _RANDOM = range(4)
"""What the random numbers of a suggestion are for: so a skipped fit does not change the candidates."""


class GaussianProcessSearcher:
    """Random search at first, then the maximum of an acquisition function of a Gaussian process.

    Without rungs the model sees one value per completed trial; with rungs it is that of the option ``model``. All
    options of Gaussian processes apply.
    """

    default_model = DEFAULT_MODELS["bayesopt"]

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        early = too_early(view, self._options)
        if early is None and not view.space.domains:
            early = "there is nothing to search"
        if early is None and self._rng(view, request, _RANDOM).uniform() < (self._options.random_fraction or 0.0):
            early = f"random: with probability {self._options.random_fraction:g}"
        if early is not None:
            return random_suggestion(view, request, self._options, early)
        try:
            return self._suggest_by_model(view, request)
        except SurrogateError as problem:
            why = str(problem).split(". ", maxsplit=1)[0]
            return random_suggestion(view, request, self._options, f"random: the model could not be computed ({why})")

    def _suggest_by_model(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        # Not before the first proposal of a model: torch takes seconds to import.
        from lightning_hpo.searchers.proposal import propose

        model, bracket_weights = self._adapt(view, self._fitted(view, request), request)
        proposal = propose(view, request, self._options, model, self._rng(view, request, _PROPOSAL))
        if proposal.config is None:
            return random_suggestion(view, request, self._options, "random: every candidate is known already")
        state = model.state if model.is_refitted else None
        return Suggestion(proposal.config, proposal.reason, "model", bracket_weights, state)

    def _fitted(self, view: SearchView, request: SuggestRequest) -> FittedModel:
        from lightning_hpo.searchers.gp_model import fit_model, model_name

        name = model_name(view, self._options, self.default_model)
        return fit_model(view, self._options, name, self._rng(view, request, _FIT))

    def _adapt(
        self, view: SearchView, model: FittedModel, request: SuggestRequest
    ) -> tuple[FittedModel, tuple[float, ...] | None]:
        """The model to propose by, and new bracket weights."""
        return model, None

    def _rng(self, view: SearchView, request: SuggestRequest, purpose: int) -> np.random.Generator:
        return generator(view.seed, Stream.SURROGATE, request.trial_id, purpose)
