"""Fitting a surrogate's parameters: maximum a posteriori by L-BFGS-B from several starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.errors import NumericalError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import Objective, Surrogate
from lightning_hpo.surrogates.optimize import Array, minimize_batch


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How parameters are fitted and how often."""

    opt_nstarts: int = 2
    """Starts: the first from the initial (or current) values, the others from these plus standard normal noise on every
    internal coordinate."""
    opt_maxiter: int = 50
    """Largest number of L-BFGS-B iterations of each start."""
    opt_warmstart: bool = False
    """Start from the current values instead of the initial ones."""
    opt_skip_init_length: int = 150
    """Never skip a fit below this number of observations."""
    opt_skip_period: int = 1
    """Above it, fit only whenever the number of observations has changed this many times."""
    opt_skip_num_max_resource: bool = False
    """Above it, fit only when the number of observations at the largest resource has grown."""
    tolerance: float = 1e-6
    """Relative decrease of the objective, and projected gradient, at which a start ends."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted parameters."""

    theta: Tensor
    """``(p,)`` internal coordinates, on the CPU."""
    objective: float
    """Negative log posterior density reached; infinite if nothing could be computed."""
    failed: bool
    """No start gave a finite objective: ``theta`` are the old parameters."""
    evaluations: int
    """Evaluations of the objective, all starts together counting once."""


def fit(
    model: Surrogate,
    data: Observations,
    options: FitOptions,
    generator: np.random.Generator,
    current: Mapping[str, Sequence[float]] | None = None,
) -> Fit:
    """Parameters that minimise ``model.objective(data)`` within their bounds.

    Args:
        generator: draws the noise of the starts.
        current: values of an earlier fit, kept if this one fails.

    The computation runs on the device of the data.
    """
    space = model.space
    old = space.initial if current is None else space.theta(current)
    if len(data) == 0:
        return Fit(old, math.nan, False, 0)
    first = (old if options.opt_warmstart else space.initial).numpy()
    noise = generator.standard_normal((options.opt_nstarts - 1, space.size))
    starts = np.concatenate([first[None], first + noise])
    objective = batched(model.objective(data), data.y.device)
    lower, upper = space.lower.numpy(), space.upper.numpy()
    found = minimize_batch(objective, starts, lower, upper, options.opt_maxiter, options.tolerance)
    best = int(np.argmin(found.value))
    if not np.isfinite(found.value[best]):
        return Fit(old, math.inf, True, found.evaluations)
    return Fit(torch.from_numpy(found.x[best]), float(found.value[best]), False, found.evaluations)


def batched(objective: Objective, device: torch.device) -> Any:
    """The objective on numpy arrays; infinite where a covariance matrix is not positive definite."""

    def evaluate(theta: Array) -> tuple[Array, Array]:
        with torch.no_grad():
            try:
                value, gradient = objective(torch.from_numpy(theta).to(device))
            except NumericalError:
                if len(theta) == 1:
                    return np.full(1, np.inf), np.zeros_like(theta)
                values, gradients = zip(*(evaluate(row[None]) for row in theta), strict=True)
                return np.concatenate(values), np.concatenate(gradients)
        return value.cpu().numpy(), gradient.cpu().numpy()

    return evaluate


def fit_is_due(
    options: FitOptions, n: int, n_max_resource: int, state: Mapping[str, Any] | None
) -> tuple[bool, dict[str, Any]]:
    """Whether to fit again, or to go on with the current parameters.

    Args:
        n: number of observations, before any subsampling.
        n_max_resource: number of those at the largest resource.
        state: what the last call returned; None at first.

    Returns:
        the answer, and JSON data for the next call.
    """
    state = state or {"n": None, "n_max_resource": None, "sizes": 0}
    changed = n != state["n"]
    due = changed
    grown, sizes = state["n_max_resource"], state["sizes"]
    if n >= options.opt_skip_init_length:
        if options.opt_skip_num_max_resource:
            due = changed and (grown is None or n_max_resource > grown)
            if due:
                grown = n_max_resource
        elif options.opt_skip_period > 1:
            due = changed and sizes % options.opt_skip_period == 0
            sizes += int(changed)
    return due, {"n": n, "n_max_resource": grown, "sizes": sizes}
