"""Surrogate models: what is fitted, and the posterior it gives.

==================  ====================================================================================================
single fidelity     Matérn-5/2 over the configuration
multi-task          one process over (configuration, fidelity), with a resource kernel
independent         one process per resource level, with common length scales
==================  ====================================================================================================

The additive models of learning curves are in :mod:`lightning_hpo.surrogates.additive`. A model is a description: it
holds no data and no fitted values. Parameters travel as vectors ``theta`` (see
:mod:`~lightning_hpo.surrogates.parameters`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_hpo.errors import OptionError, ShapeError, did_you_mean
from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.covariances import (
    Covariance,
    CrossValidation,
    ExponentialDecay,
    FreezeThaw,
    Gradients,
    MaternOverFidelity,
    Points,
    Product,
)
from lightning_hpo.surrogates.data import Observations, fidelity
from lightning_hpo.surrogates.fused import (
    LevelStatistics,
    decay_sum,
    gaussian_nll,
    inner,
    level_additive_nll,
    level_sums,
    matern52,
    pull_distances,
)
from lightning_hpo.surrogates.posterior import DensePosterior, IndependentPosterior, Posterior

Objective: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``theta`` of shape ``(S, p)`` -> negative log posterior density ``(S,)`` and its gradient ``(S, p)``."""

RESOURCE_KERNELS = (
    "exp-decay-sum",
    "exp-decay-combined",
    "exp-decay-delta1",
    "freeze-thaw",
    "matern52",
    "matern52-res-warp",
    "cross-validation",
)


class Surrogate(ABC):
    """A model with its parameters."""

    space: p.ParameterSpace
    uses_autograd = False
    """Whether a part of the likelihood's gradient is not in closed form."""

    @abstractmethod
    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        """The negative log density of the targets, constants included, and its gradients by parameter."""

    @abstractmethod
    def posterior(self, data: Observations, theta: Tensor) -> Posterior:
        """The posterior for one parameter vector ``(p,)``.

        Raises:
            NumericalError: if a covariance matrix is not positive definite.
        """

    def objective(self, data: Observations) -> Objective:
        """What the fit minimises: negative log likelihood plus negative log prior.

        It raises NumericalError if a covariance matrix is not positive definite even with jitter.
        """
        likelihood = self.negative_log_likelihood(data)

        def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
            natural = self.space.natural(theta)
            value, gradients = likelihood(natural)
            penalty, g_penalty = self.space.penalty(natural)
            return value + penalty, natural.pull(gradients) + g_penalty

        return objective


class JointModel(Surrogate):
    """A Gaussian process over (configuration, fidelity), or over the configuration alone.

    Args:
        covariance: its prior moments.
        max_resource: scales resources to fidelities; None if the model does not see the resource.
    """

    def __init__(self, covariance: Covariance, max_resource: int | None) -> None:
        self.covariance = covariance
        self.max_resource = max_resource
        self.space = p.ParameterSpace([p.noise(), *covariance.parameters])

    def _points(self, data: Observations) -> Points:
        if self.max_resource is None:
            rho = data.y.new_zeros(1)
            return Points(data.x, data.config, rho, torch.zeros_like(data.config))
        resources, level = data.levels()
        return Points(data.x, data.config, fidelity(resources, self.max_resource), level)

    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        points = self._points(data)
        if type(self.covariance) is ExponentialDecay and self.covariance.delta == 0.0:
            return self._additive_likelihood(points, data.y)

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            moments = self.covariance.moments(natural, points)
            moments.covariance.diagonal(dim1=-2, dim2=-1).add_(natural["noise"])
            terms = gaussian_nll(moments.covariance, data.y - moments.mean)
            g_noise = terms.covariance.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
            return terms.value, moments.pullback(-terms.residual, terms.covariance) | {"noise": g_noise}

        return likelihood

    def _additive_likelihood(self, points: Points, y: Tensor) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        """With ``delta = 0`` the covariance is a sum over configurations and levels: no matrix of all observations."""
        assert isinstance(self.covariance, ExponentialDecay)
        (inputs,) = self.covariance.terms
        n_levels = len(points.rho)
        data = LevelStatistics.of(y, points.config, points.level, len(points.x), n_levels)
        u = level_sums(points.rho)

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            mean, shift, pull_decay = decay_sum(
                u, n_levels, *(natural[name] for name in ("alpha", "mean_lambda", "gamma", "mean"))
            )
            z, pull_inputs = inputs.scaled(natural, points.x)
            correlation, slope = matern52(z)
            scale = natural["outputscale"].unsqueeze(-1)
            terms = level_additive_nll(data, correlation * scale, shift, mean, natural["noise"])
            gradients = pull_decay(terms.mean, terms.shift)
            gradients["outputscale"] = inner(terms.covariance, correlation)
            gradients["noise"] = terms.noise
            gradients |= pull_inputs(pull_distances(slope.mul_(terms.covariance).mul_(scale), z))
            return terms.value, gradients

        return likelihood

    def posterior(self, data: Observations, theta: Tensor) -> DensePosterior:
        natural = self.space.natural(theta.to(data.y.device)[None])
        noise = natural["noise"][0, 0].expand(len(data))
        y = data.y.unsqueeze(-1)
        return DensePosterior(self.covariance, natural, self.max_resource, data.rows, data.resource, y, noise)


