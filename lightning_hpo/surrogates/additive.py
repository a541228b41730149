"""Additive models of learning curves: a Gaussian process over configurations plus a simple process along each curve.

The targets of a curve are ``y_1 .. y_n``, without gaps. For both models there are vectors ``v`` and ``w`` such that,
given the latent value ``h`` of the curve's configuration, the entries of ``w - v (h - c)`` are independent with
variance ``noise``. A curve is then worth one observation of ``h``, exactly::

    z = v.w / |v|² + c        with variance  tau = noise / |v|² + d

and the model is an ordinary Gaussian process over the configurations with one pseudo-observation per curve. The fit
costs one Cholesky factor of the number of *curves*.

``exponential decay``
    ``y_i(r) = h(x_i) + g_i(r) + noise``, ``h`` the value at infinite resource, and ``g_i`` independent copies of
    exponential decay with random rate (Swersky, Snoek, Adams 2014).
``innovation state space``
    ``f_r = f_{r-1} + a_r (1 + gamma eps_r)``, ``y_r = f_r + eps_r``, ``a_r = alpha e^beta r^(alpha-1)``, and
    ``alpha < 0``, ``h(x) = f_{r_max}`` (Hyndman et al. 2008; Tiao, Klein, Lienart, Archambeau, Seeger 2020).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.covariances import Gradients, Points, Product
from lightning_hpo.surrogates.curves import Continuation, Curves, Reduced, reduce_whitened
from lightning_hpo.surrogates.data import Observations, fidelity
from lightning_hpo.surrogates.fused import cholesky, decay_table, gaussian_nll
from lightning_hpo.surrogates.models import Surrogate
from lightning_hpo.surrogates.posterior import (
    DensePosterior,
    Posterior,
    Prediction,
    check_columns,
    draw,
)


class AdditiveModel(Surrogate):
    """Base of both models.

    Args:
        dimension: number of encoded coordinates.
        max_resource: the largest resource.
        warped, ard, lengthscale_prior: see :func:`~lightning_hpo.surrogates.models.single_fidelity`.
    """

    curve_parameters: tuple[p.Parameter, ...]
    uses_autograd = True

    def __init__(
        self,
        dimension: int,
        max_resource: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
    ) -> None:
        self.max_resource = max_resource
        self.covariance = Product(dimension, warped, ard, lengthscale_prior)
        self.space = p.ParameterSpace([p.noise(), *self.covariance.parameters, *self.curve_parameters])
        self._reduced_by = ("noise", *(q.name for q in self.curve_parameters))

    @abstractmethod
    def reduce(self, values: dict[str, Tensor], curves: Curves) -> Reduced:
        """Pseudo-observations, differentiable in ``values`` (each ``(S, 1)``)."""

    @abstractmethod
    def step(self, values: dict[str, Tensor], resource: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (``()``) of ``f(x, resource) - h(x)`` for a new configuration."""

    @abstractmethod
    def continuation(self, values: dict[str, Tensor], y: Tensor, resources: Tensor) -> Continuation:
        """Pending ``resources`` ``(k,)`` of a curve with targets ``y`` ``(n, F)``; ``n`` may be 0."""

    def _values(self, natural: p.Natural) -> dict[str, Tensor]:
        return {name: natural[name] for name in self._reduced_by}

    @staticmethod
    def _points(x: Tensor) -> Points:
        return Points.of(x, x.new_zeros(len(x)))

    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        curves = Curves.of(data)
        points = self._points(curves.x)

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            values = {name: value.detach().requires_grad_() for name, value in self._values(natural).items()}
            with torch.enable_grad():
                reduced = self.reduce(values, curves)
            moments = self.covariance.moments(natural, points)
            covariance = moments.covariance + torch.diag_embed(reduced.tau.detach())
            terms = gaussian_nll(covariance, reduced.z[..., 0].detach() - moments.mean)
            gradients = moments.pullback(-terms.residual, terms.covariance)
            g_tau = terms.covariance.diagonal(dim1=-2, dim2=-1)
            of_curves = torch.autograd.grad(
                [reduced.z, reduced.tau, reduced.remainder],
                list(values.values()),
                [terms.residual.unsqueeze(-1), g_tau, torch.ones_like(reduced.remainder)],
            )
            return terms.value + reduced.remainder.detach(), gradients | dict(zip(values, of_curves, strict=True))

        return likelihood

    def posterior(self, data: Observations, theta: Tensor) -> AdditivePosterior:
        natural = self.space.natural(theta.to(data.y.device)[None])
        return AdditivePosterior(self, natural, Curves.of(data))


