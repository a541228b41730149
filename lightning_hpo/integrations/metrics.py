"""Logged metrics: which are fresh, what counts as a number, what to say if one is missing."""

from __future__ import annotations

import numbers as number_types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from lightning_hpo.errors import MetricInvalid, MetricMissing, did_you_mean

MAX_METRICS = 1000
"""Other metrics that are sent along with a report."""


def freshly_logged(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that were logged since ``before`` was copied.

    ``trainer.callback_metrics`` keeps the last value of every name for ever. A value that was logged again is
    another object, even if it is equal.
    """
    return {name: value for name, value in now.items() if before.get(name) is not value}


def as_number(name: str, value: Any) -> float:
    """The metric as a float; NaN and infinities are numbers.

    Raises:
        MetricInvalid: if it is not one real number.
    """
    number = _real(value)
    if number is None:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor | np.ndarray) else ""
        kind = f"{type(value).__name__}{shape}"
        raise MetricInvalid(
            f"The metric {name!r} must be one real number, but {str(value)[:80]} is of type {kind}. "
            f"Log a scalar: self.log({name!r}, value)."
        )
    return number


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those metrics that are numbers, as floats."""
    found = {name: number for name, value in metrics.items() if (number := _real(value)) is not None}
    return dict(list(found.items())[:MAX_METRICS])


def missing_metric(name: str, logged: Iterable[str], where: str) -> MetricMissing:
    """The error for a metric that should have been logged by now."""
    names = sorted(logged)
    listed = ", ".join(map(repr, names)) if names else "nothing"
    hint = did_you_mean(name, names)
    return MetricMissing(
        f"The metric {name!r} was not logged {where}. Logged: {listed}.{hint} "
        f"Log it every time with self.log({name!r}, value), or set hydra.launcher.metric to a name that is logged."
    )


def _real(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex() or value.dtype is torch.bool:
            return None
        return float(value.item())
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1 or value.dtype.kind not in "fiu":
            return None
        return float(value.item())
    if isinstance(value, number_types.Real) and not isinstance(value, bool):
        return float(value)
    return None
