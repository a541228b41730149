"""Hyper-Tune's weights of resource levels and brackets (Li, Shen, Jiang, Zhang, Li, Cui 2022).

How well does the model at a lower level rank the configurations that were observed at the highest level with enough
data? Samples from its posterior are compared with the observed ranking, pair by pair; the top level itself is
judged by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import IndependentModel, JointModel
from lightning_hpo.surrogates.posterior import Posterior

MIN_POINTS = 6
"""Observations a level needs to be judged by."""
MIN_WEIGHT = 0.01
"""Levels of at most this weight are left out of the ensemble."""

Normals = Callable[[int], Tensor]
"""Number of inputs -> standard normal numbers ``(inputs, S)``."""


def ranking_losses(samples: Tensor, targets: Tensor) -> Tensor:
    """Share of pairs whose order a sample gets wrong.

    Args:
        samples: ``(n, S)``, ``n >= 2``.
        targets: ``(n,)``.

    Returns:
        ``(S,)``, multiples of ``2 / (n (n - 1))``. Pairs are compared by ``<`` on both sides.
    """
    n = len(targets)
    first, second = torch.triu_indices(n, n, offset=1, device=targets.device)
    wrong = (samples[first] < samples[second]) != (targets[first] < targets[second]).unsqueeze(-1)
    return wrong.to(torch.float64).mean(0)


def folds(n: int) -> list[slice]:
    """At most 5 contiguous blocks of ``n >= 4`` positions, equally long but for the last ones, which are one longer."""
    k = min(n // 2, 5)
    short, longer = n // k, n % k
    blocks, start = [], 0
    for i in range(k):
        stop = start + short + (i >= k - longer)
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def highest_supported(counts: Sequence[int]) -> int:
    """How many levels are judged: up to the highest above the first with at least 6 observations; else 1.

    Args:
        counts: observations per level, from the lowest level on.
    """
    return next((k for k in range(len(counts), 1, -1) if counts[k - 1] >= MIN_POINTS), 1)


def level_losses(
    model: JointModel | IndependentModel,
    data: Observations,
    theta: Tensor,
    posterior: Posterior,
    levels: Sequence[int],
    normals: Normals,
) -> Tensor:
    """Ranking losses of ``levels``, judged by the data at the last of them.

    Args:
        model, data, theta: fitted; ``posterior`` is theirs, without fantasies.
        levels: the supported resource levels, increasing; the last has at least 6 observations.
        normals: called once per level below the last, then once per fold.

    Returns:
        ``(levels, S)``
    """
    top = levels[-1]
    target = data.at(top)
    x, y = target.rows, target.y
    rows = [ranking_losses(posterior.sample(x, r, normals(len(x))), y) for r in levels[:-1]]
    total: Tensor | float = 0.0
    blocks = folds(len(y))
    for block in blocks:
        train = torch.ones(len(y), dtype=torch.bool, device=y.device)
        train[block] = False
        held_out = Observations.from_rows(x[train], y[train], target.resource[train])
        fold = model.posterior(held_out, theta)
        total = total + ranking_losses(fold.sample(x[block], top, normals(len(y[block]))), y[block])
    rows.append(torch.as_tensor(total) / len(blocks))
    return torch.stack(rows)


def level_weights(losses: Tensor) -> Tensor:
    """Share of samples in which each level has the smallest loss, ``(levels,)``; ties count for all, then normalised.

    Args:
        losses: ``(levels, S)``.
    """
    best = (losses == losses.amin(0)).to(torch.float64).sum(1)
    return best / best.sum()


def ensemble_weights(weights: Mapping[int, float], renormalize: bool = True) -> dict[int, float]:
    """The weights above 0.01.

    Args:
        weights: resource -> weight, summing to 1.
        renormalize: let the rest sum to 1 again, so that the ensemble's mean is not shrunk.
    """
    kept = {r: w for r, w in weights.items() if w > MIN_WEIGHT}
    total = sum(kept.values()) if renormalize else 1.0
    return {r: w / total for r, w in kept.items()}


def bracket_distribution(weights: Mapping[int, float], default: Sequence[float]) -> list[float]:
    """Probabilities of brackets: each level's weight divided by its resource.

    Args:
        weights: resource -> weight of the supported levels, in increasing order of resource.
        default: probabilities of all brackets. Brackets without a weight keep theirs; the others share what is left.

    Returns:
        as many probabilities as ``default`` has.
    """
    per_resource = [w / r for r, w in sorted(weights.items())][: len(default)]
    if not per_resource:
        raise ShapeError("No level has a weight. Compute the weights of at least one level.")
    total = sum(per_resource)
    head = [w / total for w in per_resource] if total >= 1e-14 else [1.0] + [0.0] * (len(per_resource) - 1)
    mass = sum(default[: len(head)])
    return [w * mass for w in head] + list(default[len(head) :])
