"""What a fitted surrogate says about configurations: marginals with gradients, joint samples, fantasies.

Everything is in units of the targets the model was fitted to. A posterior may hold ``F`` *columns* of targets: with
pending evaluations, column ``j`` continues the observed targets by the ``j``-th fantasy. The columns have different
means and one common variance, so all share one Cholesky factor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.covariances import Covariance, Points, Query
from lightning_hpo.surrogates.data import fidelity
from lightning_hpo.surrogates.fused import cholesky
from lightning_hpo.surrogates.parameters import Natural

VARIANCE_FLOOR = 1e-12
SAMPLING_JITTER = 1e-5
"""Added to the diagonal of a covariance before joint samples are drawn from it."""


class Prediction(NamedTuple):
    """Marginals of the latent function at ``B`` configurations."""

    mean: Tensor
    """``(B, F)``"""
    variance: Tensor
    """``(B,)``, at least 1e-12."""
    pullback: Callable[[Tensor, Tensor], Tensor]
    """Gradients with respect to mean and variance -> gradient with respect to the configurations, ``(B, d)``."""


class Posterior(ABC):
    """Posterior distribution of the latent function over (configuration, resource)."""

    columns: int
    """``F``: 1 without fantasies."""

    @abstractmethod
    def predict(self, x: Tensor, resource: int) -> Prediction:
        """Marginals at configurations ``(B, d)``, all at one resource."""

    @abstractmethod
    def joint(self, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
        """Mean ``(B, F)`` and covariance ``(B, B)`` at configurations, all at one resource."""

    @abstractmethod
    def fantasize(self, x: Tensor, resource: Tensor, normals: Tensor) -> Posterior:
        """Condition on joint samples of the latent function at pending inputs.

        Args:
            x: ``(P, d)``.
            resource: ``(P,)`` integers.
            normals: ``(P, F)`` standard normal numbers; one column of targets gives ``F``, otherwise their numbers
                must agree.

        Raises:
            ShapeError: if the posterior has another number of columns already.
        """

    @abstractmethod
    def inputs_at(self, resource: int) -> Tensor:
        """Configurations observed or pending at this resource, ``(k, d)``."""

    def sample(self, x: Tensor, resource: int, normals: Tensor) -> Tensor:
        """Joint samples ``(B, S)`` of the latent function, from standard normal numbers ``(B, S)``."""
        return draw(*self.joint(x, resource), normals)


def draw(mean: Tensor, covariance: Tensor, normals: Tensor) -> Tensor:
    """Samples ``mean + L normals``, ``L Lᵀ = covariance + 1e-5 I``.

    Args:
        mean: ``(n, 1)`` or ``(n, S)``.
        covariance: ``(n, n)``.
        normals: ``(n, S)``.
    """
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return mean + cholesky(covariance + SAMPLING_JITTER * eye) @ normals


class DensePosterior(Posterior):
    """Exact posterior by one Cholesky factor of all inputs.

    Args:
        covariance: prior moments.
        natural: one parameter vector (``S = 1``).
        max_resource: scales resources to fidelities; None if the model does not see the resource.
        x: ``(n, d)`` configurations, one row per target.
        resource: ``(n,)``.
        targets: ``(n, F)``.
        noise: ``(n,)`` noise variances.
    """

    def __init__(
        self,
        covariance: Covariance,
        natural: Natural,
        max_resource: int | None,
        x: Tensor,
        resource: Tensor,
        targets: Tensor,
        noise: Tensor,
    ) -> None:
        self._prior = (covariance, natural, max_resource)
        self.covariance, self.natural, self.max_resource = self._prior
        self.x, self.resource, self.targets, self.noise = x, resource, targets, noise
        self.columns = targets.shape[1]
        self.points = self._points(x, resource)
        moments = covariance.moments(natural, self.points)
        self._solve(moments.mean[0], cholesky(moments.covariance[0] + noise.diag()))

    def _points(self, x: Tensor, resource: Tensor) -> Points:
        return Points.of(x, self._rho(resource))

    def _rho(self, resource: Tensor) -> Tensor:
        if self.max_resource is None:
            return torch.zeros_like(resource, dtype=torch.float64)
        return fidelity(resource, self.max_resource)

    def _solve(self, mean: Tensor, factor: Tensor) -> None:
        self.prior_mean, self.factor = mean, factor
        self.weights = torch.cholesky_solve(self.targets - mean.unsqueeze(-1), factor)
        self._queries: dict[int, Query] = {}

    def _query(self, resource: int) -> Query:
        if resource not in self._queries:
            rho = self._rho(torch.tensor(resource, device=self.x.device))
            self._queries[resource] = self.covariance.query(self.natural, self.points, rho)
        return self._queries[resource]

    def predict(self, x: Tensor, resource: int) -> Prediction:
        query = self._query(resource)
        cross, pull_cross = query.cross(x)
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        raw = query.variance - half.square().sum(0)
        variance = raw.clamp_min(VARIANCE_FLOOR)

        def pullback(g_mean: Tensor, g_variance: Tensor) -> Tensor:
            solved = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
            g_variance = torch.where(raw > VARIANCE_FLOOR, g_variance, 0.0)
            g_cross = torch.addcmul(g_mean @ self.weights.mT, g_variance.unsqueeze(-1), solved.mT, value=-2.0)
            return pull_cross(g_cross)

        return Prediction(torch.addmm(query.mean, cross, self.weights), variance, pullback)

    def joint(self, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
        return self._joint(x, torch.full((len(x),), resource, device=x.device))[:2]

    def _joint(self, x: Tensor, resource: Tensor) -> tuple[Tensor, Tensor, Tensor, Points, Tensor]:
        """Mean, covariance, ``L⁻¹ k`` of the new inputs, all points, and the prior mean of all points."""
        new = self._points(x, resource)
        prior = self.covariance.moments(self.natural, new)
        cross = x.new_empty(len(x), len(self.x))
        for r in torch.unique(resource).tolist():
            here = resource == r
            cross[here] = self._query(r).cross(x[here])[0]
        half = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        mean = prior.mean[0].unsqueeze(-1) + cross @ self.weights
        prior_mean = torch.cat([self.prior_mean, prior.mean[0]])
        return mean, prior.covariance[0] - half.mT @ half, half, self.points.then(new), prior_mean

    def fantasize(self, x: Tensor, resource: Tensor, normals: Tensor) -> DensePosterior:
        check_columns(self, normals)
        if len(x) == 0:
            return self
        mean, covariance, half, points, prior_mean = self._joint(x, resource)
        if len(x) == 1:
            values = mean + covariance.clamp_min(VARIANCE_FLOOR).sqrt() * normals
        else:
            values = draw(mean, covariance, normals)
        return self._extended(x, resource, values, self.new_noise(resource), covariance, half, points, prior_mean)

    def new_noise(self, resource: Tensor) -> Tensor:
        """Noise variances of further observations."""
        return self.natural["noise"][0, 0].expand(len(resource))

    def _extended(
        self,
        x: Tensor,
        resource: Tensor,
        values: Tensor,
        noise: Tensor,
        covariance: Tensor,
        half: Tensor,
        points: Points,
        prior_mean: Tensor,
    ) -> DensePosterior:
        """The posterior given more targets ``(P, F)``, by a block update of the Cholesky factor."""
        corner = cholesky(covariance + noise.diag())
        factor = torch.cat([torch.nn.functional.pad(self.factor, (0, len(x))), torch.cat([half.mT, corner], 1)])
        new = object.__new__(type(self))
        new._prior = self._prior
        new.covariance, new.natural, new.max_resource = self._prior
        new.x, new.resource = torch.cat([self.x, x]), torch.cat([self.resource, resource])
        new.targets = torch.cat([self.targets.expand(-1, values.shape[1]), values])
        new.noise = torch.cat([self.noise, noise])
        new.columns = values.shape[1]
        new.points = points
        new._solve(prior_mean, factor)
        return new

    def inputs_at(self, resource: int) -> Tensor:
        return self.x if self.max_resource is None else self.x[self.resource == resource]


class IndependentPosterior(Posterior):
    """Independent posteriors per resource level.

    Args:
        levels: resource -> posterior of the level (which does not see the resource).
    """

    def __init__(self, levels: Mapping[int, DensePosterior]) -> None:
        self.levels = dict(levels)
        self.columns = max(level.columns for level in self.levels.values())

    def _level(self, resource: int) -> DensePosterior:
        if resource not in self.levels:
            raise ShapeError(
                f"Resource {resource} is none of the model's levels {sorted(self.levels)}. "
                "Pass observations and pending evaluations at rung levels and max_t only."
            )
        return self.levels[resource]

    def predict(self, x: Tensor, resource: int) -> Prediction:
        level = self._level(resource)
        mean, variance, pullback = level.predict(x, resource)
        if level.columns == self.columns:
            return Prediction(mean, variance, pullback)

        def pull_common(g_mean: Tensor, g_variance: Tensor) -> Tensor:
            # nothing is pending at this level: its one column is that of all fantasies
            return pullback(g_mean.sum(-1, keepdim=True), g_variance)

        return Prediction(mean.expand(-1, self.columns), variance, pull_common)

    def joint(self, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
        mean, covariance = self._level(resource).joint(x, resource)
        return mean.expand(-1, self.columns), covariance

    def fantasize(self, x: Tensor, resource: Tensor, normals: Tensor) -> IndependentPosterior:
        """As in the base class. At a level without any data the fantasies are its prior mean."""
        check_columns(self, normals)
        levels = dict(self.levels)
        for r in torch.unique(resource).tolist():
            here = resource == r
            level = self._level(r)
            levels[r] = level.fantasize(x[here], resource[here], normals[here] if len(level.x) else 0.0 * normals[here])
        return IndependentPosterior(levels)

    def inputs_at(self, resource: int) -> Tensor:
        return self._level(resource).x


class EnsemblePosterior(Posterior):
    """``sum_r theta_r f(x, r)`` with independent summands, whatever resource is asked for (Hyper-Tune; Li et al. 2022).

    The variance is that of the weighted sum, ``sum_r theta_r² s²(x, r)``.

    Args:
        posterior: of a multi-fidelity model.
        weights: resource -> weight.
    """

    def __init__(self, posterior: Posterior, weights: Mapping[int, float]) -> None:
        if not weights:
            raise ShapeError("An ensemble has no member. Give at least one resource a weight.")
        self.posterior = posterior
        self.weights = dict(weights)
        self.columns = posterior.columns

    def predict(self, x: Tensor, resource: int) -> Prediction:
        parts = [(w, self.posterior.predict(x, r)) for r, w in self.weights.items()]

        def pullback(g_mean: Tensor, g_variance: Tensor) -> Tensor:
            return torch.stack([part.pullback(w * g_mean, w**2 * g_variance) for w, part in parts]).sum(0)

        mean = torch.stack([w * part.mean for w, part in parts]).sum(0)
        variance = torch.stack([w**2 * part.variance for w, part in parts]).sum(0)
        return Prediction(mean, variance.clamp_min(VARIANCE_FLOOR), pullback)

    def joint(self, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
        parts = [(w, *self.posterior.joint(x, r)) for r, w in self.weights.items()]
        mean = torch.stack([w * m for w, m, _ in parts]).sum(0)
        return mean, torch.stack([w**2 * c for w, _, c in parts]).sum(0)

    def fantasize(self, x: Tensor, resource: Tensor, normals: Tensor) -> EnsemblePosterior:
        return EnsemblePosterior(self.posterior.fantasize(x, resource, normals), self.weights)

    def inputs_at(self, resource: int) -> Tensor:
        return self.posterior.inputs_at(resource)


def check_columns(posterior: Posterior, normals: Tensor) -> None:
    """Raises ShapeError unless the posterior has one column or as many as ``normals``."""
    if posterior.columns not in (1, normals.shape[1]):
        raise ShapeError(
            f"The posterior has {posterior.columns} columns of fantasies and {normals.shape[1]} more were asked for. "
            "Use the same number of fantasies for all pending evaluations."
        )
