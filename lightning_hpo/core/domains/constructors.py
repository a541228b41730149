"""Constructors of domains, which check their arguments, and the spelling of domains in configuration files."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from lightning_hpo.core.domains.base import (
    MAX_MAGNITUDE,
    Domain,
    Scale,
    Value,
    check_number,
    is_number,
    plain_value,
    value_key,
)
from lightning_hpo.core.domains.listed import Choice, FiniteRange, Ordinal
from lightning_hpo.core.domains.ranges import Float, Integer
from lightning_hpo.errors import SpaceError, did_you_mean

_MAX_INTEGER = 2**40
"""Up to here every integer survives encoding in linear and in log scale: about 13 of a float64's 16 digits are used."""

_MAX_POINTS = 2**20
"""Largest size of a finite range, whose values are listed in memory."""


def uniform(lower: float, upper: float) -> Float:
    """Real numbers from ``lower`` to ``upper``, uniform. Default: the arithmetic mean of the bounds."""
    return _float("uniform", lower, upper, Scale.LINEAR)


def loguniform(lower: float, upper: float) -> Float:
    """Real numbers from ``lower`` > 0 to ``upper``, uniform in log scale. Default: the geometric mean of the bounds."""
    return _float("loguniform", lower, upper, Scale.LOG)


def reverseloguniform(lower: float, upper: float) -> Float:
    """Real numbers, ``0 <= lower <= upper < 1``, such that ``-log(1 - v)`` is uniform.

    Default: the *arithmetic* mean of the bounds, which is not the middle of the encoded interval.
    """
    return _float("reverseloguniform", lower, upper, Scale.REVERSE_LOG)


def randint(lower: int, upper: int) -> Integer:
    """Integers from ``lower`` to ``upper``, both included, uniform. Default: the rounded arithmetic mean."""
    return _integer("randint", lower, upper, Scale.LINEAR)


def lograndint(lower: int, upper: int) -> Integer:
    """Integers from ``lower`` >= 1 to ``upper``, both included: ``round(exp(x))`` with ``x`` uniform between
    ``log(lower - 0.5)`` and ``log(upper + 0.5)``. Default: the rounded geometric mean.
    """
    return _integer("lograndint", lower, upper, Scale.LOG)


def choice(categories: Iterable[Value]) -> Choice:
    """Categories without order. Default: the first.

    Categories are strings, numbers, booleans, None, or JSON-like lists or dicts. Where all are numbers, integers among
    floats become floats.
    """
    return Choice(_check_categories("choice", categories))


def ordinal(categories: Iterable[Value], kind: Literal["equal", "nn", "nn-log"] | None = None) -> Ordinal:
    """Categories in their order.

    Args:
        categories: as for :func:`choice`; for ``nn`` and ``nn-log`` strictly increasing numbers.
        kind: ``equal``, ``nn`` or ``nn-log``, see :class:`Ordinal`. Default: ``nn`` for two or more strictly increasing
            numbers, else ``equal``.
    """
    values = _check_categories("ordinal", categories)
    increasing = all(map(is_number, values)) and all(a < b for a, b in itertools.pairwise(values))
    if kind is None:
        kind = "nn" if increasing and len(values) > 1 else "equal"
    if kind not in ("equal", "nn", "nn-log"):
        raise SpaceError(f"ordinal: unknown kind {kind!r}. Give 'equal', 'nn' or 'nn-log'.")
    if kind != "equal" and not (increasing and len(values) > 1):
        raise SpaceError(
            f"ordinal: kind {kind!r} needs two or more strictly increasing numbers, not {list(values)!r}. "
            "Sort the categories, or give kind 'equal'."
        )
    if kind == "nn-log" and values[0] <= 0:
        raise SpaceError(f"ordinal: the category {values[0]!r} has no logarithm. Give positive numbers, or kind 'nn'.")
    return Ordinal(values, kind)


def logordinal(categories: Iterable[Value]) -> Ordinal:
    """Positive, strictly increasing numbers which keep their distances in log scale."""
    return ordinal(categories, "nn-log")


def finrange(lower: float, upper: float, size: int, cast_int: bool = False) -> FiniteRange:
    """``size`` equally spaced numbers from ``lower`` to ``upper``, both included, rounded to integers if ``cast_int``.

    Default: the one nearest to the arithmetic mean of the bounds.
    """
    return _finite_range("finrange", lower, upper, size, Scale.LINEAR, cast_int)


def logfinrange(lower: float, upper: float, size: int, cast_int: bool = False) -> FiniteRange:
    """``size`` numbers from ``lower`` > 0 to ``upper``, equally spaced in log scale.

    They are rounded to integers if ``cast_int``. Default: the one nearest to the geometric mean of the bounds.
    """
    return _finite_range("logfinrange", lower, upper, size, Scale.LOG, cast_int)


