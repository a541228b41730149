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

import functools
import math
from collections.abc import Iterator
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


class Prospects(NamedTuple):
    """What a model expects of ``B`` trials that have the same ``k`` rungs before them."""

    mean: Tensor
    """``(B,)`` of the latent value at the last rung."""
    covariance: Tensor
    """``(B, k, k)`` of the latent values at the rungs to come."""
    noise: Tensor
    """``(k,)`` noise variance of the values there."""
    cost: Tensor
    """``(k,)`` of training to each of them, increasing."""
    incumbent: Tensor
    """``()`` value that is to be improved on."""


def improvement_rates(prospects: Prospects) -> Tensor:
    """Improvement per unit of cost, in the units of the targets, ``(B,)``."""
    *earlier, rate = _by_rung(prospects, _probable_cells(prospects.mean.dtype, prospects.mean.device))
    for ratio in earlier:
        rate = torch.maximum(rate, ratio)
    return rate


def next_rungs(prospects: Prospects) -> Tensor:
    """The rung at which to look at each trial, counted from the next one, ``(B,)``."""
    *earlier, best = _by_rung(prospects, _fine_cells(prospects.mean.dtype, prospects.mean.device))
    rung = torch.full_like(best, len(earlier), dtype=torch.int64)
    for j, ratio in enumerate(earlier):
        # where everything goes on the rung is nothing but a detour
        rung = torch.where(ratio > best * (1.0 + 1e-9), j, rung)
        best = torch.maximum(best, ratio)
    # What promises nothing is not worth a whole training.
    return torch.where(best > 0.0, rung, 0)


def _by_rung(prospects: Prospects, cells: _Cells) -> Iterator[Tensor]:
    """Improvement over cost ``(B,)`` of looking at the trials at each rung; the last one is where they end anyway."""
    mean, covariance, noise, cost, incumbent = prospects
    last = covariance.shape[-1] - 1
    variance = covariance[:, last, last].clamp_min(1e-12)
    gap = incumbent - mean
    for j in range(last):
        told = covariance[:, last, j].square() / (covariance[:, j, j] + noise[j])
        told = torch.minimum(told, variance * (1.0 - _LEAST_REST))
        yield _best_ratio(gap, told.sqrt(), (variance - told).sqrt(), cost[j], cost[last], cells)
    yield _expected_improvement(gap, variance.sqrt()) / cost[last]


class _Cells(NamedTuple):
    """Of a standard normal value, increasing, ``(n,)`` each."""

    nodes: Tensor
    weight: Tensor
    share: Tensor
    """Probability of all up to a cell."""


@functools.cache
def _probable_cells(dtype: torch.dtype, device: torch.device) -> _Cells:
    middle = (torch.arange(_PROBABLE, dtype=dtype, device=device) + 0.5) / _PROBABLE
    return _Cells(torch.special.ndtri(middle), torch.full_like(middle, 1.0 / _PROBABLE), middle + 0.5 / _PROBABLE)


@functools.cache
def _fine_cells(dtype: torch.dtype, device: torch.device) -> _Cells:
    """Their nodes are conditional means."""
    steps = round((_HIGHEST - _LOWEST) / _WIDTH)
    edges = torch.linspace(_LOWEST, _HIGHEST, steps + 1, dtype=dtype, device=device)
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
