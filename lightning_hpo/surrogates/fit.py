"""Fitting a surrogate's parameters: maximum a posteriori by L-BFGS-B from several starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.errors import NumericalError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import Surrogate
from lightning_hpo.surrogates.optimize import Array, minimize_batch


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How parameters are fitted."""

    opt_nstarts: int = 2
    """Starts of a full search: the first from the initial values, the others from these plus standard normal noise on
    every internal coordinate. The current values, if any, are one more."""
    opt_maxiter: int = 50
    """Largest number of L-BFGS-B iterations of each start."""
    opt_warmstart: bool = False
    """Let a full search start from the current values in place of the initial ones."""
    opt_restart_growth: float = 0.1
    """Search fully when the data have grown by this share since the last full search. In between, a search starts from
    the current values: a new observation moves the optimum little, so that a few evaluations find it again."""
    opt_initial_growth: float = 0.03
    """Between full searches, start from the initial values too when the data have grown by this share since that was
    last done: which of several optima is the best changes from one observation to the next while they are few."""
    tolerance: float = 1e-6
    """Relative decrease of the objective, and projected gradient, at which a start ends."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted parameters."""

    theta: Tensor
    """``(p,)`` internal coordinates, on the CPU."""
    objective: float
    """Negative log posterior density reached; infinite if nothing could be computed, NaN without data."""
    failed: bool
    """No start gave a finite objective: ``theta`` are the old parameters."""
    evaluations: int
    """Evaluations of the objective, a batch counting once."""
    state: dict[str, Any]
    """JSON data for the next fit of the same model: ``parameters`` (natural values by name), and the number of
    observations at the last full search (``searched``) and at the last one from the initial values (``restarted``)."""


def fit(
    model: Surrogate,
    data: Observations,
    options: FitOptions,
    generator: np.random.Generator,
    state: Mapping[str, Any] | None = None,
    size: int | None = None,
) -> Fit:
    """Parameters that minimise ``model.objective(data)`` within their bounds.

    Args:
        generator: draws the noise of the starts.
        state: of an earlier fit of the model. Its parameters are kept if this fit fails.
        size: number of observations the data were drawn from, if they are a subsample.

    The computation runs on the device of the data.
    """
    space, n = model.space, len(data) if size is None else size
    current = None if state is None else space.theta(state["parameters"])
    old = space.initial if current is None else current
    searched, restarted = (0, 0) if state is None else (int(state["searched"]), int(state["restarted"]))

    def result(theta: Tensor, objective: float, failed: bool, evaluations: int) -> Fit:
        values = {"parameters": space.values(theta), "searched": searched, "restarted": restarted}
        return Fit(theta, objective, failed, evaluations, values)

    if len(data) == 0:
        return result(old, math.nan, False, 0)
    full = n >= (1.0 + options.opt_restart_growth) * searched
    starts = old.numpy()[None]
    again = full or n >= (1.0 + options.opt_initial_growth) * restarted
    if again:
        centre = old if options.opt_warmstart else space.initial
        noise = generator.standard_normal((options.opt_nstarts - 1 if full else 0, space.size))
        fresh = np.concatenate([centre.numpy()[None], centre.numpy() + noise])
        starts = fresh if centre is old else np.concatenate([starts, fresh])
    objective = batched(model, data)
    lower, upper = space.lower.numpy(), space.upper.numpy()
    # A batch pays where starts run equally long. The current values are at their optimum after a few evaluations.
    groups = [starts] if full else list(starts[:, None])
    found = [minimize_batch(objective, s, lower, upper, options.opt_maxiter, options.tolerance) for s in groups]
    x, value = np.concatenate([m.x for m in found]), np.concatenate([m.value for m in found])
    evaluations = sum(m.evaluations for m in found)
    best = int(np.argmin(value))
    if not np.isfinite(value[best]):
        return result(old, math.inf, True, evaluations)
    searched, restarted = n if full else searched, n if again else restarted
    return result(torch.from_numpy(x[best]), float(value[best]), False, evaluations)


def batched(model: Surrogate, data: Observations) -> Callable[[Array], tuple[Array, Array]]:
    """The objective on numpy arrays; infinite where a covariance matrix is not positive definite."""
    objective, device = model.objective(data), data.y.device
    # without autograd's bookkeeping a call of torch costs a fifth less
    mode = torch.no_grad if model.uses_autograd else torch.inference_mode

    def evaluate(theta: Array) -> tuple[Array, Array]:
        with mode():
            try:
                value, gradient = objective(torch.from_numpy(theta).to(device))
            except NumericalError:
                if len(theta) == 1:
                    return np.full(1, np.inf), np.zeros_like(theta)
                values, gradients = zip(*(evaluate(row[None]) for row in theta), strict=True)
                return np.concatenate(values), np.concatenate(gradients)
            return value.cpu().numpy(), gradient.cpu().numpy()

    return evaluate