class AdditivePosterior(Posterior):
    """Posterior of an additive model: that of ``h``, moved along the curve.

    A configuration is always predicted as a new one, also if its curve was observed.
    """

    def __init__(self, model: AdditiveModel, natural: p.Natural, curves: Curves) -> None:
        self.model, self.natural, self.curves = model, natural, curves
        self.values = model._values(natural)
        self.columns = curves.y.shape[2]
        reduced = model.reduce(self.values, curves)
        ones = torch.ones(len(curves.x), dtype=torch.int64, device=curves.x.device)
        z, tau = reduced.z[0], reduced.tau[0]
        self.limit = DensePosterior(model.covariance, natural, None, curves.x, ones, z, tau)
        """Of ``h``."""

    def predict(self, x: Tensor, resource: int) -> Prediction:
        shift, extra = self.model.step(self.values, resource)
        mean, variance, pullback = self.limit.predict(x, resource)
        return Prediction(mean + shift, variance + extra, pullback)

    def joint(self, x: Tensor, resource: int) -> tuple[Tensor, Tensor]:
        shift, extra = self.model.step(self.values, resource)
        mean, covariance = self.limit.joint(x, resource)
        return mean + shift, covariance + extra * torch.eye(len(x), dtype=x.dtype, device=x.device)

    def inputs_at(self, resource: int) -> Tensor:
        """Configurations with a curve: the models compare them at any resource."""
        return self.curves.x

    def fantasize(self, x: Tensor, resource: Tensor, normals: Tensor) -> AdditivePosterior:
        """As in the base class. Pending resources continue the configuration's curve, or begin one at resource 1.

        All pending values are drawn jointly: ``h`` of all their configurations, and given it each curve. A pending
        resource that does not follow the curve without a gap is left out.
        """
        check_columns(self, normals)
        parts = self._continued(x, resource, normals.shape[1])
        if not parts:
            return self
        configs = torch.stack([part.config for part in parts])
        mean_h, covariance_h = self.limit.joint(configs, 1)
        sizes = torch.tensor([len(part.rows) for part in parts], device=x.device)
        index = torch.arange(len(parts), device=x.device).repeat_interleave(sizes)
        slope = torch.cat([part.given_h.slope for part in parts])
        mean = torch.cat([part.given_h.offset for part in parts]) + slope[:, None] * mean_h[index]
        covariance = slope[:, None] * covariance_h[index][:, index] * slope
        covariance = covariance + torch.block_diag(*(part.given_h.covariance for part in parts))
        values = draw(mean, covariance, normals[torch.cat([part.rows for part in parts])])
        return AdditivePosterior(self.model, self.natural, self._extended(parts, values))

    def _continued(self, x: Tensor, resource: Tensor, columns: int) -> list[_Part]:
        parts = []
        configs, owner = torch.unique(x, dim=0, return_inverse=True)
        for j, config in enumerate(configs):
            found = (self.curves.x == config).all(-1).nonzero().squeeze(-1)
            curve = None if len(found) == 0 else int(found[self.curves.length[found].argmax()])
            n = 0 if curve is None else int(self.curves.length[curve])
            known = self.curves.y[curve, :n] if curve is not None else x.new_zeros(0, 1)
            rows = []
            for row in sorted((owner == j).nonzero().squeeze(-1).tolist(), key=lambda row: int(resource[row])):
                if int(resource[row]) == n + len(rows) + 1:
                    rows.append(row)
            if rows:
                chosen = torch.tensor(rows, device=x.device)
                known = known.expand(-1, columns)
                given_h = self.model.continuation(self.values, known, resource[chosen])
                parts.append(_Part(config, curve, known, chosen, given_h))
        return parts

    def _extended(self, parts: list[_Part], values: Tensor) -> Curves:
        rows: list[Tensor] = list(self.curves.y.expand(-1, -1, values.shape[1]).unbind())
        rows = [row[:n] for row, n in zip(rows, self.curves.length.tolist(), strict=True)]
        x = list(self.curves.x.unbind())
        for part, new in zip(parts, values.split([len(part.rows) for part in parts]), strict=True):
            if part.curve is None:
                x.append(part.config)
                rows.append(new)
            else:
                rows[part.curve] = torch.cat([part.known, new])
        length = torch.tensor([len(row) for row in rows], device=values.device)
        return Curves(torch.stack(x), length, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))


