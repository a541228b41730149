"""Mean and covariance functions over (configuration, fidelity), in the fused form of
:mod:`lightning_hpo.surrogates.fused`.

One class per structure; :mod:`lightning_hpo.surrogates.kernels` has the same functions as gpytorch modules. A
covariance answers three questions for a batch of ``S`` parameter vectors: the moments of ``n`` points (with pullback,
for the fit), the prior variance at one fidelity, and the covariance between query configurations at one fidelity and
the points (with pullback to the query, for the acquisition).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.fused import decay_table, inner, matern52, pull_distances, warp

Gradients = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Points:
    """``n`` points over ``m`` distinct configurations and ``L`` distinct fidelities."""

    x: Tensor
    """``(m, d)``"""
    config: Tensor
    """``(n,)``"""
    rho: Tensor
    """``(L,)``"""
    level: Tensor
    """``(n,)``"""

    @cached_property
    def one_per_config(self) -> bool:
        """Whether point ``i`` is that of configuration ``i``."""
        n = len(self.config)
        return n == len(self.x) and torch.equal(self.config, torch.arange(n, device=self.config.device))

    @cached_property
    def pairs(self) -> Tensor:
        """Position of every pair of points in a flat ``(m, m)`` matrix, ``(n * n,)``."""
        return (self.config[:, None] * len(self.x) + self.config).reshape(-1)

    @cached_property
    def indicator(self) -> Tensor:
        """Level of every point, ``(n, L)`` of zeros and ones."""
        return (self.level[:, None] == torch.arange(len(self.rho), device=self.level.device)).to(self.x)

    @cached_property
    def linked(self) -> Tensor:
        """Whether two points are of the same configuration, ``(n, n)`` of zeros and ones. Coordinates are compared: a
        pending point may repeat an observed configuration."""
        return (self.x.unsqueeze(1) == self.x).all(-1).to(self.x)[self.config][:, self.config]

    @classmethod
    def of(cls, x: Tensor, rho: Tensor) -> Points:
        """One configuration per point (``(n, d)``), fidelities ``(n,)``."""
        levels, level = torch.unique(rho, return_inverse=True)
        return cls(x, torch.arange(len(x), device=x.device), levels, level)

    def then(self, other: Points) -> Points:
        """These points followed by others."""
        levels, level = torch.unique(torch.cat([self.rho[self.level], other.rho[other.level]]), return_inverse=True)
        config = torch.cat([self.config, other.config + len(self.x)])
        return Points(torch.cat([self.x, other.x]), config, levels, level)


class Moments(NamedTuple):
    """Mean ``(S, n)`` and covariance ``(S, n, n)`` of the latent function at points."""

    mean: Tensor
    covariance: Tensor
    pullback: Callable[[Tensor, Tensor], Gradients]
    """From gradients with respect to mean and (symmetric) covariance to gradients of the natural parameters."""


class Query(NamedTuple):
    """Prior moments at one fidelity, and the covariance with the points."""

    mean: Tensor
    """``()``"""
    variance: Tensor
    """``()``: prior variance."""
    cross: Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
    """Configurations ``(B, d)`` -> covariance ``(B, n)`` and its pullback to ``(B, d)``."""


class Inputs:
    """Warps some coordinates and divides by length scales.

    Args:
        dimension: number ``d`` of coordinates.
        warped: which coordinates are warped.
        ard: one length scale per coordinate, or one in all.
        lengthscale_prior: see :func:`~lightning_hpo.surrogates.parameters.lengthscale`.
        prefix: of the length scale's name.
        warp_prefix: of the names of the warping's parameters.
    """

    def __init__(
        self,
        dimension: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        prefix: str = "",
        warp_prefix: str = "warp",
    ) -> None:
        self.dimension = dimension
        self.warped = list(warped)
        self.ard = ard
        self.name = f"{prefix}lengthscale"
        self.warp_names = (f"{warp_prefix}_a", f"{warp_prefix}_b")
        own = p.lengthscale(dimension if ard else 1, self.name, lengthscale_prior)
        self.parameters = (own, *p.warping(len(self.warped), warp_prefix)) if self.warped else (own,)

    def scaled(self, natural: p.Natural, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Gradients]]:
        """``(n, d)`` -> ``(S, n, d)`` and a pullback to the parameters."""
        lengthscale = natural[self.name].unsqueeze(-2)
        if self.warped:
            x = x.expand(natural.batch, -1, -1).clone()
            a, b = (natural[name] for name in self.warp_names)
            x[..., self.warped], pull_warp = warp(x[..., self.warped], a, b)
        z = (x - 0.5) / lengthscale

        def pullback(g: Tensor) -> Gradients:
            g_scale = -(g * z).sum(-2) / lengthscale.squeeze(-2)
            gradients = {self.name: g_scale if self.ard else g_scale.sum(-1, keepdim=True)}
            if self.warped:
                g_warped = (g / lengthscale).expand_as(z)[..., self.warped]
                gradients |= dict(zip(self.warp_names, pull_warp(g_warped)[1:], strict=True))
            return gradients

        return z, pullback

    def place(self, natural: p.Natural, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The same for one parameter vector, ``(n, d)`` -> ``(n, d)``, with a pullback to ``x``."""
        lengthscale = natural[self.name][0]
        if self.warped:
            x = x.clone()
            a, b = (natural[name][0] for name in self.warp_names)
            x[:, self.warped], pull_warp = warp(x[:, self.warped], a, b)

        def pullback(g: Tensor) -> Tensor:
            g_x = g / lengthscale
            if self.warped:
                g_x[:, self.warped] = pull_warp(g_x[:, self.warped])[0]
            return g_x

        return (x - 0.5) / lengthscale, pullback


