"""Searchers: they propose the configurations of new trials.

Every searcher is a pure function of a view of the study (:class:`~lightning_hpo.core.searcher.SearchView`), a request
and the seed. :func:`make_searcher` finds one by name; only the Gaussian process searchers import torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

from lightning_hpo.core.searcher import Searcher, SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.errors import OptionError, did_you_mean

SEARCHERS: dict[str, str] = {
    "random": "random:RandomSearcher",
    "random_encoded": "random:RandomEncodedSearcher",
    "grid": "grid:GridSearcher",
    "kde": "kde:KdeSearcher",
    "differential_evolution": "evolution:DifferentialEvolution",
    "bayesopt": "gp:GaussianProcessSearcher",
    "hypertune": "hypertune:HyperTune",
    "freeze_thaw": "freeze_thaw:FreezeThawSearcher",
}
"""Name -> module of this package and class."""


def make_searcher(name: str, options: SearcherOptions | Mapping[str, Any] | None = None) -> Searcher:
    """The searcher with this name.

    Args:
        name: a key of :data:`SEARCHERS`.
        options: the options of the searcher, as plain data or checked already.

    Raises:
        OptionError: if the name or an option is unknown, or a value cannot be used.
    """
    if name not in SEARCHERS:
        known = ", ".join(SEARCHERS)
        raise OptionError(f"searcher {name!r} is unknown.{did_you_mean(name, SEARCHERS)} Choose one of {known}.")
    checked = options if isinstance(options, SearcherOptions) else SearcherOptions.from_mapping(options or {})
    checked.check_searcher(name)
    module, _, cls = SEARCHERS[name].partition(":")
    searcher: Searcher = getattr(importlib.import_module(f"{__name__}.{module}"), cls)(checked)
    return _Logged(searcher, name) if checked.debug_log else searcher


class _Logged:
    """Logs what a searcher knew and what it answered (``debug_log``)."""

    def __init__(self, searcher: Searcher, name: str) -> None:
        self._searcher = searcher
        self._name = name
        self._log = logging.getLogger(__name__)

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        suggestion = self._searcher.suggest(view, request)
        self._log.info(
            "%s, trial %d in bracket %d: %d observations, %d pending, %d failed -> %s",
            self._name, request.trial_id, request.bracket, len(view.observations), len(view.pending), len(view.failed),
            "nothing left" if suggestion is None else f"{suggestion.config} ({suggestion.reason})",
        )  # fmt: skip
        return suggestion
