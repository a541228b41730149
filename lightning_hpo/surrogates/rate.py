"""Expected improvement per unit of resource, for trials that may be given up on the way.

A trial is trained to one of its rungs, where it is given up unless its value there is among the most promising ones;
otherwise it is trained to the last rung. For a normal posterior of the trial's values at its rungs

    rate = max over rungs j, shares q:  E[EI after the value at j; in the best q] / (c_j + q (c_L - c_j))

with ``c_j`` the cost from where the trial is to rung ``j``, and ``rate = EI / c_L`` where it is trained to the last
rung at once. The rate says which trial, new or paused, improves most for what it costs. It counts on one look; every
trial is looked at again at its *next* rung all the same, whichever ``j`` it is: what a rung tells costs a pause and
nothing else, and may be asked there and at ``j``. To skip the rungs below ``j`` was worse (docs/decisions/default.md).

It is the index of Gittins (*Bandit Processes and Dynamic Allocation Indices*, J. Royal Statistical Society B 41, 1979)
for a trial of two stages: the best ratio of expected reward and expected cost over stopping rules.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lightning_hpo.surrogates.acquisition import log_improvement

_PROBABLE = 24
"""Values at a rung are represented by the mid-points of as many equally probable cells. So no luck rarer than theirs is
counted on: among hundreds of candidates there is always one that would need it, and with an exact integral searches
spend more on such and end worse (docs/decisions/default.md)."""
_LEAST_REST = 1e-6
"""Share of the variance at the last rung that no value below it explains."""


def improvement_rates(mean: Tensor, covariance: Tensor, noise: Tensor, cost: Tensor, incumbent: Tensor) -> Tensor:
    """Improvement per unit of cost, in the units of the targets, ``(B,)``, of trials with the same rungs before them.

    Args:
        mean: ``(B,)`` of the latent value at the last rung.
        covariance: ``(B, k, k)`` of the latent values at the ``k`` rungs to come.
        noise: ``(k,)`` noise variance of the values there.
        cost: ``(k,)`` of training to each of them, increasing.
        incumbent: ``()`` value that is to be improved on.
    """
    last = covariance.shape[-1] - 1
    variance = covariance[:, last, last].clamp_min(1e-12)
    gap = incumbent - mean
    nodes, share = _cells(mean.dtype, mean.device)
    rate = _expected_improvement(gap, variance.sqrt()) / cost[last]
    for j in range(last):
        told = covariance[:, last, j].square() / (covariance[:, j, j] + noise[j])
        told = torch.minimum(told, variance * (1.0 - _LEAST_REST))
        expected = gap.unsqueeze(-1) - told.sqrt().unsqueeze(-1) * nodes
        improvement = _expected_improvement(expected, (variance - told).sqrt().unsqueeze(-1))
        kept = improvement.cumsum(-1) / _PROBABLE
        ratios = kept / (cost[j] + share * (cost[last] - cost[j]))
        rate = torch.maximum(rate, ratios.amax(-1))
    return rate


@functools.cache
def _cells(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mid-points of equally probable cells of a standard normal value, increasing, and the probability of all up to
    each."""
    middle = (torch.arange(_PROBABLE, dtype=dtype, device=device) + 0.5) / _PROBABLE
    return torch.special.ndtri(middle), middle + 0.5 / _PROBABLE


def _expected_improvement(gap: Tensor, std: Tensor) -> Tensor:
    """``E[max(gap + std z, 0)]``, ``z`` standard normal."""
    return std * log_improvement(gap / std)[0].exp()
