"""Ranges of numbers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lightning_hpo.core.domains.base import Array, Domain, Scale, Value, check_number, is_number, middle
from lightning_hpo.errors import SpaceError

_CELL_MARGIN = 1e-8
"""By how much the cells of the first and of the last integer are narrower than the others."""


@dataclass(frozen=True, repr=False)
class _Range(Domain):
    """All numbers of one type between two bounds."""

    lower: float
    upper: float
    scale: Scale = Scale.LINEAR

    @property
    @abstractmethod
    def spelling(self) -> str:
        """Name of the constructor."""

    @property
    @abstractmethod
    def edges(self) -> tuple[float, float]:
        """The range that is mapped to the unit interval."""

    @cached_property
    def _transformed_edges(self) -> tuple[float, float]:
        low, high = self.scale.forward(np.array(self.edges))
        return float(low), float(high)

    def encode_codes(self, codes: Array) -> Array:
        low, high = self._transformed_edges
        if low == high:
            return np.zeros((len(codes), 1))
        inside = np.clip(codes, *self.edges)
        return np.clip((self.scale.forward(inside) - low) / (high - low), 0.0, 1.0)[:, None]

    def decode_codes(self, matrix: Array) -> Array:
        low, high = self._transformed_edges
        return self.scale.inverse(matrix[:, 0] * (high - low) + low)

    def to_codes(self, values: Sequence[Value]) -> Array:
        return np.asarray(values, dtype=np.float64)

    def cast(self, value: Value) -> Value:
        number = check_number(self.spelling, "value", value)
        if not self.lower <= number <= self.upper:
            raise SpaceError(f"{value!r} lies outside of {self!r}. Give a value from {self.lower!r} to {self.upper!r}.")
        return number

    def to_json(self) -> dict[str, Any]:
        return {"domain": self.spelling, "lower": self.lower, "upper": self.upper}


@dataclass(frozen=True, repr=False)
class Float(_Range):
    """Real numbers from ``lower`` to ``upper``, uniform in ``scale``."""

    @property
    def spelling(self) -> str:
        return {Scale.LINEAR: "uniform", Scale.LOG: "loguniform", Scale.REVERSE_LOG: "reverseloguniform"}[self.scale]

    @property
    def edges(self) -> tuple[float, float]:
        return self.lower, self.upper

    @property
    def default(self) -> float:
        """Geometric mean of the bounds in log scale, arithmetic mean in linear and in reverse-log scale."""
        return middle(self.lower, self.upper, self.scale)

    @property
    def members(self) -> Sequence[float] | None:
        return (self.lower,) if self.lower == self.upper else None

    @property
    def bounds(self) -> Array:
        return np.array([[0.0, 0.0 if self.lower == self.upper else 1.0]])

    def cast(self, value: Value) -> float:
        return float(super().cast(value))

    def contains(self, value: Value) -> bool:
        return is_number(value) and bool(self.lower <= value <= self.upper)

    def match_token(self, value: Value) -> str:
        # Adding zero turns -0.0 into 0.0.
        return f"{value + 0.0:.6e}"

    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        low, high = self._transformed_edges
        return self.scale.inverse(rng.uniform(low, high, n))

    def from_codes(self, codes: Array) -> list[Value]:
        values: list[float] = np.clip(codes, self.lower, self.upper).tolist()
        return values


@dataclass(frozen=True, repr=False)
class Integer(_Range):
    """Integers from ``lower`` to ``upper``, uniform in ``scale`` (linear or log).

    Every integer ``v`` owns the cell ``[v - 0.5, v + 0.5]``: a draw is uniform, in the scale, over the union of the
    cells, and is rounded. So the end values are not drawn half as often as their neighbours.
    """

    lower: int
    upper: int
    scale: Scale = Scale.LINEAR

    @property
    def spelling(self) -> str:
        return "lograndint" if self.scale is Scale.LOG else "randint"

    @property
    def edges(self) -> tuple[float, float]:
        return self.lower - 0.5 + _CELL_MARGIN, self.upper + 0.5 - _CELL_MARGIN

    @property
    def default(self) -> int:
        """Arithmetic or geometric mean of the bounds, rounded half to even."""
        return round(middle(self.lower, self.upper, self.scale))

    @property
    def members(self) -> Sequence[int]:
        return range(self.lower, self.upper + 1)

    def cast(self, value: Value) -> int:
        number: float = super().cast(value)
        return round(number)

    def contains(self, value: Value) -> bool:
        return is_number(value) and bool(self.lower <= value <= self.upper) and value == int(value)

    def match_token(self, value: Value) -> str:
        return str(int(value))

    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        if self.scale is Scale.LINEAR:
            return rng.integers(self.lower, self.upper, n, endpoint=True).astype(np.float64)
        return self._rounded(np.exp(rng.uniform(math.log(self.lower - 0.5), math.log(self.upper + 0.5), n)))

    def from_codes(self, codes: Array) -> list[Value]:
        values: list[int] = codes.astype(np.int64).tolist()
        return values

    def decode_codes(self, matrix: Array) -> Array:
        return self._rounded(super().decode_codes(matrix))

    def _rounded(self, codes: Array) -> Array:
        return np.clip(np.rint(codes), self.lower, self.upper)
