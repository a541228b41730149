"""Acquisition functions of a posterior, their local optimisation, and the resource at which they are evaluated.

All are *minimised*, in units of the targets the posterior was fitted to. The least improvement that counts (``xi``) is
in these units as well: with normalised targets it scales with the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.errors import OptionError, ShapeError
from lightning_hpo.surrogates.optimize import Array, minimize_batch
from lightning_hpo.surrogates.posterior import Posterior
from lightning_hpo.surrogates.promotion import PromotionProbability

_STD_FLOOR = 1e-10
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_TAIL = 1e4
"""Below minus this, ``1 + u M`` (see :func:`log_improvement`) is lost in rounding, and its limit is exact."""
_HEAD = 30.0
"""Above this, ``M`` overflows soon, and ``h(u) = u`` is exact."""


class Score(NamedTuple):
    """Values of an acquisition function and their derivatives by the moments of the prediction."""

    value: Tensor
    """``(B,)``, lower is better."""
    mean: Tensor
    """Derivative with respect to the mean, ``(B, F)``."""
    variance: Tensor
    """Derivative with respect to the variance, ``(B,)``."""


Acquisition: TypeAlias = Callable[[Tensor, Tensor], Score]
"""Mean ``(B, F)`` and variance ``(B,)`` -> score."""


def log_improvement(u: Tensor) -> tuple[Tensor, Tensor]:
    """``log h(u)``, ``h(u) = u Phi(u) + phi(u)``, and its derivative ``Phi(u) / h(u)``, without underflow.

    Through Mills' ratio ``M = Phi / phi``, a scaled complementary error function: ``h = phi (1 + u M)`` and
    ``Phi / h = M / (1 + u M)``. Far in the lower tail ``h`` is ``phi(u) / u**2`` (Ament, Daulton, Eriksson, Balandat,
    Bakshy 2023, eq. 9), far in the upper one ``u``.
    """
    inside = u.clamp(-_TAIL, _HEAD)
    mills = torch.special.erfcx(inside * -math.sqrt(0.5)).mul_(math.sqrt(0.5 * math.pi))
    excess = inside * mills
    value = excess.log1p() - (inside.square().mul_(0.5).add_(_LOG_SQRT_2PI))
    slope = mills / (excess + 1.0)
    if torch.equal(inside, u):
        return value, slope
    far = (-u).clamp_min(_TAIL)
    below = -2.0 * far.log() - 0.5 * far**2 - _LOG_SQRT_2PI
    above = u.clamp_min(_HEAD)
    value = torch.where(u < -_TAIL, below, torch.where(u > _HEAD, above.log(), value))
    return value, torch.where(u < -_TAIL, far, torch.where(u > _HEAD, 1.0 / above, slope))


def log_expected_improvement(incumbent: Tensor, xi: float = 0.01) -> Acquisition:
    """``-log EI``, EI being the mean over columns of ``s h((incumbent - mean - xi) / s)``.

    Args:
        incumbent: ``(F,)``, see :func:`incumbent`.
        xi: improvements below this size do not count.
    """

    limit = incumbent - xi

    def score(mean: Tensor, variance: Tensor) -> Score:
        std = variance.sqrt().clamp_min_(_STD_FLOOR)
        column = std.unsqueeze(-1)
        u = (limit - mean) / column
        log_h, slope = log_improvement(u)
        total = log_h.logsumexp(-1)
        # derivatives of -log EI: d log h / du, weighted by the columns' shares of the sum
        weighted = (log_h - total.unsqueeze(-1)).exp_().mul_(slope).div_(column)
        g_variance = ((weighted * u).sum(-1) - 1.0 / std) / (2.0 * std)
        return Score(math.log(mean.shape[-1]) - total - std.log(), weighted, g_variance)

    return score


def lower_confidence_bound(kappa: float = 1.0) -> Acquisition:
    """Mean over columns of ``mean - kappa * std``."""

    def score(mean: Tensor, variance: Tensor) -> Score:
        std = variance.sqrt()
        g_mean = torch.full_like(mean, 1.0 / mean.shape[-1])
        return Score(mean.mean(-1) - kappa * std, g_mean, -0.5 * kappa / std.clamp_min(_STD_FLOOR))

    return score


def thompson(normals: Tensor) -> Acquisition:
    """Independent draws from the marginals, averaged over columns.

    For scoring only: its derivatives are those of the mean.

    Args:
        normals: ``(B, F)`` standard normal numbers.
    """

    def score(mean: Tensor, variance: Tensor) -> Score:
        value = (mean + variance.sqrt().unsqueeze(-1) * normals).mean(-1)
        return Score(value, torch.full_like(mean, 1.0 / mean.shape[-1]), torch.zeros_like(variance))

    return score


def incumbent(posterior: Posterior, resource: int) -> Tensor:
    """Per column the lowest posterior mean over all inputs observed or pending at ``resource``, ``(F,)``.

    Raises:
        ShapeError: if there is none.
    """
    inputs = posterior.inputs_at(resource)
    if len(inputs) == 0:
        raise ShapeError(
            f"Nothing is observed or pending at resource {resource}, so there is no incumbent. "
            "Choose the resource with acquisition_resource()."
        )
    return posterior.predict(inputs, resource).mean.amin(0)


def evaluate(posterior: Posterior, acquisition: Acquisition, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
    """Values ``(B,)`` at configurations ``(B, d)``, and their gradients ``(B, d)``."""
    prediction = posterior.predict(x, resource)
    score = acquisition(prediction.mean, prediction.variance)
    return score.value, prediction.pullback(score.mean, score.variance)


def minimize_acquisition(
    posterior: Posterior,
    acquisition: Acquisition,
    starts: Tensor,
    resource: int,
    max_iterations: int = 1000,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    promotion: PromotionProbability | None = None,
) -> tuple[Tensor, Tensor]:
    """Local minima of an acquisition function in a box, all starts in one batch.

    Args:
        starts: ``(B, d)`` encoded configurations.
        promotion: its logarithm is subtracted, which weights an expected improvement by it.
        lower, upper: ``(d,)``, the unit cube if not given. Equal entries fix a coordinate.

    Returns:
        points ``(B, d)`` and values ``(B,)``, never worse than the starts.
    """
    device = starts.device

    def function(points: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            x = torch.from_numpy(points).to(device)
            value, gradient = evaluate(posterior, acquisition, x, resource)
            if promotion is not None:
                log_probability, slope = promotion.log(x)
                value, gradient = value - log_probability, gradient - slope
        return value.cpu().numpy(), gradient.cpu().numpy()

    d = starts.shape[1]
    low = np.zeros(d) if lower is None else lower.cpu().numpy()
    high = np.ones(d) if upper is None else upper.cpu().numpy()
    found = minimize_batch(function, starts.cpu().numpy(), low, high, max_iterations)
    return torch.from_numpy(found.x).to(device), torch.from_numpy(found.value).to(device)


def acquisition_resource(
    counts: Mapping[int, int],
    rule: str = "bohb",
    threshold: int = 3,
    milestone: int | None = None,
    max_t: int | None = None,
) -> int:
    """The resource at which the acquisition function is evaluated.

    Args:
        counts: resource -> number of observations.
        rule: ``bohb``: the largest resource with at least ``threshold`` observations, or else the smallest with any.
            ``first``: the new trial's first milestone. ``final``: ``max_t``. Where the latter two have no observation,
            ``bohb`` decides.
        milestone: needed by ``first``.
        max_t: needed by ``final``.

    Raises:
        OptionError: if there is no such rule.
        ShapeError: if nothing is observed.
    """
    if rule not in ("bohb", "first", "final"):
        raise OptionError(f"There is no rule {rule!r} for the acquisition's resource. Use bohb, first or final.")
    observed = {resource: count for resource, count in counts.items() if count > 0}
    if not observed:
        raise ShapeError("Nothing is observed at any resource. Ask a model only after the first observation.")
    wanted = {"bohb": None, "first": milestone, "final": max_t}[rule]
    if wanted in observed:
        return wanted
    return max((r for r, count in observed.items() if count >= threshold), default=min(observed))
