"""A Gaussian process over configurations and rungs, and what it expects of a trial at all its rungs together.

The value of the trial of configuration ``x`` at rung ``j``, whose resource is ``r_j``, is

    y = b_j + s_j (f_j(x) + t_j) / sqrt(1 + drift u_j) + noise

==========  ==========================================================================================================
``f_j``     a smooth function per rung, autoregressive: ``f_0`` is a Matérn-5/2 process over configurations of variance
            1, and from rung to rung an independent one is added, of variance ``drift (u_{j+1} - u_j)``
``t_j``     what the trial owes to itself, to its seed or to what is not smooth: normal with variance ``own``, and from
            rung to rung an independent part is added, of variance ``own_drift (u_{j+1} - u_j)``
``u_j``     ``(1 - (r_j / r_0)^-settling) / settling``: values change less and less from rung to rung
``s_j``     scale of the rung: ``s_j^2`` is the variance of its smooth part, ``noise s_j^2`` that of the noise; a
            parameter near 1 times a unit, which is 1 unless the spread of the rung's values is out of all
            proportion (:class:`RungSpread`)
``b_j``     offsets of the rungs: a random walk from rung to rung with variance ``offset``
==========  ==========================================================================================================

So a rung tells as much about another as the data say, in both directions, and more about the trial itself than about
its neighbours: that is needed to compare a paused trial that goes on with a new one. The correlation of the smooth
parts of rungs ``j < k`` is ``sqrt((1 + drift u_j) / (1 + drift u_k))``: the larger the rung, the more alike are it and
the next. Their spreads are those of the scales: were they to grow with the drift, a model would have to choose between
the spread that it sees and the changes of order that it sees. Of the trial's own part the share falls where the drift
is larger than ``own_drift``.

Source: Kennedy, O'Hagan, *Predicting the output from a complex computer code when fast approximations are available*,
Biometrika 87(1), 2000, for the autoregressive levels (their regression factors are ratios of
``s_j / sqrt(1 + drift u_j)``). That new and paused trials come under one model is the idea of Swersky, Snoek, Adams,
*Freeze-Thaw Bayesian Optimization*, arXiv:1406.3896.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.covariances import Gradients, Points, Product, Table
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fused import gaussian_nll, matern52
from lightning_hpo.surrogates.models import Surrogate
from lightning_hpo.surrogates.posterior import DensePosterior

_ENOUGH = 5
"""From so many values of a rung on their spread says something."""
_OUT_OF_PROPORTION = 16.0
"""Who is sent on is among the best, so that spreads at upper rungs come out at a tenth of what they are."""
_ROUNDING = 1e-9
_VEIL = 1e4
"""Variance, in units of the targets, that lets a value say nothing."""


@dataclass(frozen=True)
class RungSpread:
    """What the values at the rungs say of their spread alone, beside the fit.

    One normalisation serves all rungs, and the prior of the scales expects them near 1: so the fit tells rungs at which
    little differs from those at which trials differ as much as elsewhere. Two kinds of metric are beyond that:

    * The spread falls by orders of magnitude from the first rung to the last, as that of a loss may do which no power
      transform applies to. Then the rung has a unit of its own.
    * The values of a low rung are all the same, or differ by next to nothing beside those of the rungs above it, as
      those of a classifier that still guesses. A model with little noise lets that rung tell the last one, at the price
      of a tiny scale: every new trial is given up there, and nothing that contradicts ever comes up. So its values are
      veiled: they are taken to tell nothing.
    """

    units: Tensor
    """``(L,)``"""
    veil: Tensor
    """``(L,)`` variance that is added to that of the noise."""

    @classmethod
    def even(cls, n_levels: int) -> RungSpread:
        """Of rungs that are like each other."""
        return cls(torch.ones(n_levels, dtype=torch.float64), torch.zeros(n_levels, dtype=torch.float64))

    @classmethod
    def of(cls, y: Tensor, resource: Tensor, levels: Sequence[int]) -> RungSpread:
        """As seen in the data.

        Args:
            y: ``(n,)`` normalised targets.
            resource: ``(n,)`` their levels.
            levels: of all rungs, increasing. The last one is never veiled.
        """
        made = cls.even(len(levels))
        values = [y[resource == level] for level in levels]
        spreads = [float(v.std(correction=0)) if len(v) > 1 else 0.0 for v in values]
        for j, spread in enumerate(spreads):
            # A rung that few have reached is taken to be like the one below it.
            made.units[j] = made.units[j - 1] if j else 1.0
            if len(values[j]) < _ENOUGH:
                continue
            if j + 1 < len(levels) and spread <= max(_ROUNDING, max(spreads[j + 1 :]) / _OUT_OF_PROPORTION):
                made.veil[j] = _VEIL
            elif spread > _ROUNDING:
                made.units[j] = _unit(spread)
        return made


def _unit(spread: float) -> float:
    """1 for spreads in proportion, the spread itself far from that, and nothing abrupt in between."""
    away, limit = abs(math.log(spread)), math.log(_OUT_OF_PROPORTION)
    return math.exp(math.copysign(min(away, 2.0 * max(away - limit, 0.0)), math.log(spread)))


class RungCovariance(Product):
    """The covariance above; its mean is 0.

    Args:
        dimension: number of encoded coordinates of a configuration.
        levels: resource of every rung, increasing, ``max_t`` included.
        spread: of the values at the rungs.
        warped, ard, lengthscale_prior: see :func:`~lightning_hpo.surrogates.models.single_fidelity`.
    """

    def __init__(
        self,
        dimension: int,
        levels: Sequence[int],
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "log_normal",
        spread: RungSpread | None = None,
    ) -> None:
        super().__init__(dimension, warped, ard, lengthscale_prior)
        self.levels = tuple(levels)
        self.spread = spread or RungSpread.even(len(self.levels))
        self.positions = torch.tensor(self.levels, dtype=torch.float64).log() - math.log(self.levels[0])
        self.parameters = (*self.terms[0].parameters, *rung_parameters(len(self.levels)))

    def place(self, resource: Tensor) -> Tensor:
        """Logarithm of every resource, in units of the first level: what fidelities are here.

        Raises:
            ShapeError: if one is not a level.
        """
        known = torch.tensor(self.levels, device=resource.device)
        index = torch.searchsorted(known, resource).clamp_max(len(known) - 1)
        if not torch.equal(known[index], resource):
            raise ShapeError(
                f"Observations at {sorted(set(resource.tolist()) - set(self.levels))} are at none of the levels "
                f"{list(self.levels)}. Use searcher_data='rungs' with this model."
            )
        return self.positions.to(resource.device)[index]

    def index(self, rho: Tensor) -> Tensor:
        """Number of the rung at every fidelity."""
        return torch.searchsorted(self.positions.to(rho.device), rho - 1e-9)

    def table(self, natural: p.Natural, rho: Tensor) -> Table:
        index = self.index(rho)
        common = torch.minimum(index[:, None], index)
        lower = torch.minimum(rho[:, None], rho)
        drift, own, own_drift, offset, settling = (
            natural[name].unsqueeze(-1) for name in ("drift", "own", "own_drift", "offset", "settling")
        )

        def walk(place: Tensor) -> tuple[Tensor, Tensor]:
            """``u`` and its derivative by ``settling``."""
            rest = (-settling * place).exp()
            u = (1.0 - rest) / settling
            return u, (place * rest - u) / settling

        u, slope = walk(lower)
        u_here, slope_here = (t.squeeze(1) for t in walk(rho[None]))
        shrink = (1.0 + natural["drift"] * u_here).rsqrt()
        units = self.spread.units.to(rho)
        scale = (natural["scale"] * units)[:, index] * shrink
        both = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        walked, own_walked = 1.0 + drift * u, own + own_drift * u
        steps = (common + 1).to(rho)

        def pullback(
            g_mean: Tensor, g_scales: tuple[Tensor, ...], g_shift: Tensor | None, g_own: Tensor | None
        ) -> Gradients:
            assert g_shift is not None and g_own is not None
            (g_smooth,) = g_scales

            def total(t: Tensor) -> Tensor:
                return t.sum((1, 2)).unsqueeze(-1)

            by_both = g_smooth * walked + g_own * own_walked
            by_scale = ((by_both + by_both.mT) * scale.unsqueeze(-2)).sum(-1)
            g_scale = torch.zeros_like(natural["scale"]).index_add_(1, index, by_scale * shrink)
            by_shrunk = -0.5 * by_scale * scale * shrink.square()  # by drift * u_here
            by_walk, by_own_walk = g_smooth * both, g_own * both
            return {
                "scale": g_scale * units,
                "drift": total(by_walk * u) + (by_shrunk * u_here).sum(-1, keepdim=True),
                "own": total(by_own_walk),
                "own_drift": total(by_own_walk * u),
                "settling": total((by_walk * drift + by_own_walk * own_drift) * slope)
                + (by_shrunk * natural["drift"] * slope_here).sum(-1, keepdim=True),
                "offset": total(g_shift * steps),
            }

        tables = (scale.new_zeros(scale.shape), (both * walked,), pullback)
        return Table(*tables, shift=offset * steps, own=both * own_walked)


def rung_parameters(n_levels: int) -> tuple[p.Parameter, ...]:
    """``scale`` per rung, and what the changes from rung to rung, the trial itself and the offsets contribute."""
    return (
        p.Parameter("scale", 1.0, 0.05, 20.0, prior=p.log_normal_prior(0.2, mode=1.0), size=n_levels),
        p.Parameter("drift", 1.0, 1e-4, 1e4, prior=p.log_normal_prior(1.0, mode=1.0)),
        p.Parameter("own", 0.05, 1e-5, 10.0, prior=p.log_normal_prior(1.0, mode=0.05)),
        p.Parameter("own_drift", 0.1, 1e-5, 100.0, prior=p.log_normal_prior(1.0, mode=0.1)),
        p.Parameter("settling", 0.25, 0.002, 5.0, prior=p.log_normal_prior(0.5, mode=0.25)),
        p.Parameter("offset", 0.25, 1e-3, 25.0, prior=p.log_normal_prior(1.0, mode=0.25)),
    )


class RungModel(Surrogate):
    """The model above."""

    def __init__(self, covariance: RungCovariance) -> None:
        self.covariance = covariance
        noise = p.Parameter("noise", 0.01, 1e-6, 10.0, prior=p.log_normal_prior(1.4, mode=0.01))
        self.space = p.ParameterSpace([noise, *self.covariance.parameters])

    def points(self, data: Observations) -> Points:
        """The observations as points whose fidelities are the logarithms of their resources."""
        resources, level = data.levels()
        return Points(data.x, data.config, self.covariance.place(resources), level)

    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        points = self.points(data)
        index = self.covariance.index(points.rho)[points.level]
        units, veil = (t.to(points.rho)[index] for t in (self.covariance.spread.units, self.covariance.spread.veil))

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            moments = self.covariance.moments(natural, points)
            scale = natural["scale"][:, index] * units
            variance = scale.square()
            moments.covariance.diagonal(dim1=-2, dim2=-1).add_(natural["noise"] * variance + veil)
            terms = gaussian_nll(moments.covariance, data.y - moments.mean)
            gradients = moments.pullback(-terms.residual, terms.covariance)
            by_noise = terms.covariance.diagonal(dim1=-2, dim2=-1)
            gradients["scale"].index_add_(1, index, 2.0 * natural["noise"] * scale * units * by_noise)
            gradients["noise"] = (by_noise * variance).sum(-1, keepdim=True)
            return terms.value, gradients

        return likelihood

    def posterior(self, data: Observations, theta: Tensor) -> RungPosterior:
        natural = self.space.natural(theta.to(data.y.device)[None])
        noise = rung_noise(self.covariance, natural, data.resource)
        y = data.y.unsqueeze(-1)
        return RungPosterior(self.covariance, natural, self.covariance.levels[-1], data.rows, data.resource, y, noise)


def rung_noise(covariance: RungCovariance, natural: p.Natural, resource: Tensor) -> Tensor:
    """Noise variance of an observation at every resource, for one parameter vector (``S = 1``)."""
    rho = covariance.place(resource)
    index = covariance.index(rho)
    units, veil = (t.to(rho)[index] for t in (covariance.spread.units, covariance.spread.veil))
    return natural["noise"][0, 0] * (natural["scale"][0, index] * units).square() + veil


class RungPosterior(DensePosterior):
    """The posterior of the model above; the latent function is ``b + s (f + t) / sqrt(1 + drift u)``, the trial's
    own part included."""

    covariance: RungCovariance

    def _rho(self, resource: Tensor) -> Tensor:
        return self.covariance.place(resource)

    def new_noise(self, resource: Tensor) -> Tensor:
        return rung_noise(self.covariance, self.natural, resource)

    def believe(self, x: Tensor, resource: Tensor) -> RungPosterior:
        """Condition on the expected values at pending inputs (the kriging believer of Ginsbourger, Le Riche, Carraro,
        *Kriging is well-suited to parallelize optimization*, 2010): they change no mean, but what is known there.

        Args:
            x: ``(P, d)``.
            resource: ``(P,)`` integers.
        """
        found = self.fantasize(x, resource, x.new_zeros(len(x), 1))
        assert isinstance(found, RungPosterior)
        return found

    def across(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Joint moments at all rungs: what one value would tell about the others.

        Args:
            x: ``(B, d)`` configurations.

        Returns:
            mean ``(B, L)`` (of the first column of fantasies) and covariance ``(B, L, L)``.
        """
        rho = self.covariance.positions.to(x.device)
        at = self.covariance.index(self.points.rho)[self.points.level]
        table = self.covariance.table(self.natural, rho)
        assert table.shift is not None and table.own is not None
        rows = self.points.x[self.points.config]
        (inputs,) = self.covariance.terms
        correlation, _ = matern52(inputs.place(self.natural, x)[0], inputs.place(self.natural, rows)[0])
        smooth, shift, own = (t[0] for t in (table.scales[0], table.shift, table.own))
        cross = (correlation.unsqueeze(1) * smooth[:, at]).add_(shift[:, at])
        # Equal coordinates are correlated by exactly 1, and few others are.
        new, known = (correlation == 1.0).nonzero(as_tuple=True)
        is_same = (x[new] == rows[known]).all(-1)
        new, known = new[is_same], known[is_same]
        cross[new, :, known] += own[:, at[known]].mT
        half = torch.linalg.solve_triangular(self.factor, cross.flatten(0, 1).mT, upper=False)
        half = half.mT.unflatten(0, (len(x), len(rho)))
        return cross @ self.weights[:, 0], smooth + shift + own - half @ half.mT
