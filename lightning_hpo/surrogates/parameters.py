"""Hyperparameters of the surrogate models: names, bounds, initial values, priors, and one flat vector of them all.

The vector ``theta`` holds *internal coordinates*: the logarithm of a positive parameter, the value itself
otherwise. The optimiser works on ``theta``; a leading batch dimension carries the restarts. Priors are densities of
the natural value and enter without the Jacobian of the logarithm, so the fit is the maximum a posteriori in the
natural parametrisation, searched in the logarithmic one.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_hpo.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from gpytorch.priors import Prior as TorchPrior


@dataclass(frozen=True, slots=True)
class Prior:
    """Negative log density ``log_x * log(x) + x * linear + log_square * log(x)**2 + square * x**2 + constant``.

    The form covers gamma, log-normal, normal and uniform densities, so the penalty of all parameters together is one
    vectorised expression.
    """

    log_x: float = 0.0
    linear: float = 0.0
    log_square: float = 0.0
    square: float = 0.0
    constant: float = 0.0
    torch_prior: Callable[[], TorchPrior] | None = field(default=None, compare=False)
    """Makes the same density as a gpytorch prior, up to a constant. A searcher makes its model anew for every proposal,
    and needs none of them."""


def _torch_prior(name: str, *parameters: float) -> TorchPrior:
    """The gpytorch prior of this name."""
    import gpytorch.priors

    made: TorchPrior = getattr(gpytorch.priors, name)(*(torch.tensor(x, dtype=torch.float64) for x in parameters))
    return made


def gamma_prior(mean: float, shape: float) -> Prior:
    """Gamma density with the given mean and shape."""
    rate = shape / mean
    constant = math.lgamma(shape) - shape * math.log(rate)
    make = functools.partial(_torch_prior, "GammaPrior", shape, rate)
    return Prior(log_x=1.0 - shape, linear=rate, constant=constant, torch_prior=make)


def log_normal_prior(sigma: float, mode: float | None = None) -> Prior:
    """Log-normal density with median 1, or with this mode; its constant has no ``log(2 pi) / 2``.

    Args:
        sigma: standard deviation of the logarithm.
        mode: None: that of median 1.
    """
    mu = 0.0 if mode is None else math.log(mode) + sigma**2
    return Prior(
        log_x=1.0 - mu / sigma**2,
        log_square=0.5 / sigma**2,
        constant=math.log(sigma) + 0.5 * (mu / sigma) ** 2,
        torch_prior=functools.partial(_torch_prior, "LogNormalPrior", mu, sigma),
    )


def normal_prior() -> Prior:
    """Standard normal density without its constant."""
    return Prior(square=0.5, torch_prior=functools.partial(_torch_prior, "NormalPrior", 0.0, 1.0))


def uniform_prior(width: float) -> Prior:
    """Uniform density over an interval of this width."""
    return Prior(constant=math.log(width))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One hyperparameter of a model, possibly a vector (a length scale per dimension)."""

    name: str
    initial: float
    lower: float = -math.inf
    upper: float = math.inf
    log: bool = True
    """Whether its internal coordinate is the logarithm."""
    prior: Prior | None = None
    size: int = 1

    @property
    def internal_bounds(self) -> tuple[float, float]:
        return (math.log(self.lower), math.log(self.upper)) if self.log else (self.lower, self.upper)

    @property
    def internal_initial(self) -> float:
        return math.log(self.initial) if self.log else self.initial


def lengthscale(size: int, name: str = "lengthscale", prior: str = "uniform") -> Parameter:
    """Length scales in [0.01, 1e4], of coordinates in the unit cube.

    Args:
        prior: ``"uniform"``: of the inverse length scale, on [1e-4, 100]; ``"log_normal"``: of the length scale, with
            mode 1 and standard deviation 0.5 of the logarithm.

    Raises:
        OptionError: if there is no such prior.
    """
    match prior:
        case "uniform":
            density = uniform_prior(100.0 - 1e-4)
        case "log_normal":
            density = log_normal_prior(0.5, mode=1.0)
        case _:
            raise OptionError(f"There is no prior {prior!r} of length scales. Use uniform or log_normal.")
    return Parameter(name, 1.0, 1e-2, 1e4, prior=density, size=size)


def outputscale(size: int = 1, name: str = "outputscale") -> Parameter:
    """Variance of the latent function."""
    return Parameter(name, 1.0, 1e-3, 1e3, prior=log_normal_prior(1.0), size=size)


def mean(size: int = 1) -> Parameter:
    """Constant mean."""
    return Parameter("mean", 0.0, log=False, prior=normal_prior(), size=size)


def noise(size: int = 1) -> Parameter:
    """Variance of the observation noise."""
    return Parameter("noise", 1e-3, 1e-9, 1e6, prior=gamma_prior(mean=0.1, shape=0.1), size=size)