class _Part(NamedTuple):
    """A configuration with pending resources."""

    config: Tensor
    curve: int | None
    known: Tensor
    rows: Tensor
    """Which of the pending inputs continue the curve, in their order along it."""
    given_h: Continuation


class ExponentialDecayModel(AdditiveModel):
    """Exponential decay towards ``h``, with an own random rate for every curve.

    Args:
        normalize_resource: scale resources into (0, 1) before they enter the decay.
    """

    curve_parameters = p.decay()

    def __init__(
        self,
        dimension: int,
        max_resource: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        normalize_resource: bool = False,
    ) -> None:
        super().__init__(dimension, max_resource, warped, ard, lengthscale_prior)
        self.normalize_resource = normalize_resource

    def _decay(self, values: dict[str, Tensor], resources: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(S, L)`` and covariance ``(S, L, L)`` of a curve's decay."""
        rho = fidelity(resources, self.max_resource) if self.normalize_resource else resources.to(torch.float64)
        zero = torch.zeros_like(values["gamma"])
        table, _ = decay_table(rho, values["alpha"], values["mean_lambda"], values["gamma"], zero, zero)
        return table.mean, table.shift

    def reduce(self, values: dict[str, Tensor], curves: Curves) -> Reduced:
        mean, covariance = self._decay(values, torch.arange(1, curves.y.shape[1] + 1, device=curves.x.device))
        noise = values["noise"]
        eye = torch.eye(covariance.shape[-1], dtype=noise.dtype, device=noise.device)
        # curves begin at resource 1, so the factor of a short curve is a leading block of that of the longest
        factor = cholesky(covariance / noise.unsqueeze(-1) + eye)
        m, r, f = curves.y.shape
        residual = curves.y.movedim(1, 0).reshape(r, m * f) - mean.unsqueeze(-1)
        right = torch.cat([residual.new_ones(len(noise), r, 1), residual], 2)
        solved = torch.linalg.solve_triangular(factor, right, upper=False)
        v = solved[..., 0].unsqueeze(1) * curves.mask()
        w = solved[..., 1:].unflatten(2, (m, f)).movedim(1, 2) * curves.mask().unsqueeze(-1)
        log_det = (factor.diagonal(dim1=-2, dim2=-1).log().unsqueeze(1) * curves.mask()).sum((1, 2))
        return reduce_whitened(v, w, noise, curves.length, log_det, torch.zeros_like(noise), torch.zeros_like(noise))

    def step(self, values: dict[str, Tensor], resource: int) -> tuple[Tensor, Tensor]:
        at = torch.tensor([resource], device=values["gamma"].device)
        mean, covariance = self._decay(values, at)
        return mean[0, 0], covariance[0, 0, 0]

    def continuation(self, values: dict[str, Tensor], y: Tensor, resources: Tensor) -> Continuation:
        n = len(y)
        seen = torch.arange(1, n + 1, device=y.device)
        mean, covariance = (t[0] for t in self._decay(values, torch.cat([seen, resources])))
        eye = torch.eye(n, dtype=y.dtype, device=y.device)
        factor = cholesky(covariance[:n, :n] + values["noise"][0] * eye)
        gain = torch.cholesky_solve(covariance[:n, n:], factor).mT
        offset = mean[n:, None] + gain @ (y - mean[:n, None])
        return Continuation(offset, 1.0 - gain.sum(1), covariance[n:, n:] - gain @ covariance[:n, n:])


class InnovationModel(AdditiveModel):
    """Innovation state space model: the curve's increments share their noise with the observations.

    Args:
        gamma_one: fix ``gamma`` to 1.
        unit_innovations: give innovations after the last observation variance 1 instead of ``noise``. Only to
            replay results of implementations that do so; the model is inconsistent with it.
    """

    curve_parameters: tuple[p.Parameter, ...] = (
        p.Parameter("negative_alpha", 0.5, 1e-3, 5.0, prior=p.gamma_prior(mean=0.5, shape=0.1)),
        p.Parameter("beta", 0.0, -5.0, 5.0, log=False, prior=p.normal_prior()),
        p.Parameter("gamma", 1.0, 1e-3, 10.0, prior=p.gamma_prior(mean=1.0, shape=0.1)),
    )

    def __init__(
        self,
        dimension: int,
        max_resource: int,
        warped: tuple[int, ...] = (),
        ard: bool = True,
        lengthscale_prior: str = "uniform",
        gamma_one: bool = False,
        unit_innovations: bool = False,
    ) -> None:
        if gamma_one:
            self.curve_parameters = self.curve_parameters[:-1]
        self.unit_innovations = unit_innovations
        super().__init__(dimension, max_resource, warped, ard, lengthscale_prior)

    def _increments(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``a`` for resources 1 .. max_resource ``(S, r_max)``, ``gamma`` and the innovations' variance, ``(S, 1)``."""
        alpha = -values["negative_alpha"]
        resource = torch.arange(1, self.max_resource + 1, dtype=torch.float64, device=alpha.device)
        gamma = values["gamma"] if "gamma" in values else torch.ones_like(alpha)
        variance = torch.ones_like(alpha) if self.unit_innovations else values["noise"]
        return alpha * values["beta"].exp() * ((alpha - 1.0) * resource.log()).exp(), gamma, variance

    def reduce(self, values: dict[str, Tensor], curves: Curves) -> Reduced:
        a, gamma, variance = self._increments(values)
        m, r, f = curves.y.shape
        mask, last = curves.mask(), curves.length - 1
        columns = torch.arange(r, device=a.device)
        is_last = (columns == last[:, None]).to(a)
        before = mask.to(a) - is_last
        growth = 1.0 + gamma * a[:, 1:r]
        # w_r = (1 + gamma a_{r+1}) w_{r+1} + y_r - y_{r+1} + a_{r+1}, from the last target downwards
        system = torch.eye(r, dtype=a.dtype, device=a.device) - torch.diag_embed(growth, offset=1)
        following = torch.nn.functional.pad(curves.y[:, 1:], (0, 0, 0, 1))
        increments = torch.nn.functional.pad(a[:, 1:r], (0, 1))
        right = (curves.y - following * before.unsqueeze(-1)) + (before * increments.unsqueeze(1)).unsqueeze(-1)
        right = torch.cat([is_last.unsqueeze(-1).expand(len(a), -1, -1, -1), right], -1)
        flat = right.movedim(2, 1).flatten(2)
        solved = torch.linalg.solve_triangular(system, flat, upper=True)
        solved = solved.unflatten(2, (m, f + 1)).movedim(1, 2) * mask.unsqueeze(-1)
        total = torch.nn.functional.pad(a.cumsum(-1), (1, 0))
        squares = torch.nn.functional.pad((a * a).cumsum(-1), (1, 0))
        rest = total[:, -1:] - total[:, curves.length]
        spread = gamma**2 * variance * (squares[:, -1:] - squares[:, curves.length])
        no_determinant = a.new_zeros(len(a))
        v, w = solved[..., 0], solved[..., 1:]
        return reduce_whitened(v, w, values["noise"], curves.length, no_determinant, rest, spread)

    def step(self, values: dict[str, Tensor], resource: int) -> tuple[Tensor, Tensor]:
        a, gamma, variance = self._increments(values)
        later = a[0, resource:]
        return -later.sum(), (gamma[0] ** 2 * variance[0] * (later * later).sum()).squeeze(0)

    def continuation(self, values: dict[str, Tensor], y: Tensor, resources: Tensor) -> Continuation:
        """The values are observations ``f + eps``: the model's innovations are the observation noise."""
        all_a, gamma, variance = (t[0] for t in self._increments(values))
        n, columns = y.shape
        a = all_a[n:]
        # y_r = h - sum_{s>r} a_s - gamma sum_{s>r} a_s eps_s + eps_r, for r = n+1, ..
        eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
        maps = (eye - gamma * a * eye.new_ones(len(a), len(a)).triu(1))[: len(resources)]
        offset = (-(a.sum() - a.cumsum(0)))[: len(resources), None].expand(-1, columns)
        covariance = variance * eye
        slope = torch.ones(len(resources), dtype=a.dtype, device=a.device)
        if n:
            curve = Curves(y.new_zeros(1, 1), torch.tensor([n], device=y.device), y.unsqueeze(0))
            reduced = self.reduce(values, curve)
            # given h, the targets observe -gamma sum a eps = z - h, with variance tau in all
            gain = -gamma * variance * a / reduced.tau[0, 0]
            covariance = covariance - reduced.tau[0, 0] * gain[:, None] * gain
            offset = offset + (maps @ gain)[:, None] * reduced.z[0, 0]
            slope = slope - maps @ gain
        return Continuation(offset, slope, maps @ covariance @ maps.mT)
