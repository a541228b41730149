"""Learning curves, and what is left of them once a curve is reduced to one pseudo-observation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fused import LOG_2PI


class Curves(NamedTuple):
    """``m`` learning curves from resource 1 on."""

    x: Tensor
    """``(m, d)``"""
    length: Tensor
    """Observations per curve, ``(m,)``, at least 1."""
    y: Tensor
    """``(m, R, F)``, zero beyond the length."""

    @classmethod
    def of(cls, data: Observations) -> Curves:
        """Sorts observations into curves.

        A configuration observed twice at the same resource has two curves. What comes after a gap is not used, since
        both models need every earlier value.
        """
        config, resource = data.config.cpu().numpy(), data.resource.cpu().numpy()
        next_curve: dict[tuple[int, int], int] = {}
        curves: dict[tuple[int, int], dict[int, int]] = {}
        for position in np.argsort(resource, kind="stable"):
            key = (int(config[position]), int(resource[position]))
            copy = next_curve.get(key, 0)
            next_curve[key] = copy + 1
            curves.setdefault((key[0], copy), {})[key[1]] = int(position)
        prefixes = []
        for (row, _), found in sorted(curves.items()):
            length = next(r for r in range(1, len(found) + 2) if r not in found) - 1
            if length:
                prefixes.append((row, [found[r] for r in range(1, length + 1)]))
        lengths = [len(positions) for _, positions in prefixes]
        y = data.y.new_zeros(len(prefixes), max(lengths, default=1), 1)
        for i, (_, positions) in enumerate(prefixes):
            y[i, : len(positions), 0] = data.y[positions]
        rows = torch.tensor([row for row, _ in prefixes], dtype=torch.int64, device=data.y.device)
        return cls(data.x[rows], torch.tensor(lengths, dtype=torch.int64, device=data.y.device), y)

    def mask(self) -> Tensor:
        """Which entries of ``y`` are targets, ``(m, R)``."""
        return torch.arange(self.y.shape[1], device=self.y.device) < self.length[:, None]


class Reduced(NamedTuple):
    """Curves as pseudo-observations, for ``S`` parameter vectors and ``F`` columns."""

    z: Tensor
    """``(S, m, F)``"""
    tau: Tensor
    """Variance of ``z``, ``(S, m)``."""
    remainder: Tensor
    """What the negative log density of the curves has beyond that of ``z`` (first column), ``(S,)``."""


class Continuation(NamedTuple):
    """Pending values of one curve given its targets and ``h``: Gaussian with mean ``offset + slope h``."""

    offset: Tensor
    """``(k, F)``"""
    slope: Tensor
    """``(k,)``"""
    covariance: Tensor
    """``(k, k)``"""


def reduce_whitened(
    v: Tensor, w: Tensor, noise: Tensor, length: Tensor, log_det: Tensor, rest: Tensor, spread: Tensor
) -> Reduced:
    """Pseudo-observations of whitened residuals ``w - v h``.

    Args:
        v: ``(S, m, R)``, zero beyond a curve's length.
        w: ``(S, m, R, F)``, likewise.
        noise: ``(S, 1)``.
        length: ``(m,)``.
        log_det: sum of log determinants of the whitening, ``(S,)``.
        rest, spread: mean and variance of what lies between the last target and ``h``, ``(S, m)`` or ``(S, 1)``.
    """
    vv = (v * v).sum(-1)
    vw = torch.einsum("smr,smrf->smf", v, w)
    first = w[..., 0]
    scatter = ((first * first).sum(-1) - vw[..., 0] ** 2 / vv).sum(-1)
    free = (length - 1).sum()
    remainder = 0.5 * (free * (LOG_2PI + noise.log().squeeze(-1)) + vv.log().sum(-1) + scatter / noise.squeeze(-1))
    return Reduced(vw / vv.unsqueeze(-1) + rest.unsqueeze(-1), noise / vv + spread, remainder + log_det)
