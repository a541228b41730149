"""Expected improvement per unit of resource, for trials that may be given up on the way.

A trial is trained to its next rung first, where it is given up unless its value there is among the most promising ones;
otherwise it is trained to the last rung. For a normal posterior of the trial's values at its rungs

    rate = max over rungs j, shares q:  E[EI after the value at j; in the best q] / (c_j + q (c_L - c_j))

with ``c_j`` the cost from where the trial is to rung ``j``, and ``rate = EI / c_L`` where it is trained to the last
rung at once. The rate says which trial, new or paused, improves most for what it costs, and the maximum where to look
at it again: a rung whose value tells nothing of the last one is skipped. The expectation is computed twice: roughly for
the rate, which then counts on no rare luck, and finely for the rung.

It is the index of Gittins (*Bandit Processes and Dynamic Allocation Indices*, J. Royal Statistical Society B 41, 1979)
for a trial of two stages: the best ratio of expected reward and expected cost over stopping rules.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hpo.surrogates.acquisition import log_improvement

_PROBABLE = 24
"""For the rate, values at the next rung are represented by the mid-points of as many equally probable cells. So no luck
rarer than theirs is counted on: among hundreds of candidates there is always one that would need it, and with an exact
integral searches spend more on such and end worse (docs/benchmarks.md)."""
_LOWEST, _HIGHEST, _WIDTH = -7.0, 4.0, 1.0 / 6.0
"""Where to look at one trial is no comparison with others: cells of this width, in standard deviations, decide. Where a
trial has to be far better than expected to improve anything, the cells above see nothing of it at any rung, and it
would be trained to the last one for what it gains there."""
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
    at_once = _expected_improvement(incumbent - mean, variance.sqrt()) / cost[last]
    rate, exact = at_once, at_once
    rung = torch.full_like(mean, last, dtype=torch.int64)
    probable, fine = _probable_cells(mean), _fine_cells(mean)
    for j in range(last):
        told = covariance[:, last, j].square() / (covariance[:, j, j] + noise[j])
        told = torch.minimum(told, variance * (1.0 - _LEAST_REST))
        gap, std, rest = incumbent - mean, told.sqrt(), (variance - told).sqrt()
        rate = torch.maximum(rate, _best_ratio(gap, std, rest, cost[j], cost[last], probable))
        found = _best_ratio(gap, std, rest, cost[j], cost[last], fine)
        # where everything goes on the rung is nothing but a detour
        rung = torch.where(found > exact * (1.0 + 1e-9), j, rung)
        exact = torch.maximum(exact, found)
    # What promises nothing is not worth a whole training.
    return Rates(rate, torch.where(exact > 0.0, rung, 0))


class _Cells(NamedTuple):
    """Of a standard normal value, increasing, ``(n,)`` each."""

    nodes: Tensor
    weight: Tensor
    share: Tensor
    """Probability of all up to a cell."""


def _probable_cells(like: Tensor) -> _Cells:
    middle = (torch.arange(_PROBABLE, dtype=like.dtype, device=like.device) + 0.5) / _PROBABLE
    return _Cells(torch.special.ndtri(middle), torch.full_like(middle, 1.0 / _PROBABLE), middle + 0.5 / _PROBABLE)


def _fine_cells(like: Tensor) -> _Cells:
    """Their nodes are conditional means."""
    steps = round((_HIGHEST - _LOWEST) / _WIDTH)
    edges = torch.linspace(_LOWEST, _HIGHEST, steps + 1, dtype=like.dtype, device=like.device)
    edges[0], edges[-1] = -math.inf, math.inf
    weight = torch.special.ndtr(edges).diff()
    density = (-0.5 * edges.square()).exp() / math.sqrt(2.0 * math.pi)
    return _Cells(-density.diff() / weight, weight, weight.cumsum(-1))


def _best_ratio(gap: Tensor, std: Tensor, rest: Tensor, here: Tensor, all_of_it: Tensor, cells: _Cells) -> Tensor:
    """Improvement over cost, for the best share of the values at a rung that goes on.

    Args:
        gap: ``(B,)`` what is to be improved on, minus the mean at the last rung.
        std: ``(B,)`` standard deviation of the part of the last value that the rung tells.
        rest: ``(B,)`` that of the other part.
        here, all_of_it: cost of training to the rung and to the last one.
        cells: of the value at the rung.
    """
    expected = gap.unsqueeze(-1) - std.unsqueeze(-1) * cells.nodes
    improvement = _expected_improvement(expected, rest.unsqueeze(-1))
    kept = (improvement * cells.weight).cumsum(-1)
    return (kept / (here + cells.share * (all_of_it - here))).amax(-1)


def _expected_improvement(gap: Tensor, std: Tensor) -> Tensor:
    """``E[max(gap + std z, 0)]``, ``z`` standard normal."""
    return std * log_improvement(gap / std)[0].exp()
