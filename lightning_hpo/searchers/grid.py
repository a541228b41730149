"""Grid search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import Domain, Float, Integer, SearchSpace
from lightning_hpo.core.trial import Config
from lightning_hpo.searchers.base import excluded_keys

_DEFAULT_POINTS = 5
_MAX_PERMUTED = 2**20
"""Larger grids are not permuted but visited in steps of constant length."""


class GridSearcher:
    """Visits every combination of a grid once, in random order unless ``shuffle_config=False``.

    Options: ``num_samples`` (points of a float or integer hyperparameter, equally spaced in the encoded space; all
    values of other domains are used), ``shuffle_config``, ``allow_duplicates``.
    """

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        axes = grid_axes(view.space, self._options.num_samples)
        order = _Order(math.prod(len(values) for values in axes.values()), view.seed, self._options.shuffle_config)
        excluded = excluded_keys(view, self._options)
        first = int((view.state or {}).get("next", 0))
        for visit in range(first, len(order)):
            config = _point(axes, order[visit])
            if view.space.match_key(config) not in excluded:
                reason = f"grid point {visit + 1} of {len(order)}"
                return Suggestion(config, reason, origin="grid", state={"next": visit + 1})
        return None


def grid_axes(space: SearchSpace, num_samples: dict[str, int] | int | None) -> dict[str, Sequence[Any]]:
    """The grid's values of every hyperparameter.

    Args:
        num_samples: at least 1, for all or by name.
    """
    numbers = num_samples if isinstance(num_samples, dict) else dict.fromkeys(space.domains, num_samples)
    return {name: _axis(domain, numbers.get(name) or _DEFAULT_POINTS) for name, domain in space.domains.items()}


def _axis(domain: Domain, points: int) -> Sequence[Any]:
    members = domain.members
    if members is not None and (len(members) <= points or not isinstance(domain, (Float, Integer))):
        return members
    centres = (np.arange(points) + 0.5) / points
    return list(dict.fromkeys(domain.decode_many(centres[:, None])))


def _point(axes: dict[str, Sequence[Any]], index: int) -> Config:
    """Combination ``index`` in the order in which the last hyperparameter changes fastest."""
    config: Config = {}
    for name, values in reversed(axes.items()):
        index, position = divmod(index, len(values))
        config[name] = values[position]
    return {name: config[name] for name in axes}


class _Order:
    """The order in which the ``size`` points of a grid are visited: a permutation of ``range(size)``."""

    def __init__(self, size: int, seed: int, shuffled: bool) -> None:
        self._size = size
        self._permutation: np.ndarray | None = None
        self._offset, self._step = 0, 1
        if not shuffled:
            return
        rng = generator(seed, Stream.GRID)
        if size <= _MAX_PERMUTED:
            self._permutation = rng.permutation(size)
            return
        self._offset = int(rng.integers(min(size, 2**62)))
        # A step without common divisor meets every point once; near the golden section it spreads the first ones.
        self._step = round(size * 0.6180339887498949)
        while math.gcd(self._step, size) != 1:
            self._step += 1

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, visit: int) -> int:
        if self._permutation is not None:
            return int(self._permutation[visit])
        return (self._offset + visit * self._step) % self._size