class Covariance(ABC):
    """A mean and covariance function with its parameters, the noise excluded."""

    parameters: tuple[p.Parameter, ...]

    @abstractmethod
    def moments(self, natural: p.Natural, points: Points) -> Moments:
        """Moments at points, for ``S`` parameter vectors."""

    @abstractmethod
    def query(self, natural: p.Natural, points: Points, rho: Tensor) -> Query:
        """Query at fidelity ``rho`` (``()``), for one parameter vector (``S = 1``)."""


class Table(NamedTuple):
    """Tables over ``L`` levels, for ``S`` parameter vectors."""

    mean: Tensor
    """``(S, L)``"""
    scales: tuple[Tensor, ...]
    """Factor of each Matérn term, ``(S, L, L)``."""
    pullback: Callable[[Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None], Gradients]
    """From gradients of mean, scales, ``shift`` and ``own`` to those of the parameters."""
    shift: Tensor | None = None
    """Summand between all points, ``(S, L, L)``."""
    own: Tensor | None = None
    """Summand between points of the same configuration, ``(S, L, L)``."""


class Product(Covariance):
    """``sum_t matern_t(x, x') scale_t(rho, rho') + shift(rho, rho') + [x = x'] own(rho, rho')``.

    Matérn-5/2 over configurations, tables over levels. Subclasses give the tables.
    As such it is the single-fidelity model: one term, its scale the output scale.
    """

    def __init__(
        self, dimension: int, warped: tuple[int, ...] = (), ard: bool = True, lengthscale_prior: str = "uniform"
    ) -> None:
        self.terms = [Inputs(dimension, warped, ard, lengthscale_prior)]
        self.parameters = (*self.terms[0].parameters, p.outputscale(), p.mean())

    def table(self, natural: p.Natural, rho: Tensor) -> Table:
        """The tables over levels ``(L,)``."""
        n = len(rho)
        scale = natural["outputscale"].unsqueeze(-1).expand(-1, n, n)

        def pullback(
            g_mean: Tensor, g_scales: tuple[Tensor, ...], g_shift: Tensor | None, g_own: Tensor | None
        ) -> Gradients:
            return {"mean": g_mean.sum(1, keepdim=True), "outputscale": g_scales[0].sum((1, 2)).unsqueeze(-1)}

        return Table(natural["mean"].expand(-1, n), (scale,), pullback)

    def moments(self, natural: p.Natural, points: Points) -> Moments:
        x, config, level = points.x, points.config, points.level
        m, n_levels = len(x), len(points.rho)
        table = self.table(natural, points.rho)

        def spread(t: Tensor, index: Tensor) -> Tensor:
            return t.index_select(1, index).index_select(2, index)

        def at_levels(t: Tensor) -> Tensor:
            return t if n_levels == 1 else spread(t, level)

        linked = None if table.own is None else points.linked
        covariance: Tensor | None = None
        terms = []
        for inputs, scale in zip(self.terms, table.scales, strict=True):
            z, pull_inputs = inputs.scaled(natural, x)
            correlation, slope = matern52(z)
            scale_n = at_levels(scale)
            if not points.one_per_config:
                correlation = spread(correlation, config)
            part = correlation * scale_n
            covariance = part if covariance is None else covariance.add_(part)
            terms.append((z, pull_inputs, correlation, slope, scale_n))
        assert covariance is not None
        if table.shift is not None:
            covariance += at_levels(table.shift)
        if table.own is not None:
            covariance += at_levels(table.own) * linked

        def pullback(g_mean: Tensor, g_covariance: Tensor) -> Gradients:
            def to_levels(g: Tensor) -> Tensor:
                if n_levels == 1:
                    return g.sum((1, 2), keepdim=True)
                return points.indicator.mT @ g @ points.indicator

            g_scales = []
            gradients: Gradients = {}
            for z, pull_inputs, correlation, slope, scale_n in terms:
                g_scales.append(to_levels(g_covariance * correlation))
                g = g_covariance * scale_n
                if not points.one_per_config:
                    g = g.new_zeros(len(g), m * m).index_add_(1, points.pairs, g.flatten(1)).reshape(-1, m, m)
                gradients |= pull_inputs(pull_distances(g.mul_(slope), z))
            g_shift = None if table.shift is None else to_levels(g_covariance)
            g_own = None if linked is None else to_levels(g_covariance * linked)
            return gradients | table.pullback(g_mean @ points.indicator, tuple(g_scales), g_shift, g_own)

        return Moments(table.mean[:, level], covariance, pullback)

    def query(self, natural: p.Natural, points: Points, rho: Tensor) -> Query:
        x, level = points.x[points.config], points.level
        table = self.table(natural, torch.cat([points.rho, rho.reshape(1)]))
        scales = [scale[0, -1] for scale in table.scales]
        summands = [t[0, -1] for t in (table.shift, table.own) if t is not None]
        variance = torch.stack([s[-1] for s in (*scales, *summands)]).sum()
        terms = [(t, t.place(natural, x)[0], s[level]) for t, s in zip(self.terms, scales, strict=True)]
        shift = None if table.shift is None else table.shift[0, -1, level]
        own = None if table.own is None else table.own[0, -1, level]

        def cross(query: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            parts, pulls = [], []
            for inputs, z, scale in terms:
                zq, pull_inputs = inputs.place(natural, query)
                correlation, slope = matern52(zq, z)
                parts.append(correlation.mul_(scale))
                pulls.append((pull_inputs, slope.mul_(scale), zq, z))
            if shift is not None:
                parts.append(shift)
            if own is not None:
                parts.append((query.unsqueeze(1) == x).all(-1) * own)
            total = parts[0]
            for part in parts[1:]:
                total += part

            def pullback(g: Tensor) -> Tensor:
                gradients = [pull(pull_distances(g * slope, zq, z)) for pull, slope, zq, z in pulls]
                return gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)

            return total, pullback

        return Query(table.mean[0, -1], variance, cross)


