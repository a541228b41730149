"""New and paused trials under one model: whichever improves most for what it costs goes on.

Swersky, Snoek, Adams, *Freeze-Thaw Bayesian Optimization*, arXiv:1406.3896, choose between new and paused trials by a
model of learning curves. Here the model is one of the rungs (:mod:`lightning_hpo.surrogates.rungs`), and the choice is
by the expected improvement per unit of resource of trials that may be given up on the way
(:mod:`lightning_hpo.surrogates.rate`).
"""

from __future__ import annotations

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import DEFAULT_MODELS
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.searchers.base import random_suggestion
from lightning_hpo.searchers.gp import _PROPOSAL, GaussianProcessSearcher


class FreezeThawSearcher(GaussianProcessSearcher):
    """Random search at first, then the trial with the highest rate of improvement, new or paused.

    Without rungs it is plain Bayesian optimisation.
    """

    default_model = DEFAULT_MODELS["freeze_thaw"]

    def _suggest_by_model(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        if not view.rung_levels:
            return super()._suggest_by_model(view, request)
        # Not before the first proposal of a model: torch takes seconds to import.
        from lightning_hpo.searchers.rate_choice import choose

        model = self._fitted(view, request)
        # A resumed trial does not use up the request's: its candidates are not to come again and again.
        rng = generator(view.seed, Stream.SURROGATE, request.trial_id, _PROPOSAL, len(model.history))
        found = choose(view, self._options, model, rng, request)
        if found is None:
            return random_suggestion(view, request, self._options, "random: every candidate is known already")
        return found
