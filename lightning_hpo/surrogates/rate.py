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
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_hpo.surrogates.acquisition import log_improvement

_PROBABLE = 24
"""Values at a rung are represented by the mid-points of as many equally probable cells. So no luck rarer than theirs is
counted on: among hundreds of candidates there is always one that would need it, and with an exact integral searches
spend more on such and end worse (docs/decisions/default.md)."""
_SPAN, _STEPS = 6.0, 97
"""Values at a rung that are tried as limits: standard deviations on each side of the expected one, and their number."""
_LEAST_RATE = 1e-300
_LEAST_REST = 1e-6
"""Share of the variance at the last rung that no value below it explains."""


def improvement_rates(mean: Tensor, covariance: Tensor, noise: Tensor, cost: Tensor, incumbent: Tensor) -> Tensor:
    """Improvement per unit of cost, in the units of the targets, ``(B,)``, of trials with the same rungs before them.

    Args:
        mean: ``(B,)`` of the latent value at the last rung; other batch shapes will do.
        covariance: ``(B, k, k)`` of the latent values at the ``k`` rungs to come.
        noise: ``(k,)`` noise variance of the values there.
        cost: ``(k,)`` of training to each of them, increasing.
        incumbent: ``()`` or ``(B,)`` value that is to be improved on.
    """
    last = covariance.shape[-1] - 1
    variance = covariance[..., last, last].clamp_min(1e-12)
    gap = incumbent - mean
    nodes, share = _cells(mean.dtype, mean.device)
    rate = _expected_improvement(gap, variance.sqrt()) / cost[last]
    for j in range(last):
        told = covariance[..., last, j].square() / (covariance[..., j, j] + noise[j])
        told = torch.minimum(told, variance * (1.0 - _LEAST_REST))
        expected = gap.unsqueeze(-1) - told.sqrt().unsqueeze(-1) * nodes
        improvement = _expected_improvement(expected, (variance - told).sqrt().unsqueeze(-1))
        kept = improvement.cumsum(-1) / _PROBABLE
        ratios = kept / (cost[j] + share * (cost[last] - cost[j]))
        rate = torch.maximum(rate, ratios.amax(-1))
    return rate


def improvement_limits(
    mean: Tensor,
    covariance: Tensor,
    noise: Tensor,
    cost: Tensor,
    incumbent: Tensor,
    rival: Callable[[Tensor], Tensor],
) -> Tensor:
    """The value at each rung but the last with which a trial improves at the rate of a rival: ``(B, L - 1)``.

    With a lower value the trial is worth more than the rival, with a higher one less. Where it is expected to be better
    than all others, both are to improve on the trial itself. Values are looked for within six standard deviations of
    what is expected at the rung.

    Args:
        mean: ``(B, L)`` of the latent values at all rungs.
        covariance: ``(B, L, L)`` of them.
        noise: ``(L,)`` noise variance of the values there.
        cost: ``(L,)`` of training to each rung from the beginning, increasing.
        incumbent: ``(B,)`` values that are to be improved on, of others than the trial; may be infinite.
        rival: from values that are to be improved on, of any shape, to the rates at which the rival improves on them.
    """
    last = mean.shape[-1] - 1
    steps = torch.linspace(-_SPAN, _SPAN, _STEPS, dtype=mean.dtype, device=mean.device)
    limits = mean.new_empty(len(mean), last)
    for j in range(last):
        spread = (covariance[:, j, j] + noise[j]).sqrt()
        told = covariance[:, :, j] / spread.unsqueeze(-1)  # what a standard deviation more there adds to each
        means = mean[:, last, None] + told[:, last, None] * steps
        rest = (covariance - told.unsqueeze(-1) * told.unsqueeze(-2))[:, None, j + 1 :, j + 1 :]
        best = torch.minimum(means, incumbent.unsqueeze(-1))
        rates = improvement_rates(means, rest, noise[j + 1 :], cost[j + 1 :] - cost[j], best)
        lead = rates.clamp_min(_LEAST_RATE).log() - rival(best).clamp_min(_LEAST_RATE).log()
        # Between the last step that is good enough, all before it being so, and the next one.
        passes = (lead >= 0.0).long().cumprod(-1).sum(-1)
        below, above = (passes - 1).clamp_min(0), passes.clamp_max(_STEPS - 1)
        ends = lead.gather(-1, torch.stack([below, above], -1))
        share = (ends[:, 0] / (ends[:, 0] - ends[:, 1])).nan_to_num(0.0).clamp(0.0, 1.0)
        limits[:, j] = mean[:, j] + spread * (steps[below] + (steps[above] - steps[below]) * share)
    return limits


@functools.cache
def _cells(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mid-points of equally probable cells of a standard normal value, increasing, and the probability of all up to
    each."""
    middle = (torch.arange(_PROBABLE, dtype=dtype, device=device) + 0.5) / _PROBABLE
    return torch.special.ndtri(middle), middle + 0.5 / _PROBABLE


def _expected_improvement(gap: Tensor, std: Tensor) -> Tensor:
    """``E[max(gap + std z, 0)]``, ``z`` standard normal."""
    return std * log_improvement(gap / std)[0].exp()
