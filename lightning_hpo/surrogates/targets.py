"""Targets before they reach a model: transformation, normalisation, and a limit on their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import boxcox, inv_boxcox

from lightning_hpo.errors import ShapeError

_LARGEST_LOGARITHM = 100.0

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``(T((y + offset) / unit) - mean) / scale``, ``T`` the identity or a Box-Cox transformation."""

    mean: float
    scale: float
    """Standard deviation of the population, at least 1e-12 of the largest value: smaller differences are rounding."""
    box_cox_lambda: float | None = None
    offset: float = 0.0
    unit: float = 1.0
    """Of the Box-Cox transformation the geometric mean of the targets, which changes nothing that the normalisation
    does not undo; but a power of very small numbers would vanish beside the 1 that is subtracted from it."""

    @classmethod
    def of(cls, y: Floats, box_cox: bool = False, offset: float = 0.0) -> Normalisation:
        """Of all targets, whatever their resource.

        Args:
            y: ``(n,)`` finite targets, ``n >= 1``.
            box_cox: transform them first; without effect unless all are positive.
            offset: added to them before, to make them positive.
        """
        if len(y) == 0 or not np.isfinite(y).all():
            raise ShapeError("Targets are missing or not finite. Drop observations that are not finite.")
        y = y + offset
        power = box_cox_lambda(y) if box_cox and y.min() > 0.0 else None
        unit = 1.0 if power is None else math.exp(float(np.log(y).mean()))
        transformed = y if power is None else boxcox(y / unit, power)
        floor = 1e-12 * float(np.abs(transformed).max()) or 1e-9
        return cls(float(transformed.mean()), max(float(transformed.std()), floor), power, offset, unit)

    def forward(self, y: Floats) -> Floats:
        """Targets in units of the model."""
        transformed = y + self.offset
        if self.box_cox_lambda is not None:
            transformed = boxcox(transformed / self.unit, self.box_cox_lambda)
        return np.asarray((transformed - self.mean) / self.scale)

    def backward(self, y: Floats) -> Floats:
        """Targets again; the inverse of :meth:`forward`. What no target is transformed to goes to the nearest one that
        is: the Box-Cox transformation is bounded on one side."""
        transformed = np.asarray(y) * self.scale + self.mean
        if self.box_cox_lambda is not None:
            power = self.box_cox_lambda
            if power != 0.0:
                bound = -1.0 / power
                inside = np.nextafter(bound, math.copysign(math.inf, power))
                transformed = np.maximum(transformed, inside) if power > 0.0 else np.minimum(transformed, inside)
            transformed = inv_boxcox(transformed, power) * self.unit
        return np.asarray(transformed - self.offset)

    def mean_and_std(self, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
        """Moments of the model in units of the (transformed) targets."""
        return mean * self.scale + self.mean, std * self.scale


def box_cox_lambda(y: Floats) -> float:
    """Power in [-1, 2] of the Box-Cox transformation of positive targets.

    It maximises the profile log likelihood (Box and Cox 1964) plus the log density of its prior, normal with mean 0.5
    and standard deviation 0.75.
    """
    # Beside their geometric mean, which changes the likelihood by a constant only.
    logarithms = np.log(y)
    logarithms -= logarithms.mean()
    if not logarithms.var() > 0.0:
        return 0.5
    if np.abs(logarithms).max() > _LARGEST_LOGARITHM:
        return 0.0  # other powers overflow

    def negative(power: float) -> float:
        transformed = logarithms if power == 0.0 else np.expm1(power * logarithms) / power
        # rounding may make equal what differs by its last digit
        return 0.5 * len(y) * math.log(max(transformed.var(), 1e-300)) + 0.5 * ((power - 0.5) / 0.75) ** 2

    return float(minimize_scalar(negative, bounds=(-1.0, 2.0), method="bounded").x)


def subsample(y: Floats, max_size: int | None, generator: np.random.Generator, top_fraction: float = 0.25) -> Integers:
    """Positions of the targets a single-fidelity model sees, increasing.

    All, if there are at most ``max_size``; else the ``round(max_size * top_fraction)`` lowest (the best), and
    others drawn uniformly without replacement.
    """
    if max_size is None or len(y) <= max_size:
        return np.arange(len(y))
    n_top = round(max_size * top_fraction)
    order = np.argsort(y, kind="stable")
    rest = generator.choice(order[n_top:], max_size - n_top, replace=False)
    return np.sort(np.concatenate([order[:n_top], rest]))


def subsample_levels(
    trial: Integers,
    resource: Integers,
    max_size: int | None,
    generator: np.random.Generator,
    best_first: tuple[Floats, float] | None = None,
) -> Integers:
    """Positions of the observations a multi-fidelity model sees, increasing.

    Trials that went far are kept whole: from the highest level down, all data of the trials that reached the level are
    taken, while they fit. Of the first block that does not fit, data are dropped from the lowest level on; at the level
    where the limit falls, uniformly.

    Args:
        trial, resource: ``(n,)`` of every observation.
        max_size: None for no limit.
        best_first: ``(n,)`` targets, and the share of the room at the level where the limit falls that is for the
            lowest of them there.
    """
    n = len(trial)
    if max_size is None or n <= max_size:
        return np.arange(n)
    trials, row = np.unique(trial, return_inverse=True)
    reached = np.zeros(len(trials), dtype=np.int64)
    np.maximum.at(reached, row, resource)
    top = reached[row]
    kept: list[Integers] = []
    room = max_size
    for level in sorted(set(reached.tolist()), reverse=True):
        block = np.flatnonzero(top == level)
        if len(block) <= room:
            kept.append(block)
            room -= len(block)
            continue
        for r in sorted(set(resource[block].tolist()), reverse=True):
            here = block[resource[block] == r]
            if len(here) > room:
                if best_first is None:
                    here = generator.choice(here, room, replace=False)
                else:
                    y, share = best_first
                    here = here[subsample(y[here], room, generator, share)]
            kept.append(here)
            room -= len(here)
            if room == 0:
                break
        break
    return np.sort(np.concatenate(kept))