class ExponentialDecay(Product):
    """Exponential decay with random rate: see :func:`~lightning_hpo.surrogates.fused.decay_table`.

    Args:
        delta: 0 (sum), 1, or None for a free parameter (combined).
    """

    same_config_only = False
    """Whether only points of the same configuration share a rate."""

    def __init__(
        self,
        dimension: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        delta: float | None = 0.0,
    ) -> None:
        super().__init__(dimension, warped, ard, lengthscale_prior)
        self.delta = delta
        self.parameters += p.decay()
        if delta is None:
            self.parameters += (p.Parameter("delta", 0.5, 0.0, 1.0, log=False),)

    def table(self, natural: p.Natural, rho: Tensor) -> Table:
        mean, outputscale = natural["mean"], natural["outputscale"].unsqueeze(-1)
        delta = natural["delta"] if self.delta is None else torch.full_like(mean, self.delta)
        decay, pull_decay = decay_table(rho, natural["alpha"], natural["mean_lambda"], natural["gamma"], delta, mean)

        def pullback(
            g_mean: Tensor, g_scales: tuple[Tensor, ...], g_shift: Tensor | None, g_own: Tensor | None
        ) -> Gradients:
            g_shift = g_own if self.same_config_only else g_shift
            assert g_shift is not None
            gradients = pull_decay(g_mean, g_scales[0] * outputscale, g_shift)
            if self.delta is not None:
                del gradients["delta"]
            return gradients | {"outputscale": (g_scales[0] * decay.scale).sum((1, 2)).unsqueeze(-1)}

        tables = (decay.mean, (outputscale * decay.scale,), pullback)
        return Table(*tables, own=decay.shift) if self.same_config_only else Table(*tables, shift=decay.shift)


