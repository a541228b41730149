"""What a surrogate is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.errors import ShapeError


def fidelity(resource: Tensor, max_resource: int) -> Tensor:
    """Resource levels 1, 2, .. ``max_resource`` scaled into (0, 1), as an integer hyperparameter is encoded."""
    return (resource.to(torch.float64) - 0.5 - 1e-8) / (max_resource - 2e-8)


@dataclass(frozen=True, eq=False)
class Observations:
    """``n`` targets of ``m`` distinct configurations at resource levels.

    A configuration that was observed at several levels is stored once, so that covariances over configurations are
    computed once. Make it with :meth:`from_rows`.
    """

    x: Tensor
    """Distinct configurations in the unit cube, ``(m, d)``, float64, in the order of first appearance."""
    config: Tensor
    """Row of ``x`` of every observation, ``(n,)``, int64."""
    resource: Tensor
    """Resource of every observation, ``(n,)``, int64."""
    y: Tensor
    """Targets, ``(n,)``, float64; normalised if the model's priors are to make sense."""

    @classmethod
    def from_rows(
        cls,
        x: Tensor | Sequence[Sequence[float]],
        y: Tensor | Sequence[float],
        resource: Tensor | Sequence[int] | None = None,
    ) -> Observations:
        """From one row per observation.

        Args:
            x: ``(n, d)`` encoded configurations.
            y: ``(n,)`` targets.
            resource: ``(n,)`` integers, 1 everywhere if not given.

        Raises:
            ShapeError: if lengths differ or a number is not finite.
        """
        y = torch.as_tensor(y, dtype=torch.float64)
        x = torch.as_tensor(x, dtype=torch.float64, device=y.device)
        if resource is None:
            resource = torch.ones(len(y), dtype=torch.int64)
        resource = torch.as_tensor(resource, dtype=torch.int64, device=y.device)
        if x.ndim != 2 or y.ndim != 1 or not len(x) == len(y) == len(resource):
            raise ShapeError(
                f"Configurations {tuple(x.shape)}, targets {tuple(y.shape)} and resources {tuple(resource.shape)} "
                "do not fit together. Pass one row, one target and one resource per observation."
            )
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise ShapeError("A configuration or target is not finite. Drop observations that are not finite.")
        _, first, inverse = np.unique(x.cpu().numpy(), axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        distinct = torch.as_tensor(first[order], device=y.device)
        config = torch.as_tensor(rank[np.reshape(inverse, -1)], device=y.device)
        return cls(x[distinct], config, resource, y)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def rows(self) -> Tensor:
        """One configuration per observation, ``(n, d)``."""
        return self.x[self.config]

    def levels(self) -> tuple[Tensor, Tensor]:
        """Distinct resources, increasing, and the position among them of every observation."""
        return torch.unique(self.resource, return_inverse=True)

    def to(self, device: torch.device | str) -> Observations:
        """The same data on another device."""
        return Observations(*(t.to(device) for t in (self.x, self.config, self.resource, self.y)))

    def at(self, resource: int) -> Observations:
        """The observations at one resource, in their order."""
        chosen = self.resource == resource
        used, config = torch.unique(self.config[chosen], return_inverse=True)
        return Observations(self.x[used], config, self.resource[chosen], self.y[chosen])
