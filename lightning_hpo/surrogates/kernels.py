"""The surrogate models as gpytorch modules: the readable definition, and the way to everything else gpytorch has.

:func:`exact_gp` turns a model of :mod:`~lightning_hpo.surrogates.models` into an :class:`gpytorch.models.ExactGP`
with the same parameters, bounds and priors. Its raw parameters are the internal coordinates, so values and
gradients can be compared with the fused functions entry by entry. Inputs are configurations with the fidelity as
last column, where the model has one.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Interval
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import Mean
from gpytorch.priors import UniformPrior
from torch import Tensor

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.covariances import (
    Covariance,
    CrossValidation,
    ExponentialDecay,
    FreezeThaw,
    Inputs,
    MaternOverFidelity,
    Product,
)
from lightning_hpo.surrogates.data import Observations, fidelity
from lightning_hpo.surrogates.fused import warp
from lightning_hpo.surrogates.models import JointModel
from lightning_hpo.surrogates.rungs import RungCovariance, rung_parameters


class LogInterval(Interval):
    """Bounds of a positive parameter whose raw value is its logarithm.

    The optimiser keeps the bounds, not the transform.
    """

    def __init__(self, lower: float, upper: float) -> None:
        super().__init__(lower, upper, transform=torch.exp, inv_transform=torch.log)

    def transform(self, tensor: Tensor) -> Tensor:
        return tensor.exp()

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        return transformed_tensor.log()


class LinearInterval(Interval):
    """Bounds of a parameter whose raw value is the value."""

    def __init__(self, lower: float, upper: float) -> None:
        super().__init__(lower, upper, transform=torch.nn.Identity(), inv_transform=torch.nn.Identity())

    def transform(self, tensor: Tensor) -> Tensor:
        return tensor

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        return transformed_tensor


def constraint(parameter: p.Parameter) -> Interval:
    """The bounds of a parameter."""
    kind = LogInterval if parameter.log else LinearInterval
    return kind(parameter.lower, parameter.upper)


class Values(gpytorch.Module):
    """A group of parameters with bounds and priors; ``values["alpha"]`` is the natural value."""

    def __init__(self, parameters: tuple[p.Parameter, ...]) -> None:
        super().__init__()
        for q in parameters:
            raw = torch.full((q.size,), q.internal_initial, dtype=torch.float64)
            self.register_parameter(f"raw_{q.name}", torch.nn.Parameter(raw))
            self.register_constraint(f"raw_{q.name}", constraint(q))
            if q.prior is not None and q.prior.torch_prior is not None:
                prior = q.prior.torch_prior()
                self.register_prior(f"{q.name}_prior", prior, lambda module, name=q.name: module[name])

    def __getitem__(self, name: str) -> Tensor:
        return self.constraint_for_parameter_name(f"raw_{name}").transform(getattr(self, f"raw_{name}"))


class KumaraswamyWarping(gpytorch.Module):
    """Warps some coordinates by ``1 - (1 - x**a)**b``."""

    def __init__(self, coordinates: list[int], a: p.Parameter, b: p.Parameter) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.values = Values((a, b))
        self.names = (a.name, b.name)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[..., self.coordinates] = warp(x[..., self.coordinates], *(self.values[n] for n in self.names))[0]
        return x


class WarpedKernel(Kernel):
    """A kernel of warped inputs."""

    def __init__(self, base_kernel: Kernel, warping: KumaraswamyWarping) -> None:
        super().__init__()
        self.base_kernel, self.warping = base_kernel, warping

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        return self.base_kernel.forward(self.warping(x1), self.warping(x2), diag=diag, **params)


def matern_kernel(inputs: Inputs) -> Kernel:
    """Matérn-5/2 of warped inputs, one length scale per coordinate or one in all, without output scale."""
    own = inputs.parameters[0]
    kernel: Kernel = gpytorch.kernels.MaternKernel(
        nu=2.5, ard_num_dims=inputs.dimension if inputs.ard else None, lengthscale_constraint=constraint(own)
    ).double()
    kernel.lengthscale = own.initial
    assert own.prior is not None
    if own.prior.torch_prior is not None:
        kernel.register_prior("lengthscale_prior", own.prior.torch_prior(), lambda m: m.lengthscale)
    else:
        inverse = UniformPrior(torch.tensor(1e-4).double(), torch.tensor(100.0).double())
        kernel.register_prior("inverse_lengthscale_prior", inverse, lambda m: 1.0 / m.lengthscale)
    if inputs.warped:
        kernel = WarpedKernel(kernel, KumaraswamyWarping(inputs.warped, *inputs.parameters[1:]))
    return kernel


def scaled(kernel: Kernel) -> ScaleKernel:
    """The kernel times an output scale."""
    own = p.outputscale()
    assert own.prior is not None
    prior = own.prior.torch_prior()
    outer = ScaleKernel(kernel, outputscale_prior=prior, outputscale_constraint=constraint(own)).double()
    outer.outputscale = own.initial
    return outer


class RandomDecay(Values):
    """``kappa(u) = E[exp(-lambda u)]`` of a gamma-distributed rate, with the parameters of exponential decay."""

    def __init__(self, delta: float | None) -> None:
        free = (p.Parameter("delta", 0.5, 0.0, 1.0, log=False),) if delta is None else ()
        super().__init__((*p.decay(), *free))
        self.fixed_delta = delta

    @property
    def delta(self) -> Tensor:
        return self["delta"] if self.fixed_delta is None else torch.tensor(self.fixed_delta, dtype=torch.float64)

    def kappa(self, u: Tensor) -> Tensor:
        beta = self["alpha"] / self["mean_lambda"]
        return (beta / (u + beta)) ** self["alpha"]


class ExponentialDecayMean(Mean):
    """``mu(x) + kappa(rho) (gamma - delta mu(x))``."""

    def __init__(self, mean: Mean, decay: RandomDecay) -> None:
        super().__init__()
        self.mean, self.decay = mean, decay

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x[..., :-1])
        return mean + self.decay.kappa(x[..., -1]) * (self.decay["gamma"] - self.decay.delta * mean)


class ExponentialDecayKernel(Kernel):
    """Exponential decay with random rate over (configuration, fidelity); see :func:`fused.decay_table`.

    Args:
        covariance: kernel over configurations.
        mean: mean over configurations, shared with the model's mean.
        same_config_only: freeze-thaw: only points of one configuration share the rate.
    """

    def __init__(self, covariance: Kernel, mean: Mean, decay: RandomDecay, same_config_only: bool = False) -> None:
        super().__init__()
        self.covariance, self.decay = covariance, decay
        self._mean = (mean,)  # not registered: it belongs to the model's mean, and its prior counts once
        self.same_config_only = same_config_only

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        c1, c2, r1, r2 = x1[..., :-1], x2[..., :-1], x1[..., -1], x2[..., -1]
        e1, e2 = (self.decay["gamma"] - self.decay.delta * self._mean[0](c) for c in (c1, c2))
        if diag:
            over_x, same = self.covariance.forward(c1, c2, diag=True), torch.ones_like(r1)
        else:
            over_x = self.covariance(c1, c2).to_dense()
            same = (c1.unsqueeze(-2) == c2.unsqueeze(-3)).all(-1).to(x1)
            r1, r2, e1, e2 = r1.unsqueeze(-1), r2.unsqueeze(-2), e1.unsqueeze(-1), e2.unsqueeze(-2)
        kappa, delta = self.decay.kappa, self.decay.delta
        both = kappa(r1 + r2)
        rate = e1 * e2 * (both - kappa(r1) * kappa(r2))
        over_x = over_x * (1.0 - delta * (kappa(r1) + kappa(r2) - delta * both))
        return over_x + (rate * same if self.same_config_only else rate)


class CrossValidationKernel(Kernel):
    """``k(x, x') + k_residual(x, x') / max(r, r')`` with ``r`` folds."""

    def __init__(self, covariance: Kernel, residual: Kernel, num_folds: int) -> None:
        super().__init__()
        self.covariance, self.residual, self.num_folds = covariance, residual, num_folds

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        c1, c2, r1, r2 = x1[..., :-1], x2[..., :-1], x1[..., -1], x2[..., -1]
        if diag:
            main, residual = (k.forward(c1, c2, diag=True) for k in (self.covariance, self.residual))
        else:
            main, residual = (k(c1, c2).to_dense() for k in (self.covariance, self.residual))
            r1, r2 = r1.unsqueeze(-1), r2.unsqueeze(-2)
        return main + residual / (torch.maximum(r1, r2) * self.num_folds + 0.5)


class RungKernel(Kernel):
    """Configurations and rungs; see :mod:`lightning_hpo.surrogates.rungs`.

    The last column of the inputs is the logarithm of the resource, in units of the first rung's.

    Args:
        smooth: kernel over configurations.
        positions: the same of all rungs, increasing.
    """

    def __init__(self, smooth: Kernel, positions: Tensor) -> None:
        super().__init__()
        self.smooth, self.positions = smooth, positions
        self.values = Values(rung_parameters(len(positions)))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        c1, c2, u1, u2 = x1[..., :-1], x2[..., :-1], x1[..., -1], x2[..., -1]
        rung1, rung2 = ((u.unsqueeze(-1) - self.positions).abs().argmin(-1) for u in (u1, u2))
        if diag:
            over_x, same = self.smooth.forward(c1, c2, diag=True), torch.ones_like(u1)
        else:
            over_x = self.smooth(c1, c2).to_dense()
            same = (c1.unsqueeze(-2) == c2.unsqueeze(-3)).all(-1).to(x1)
            u1, u2, rung1, rung2 = u1.unsqueeze(-1), u2.unsqueeze(-2), rung1.unsqueeze(-1), rung2.unsqueeze(-2)
        value = self.values
        at1, at2, at_lower = (
            (1.0 - torch.exp(-value["settling"] * u)) / value["settling"] for u in (u1, u2, torch.minimum(u1, u2))
        )
        walks = over_x * (1.0 + value["drift"] * at_lower) + same * (value["own"] + value["own_drift"] * at_lower)
        variances = (1.0 + value["drift"] * at1) * (1.0 + value["drift"] * at2)
        offsets = value["offset"] * (torch.minimum(rung1, rung2) + 1)
        return value["scale"][rung1] * value["scale"][rung2] * walks / variances.sqrt() + offsets


class GaussianProcess(gpytorch.models.ExactGP):
    """An exact Gaussian process of a given mean and kernel."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: GaussianLikelihood, mean: Mean, kernel: Kernel) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def moments_modules(covariance: Covariance) -> tuple[Mean, Kernel]:
    """Mean and kernel of a covariance, at the initial values."""
    prior = p.mean().prior
    assert prior is not None
    constant = gpytorch.means.ConstantMean(constant_prior=prior.torch_prior()).double()
    match covariance:
        case MaternOverFidelity(inputs=inputs):
            return constant, scaled(matern_kernel(inputs))
        case ExponentialDecay(terms=[inputs], delta=delta):
            decay = RandomDecay(delta)
            kernel = scaled(matern_kernel(inputs))
            same = isinstance(covariance, FreezeThaw)
            return ExponentialDecayMean(constant, decay), ExponentialDecayKernel(kernel, constant, decay, same)
        case CrossValidation(terms=[main, residual], num_folds=num_folds):
            main_kernel, residual_kernel = scaled(matern_kernel(main)), scaled(matern_kernel(residual))
            return constant, CrossValidationKernel(main_kernel, residual_kernel, num_folds)
        case RungCovariance(terms=[inputs], positions=positions):
            return gpytorch.means.ZeroMean(), RungKernel(matern_kernel(inputs), positions)
        case Product(terms=[inputs]):
            return constant, scaled(matern_kernel(inputs))
    raise ShapeError(f"{type(covariance).__name__} has no gpytorch modules. Add them to moments_modules().")


def raw_parameters(mean: Mean, kernel: Kernel, likelihood: GaussianLikelihood) -> dict[str, torch.nn.Parameter]:
    """The modules' raw parameters by our names."""
    found: dict[str, torch.nn.Parameter] = {}
    for module in (likelihood, mean, kernel):
        for path, parameter in module.named_parameters():
            name = path.rsplit(".", 1)[-1].removeprefix("raw_")
            name = {"constant": "mean"}.get(name, name)
            found[f"residual_{name}" if path.startswith("residual.") else name] = parameter
    return found


def inputs(model: JointModel, data: Observations) -> Tensor:
    """Rows of inputs ``(n, d)`` or ``(n, d + 1)`` as the modules expect them."""
    if model.max_resource is None:
        return data.rows
    return torch.cat([data.rows, fidelity(data.resource, model.max_resource).unsqueeze(-1)], -1)


def exact_gp(model: JointModel, data: Observations, theta: Tensor) -> GaussianProcess:
    """The model with fitted parameters ``theta`` ``(p,)``, conditioned on the data, in training mode."""
    mean, kernel = moments_modules(model.covariance)
    own = p.noise()
    assert own.prior is not None
    likelihood = GaussianLikelihood(noise_prior=own.prior.torch_prior(), noise_constraint=constraint(own)).double()
    for name, parameter in raw_parameters(mean, kernel, likelihood).items():
        parameter.data = theta[model.space.slices[name]].reshape(parameter.shape).clone()
    return GaussianProcess(inputs(model, data), data.y, likelihood, mean, kernel)
