"""Expected improvement per unit of resource, for trials that may be given up on the way.

A trial is trained to its next rung first, where it is given up unless its value there is among the most promising ones;
otherwise it is trained to the last rung. For a normal posterior of the trial's values at its rungs

    rate = max over rungs j, shares q:  E[EI after the value at j; in the best q] / (c_j + q (c_L - c_j))

with ``c_j`` the cost from where the trial is to rung ``j``, and ``rate = EI / c_L`` where it is trained to the last
rung at once. The maximum says which trial, new or paused, improves most for what it costs, and where to look at it
again: a rung whose value tells nothing of the last one is skipped.

It is the index of Gittins (*Bandit Processes and Dynamic Allocation Indices*, J. Royal Statistical Society B 41, 1979)
for a trial of two stages: the best ratio of expected reward and expected cost over stopping rules.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hpo.surrogates.acquisition import log_improvement

_LOWEST, _HIGHEST, _WIDTH = -7.0, 4.0, 1.0 / 6.0
"""Values at the next rung, in standard deviations from what is expected there, are taken together in cells of this
width. Cells of equal probability would not do: where a trial has to be two deviations better than expected to improve
anything, all that it may gain lies in the lowest of them, and the share of that is the smallest that can be kept."""
_LEAST_REST = 1e-6
"""Share of the variance at the last rung that no value below it explains."""


class Rates(NamedTuple):
    """Of ``B`` trials at the same rung."""

    rate: Tensor
    """``(B,)`` improvement per unit of cost, in the units of the targets."""
    rung: Tensor
    """``(B,)`` the rung at which to look at the trial, counted from the next one."""


def improvement_rates(mean: Tensor, covariance: Tensor, noise: Tensor, cost: Tensor, incumbent: Tensor) -> Rates:
    """The rates of trials that have the same rungs before them.

    Args:
        mean: ``(B,)`` of the latent value at the last rung.
        covariance: ``(B, k, k)`` of the latent values at the ``k`` rungs to come.
        noise: ``(k,)`` noise variance of the values there.
        cost: ``(k,)`` of training to each of them, increasing.
        incumbent: ``()`` value that is to be improved on.
    """
    last = covariance.shape[-1] - 1
    variance = covariance[:, last, last].clamp_min(1e-12)
    rate = _expected_improvement(incumbent - mean, variance.sqrt()) / cost[last]
    rung = torch.full_like(mean, last, dtype=torch.int64)
    nodes, weight = _cells(mean)
    share = weight.cumsum(-1)
    for j in range(last):
        told = covariance[:, last, j].square() / (covariance[:, j, j] + noise[j])
        told = torch.minimum(told, variance * (1.0 - _LEAST_REST))
        expected = mean.unsqueeze(-1) + told.sqrt().unsqueeze(-1) * nodes
        improvement = _expected_improvement(incumbent - expected, (variance - told).sqrt().unsqueeze(-1))
        kept = (improvement * weight).cumsum(-1) / (cost[j] + share * (cost[last] - cost[j]))
        found = kept.amax(-1)
        # where everything goes on the rung is nothing but a detour
        rung = torch.where(found > rate * (1.0 + 1e-9), j, rung)
        rate = torch.maximum(rate, found)
    # What promises nothing is not worth a whole training.
    return Rates(rate, torch.where(rate > 0.0, rung, 0))


def _cells(like: Tensor) -> tuple[Tensor, Tensor]:
    """Conditional means of a standard normal value in the cells, and their probabilities, ``(n,)`` each, increasing."""
    steps = round((_HIGHEST - _LOWEST) / _WIDTH)
    edges = torch.linspace(_LOWEST, _HIGHEST, steps + 1, dtype=like.dtype, device=like.device)
    edges[0], edges[-1] = -math.inf, math.inf
    weight = torch.special.ndtr(edges).diff()
    density = (-0.5 * edges.square()).exp() / math.sqrt(2.0 * math.pi)
    return -density.diff() / weight, weight


def _expected_improvement(gap: Tensor, std: Tensor) -> Tensor:
    """``E[max(gap + std z, 0)]``, ``z`` standard normal."""
    return std * log_improvement(gap / std)[0].exp()