class IndependentModel(Surrogate):
    """A Gaussian process per resource level: own mean and output scale, common length scales.

    Args:
        dimension: of the configurations.
        levels: every resource that may be observed, increasing.
        warped, ard, lengthscale_prior: see :func:`single_fidelity`.
        separate_noise: one noise variance per level.
    """

    def __init__(
        self,
        dimension: int,
        levels: Sequence[int],
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        separate_noise: bool = False,
    ) -> None:
        self.levels = tuple(levels)
        n = len(self.levels)
        self.covariance = Product(dimension, warped, ard, lengthscale_prior)
        self.separate = ("mean", "outputscale", "noise") if separate_noise else ("mean", "outputscale")
        shape = self.covariance.terms[0].parameters
        noise = p.noise(n if separate_noise else 1)
        self.space = p.ParameterSpace([noise, *shape, p.outputscale(n), p.mean(n)])

    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        unknown = set(data.resource.tolist()) - set(self.levels)
        if unknown:
            raise ShapeError(
                f"Observations at {sorted(unknown)} are at none of the levels {list(self.levels)}. "
                "Use searcher_data='rungs' with this model."
            )
        m, (inputs,) = len(data.x), self.covariance.terms
        parts = []
        for index, resource in enumerate(self.levels):
            here = data.resource == resource
            if here.any():
                config = data.config[here]
                parts.append((index, (config[:, None] * m + config).reshape(-1), data.y[here]))

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            batch = natural.batch
            z, pull_inputs = inputs.scaled(natural, data.x)
            # the levels have one correlation matrix in common, of which each takes its rows and columns
            correlation, slope = matern52(z)
            flat = correlation.flatten(1)
            g_correlation = torch.zeros_like(flat)
            total = natural.vector.new_zeros(batch)
            means, scales = natural["mean"], natural["outputscale"]
            noises = natural["noise"].expand(batch, len(self.levels))
            g_mean, g_scale, g_noise = (torch.zeros_like(t) for t in (means, scales, noises.contiguous()))
            for index, pairs, y in parts:
                at = slice(index, index + 1)
                own = flat.index_select(1, pairs)
                covariance = (own * scales[:, at]).unflatten(1, (len(y), len(y)))
                covariance.diagonal(dim1=-2, dim2=-1).add_(noises[:, at])
                terms = gaussian_nll(covariance, y - means[:, at])
                total += terms.value
                g_mean[:, index] = -terms.residual.sum(-1)
                g_scale[:, at] = inner(terms.covariance, own)
                g_noise[:, index] = terms.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
                g_correlation.index_add_(1, pairs, terms.covariance.flatten(1).mul_(scales[:, at]))
            weight = slope.mul_(g_correlation.view_as(slope))
            gradients = pull_inputs(pull_distances(weight, z))
            gradients["noise"] = g_noise if "noise" in self.separate else g_noise.sum(1, keepdim=True)
            return total, gradients | {"mean": g_mean, "outputscale": g_scale}

        return likelihood

    def posterior(self, data: Observations, theta: Tensor) -> IndependentPosterior:
        natural = self.space.natural(theta.to(data.y.device)[None])
        levels = {}
        for index, resource in enumerate(self.levels):
            own, here = natural.select(self.separate, index), data.at(resource)
            noise = own["noise"][0, 0].expand(len(here))
            y = here.y.unsqueeze(-1)
            levels[resource] = DensePosterior(self.covariance, own, None, here.rows, here.resource, y, noise)
        return IndependentPosterior(levels)


def single_fidelity(
    dimension: int, warped: tuple[int, ...] = (), ard: bool = True, lengthscale_prior: str = "uniform"
) -> JointModel:
    """Constant mean and Matérn-5/2 over the configuration.

    Args:
        dimension: number of encoded coordinates.
        warped: coordinates to be warped.
        ard: one length scale per coordinate, or one in all.
        lengthscale_prior: see :func:`~lightning_hpo.surrogates.parameters.lengthscale`.
    """
    return JointModel(Product(dimension, warped, ard, lengthscale_prior), None)


def multitask(
    dimension: int,
    max_resource: int,
    resource_kernel: str = "exp-decay-sum",
    warped: tuple[int, ...] = (),
    ard: bool = True,
    lengthscale_prior: str = "uniform",
) -> JointModel:
    """One process over configuration and fidelity.

    Args:
        dimension: number of encoded coordinates of a configuration.
        max_resource: the largest resource; for ``cross-validation`` the number of folds.
        resource_kernel: one of ``RESOURCE_KERNELS``.
        warped, ard, lengthscale_prior: see :func:`single_fidelity`; the Matérn kernels over both always have one length
            scale per coordinate.

    Raises:
        OptionError: if there is no such resource kernel.
    """
    covariance: Covariance
    match resource_kernel:
        case "exp-decay-sum":
            covariance = ExponentialDecay(dimension, warped, ard, lengthscale_prior, delta=0.0)
        case "exp-decay-combined":
            covariance = ExponentialDecay(dimension, warped, ard, lengthscale_prior, delta=None)
        case "exp-decay-delta1":
            covariance = ExponentialDecay(dimension, warped, ard, lengthscale_prior, delta=1.0)
        case "freeze-thaw":
            covariance = FreezeThaw(dimension, warped, ard, lengthscale_prior)
        case "matern52":
            covariance = MaternOverFidelity(dimension, warped, lengthscale_prior=lengthscale_prior)
        case "matern52-res-warp":
            covariance = MaternOverFidelity(dimension, warped, True, lengthscale_prior)
        case "cross-validation":
            covariance = CrossValidation(dimension, warped, ard, lengthscale_prior, num_folds=max_resource)
        case _:
            raise OptionError(
                f"There is no resource kernel {resource_kernel!r}.{did_you_mean(resource_kernel, RESOURCE_KERNELS)} "
                f"Use one of {', '.join(RESOURCE_KERNELS)}."
            )
    return JointModel(covariance, max_resource)
