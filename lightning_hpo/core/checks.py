"""Checks that options have in common; ``prefix`` is what stands before an option's name, such as ``searcher.``."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_hpo.errors import OptionError, did_you_mean


def known(cls: type, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The options given, all of them fields of ``cls``.

    Raises:
        OptionError: for an unknown name.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in given:
        if name not in names:
            near = did_you_mean(str(name), names).strip()
            fix = f"{near} Correct the name." if near else f"Use one of: {', '.join(sorted(names))}."
            raise OptionError(f"{prefix}{name} is not an option. {fix}")
    return dict(given)


def check_types(options: Any, prefix: str) -> None:
    """Raises OptionError for a field whose value does not fit its annotation."""
    hints = typing.get_type_hints(type(options))
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if not _fits(value, hints[f.name]):
            raise OptionError(
                f"{prefix}{f.name}={value!r} has the wrong type. Set {prefix}{f.name} to a value of type "
                f"{_spelling(hints[f.name])}."
            )


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is Any:
        return True
    if origin is dict:
        key, item = typing.get_args(hint)
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if origin is list:
        item = typing.get_args(hint)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, item) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spelling(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")  # type: ignore[return-value]


def check_choice(options: Any, prefix: str, name: str, allowed: Sequence[Any]) -> None:
    """Raises OptionError for a value that is not allowed."""
    value = getattr(options, name)
    if value not in allowed:
        names = [a for a in allowed if a is not None]
        raise OptionError(
            f"{prefix}{name}={value!r} is unknown.{did_you_mean(str(value), names)} Choose one of {', '.join(names)}."
        )


def check_range(
    options: Any, prefix: str, name: str, lower: float, upper: float | None = None, *, lower_open: bool = False
) -> None:
    """Raises OptionError for a number that is not finite or out of ``[lower, upper]``; None is always in.

    ``lower_open``: ``lower`` itself is out.
    """
    value = getattr(options, name)
    if value is None:
        return
    low_enough = value > lower if lower_open else value >= lower
    is_finite = value == value and abs(value) != math.inf  # math.isfinite refuses integers that no float can hold
    if not (low_enough and is_finite) or (upper is not None and value > upper):
        least = f"above {lower}" if lower_open else f"at least {lower}"
        allowed = f"between {lower} and {upper}" if upper is not None and not lower_open else least
        allowed += f" and at most {upper}" if upper is not None and lower_open else ""
        raise OptionError(f"{prefix}{name}={value!r} is out of range. Set {prefix}{name} to a value {allowed}.")
