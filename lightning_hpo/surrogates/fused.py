"""The numerical core: covariance functions and likelihoods with closed-form gradients.

gpytorch's modules (:mod:`lightning_hpo.surrogates.kernels`) define the models; their calls cost milliseconds each,
and a fit needs a hundred of them, on matrices that take tens of microseconds. The functions here compute the same
numbers for a batch of ``S`` parameter vectors at once. Each returns its value and a *pullback*: the function that
turns gradients with respect to the value into gradients with respect to the arguments (reverse-mode differentiation).
The tests hold both against each other, values and gradients.

All tensors are float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from lightning_hpo.errors import NumericalError

LOG_2PI = math.log(2.0 * math.pi)
_EDGE = 1e-9
"""Kumaraswamy's distribution function has infinite slope at 0 or 1 for some shapes: stay away from the ends."""


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factors of ``(.., n, n)`` matrices.

    Where one is not positive definite, jitter of 1e-9, 1e-8, .. times the mean of the diagonal (at least 1) is added.

    Raises:
        NumericalError: if 1e-3 does not suffice, or an entry is not finite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    try:
        jitter = 1e-9 * max(float(matrix.diagonal(dim1=-2, dim2=-1).mean()), 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return psd_safe_cholesky(matrix, jitter=jitter, max_tries=7)
    except (NotPSDError, NanError) as problem:
        raise NumericalError(
            f"A covariance matrix of size {matrix.shape[-1]} is not positive definite ({problem}). "
            "Check the targets for values that are not finite, or remove duplicates of the same observation."
        ) from problem


# ---------------------------------------------------------------------------------------- covariances


def warp(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Kumaraswamy warping ``1 - (1 - x**a)**b`` of numbers in the unit interval.

    Input warping of Snoek, Swersky, Zemel, Adams (2014), with Kumaraswamy's in place of the beta distribution.

    Args:
        x: ``(.., n, d)``.
        a, b: ``(.., d)``, positive.

    Returns:
        the warped ``x``, and a pullback to ``(x, a, b)``, where those of ``a`` and ``b`` are summed over ``n``.
    """
    z = x * (1.0 - 2.0 * _EDGE) + _EDGE
    log_z, a, b = z.log(), a.unsqueeze(-2), b.unsqueeze(-2)
    power = (a * log_z).exp()
    log_rest = torch.log1p(-power)
    value = -torch.expm1(b * log_rest)

    def pullback(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest_b = g * (b * log_rest).exp()
        g_power = rest_b * b / (1.0 - power) * power
        g_x = g_power * a / z * (1.0 - 2.0 * _EDGE)
        return g_x, (g_power * log_z).sum(-2), -(rest_b * log_rest).sum(-2)

    return value, pullback


def matern52(z: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Matérn-5/2 correlation of scaled inputs.

    Args:
        z: ``(.., n, d)`` inputs divided by their length scales.
        other: ``(.., m, d)``; ``z`` if not given.

    Returns:
        ``(1 + b + b**2 / 3) exp(-b)``, ``b = sqrt(5) * distance``, and its derivative with respect to the *squared*
        distance; both ``(.., n, m)``.
    """
    n5, one = _norm_columns(z)
    m5 = n5
    if other is None:
        other = z
    else:
        m5, one = _norm_columns(other)
    # one product gives 5 (|z|² - 2 z.z' + |z'|²): passes over the matrix cost as much as its factorisation
    d = torch.cat([-10.0 * z, n5, torch.ones_like(n5)], -1) @ torch.cat([other, one, m5], -1).mT
    b = d.clamp_min_(0.0).sqrt()
    decay = b.neg().exp_()
    slope = b.add_(1.0).mul_(decay)
    correlation = torch.addcmul(slope, d, decay, value=1.0 / 3.0)
    return correlation, slope.mul_(-5.0 / 6.0)


def _norm_columns(z: Tensor) -> tuple[Tensor, Tensor]:
    n5 = (z * z).sum(-1, keepdim=True).mul_(5.0)
    return n5, torch.ones_like(n5)


def pull_distances(weight: Tensor, z: Tensor, other: Tensor | None = None) -> Tensor:
    """Gradient with respect to ``z`` of a function of the squared distances whose derivative is ``weight``.

    Without ``other`` the distances are those within ``z``, and ``weight`` is symmetric.
    """
    both = weight @ torch.nn.functional.pad(z if other is None else other, (0, 1), value=1.0)
    return (4.0 if other is None else 2.0) * (both[..., -1:] * z - both[..., :-1])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of the entries of ``(S, n, m)`` matrices, ``(S, 1)``."""
    return (a.flatten(1).unsqueeze(1) @ b.flatten(1).unsqueeze(2)).squeeze(-1)


class DecayTable(NamedTuple):
    """Mean and covariance of exponential decay over ``L`` levels, for ``S`` parameter vectors."""

    mean: Tensor
    """``(S, L)``"""
    scale: Tensor
    """Factor of the covariance over configurations, ``(S, L, L)``."""
    shift: Tensor
    """Summand of the covariance, ``(S, L, L)``."""


def decay_table(
    rho: Tensor, alpha: Tensor, mean_lambda: Tensor, gamma: Tensor, delta: Tensor, mean: Tensor
) -> tuple[DecayTable, Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]]:
    """Moments of ``h(x) (1 - delta e^{-lambda rho}) + gamma e^{-lambda rho}`` over levels, ``lambda`` gamma-distributed
    with shape ``alpha`` and mean ``mean_lambda`` and common to all curves.

    With ``kappa(u) = E[e^{-lambda u}] = (1 + u mean_lambda / alpha)^{-alpha}`` and ``e = gamma - delta mean``::

        mean   = mean + kappa(rho) e
        scale  = 1 - delta (kappa(rho) + kappa(rho') - delta kappa(rho + rho'))
        shift  = e^2 (kappa(rho + rho') - kappa(rho) kappa(rho'))

    (Swersky, Snoek, Adams 2014; Klein, Tiao, Lienart, Archambeau, Seeger 2020.)

    Args:
        rho: ``(L,)`` levels. The others have shape ``(S, 1)``.

    Returns:
        the table, and a pullback from gradients of its fields to gradients of the parameters, by name.
    """
    n = len(rho)
    u = torch.cat([rho, (rho[:, None] + rho).reshape(-1)])
    ratio = u * (mean_lambda / alpha)
    log_growth = torch.log1p(ratio)
    kappa_u = (-alpha * log_growth).exp()
    kappa, kappa2 = kappa_u[:, :n], kappa_u[:, n:].unflatten(1, (n, n))
    e = gamma - delta * mean
    covariance = kappa2 - kappa.unsqueeze(-1) * kappa.unsqueeze(-2)
    e3, delta3 = e.unsqueeze(-1), delta.unsqueeze(-1)
    scale = 1.0 - delta3 * (kappa.unsqueeze(-1) + kappa.unsqueeze(-2) - delta3 * kappa2)
    table = DecayTable(mean + kappa * e, scale, e3**2 * covariance)

    def pullback(g_mean: Tensor, g_scale: Tensor, g_shift: Tensor) -> dict[str, Tensor]:
        def total(t: Tensor) -> Tensor:
            return t.flatten(1).sum(1, keepdim=True)

        g_e = total(g_mean * kappa) + 2.0 * e * total(g_shift * covariance)
        g_kappa2 = g_scale * delta3**2 + g_shift * e3**2
        both = g_scale + g_scale.mT
        sym_shift = g_shift + g_shift.mT
        g_kappa = g_mean * e - delta * both.sum(-1) - e**2 * (sym_shift @ kappa.unsqueeze(-1)).squeeze(-1)
        g_u = torch.cat([g_kappa, g_kappa2.flatten(1)], 1) * kappa_u
        quotient = ratio / (1.0 + ratio)
        g_delta = total(g_scale * 2.0 * delta3 * kappa2) - (both.sum(-1) * kappa).sum(1, keepdim=True) - g_e * mean
        return {
            "alpha": (g_u * (quotient - log_growth)).sum(1, keepdim=True),
            "mean_lambda": -(alpha / mean_lambda) * (g_u * quotient).sum(1, keepdim=True),
            "gamma": g_e,
            "delta": g_delta,
            "mean": g_mean.sum(1, keepdim=True) - delta * g_e,
        }

    return table, pullback


# ---------------------------------------------------------------------------------------- likelihoods


class DenseTerms(NamedTuple):
    """Negative log density of a Gaussian and its derivatives."""

    value: Tensor
    """``(S,)``"""
    covariance: Tensor
    """With respect to the covariance matrix, ``(S, n, n)``, symmetric."""
    residual: Tensor
    """With respect to the residual, ``(S, n)``: the covariance's inverse times the residual."""


def gaussian_nll(covariance: Tensor, residual: Tensor) -> DenseTerms:
    """``-log N(residual; 0, covariance)`` with derivatives, by one Cholesky factorisation and inverse.

    Args:
        covariance: ``(S, n, n)``, noise included.
        residual: ``(S, n)``.

    Raises:
        NumericalError: see :func:`cholesky`.
    """
    factor = cholesky(covariance)
    solved = torch.cholesky_solve(residual.unsqueeze(-1), factor)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    value = 0.5 * (residual * solved.squeeze(-1)).sum(-1) + log_det + 0.5 * residual.shape[-1] * LOG_2PI
    derivative = torch.cholesky_inverse(factor).baddbmm_(solved, solved.mT, beta=0.5, alpha=-0.5)
    return DenseTerms(value, derivative, solved.squeeze(-1))


class LevelStatistics(NamedTuple):
    """What the targets of ``m`` configurations at ``L`` levels contribute, once the model is additive over levels.

    ``E`` is the ``(n, L)`` indicator of levels, and a bar the mean over a configuration's observations.
    """

    counts: Tensor
    """Observations per configuration, ``(m,)``."""
    mean_target: Tensor
    """``(m,)``"""
    mean_level: Tensor
    """``(m, L)``, mean of ``E``."""
    level_scatter: Tensor
    """``(L, L)``: ``(E - Ē)ᵀ (E - Ē)``."""
    cross_scatter: Tensor
    """``(L,)``: ``(E - Ē)ᵀ (y - ȳ)``."""
    target_scatter: Tensor
    """``()``: ``|y - ȳ|²``."""
    total: int

    @classmethod
    def of(cls, y: Tensor, config: Tensor, level: Tensor, n_configs: int, n_levels: int) -> LevelStatistics:
        """Statistics of targets ``(n,)`` with the configuration and level of each."""
        indicator = (level[:, None] == torch.arange(n_levels, device=level.device)).to(y)
        columns = torch.cat([y[:, None], indicator], 1)
        count = torch.bincount(config, minlength=n_configs).to(y)
        means = torch.zeros(n_configs, n_levels + 1, dtype=y.dtype, device=y.device).index_add_(0, config, columns)
        means /= count[:, None]
        within = columns - means[config]
        scatter = within.mT @ within
        return cls(count, means[:, 0], means[:, 1:], scatter[1:, 1:], scatter[1:, 0], scatter[0, 0], len(y))


class AdditiveTerms(NamedTuple):
    """Negative log density under a covariance additive over configurations and levels, and its derivatives."""

    value: Tensor
    covariance: Tensor
    """With respect to the covariance over configurations, ``(S, m, m)``."""
    shift: Tensor
    """With respect to the covariance over levels, ``(S, L, L)``."""
    mean: Tensor
    """With respect to the mean per level, ``(S, L)``."""
    noise: Tensor
    """``(S, 1)``"""


def level_additive_nll(
    data: LevelStatistics, covariance: Tensor, shift: Tensor, mean: Tensor, noise: Tensor
) -> AdditiveTerms:
    """``-log N(y; E mean, Z covariance Zᵀ + E shift Eᵀ + noise I)`` without a matrix larger than ``m``.

    ``Z`` and ``E`` indicate configuration and level of every observation. The mean of a configuration's
    observations is sufficient for its row of ``Z``, with noise ``noise / counts``; the levels are a correction of rank
    ``L`` (matrix inversion lemma). ``n`` observations at rungs have about ``n / 1.5`` configurations, and learning
    curves far fewer.

    Args:
        covariance: ``(S, m, m)`` over configurations.
        shift: ``(S, L, L)``, positive semidefinite.
        mean: ``(S, L)``.
        noise: ``(S, 1)``.

    Raises:
        NumericalError: see :func:`cholesky`.
    """
    m, n_levels = data.mean_level.shape
    batch = covariance.shape[0]
    covariance = covariance.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise / data.counts)
    factor = cholesky(covariance)
    inverse = torch.cholesky_inverse(factor)
    residual = data.mean_target - mean @ data.mean_level.mT
    solved = torch.cholesky_solve(
        torch.cat([residual.unsqueeze(-1), data.mean_level.expand(batch, -1, -1)], -1), factor
    )
    a, v = solved[..., 0], solved[..., 1:]
    eye = torch.eye(n_levels, dtype=noise.dtype, device=noise.device)
    noise3 = noise.unsqueeze(-1)
    # q = Eᵀ A⁻¹ E and p = Eᵀ A⁻¹ (y - E mean), with A = Z covariance Zᵀ + noise I
    q = data.level_scatter / noise3 + data.mean_level.mT @ v
    p = (data.cross_scatter - mean @ data.level_scatter) / noise + a @ data.mean_level
    lu, pivots, _ = torch.linalg.lu_factor_ex(eye + shift @ q)
    h = torch.linalg.lu_solve(lu, pivots, shift)
    h = 0.5 * (h + h.mT)
    hp = (h @ p.unsqueeze(-1)).squeeze(-1)

    def scatter(of_mean: Tensor) -> Tensor:
        cross = (of_mean * (of_mean @ data.level_scatter - 2.0 * data.cross_scatter)).sum(-1, keepdim=True)
        return data.target_scatter + cross

    log_det = (
        2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        + data.counts.log().sum()
        + (data.total - m) * noise.log().squeeze(-1)
        + lu.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    )
    quadratic = (scatter(mean) / noise).squeeze(-1) + (residual * a).sum(-1) - (p * hp).sum(-1)
    value = 0.5 * (quadratic + log_det + data.total * LOG_2PI)

    weight = a - (v @ hp.unsqueeze(-1)).squeeze(-1)
    t = p - (q @ hp.unsqueeze(-1)).squeeze(-1)
    low_rank = torch.cat([v @ h, weight.unsqueeze(-1)], -1)
    g_covariance = torch.baddbmm(inverse, low_rank, torch.cat([v, weight.unsqueeze(-1)], -1).mT, beta=0.5, alpha=-0.5)
    g_shift = 0.5 * (q - q @ h @ q - t.unsqueeze(-1) * t.unsqueeze(-2))
    per_count = v / data.counts.unsqueeze(-1)
    trace = (
        (data.total - m) / noise.squeeze(-1)
        + (inverse.diagonal(dim1=-2, dim2=-1) / data.counts).sum(-1)
        - (h * (data.level_scatter / noise3**2 + v.mT @ per_count)).sum((-2, -1))
    )
    square = (scatter(mean + hp) / noise**2).squeeze(-1) + (weight**2 / data.counts).sum(-1)
    return AdditiveTerms(value, g_covariance, g_shift, -t, 0.5 * (trace - square).unsqueeze(-1))
