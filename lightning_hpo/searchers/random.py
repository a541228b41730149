"""Random search."""

from __future__ import annotations

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.searchers.base import excluded_keys, random_suggestion


class RandomSearcher:
    """Draws every configuration from the domains' own distributions.

    Options: ``allow_duplicates``, ``restrict_configurations``.
    """

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        return random_suggestion(view, request, self._options, "random search")


class RandomEncodedSearcher:
    """Draws uniformly from the unit cube of the encoding (the initial population of DEHB, Awad et al. 2021)."""

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        excluded = excluded_keys(view, self._options)
        if self._options.restrict_configurations is None:
            rng = generator(view.seed, Stream.CONFIGURATION, request.trial_id)
            for _ in range(_TRIES):
                config = view.space.decode(rng.uniform(size=view.space.width))
                if view.space.match_key(config) not in excluded:
                    return Suggestion(config, "uniform in the encoded space", origin="random")
        return random_suggestion(view, request, self._options, "random search", excluded)


_TRIES = 100
"""Draws before the remaining configurations are enumerated instead."""
