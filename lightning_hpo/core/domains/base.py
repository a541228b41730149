"""What every domain can do, and the checks of user-given values."""

from __future__ import annotations

import enum
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hpo.errors import SpaceError

Array: TypeAlias = npt.NDArray[np.float64]
Value: TypeAlias = Any

MAX_MAGNITUDE = 1e150
"""Larger numbers cannot be multiplied as floats."""


class Scale(enum.Enum):
    """The scale in which a range is uniform."""

    LINEAR = "linear"
    LOG = "log"
    REVERSE_LOG = "reverse-log"
    """``-log(1 - v)``: fine steps near 1, as for momentum or discount factors."""

    def forward(self, values: Array) -> Array:
        if self is Scale.LOG:
            return np.log(values)
        return -np.log1p(-values) if self is Scale.REVERSE_LOG else values

    def inverse(self, transformed: Array) -> Array:
        if self is Scale.LOG:
            return np.exp(transformed)
        return -np.expm1(-transformed) if self is Scale.REVERSE_LOG else transformed


class Domain(ABC):
    """The set of values a hyperparameter may take."""

    @property
    @abstractmethod
    def default(self) -> Value:
        """The value used where a user gives none: the middle in the domain's scale, or the first category."""

    @property
    @abstractmethod
    def members(self) -> Sequence[Value] | None:
        """The different values; None if there are infinitely many."""

    @property
    def size(self) -> int | None:
        """Number of different values; None if infinite."""
        return None if self.members is None else len(self.members)

    @property
    def width(self) -> int:
        """Number of coordinates of an encoded value."""
        return 1

    @property
    def bounds(self) -> Array:
        """Shape ``(width, 2)``: the box in which encoded values lie."""
        return np.tile([0.0, 1.0], (self.width, 1))

    def sample(self, rng: np.random.Generator) -> Value:
        """One random value."""
        return self.sample_many(rng, 1)[0]

    def sample_many(self, rng: np.random.Generator, n: int) -> list[Value]:
        """``n`` independent random values."""
        return self.from_codes(self.sample_codes(rng, n))

    def encode(self, value: Value) -> Array:
        """The value as a point of the unit cube, shape ``(width,)``.

        Raises:
            SpaceError: if the value is no category of a choice or ordinal.
        """
        return self.encode_many([value]).ravel()

    def encode_many(self, values: Sequence[Value]) -> Array:
        """Encoded values, shape ``(n, width)``."""
        return self.encode_codes(self.to_codes(values))

    def decode(self, vector: npt.ArrayLike) -> Value:
        """The value nearest to a point of the unit cube, shape ``(width,)``."""
        return self.decode_many(np.reshape(np.asarray(vector, np.float64), (1, self.width)))[0]

    def decode_many(self, matrix: Array) -> list[Value]:
        """The values of ``n`` points of the unit cube, shape ``(n, width)``."""
        return self.from_codes(self.decode_codes(matrix))

    @abstractmethod
    def cast(self, value: Value) -> Value:
        """The user's value in the type of this domain, moved to the nearest member where members are numbers.

        Raises:
            SpaceError: if the value has the wrong type or lies outside.
        """

    @abstractmethod
    def contains(self, value: Value) -> bool:
        """Whether the value belongs to the domain, without moving it."""

    @abstractmethod
    def match_token(self, value: Value) -> str:
        """Two values are regarded as the same iff their tokens are equal: floats agree in 7 significant digits."""

    @abstractmethod
    def sample_codes(self, rng: np.random.Generator, n: int) -> Array:
        """Codes of ``n`` random values, shape ``(n,)``."""

    @abstractmethod
    def to_codes(self, values: Sequence[Value]) -> Array:
        """Codes of values, shape ``(n,)``."""

    @abstractmethod
    def from_codes(self, codes: Array) -> list[Value]:
        """Values of codes, as plain Python objects."""

    @abstractmethod
    def encode_codes(self, codes: Array) -> Array:
        """Codes, shape ``(n,)``, to points of the unit cube, shape ``(n, width)``."""

    @abstractmethod
    def decode_codes(self, matrix: Array) -> Array:
        """Points of the unit cube, shape ``(n, width)``, to codes, shape ``(n,)``."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """JSON data from which :func:`domain_from_json` builds an equal domain."""

    def __repr__(self) -> str:
        arguments = self.to_json()
        name = arguments.pop("domain")
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def is_number(value: Value) -> bool:
    """Whether the value is an integer or a float; booleans are not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_number(where: str, parameter: str, value: Value) -> int | float:
    """The value as a Python number.

    Raises:
        SpaceError: if it is not a finite number, or too large.
    """
    plain: int | float = value.item() if isinstance(value, np.generic) else value
    # Not math.isfinite, which overflows at huge integers.
    if not is_number(plain) or not abs(plain) < math.inf:
        raise SpaceError(f"{where}: {parameter} is {value!r}. Give a finite number, without quotes.")
    if abs(plain) > MAX_MAGNITUDE:
        raise SpaceError(f"{where}: {parameter} is beyond 1e150. Give a number nearer to 0.")
    return plain


def plain_value(what: str, value: Value) -> Value:
    """The value as plain JSON data: numpy scalars become Python's, tuples lists, mappings dicts.

    Raises:
        SpaceError: if JSON has no such value.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain_value(what, item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain_value(what, item) for item in value]
    raise SpaceError(
        f"{what} cannot be written as JSON: {value!r} ({type(value).__name__}). "
        "Give strings, finite numbers, booleans, None, or lists and dicts of these."
    )


def value_key(value: Value) -> Hashable:
    if isinstance(value, (bool, np.bool_)):
        return bool, bool(value)
    if isinstance(value, (str, int, float, np.generic)) or value is None:
        return value
    return json.dumps(plain_value("a category", value), sort_keys=True)


def middle(lower: float, upper: float, scale: Scale) -> float:
    return math.sqrt(lower * upper) if scale is Scale.LOG else (lower + upper) / 2
