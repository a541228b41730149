"""Finitely many values: categories, ordered categories, grids of numbers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lightning_hpo.core.domains.base import Array, Domain, Scale, Value, check_number, is_number, middle, value_key
from lightning_hpo.core.domains.ranges import Integer
from lightning_hpo.errors import SpaceError, did_you_mean


class _Listed(Domain):
    """Finitely many values, coded by their index."""

    @property
    @abstractmethod
    def grid(self) -> tuple[Value, ...]:
        """The values by index; a value may occur twice."""

    @abstractmethod
    def _index_of_stranger(self, value: Value) -> int:
        """Index for a value which is not on the grid, or SpaceError."""

    @cached_property
    def _positions(self) -> Integer:
        return Integer(0, len(self.grid) - 1)

    @cached_property
    def _indices(self) -> dict[Hashable, int]:
        return self._list_indices()

    def _list_indices(self) -> dict[Hashable, int]:
        return {value_key(value): i for i, value in enumerate(self.grid)}

    @property
    def members(self) -> Sequence[Value]:
        return self.grid

    def index(self, value: Value) -> int:
        """Position of a value in the list.

        Raises:
            SpaceError: if the value is not one of the list, nor near one where values are numbers.
        """
        found = self._indices.get(value_key(value))
        return self._index_of_stranger(value) if found is None else found

    def cast(self, value: Value) -> Value:
        return self.grid[self.index(value)]

    def contains(self, value: Value) -> bool:
        return value_key(value) in self._indices

    def match_token(self, value: Value) -> str:
        return str(self.index(value))

    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        return rng.integers(0, len(self.grid), n).astype(np.float64)

    def to_codes(self, values: Sequence[Value]) -> Array:
        return np.fromiter(map(self.index, values), np.float64, len(values))

    def from_codes(self, codes: Array) -> list[Value]:
        grid = self.grid
        return [grid[i] for i in codes.astype(np.int64).tolist()]

    def encode_codes(self, codes: Array) -> Array:
        return self._positions.encode_codes(codes)

    def decode_codes(self, matrix: Array) -> Array:
        return self._positions.decode_codes(matrix)


@dataclass(frozen=True, repr=False)
class Choice(_Listed):
    """Categories without order. One-hot encoded, except two categories, which need one coordinate only."""

    categories: tuple[Value, ...]

    @property
    def grid(self) -> tuple[Value, ...]:
        return self.categories

    @property
    def default(self) -> Value:
        return self.categories[0]

    @property
    def width(self) -> int:
        return 1 if len(self.categories) == 2 else len(self.categories)

    @property
    def bounds(self) -> Array:
        return np.array([[1.0, 1.0]]) if len(self.categories) == 1 else super().bounds

    def encode_codes(self, codes: Array) -> Array:
        if len(self.categories) == 2:
            return super().encode_codes(codes)
        return np.equal.outer(codes, np.arange(len(self.categories))).astype(np.float64)

    def decode_codes(self, matrix: Array) -> Array:
        if len(self.categories) == 2:
            return super().decode_codes(matrix)
        return np.asarray(matrix.argmax(axis=1), dtype=np.float64)

    def _index_of_stranger(self, value: Value) -> int:
        return _nearest_category(self, self.categories, value)

    def to_json(self) -> dict[str, Any]:
        return {"domain": "choice", "categories": list(self.categories)}


@dataclass(frozen=True, repr=False)
class Ordinal(_Listed):
    """Categories with an order.

    ``kind="equal"``: neighbours are equally far apart. ``"nn"``: the categories are numbers and keep their distances;
    every category owns the points nearest to it. ``"nn-log"``: the same in log scale.
    """

    categories: tuple[Value, ...]
    kind: Literal["equal", "nn", "nn-log"]

    @property
    def grid(self) -> tuple[Value, ...]:
        return self.categories

    @property
    def scale(self) -> Scale:
        return Scale.LOG if self.kind == "nn-log" else Scale.LINEAR

    @cached_property
    def _transformed(self) -> Array:
        return self.scale.forward(np.array(self.categories, dtype=np.float64))

    @cached_property
    def _interval(self) -> tuple[float, float]:
        margin = 0.5 * np.diff(self._transformed).mean()
        return float(self._transformed[0] - margin), float(self._transformed[-1] + margin)

    def _nearest(self, transformed: Array) -> Array:
        distances = np.abs(self._transformed[None, :] - transformed[:, None])
        return np.asarray(distances.argmin(axis=1), dtype=np.float64)

    @property
    def default(self) -> Value:
        """Middle category; for ``nn`` the one nearest to the arithmetic or geometric mean of the first and the last."""
        if self.kind == "equal":
            return self.categories[len(self.categories) // 2]
        return self.cast(middle(self.categories[0], self.categories[-1], self.scale))

    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        if self.kind == "equal":
            return super().sample_codes(rng, n)
        return self._nearest(rng.uniform(*self._interval, n))

    def encode_codes(self, codes: Array) -> Array:
        if self.kind == "equal":
            return super().encode_codes(codes)
        low, high = self._interval
        return ((self._transformed.take(codes.astype(np.int64)) - low) / (high - low)).reshape(-1, 1)

    def decode_codes(self, matrix: Array) -> Array:
        if self.kind == "equal":
            return super().decode_codes(matrix)
        low, high = self._interval
        return self._nearest(matrix[:, 0] * (high - low) + low)

    def _index_of_stranger(self, value: Value) -> int:
        if self.kind == "equal":
            return _nearest_category(self, self.categories, value)
        number = check_number("ordinal", "value", value)
        first, last = self.categories[0], self.categories[-1]
        if not first <= number <= last:
            raise SpaceError(f"{value!r} lies outside of {self!r}. Give a value from {first!r} to {last!r}.")
        return int(self._nearest(self.scale.forward(np.array([number], dtype=np.float64)))[0])

    def to_json(self) -> dict[str, Any]:
        return {"domain": "ordinal", "categories": list(self.categories), "kind": self.kind}


@dataclass(frozen=True, repr=False)
class FiniteRange(_Listed):
    """``num_points`` numbers from ``lower`` to ``upper``, equally spaced in ``scale`` (linear or log)."""

    lower: float
    upper: float
    num_points: int
    scale: Scale = Scale.LINEAR
    cast_int: bool = False

    @cached_property
    def grid(self) -> tuple[Value, ...]:
        shares = np.arange(self.num_points, dtype=np.float64) / (self.num_points - 1)
        # Not exp of the equally spaced logarithms: that gives 10.000000000000002 where 10 is meant.
        points = (
            self.lower * (self.upper / self.lower) ** shares
            if self.scale is Scale.LOG
            else self.lower + (self.upper - self.lower) * shares
        )
        points[0], points[-1] = self.lower, self.upper
        values: list[float] = np.clip(points, self.lower, self.upper).tolist()
        return tuple(round(value) for value in values) if self.cast_int else tuple(values)

    @cached_property
    def _origin_and_step(self) -> tuple[float, float]:
        low, high = self.scale.forward(np.array([self.lower, self.upper], dtype=np.float64)).tolist()
        return low, (high - low) / (self.num_points - 1)

    def _list_indices(self) -> dict[Hashable, int]:
        # Rounding to integers may make neighbours equal: such a value takes the index nearest to it, if it is there.
        indices = super()._list_indices()
        for value in self.grid:
            nearest = self._nearest(value)
            if self.grid[nearest] == value:
                indices[value] = nearest
        return indices

    @property
    def members(self) -> Sequence[Value]:
        return tuple(dict.fromkeys(self.grid))

    @property
    def default(self) -> Value:
        """The grid value nearest to the arithmetic or geometric mean of the bounds."""
        return self.grid[self._nearest(middle(self.lower, self.upper, self.scale))]

    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        codes = super().sample_codes(rng, n)
        return self.to_codes(self.from_codes(codes)) if len(self._indices) < self.num_points else codes

    def _nearest(self, value: float) -> int:
        low, step = self._origin_and_step
        inside = min(max(value, self.lower), self.upper)
        transformed = math.log(inside) if self.scale is Scale.LOG else inside
        return min(max(round((transformed - low) / step), 0), self.num_points - 1)

    def _index_of_stranger(self, value: Value) -> int:
        number = check_number("finrange", "value", value)
        if not self.lower <= number <= self.upper:
            raise SpaceError(f"{value!r} lies outside of {self!r}. Give a value from {self.lower!r} to {self.upper!r}.")
        return self._nearest(number)

    def to_json(self) -> dict[str, Any]:
        return {
            "domain": "logfinrange" if self.scale is Scale.LOG else "finrange",
            "lower": self.lower,
            "upper": self.upper,
            "size": self.num_points,
            "cast_int": self.cast_int,
        }


def _nearest_category(domain: Domain, categories: Sequence[Value], value: Value) -> int:
    """Index of the category for a float that lost digits on its way through text: within 1 % of it."""
    if is_number(value) and any(type(category) is float for category in categories):
        distances = [abs(c - value) if is_number(c) else math.inf for c in categories]
        nearest = min(range(len(categories)), key=distances.__getitem__)
        if distances[nearest] <= 0.01 * abs(categories[nearest]):
            return nearest
    hint = did_you_mean(value, [c for c in categories if isinstance(c, str)]) if isinstance(value, str) else ""
    raise SpaceError(f"{value!r} is not one of the categories of {domain!r}.{hint} Give one of them.")
