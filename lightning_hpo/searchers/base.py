"""What all searchers share: exclusion, random draws, the request's random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.trial import Config


def excluded_keys(view: SearchView, options: SearcherOptions) -> Set[str]:
    """Match keys of the configurations that must not be proposed again.

    Without duplicates: those of every trial. With duplicates: those of failed trials, which would fail again.
    """
    return view.taken_by_failed if options.allow_duplicates else view.taken


def number_of_configurations(view: SearchView, options: SearcherOptions) -> int | None:
    """How many different configurations may be proposed in all; None if there are infinitely many."""
    restricted = options.restricted(view.space)
    return view.space.size if restricted is None else len({key for key, _ in restricted})


def allowed_configs(view: SearchView, options: SearcherOptions, excluded: Set[str]) -> list[Config] | None:
    """What is left of ``restrict_configurations``, in the given order; None where any configuration may be proposed."""
    restricted = options.restricted(view.space)
    return None if restricted is None else [config for key, config in restricted if key not in excluded]


def random_config(
    view: SearchView, options: SearcherOptions, rng: np.random.Generator, excluded: Set[str]
) -> Config | None:
    """A draw from the domains' distributions, or uniformly from ``restrict_configurations``; None if none is left."""
    allowed = allowed_configs(view, options, excluded)
    if allowed is None:
        return view.space.draw(rng, excluded)
    return allowed[int(rng.integers(len(allowed)))] if allowed else None


def random_suggestion(
    view: SearchView,
    request: SuggestRequest,
    options: SearcherOptions,
    reason: str,
    excluded: Set[str] | None = None,
) -> Suggestion | None:
    """The random proposal for this trial.

    It depends on the seed, the trial and what is excluded only. So all searchers propose the same
    configurations as random search until their model takes over.
    """
    rng = generator(view.seed, Stream.CONFIGURATION, request.trial_id)
    config = random_config(view, options, rng, excluded_keys(view, options) if excluded is None else excluded)
    return None if config is None else Suggestion(config, reason, origin="random")


def distinct_trials(trial_ids: Iterable[int]) -> list[int]:
    """The trial ids without repetition, in the order of their first occurrence."""
    return list(dict.fromkeys(trial_ids))
