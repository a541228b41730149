"""Searchers: they propose the configurations of new trials.

Every searcher is a pure function of a view of the study (:class:`~lightning_hpo.core.searcher.SearchView`), a request
and the seed. :func:`make_searcher` finds one by name; only the Gaussian process searchers import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lightning_hpo.core.options import SearcherOptions
from lightning_hpo.core.searcher import Searcher
from lightning_hpo.errors import OptionError, did_you_mean

SEARCHERS: dict[str, str] = {
    "random": "random:RandomSearcher",
    "random_encoded": "random:RandomEncodedSearcher",
    "grid": "grid:GridSearcher",
    "kde": "kde:KdeSearcher",
    "differential_evolution": "evolution:DifferentialEvolution",
    "bayesopt": "gp:GaussianProcessSearcher",
    "hypertune": "hypertune:HyperTune",
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
    module, _, cls = SEARCHERS[name].partition(":")
    searcher: Searcher = getattr(importlib.import_module(f"{__name__}.{module}"), cls)(checked)
    return searcher