_CONSTRUCTORS: dict[str, Callable[..., Domain]] = {
    constructor.__name__: constructor
    for constructor in (
        uniform, loguniform, reverseloguniform, randint, lograndint, choice, ordinal, logordinal, finrange, logfinrange,
    )
}  # fmt: skip

DOMAIN_NAMES = tuple(_CONSTRUCTORS)
"""Names of the constructors, as written in configuration files."""


def domain_from_json(data: Mapping[str, Any]) -> Domain:
    """The domain spelled ``{"domain": <name of a constructor>, <its arguments>}``, as in configuration files.

    Raises:
        SpaceError: unknown domain, unknown or missing argument, or arguments that describe no domain.
    """
    arguments = dict(data)
    name = arguments.pop("domain", None)
    if name not in DOMAIN_NAMES:
        hint = did_you_mean(str(name), DOMAIN_NAMES)
        raise SpaceError(f"There is no domain {name!r}.{hint} Give 'domain' as one of: {', '.join(DOMAIN_NAMES)}.")
    parameters = inspect.signature(_CONSTRUCTORS[name]).parameters
    for key in arguments:
        if key not in parameters:
            hint = did_you_mean(str(key), parameters)
            raise SpaceError(f"{name} has no argument {key!r}.{hint} Its arguments are: {', '.join(parameters)}.")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise SpaceError(f"{name} lacks its argument {key!r}. Give {', '.join(parameters)}.")
    return _CONSTRUCTORS[name](**arguments)


def _check_range(where: str, lower: Value, upper: Value, scale: Scale) -> tuple[int | float, int | float]:
    low, high = check_number(where, "lower", lower), check_number(where, "upper", upper)
    if low > high:
        raise SpaceError(f"{where}: lower={low!r} is above upper={high!r}. Give the smaller bound first.")
    if scale is Scale.LOG and low <= 0:
        linear = where.replace("log", "")
        raise SpaceError(f"{where}: lower={low!r} has no logarithm. Give lower > 0, or use {linear}.")
    if scale is Scale.LOG and low < 1 / MAX_MAGNITUDE:
        raise SpaceError(f"{where}: lower={low!r} is too near to 0. Give lower > 1e-150.")
    if scale is Scale.REVERSE_LOG and not 0 <= low <= high < 1:
        raise SpaceError(
            f"{where}: bounds {low!r}, {high!r} must satisfy 0 <= lower <= upper < 1. Give bounds in [0, 1)."
        )
    return low, high


def _float(where: str, lower: Value, upper: Value, scale: Scale) -> Float:
    low, high = _check_range(where, lower, upper, scale)
    return Float(float(low), float(high), scale)


def _integer(where: str, lower: Value, upper: Value, scale: Scale) -> Integer:
    bounds = _check_range(where, lower, upper, scale)
    for parameter, bound in zip(("lower", "upper"), bounds, strict=True):
        if bound != int(bound):
            raise SpaceError(
                f"{where}: {parameter}={bound!r} is not an integer. Give integers, or use a range of floats."
            )
        if abs(bound) > _MAX_INTEGER:
            raise SpaceError(
                f"{where}: {parameter}={bound!r} is beyond 2**40. Give nearer bounds, or use a range of floats."
            )
    return Integer(int(bounds[0]), int(bounds[1]), scale)


def _finite_range(where: str, lower: Value, upper: Value, size: Value, scale: Scale, cast_int: Value) -> FiniteRange:
    low, high = _check_range(where, lower, upper, scale)
    points = check_number(where, "size", size)
    if points != int(points) or points < 2:
        raise SpaceError(
            f"{where}: size={size!r}, but both bounds belong to the range. Give an integer size of at least 2."
        )
    if points > _MAX_POINTS:
        raise SpaceError(f"{where}: size={size!r} is beyond 2**20. Give a smaller size, or use a range of floats.")
    if low == high:
        raise SpaceError(
            f"{where}: lower and upper are both {low!r}. Give upper > lower, or the number itself as constant."
        )
    if not isinstance(cast_int, (bool, np.bool_)):
        raise SpaceError(f"{where}: cast_int={cast_int!r} is no boolean. Give true or false.")
    return FiniteRange(float(low), float(high), int(points), scale, bool(cast_int))


def _check_categories(where: str, categories: Iterable[Value]) -> tuple[Value, ...]:
    if isinstance(categories, (str, bytes, Mapping)) or not isinstance(categories, Iterable):
        raise SpaceError(f"{where}: categories={categories!r} is no list. Give the categories as a list.")
    values = [plain_value(f"{where}: a category", value) for value in categories]
    if not values:
        raise SpaceError(f"{where}: there are no categories. Give at least one.")
    types = {type(value) for value in values} - {type(None)}
    if types == {int, float}:
        values = [float(value) if type(value) is int else value for value in values]
    keys = [value_key(value) for value in values]
    for key, value in zip(keys, values, strict=True):
        if keys.count(key) > 1:
            raise SpaceError(f"{where}: the category {value!r} occurs twice. Give every category once.")
    return tuple(values)
