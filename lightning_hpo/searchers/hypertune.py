"""Hyper-Tune: an ensemble of resource levels, and brackets drawn by what the levels are worth.

Source: Li, Shen, Jiang, Zhang, Li, Cui, *Hyper-Tune: Towards Efficient Hyper-parameter Tuning at Scale*, VLDB 2022,
arXiv:2201.06834. Other than there, the levels are judged as soon as the second one has 6 observations, by the highest
such level instead of ``max_t``; the ensemble's moments are those of the weighted sum.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lightning_hpo.core.searcher import SearchView, SuggestRequest
from lightning_hpo.core.searcher_options import DEFAULT_MODELS, SearcherOptions
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers.gp import _ENSEMBLE, GaussianProcessSearcher

if TYPE_CHECKING:
    from lightning_hpo.searchers.gp_model import FittedModel


class HyperTune(GaussianProcessSearcher):
    """``model=gp_independent`` (default) or ``gp_multitask``; without rungs it is plain Bayesian optimisation.

    Option of its own: ``hypertune_distribution_num_samples``.
    """

    default_model = DEFAULT_MODELS["hypertune"]

    def __init__(self, options: SearcherOptions) -> None:
        if options.model in ("gp_expdecay", "gp_issm"):
            raise OptionError(
                f"searcher.model={options.model} has no levels to choose among, as Hyper-Tune does. "
                "Use gp_independent or gp_multitask, or the algorithm mobster."
            )
        super().__init__(options)

    def _adapt(
        self, view: SearchView, model: FittedModel, request: SuggestRequest
    ) -> tuple[FittedModel, tuple[float, ...] | None]:
        from lightning_hpo.searchers.gp_model import SINGLE_FIDELITY
        from lightning_hpo.searchers.level_weights import ensemble_posterior, judge_levels
        from lightning_hpo.surrogates.ensemble import bracket_distribution

        if model.name == SINGLE_FIDELITY:
            return model, None
        bracket_weights = None
        rng = self._rng(view, request, _ENSEMBLE)
        if model.is_refitted:
            judged = judge_levels(view, model, self._options.hypertune_distribution_num_samples, rng)
            if judged is not None:
                model = dataclasses.replace(model, state={**model.state, **judged.to_json()})
                if len(view.default_bracket_weights) > 1:
                    bracket_weights = tuple(bracket_distribution(judged.weights, view.default_bracket_weights))
        return ensemble_posterior(model), bracket_weights
