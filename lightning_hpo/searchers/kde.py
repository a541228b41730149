"""BOHB's searcher: two kernel densities, of the good and of the bad configurations.

Source: Falkner, Klein, Hutter, *BOHB: Robust and Efficient Hyperparameter Optimization at Scale*, ICML 2018. Used with
an asynchronous scheduler it is asynchronous BOHB: pending trials are ignored. Other than in the reference code,
features are logarithmic where the domain is, integers are encoded and decoded consistently, and the unordered kernel
knows the domain's number of categories instead of those that happen to be in the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import Choice, Domain, FiniteRange, Integer, Ordinal, SearchSpace
from lightning_hpo.core.trial import Config
from lightning_hpo.searchers.base import allowed_configs, excluded_keys, random_suggestion
from lightning_hpo.searchers.density import (
    FeatureKind,
    ProductKernelDensity,
    density_ratio,
    is_usable,
    num_good,
    split,
    truncated_normal,
)

_RANDOM_FRACTION = 0.33


def largest_usable_level(
    resources: Sequence[int], num_features: int, num_min_data_points: int, top_n_percent: float
) -> int | None:
    """The largest resource at which both densities would have more points than there are features, if any.

    Args:
        resources: the resource of every observation.
        num_features: number of hyperparameters.
        num_min_data_points: smallest size of the good part.
        top_n_percent: size of the good part, in per cent.
    """
    for level, count in sorted(Counter(resources).items(), reverse=True):
        if is_usable(count, num_good(count, num_min_data_points, top_n_percent), num_features):
            return level
    return None


class FeatureMap:
    """One number per hyperparameter, in the order of the space.

    A number is its coordinate in the unit interval, in the domain's scale; a category is its index over their number.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._domains = dict(space.domains)
        self.kinds = tuple(_kind(domain) for domain in self._domains.values())
        self.num_categories = tuple(
            len(domain.categories) if isinstance(domain, (Choice, Ordinal)) else 1 for domain in self._domains.values()
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def features(self, configs: Sequence[Config]) -> np.ndarray:
        """Features (n, d) of ``n`` configurations."""
        columns = [
            np.array([domain.index(config[name]) for config in configs]) / len(domain.categories)
            if isinstance(domain, (Choice, Ordinal))
            else domain.encode_many([config[name] for config in configs])[:, 0]
            for name, domain in self._domains.items()
        ]
        return np.stack(columns, axis=1)

    def neighbour(
        self, config: Config, bandwidths: np.ndarray, bandwidth_factor: float, rng: np.random.Generator
    ) -> Config:
        """A configuration drawn near ``config``.

        A continuous value moves by a normal distribution cut to the domain, of scale ``bandwidth_factor`` times the
        bandwidth; any other value is drawn anew from its domain with the bandwidth as probability.
        """
        drawn: Config = {}
        for (name, domain), kind, bandwidth in zip(self._domains.items(), self.kinds, bandwidths, strict=True):
            if kind is FeatureKind.CONTINUOUS:
                centre = float(domain.encode(config[name])[0])
                moved = truncated_normal(centre, bandwidth_factor * float(bandwidth), float(rng.uniform()))
                drawn[name] = domain.decode(np.array([moved]))
            else:
                drawn[name] = domain.sample(rng) if rng.uniform() < bandwidth else config[name]
        return drawn


def _kind(domain: Domain) -> FeatureKind:
    if isinstance(domain, (Choice, Ordinal)):
        return FeatureKind.UNORDERED
    whole = isinstance(domain, Integer) or (isinstance(domain, FiniteRange) and domain.cast_int)
    return FeatureKind.ORDERED if whole else FeatureKind.CONTINUOUS


@dataclass(frozen=True)
class _Data:
    configs: list[Config]
    values: list[float]
    where: str


class KdeSearcher:
    """Proposes the best of some draws from the good density by the ratio of bad to good.

    Options: ``num_min_data_points``, ``top_n_percent``, ``min_bandwidth``, ``num_candidates``, ``bandwidth_factor``,
    ``random_fraction``, ``allow_duplicates``, ``restrict_configurations``.
    """

    def __init__(self, options: SearcherOptions) -> None:
        self._options = options

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        options = self._options
        features = FeatureMap(view.space)
        num_min = max(options.num_min_data_points or 0, len(features))
        data = self._data(view, len(features), num_min)
        if data is None or not len(features):
            return random_suggestion(view, request, options, "random: too few observations for the densities")
        rng = generator(view.seed, Stream.SURROGATE, request.trial_id)
        share = _RANDOM_FRACTION if options.random_fraction is None else options.random_fraction
        if rng.uniform() < share:
            return random_suggestion(view, request, options, f"random: with probability {share:g}")
        good, bad = split(data.values, num_good(len(data.values), num_min, options.top_n_percent))
        points = features.features(data.configs)
        floor = options.min_bandwidth if options.min_bandwidth is not None else (0.1 if view.rung_levels else 1e-3)
        densities = [
            ProductKernelDensity.fit(points[part], features.kinds, features.num_categories, floor)
            for part in (good, bad)
        ]
        best = self._best_candidate(view, features, [data.configs[i] for i in good], densities[0], densities[1], rng)
        if best is None:
            return random_suggestion(view, request, options, "random: every candidate is known already")
        config, ratio = best
        reason = f"density ratio {1.0 / ratio:.3g} {data.where}, from {len(good)} good and {len(bad)} bad observations"
        return Suggestion(config, reason, origin="model")

    def _data(self, view: SearchView, num_features: int, num_min: int) -> _Data | None:
        """The observations to model: all under FIFO, else those of the largest usable resource."""
        observations, where = list(view.observations), "at the end of training"
        percent = self._options.top_n_percent
        if view.rung_levels:
            level = largest_usable_level([o.resource for o in observations], num_features, num_min, percent)
            observations = [o for o in observations if o.resource == level]
            where = f"at rung {level}"
        if not is_usable(len(observations), num_good(len(observations), num_min, percent), num_features):
            return None
        return _Data([view.configs[o.trial_id] for o in observations], [o.value for o in observations], where)

    def _best_candidate(
        self,
        view: SearchView,
        features: FeatureMap,
        centres: list[Config],
        good: ProductKernelDensity,
        bad: ProductKernelDensity,
        rng: np.random.Generator,
    ) -> tuple[Config, float] | None:
        options = self._options
        excluded = excluded_keys(view, options)
        allowed = allowed_configs(view, options, excluded)
        if allowed is None:
            chosen = rng.integers(len(centres), size=options.num_candidates)
            drawn = [features.neighbour(centres[i], good.bandwidths, options.bandwidth_factor, rng) for i in chosen]
            candidates = [config for config in drawn if view.space.match_key(config) not in excluded]
        else:
            candidates = [allowed[i] for i in rng.permutation(len(allowed))[: options.num_candidates]]
        if not candidates:
            return None
        ratios = density_ratio(good, bad, features.features(candidates))
        best = int(np.argmin(ratios))
        return candidates[best], float(ratios[best])
