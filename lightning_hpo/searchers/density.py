"""Product kernel density estimates over hyperparameters of mixed type, as BOHB and TPE use them.

Source: Falkner, Klein, Hutter, *BOHB*, ICML 2018, section 3.2; kernels of Aitchison and Aitken (1976) for unordered
and of Wang and van Ryzin (1981) for ordered features, combined as in Li and Racine (2003).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightning_hpo.errors import ShapeError

_SMALLEST_DENSITY = 1e-32


class FeatureKind(str, enum.Enum):
    """What the values of a feature mean."""

    CONTINUOUS = "c"
    ORDERED = "o"
    UNORDERED = "u"


@dataclass(frozen=True)
class ProductKernelDensity:
    """Density ``1/n sum_i prod_k K_k(x_k, data_ik)``, divided by the bandwidths of the continuous features.

    Kernels for bandwidth ``h``: continuous ``exp(-(x-z)^2 / (2 h^2)) / sqrt(2 pi)``; ordered ``1-h`` if equal, else
    ``(1-h)/2 * h^|x-z|``; unordered ``1-h`` if equal, else ``h/(m-1)`` with ``m`` categories.
    """

    data: np.ndarray
    """(n, d) features."""
    bandwidths: np.ndarray
    """(d,)"""
    kinds: tuple[FeatureKind, ...]
    num_categories: tuple[int, ...]
    """(d,) number of categories of the unordered features; the other entries are not used."""

    @classmethod
    def fit(
        cls,
        data: np.ndarray,
        kinds: Sequence[FeatureKind],
        num_categories: Sequence[int],
        min_bandwidth: float,
    ) -> ProductKernelDensity:
        """The density of ``data``, by the normal reference rule: bandwidth ``1.06 std n^(-1/(4+d))`` (population std).

        Args:
            data: (n, d) features, n >= 1.
            kinds: d kinds.
            num_categories: d numbers of categories.
            min_bandwidth: floor of all bandwidths.

        Raises:
            ShapeError: if the arguments do not fit together.
        """
        if data.ndim != 2 or not len(data) or not data.shape[1] == len(kinds) == len(num_categories):
            raise ShapeError(
                f"Features of shape {data.shape} with {len(kinds)} kinds and {len(num_categories)} numbers "
                "of categories make no density. Give an (n, d) array with n >= 1 and d entries of each."
            )
        n, d = data.shape
        bandwidths = np.maximum(1.06 * data.std(axis=0) * n ** (-1.0 / (4 + d)), min_bandwidth)
        return cls(data, bandwidths, tuple(kinds), tuple(num_categories))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Densities (m,) at ``points`` (m, d)."""
        product = np.ones((len(points), len(self.data)))
        for k, (kind, h) in enumerate(zip(self.kinds, self.bandwidths, strict=True)):
            distance = np.abs(points[:, k, None] - self.data[None, :, k])
            if kind is FeatureKind.CONTINUOUS:
                product *= np.exp(-0.5 * (distance / h) ** 2) / (np.sqrt(2.0 * np.pi) * h)
            elif kind is FeatureKind.ORDERED:
                product *= np.where(distance == 0.0, 1.0 - h, 0.5 * (1.0 - h) * h**distance)
            else:
                product *= np.where(distance == 0.0, 1.0 - h, h / max(1, self.num_categories[k] - 1))
        density: np.ndarray = product.mean(axis=1)
        return density


def num_good(num_points: int, num_min_data_points: int, top_n_percent: float) -> int:
    """Size of the good part: the best ``top_n_percent`` per cent, at least ``num_min_data_points``."""
    return max(num_min_data_points, int(top_n_percent * num_points // 100))


def is_usable(num_points: int, good: int, num_features: int) -> bool:
    """Whether both parts have more points than there are features."""
    return min(good, num_points - good) > num_features


def split(values: Sequence[float], good: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the ``good`` lowest values and of the rest, each best first; equal values in the order given."""
    order = np.argsort(np.asarray(values, dtype=float), kind="stable")
    return order[:good], order[good:]


def density_ratio(good: ProductKernelDensity, bad: ProductKernelDensity, points: np.ndarray) -> np.ndarray:
    """``bad / good`` (m,) at ``points`` (m, d), both floored at 1e-32; to be minimised."""
    floor = _SMALLEST_DENSITY
    ratio: np.ndarray = np.maximum(floor, bad(points)) / np.maximum(floor, good(points))
    return ratio


def truncated_normal(mean: float, scale: float, uniform: float) -> float:
    """The quantile ``uniform`` of the normal distribution cut to [0, 1]; ``mean`` lies in [0, 1]."""
    standard = NormalDist()
    low, high = standard.cdf(-mean / scale), standard.cdf((1.0 - mean) / scale)
    probability = min(max(low + uniform * (high - low), 1e-300), 1.0 - 1e-16)
    return min(max(mean + scale * standard.inv_cdf(probability), 0.0), 1.0)