class FreezeThaw(ExponentialDecay):
    """Exponential decay with an own random rate for every configuration (Swersky, Snoek, Adams 2014)."""

    same_config_only = True


class CrossValidation(Product):
    """``k(x, x') + k_residual(x, x') / max(r, r')``: the metric at resource ``r`` is the mean over ``r`` folds.

    The residual has one length scale and no warping.

    Args:
        num_folds: largest resource.
    """

    def __init__(
        self,
        dimension: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        num_folds: int = 5,
    ) -> None:
        super().__init__(dimension, warped, ard, lengthscale_prior)
        self.num_folds = num_folds
        self.terms.append(Inputs(dimension, (), False, lengthscale_prior, prefix="residual_"))
        self.parameters += (*self.terms[1].parameters, p.outputscale(name="residual_outputscale"))

    def table(self, natural: p.Natural, rho: Tensor) -> Table:
        base = super().table(natural, rho)
        folds = rho * self.num_folds + 0.5
        inverse = 1.0 / torch.maximum(folds[:, None], folds)

        def pullback(
            g_mean: Tensor, g_scales: tuple[Tensor, ...], g_shift: Tensor | None, g_own: Tensor | None
        ) -> Gradients:
            residual = {"residual_outputscale": (g_scales[1] * inverse).sum((1, 2)).unsqueeze(-1)}
            return base.pullback(g_mean, g_scales[:1], None, None) | residual

        scale = natural["residual_outputscale"].unsqueeze(-1) * inverse
        return Table(base.mean, (*base.scales, scale), pullback)


class MaternOverFidelity(Covariance):
    """One Matérn-5/2 over configuration and fidelity together; optionally the fidelity is warped."""

    def __init__(
        self,
        dimension: int,
        warped: tuple[int, ...] = (),
        warp_fidelity: bool = False,
        lengthscale_prior: str = "uniform",
    ) -> None:
        all_warped = (*warped, dimension) if warp_fidelity else warped
        self.inputs = Inputs(dimension + 1, all_warped, lengthscale_prior=lengthscale_prior)
        self.parameters = (*self.inputs.parameters, p.outputscale(), p.mean())

    @staticmethod
    def _join(x: Tensor, rho: Tensor) -> Tensor:
        return torch.cat([x, rho.expand(len(x)).unsqueeze(-1)], -1)

    def moments(self, natural: p.Natural, points: Points) -> Moments:
        n = len(points.config)
        rows = self._join(points.x[points.config], points.rho[points.level])
        z, pull_inputs = self.inputs.scaled(natural, rows)
        correlation, slope = matern52(z)
        scale = natural["outputscale"].unsqueeze(-1)

        def pullback(g_mean: Tensor, g_covariance: Tensor) -> Gradients:
            gradients = pull_inputs(pull_distances(g_covariance * slope * scale, z))
            g_scale = inner(g_covariance, correlation)
            return gradients | {"mean": g_mean.sum(1, keepdim=True), "outputscale": g_scale}

        return Moments(natural["mean"].expand(-1, n), correlation * scale, pullback)

    def query(self, natural: p.Natural, points: Points, rho: Tensor) -> Query:
        rows = self._join(points.x[points.config], points.rho[points.level])
        z = self.inputs.place(natural, rows)[0]
        scale = natural["outputscale"][0, 0]

        def cross(query: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            zq, pull_inputs = self.inputs.place(natural, self._join(query, rho))
            correlation, slope = matern52(zq, z)

            def pullback(g: Tensor) -> Tensor:
                return pull_inputs(pull_distances(g * slope * scale, zq, z))[:, :-1]

            return correlation * scale, pullback

        return Query(natural["mean"][0, 0], scale, cross)