def warping(size: int, prefix: str) -> tuple[Parameter, Parameter]:
    """The two concentrations of the Kumaraswamy warping of ``size`` coordinates."""
    prior = log_normal_prior(0.75)
    return tuple(Parameter(f"{prefix}_{c}", 1.0, 0.25, 4.0, prior=prior, size=size) for c in "ab")  # type: ignore[return-value]


def decay() -> tuple[Parameter, ...]:
    """``alpha``, ``mean_lambda`` and ``gamma`` of exponential decay with a gamma-distributed rate, without priors."""
    return (
        Parameter("alpha", 1.0, 1e-6, 250.0),
        Parameter("mean_lambda", 0.5, 1e-4, 50.0),
        Parameter("gamma", 0.5, 1e-4, 1.0),
    )


class ParameterSpace:
    """All parameters of a model as one vector of internal coordinates.

    Args:
        parameters: in the order of the vector; names must differ.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self.slices: dict[str, slice] = {}
        start = 0
        for p in self.parameters:
            self.slices[p.name] = slice(start, start + p.size)
            start += p.size
        self.size = start
        if len(self.slices) != len(self.parameters):
            raise ShapeError("Two parameters of a model have the same name. Give every parameter its own name.")

        def column(values: Sequence[float]) -> Tensor:
            sizes = torch.tensor([p.size for p in self.parameters])
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(sizes)

        priors = [p.prior or Prior() for p in self.parameters]
        self.initial = column([p.internal_initial for p in self.parameters])
        self.lower = column([p.internal_bounds[0] for p in self.parameters])
        self.upper = column([p.internal_bounds[1] for p in self.parameters])
        self._is_log = column([float(p.log) for p in self.parameters]).bool()
        terms = ("log_x", "linear", "log_square", "square")
        self._terms = torch.stack([column([getattr(q, term) for q in priors]) for term in terms])
        self._constant = sum(q.constant * p.size for p, q in zip(self.parameters, priors, strict=True))

    def natural(self, theta: Tensor) -> Natural:
        """The parameters' values at ``theta``, shape ``(S, size)``."""
        is_log = self._is_log.to(theta.device)
        return Natural(self, theta, torch.where(is_log, theta.exp(), theta))

    def theta(self, values: Mapping[str, Sequence[float] | float]) -> Tensor:
        """The vector (``size`` entries) of these natural values, clipped to the bounds.

        Raises:
            ShapeError: if a parameter is missing or has another size.
        """
        theta = self.initial.clone()
        for p in self.parameters:
            value = torch.as_tensor(values.get(p.name, []), dtype=torch.float64).reshape(-1)
            if len(value) != p.size:
                raise ShapeError(
                    f"Parameter {p.name!r} needs {p.size} values and got {len(value)}. "
                    "Use the parameters of a fit of the same model."
                )
            theta[self.slices[p.name]] = value.log() if p.log else value
        return theta.clamp(self.lower, self.upper)

    def values(self, theta: Tensor) -> dict[str, list[float]]:
        """The natural values at one vector, as JSON data."""
        natural = self.natural(theta.detach().cpu()[None])
        return {p.name: natural[p.name][0].tolist() for p in self.parameters}

    def penalty(self, natural: Natural) -> tuple[Tensor, Tensor]:
        """Negative log prior, shape ``(S,)``, and its gradient with respect to ``theta``, shape ``(S, size)``."""
        log_x, linear, log_square, square = self._terms.to(natural.vector.device)
        x, t = natural.vector, natural.theta
        by_log, by_value = log_x + log_square * t, linear + square * x
        value = (t * by_log + x * by_value).sum(-1) + self._constant
        gradient = log_x + 2.0 * log_square * t + natural.jacobian * (linear + 2.0 * square * x)
        return value, gradient


class Natural:
    """Values of the parameters for a batch of ``theta``; ``natural["noise"]`` has shape ``(S, size of noise)``."""

    def __init__(self, space: ParameterSpace, theta: Tensor, vector: Tensor) -> None:
        self.space = space
        self.theta = theta
        self.vector = vector
        self.jacobian = torch.where(space._is_log.to(vector.device), vector, 1.0)
        """Derivative of every value with respect to its internal coordinate, ``(S, size)``."""
        self._values = {name: vector[:, part] for name, part in space.slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    @property
    def batch(self) -> int:
        """The number ``S`` of vectors."""
        return len(self.vector)

    def select(self, names: Sequence[str], index: int) -> Natural:
        """The same parameters, those of ``names`` reduced to one of their entries."""
        view = copy.copy(self)
        view._values = self._values | {name: self._values[name][:, index : index + 1] for name in names}
        return view

    def pull(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The gradient with respect to ``theta``, shape ``(S, size)``, of the gradients by parameter name."""
        missing = [name for name in self.space.slices if name not in gradients]
        rest = {name: torch.zeros_like(self._values[name]) for name in missing}
        return torch.cat([{**gradients, **rest}[name] for name in self.space.slices], 1) * self.jacobian
