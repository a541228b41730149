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
_SQRT5 = math.sqrt(5.0)
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
    # differences are as fast as a product of matrices on so few coordinates, and exact where points are close
    distance = torch.cdist(z, z if other is None else other, compute_mode="donot_use_mm_for_euclid_dist")
    b = distance.mul_(_SQRT5)
    decay = b.neg().exp_()
    slope = (b + 1.0).mul_(decay)
    correlation = torch.addcmul(slope, b.square_(), decay, value=1.0 / 3.0)
    return correlation, slope.mul_(-5.0 / 6.0)


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


class Decay(NamedTuple):
    """``kappa(u) = E[e^{-lambda u}] = (1 + u mean_lambda / alpha)^{-alpha}`` at levels and their sums, ``lambda``
    gamma-distributed with shape ``alpha`` and mean ``mean_lambda``."""

    single: Tensor
    """At every level, ``(S, L)``."""
    sums: Tensor
    """At the sums of two levels, ``(S, L, L)``."""
    pullback: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """From gradients of the two to those of ``alpha`` and ``mean_lambda``, each ``(S, 1)``."""


def level_sums(rho: Tensor) -> Tensor:
    """The levels ``(L,)`` followed by all sums of two of them, ``(L + L * L,)``."""
    return torch.cat([rho, (rho[:, None] + rho).reshape(-1)])


def decay_at(u: Tensor, n_levels: int, alpha: Tensor, mean_lambda: Tensor) -> Decay:
    """The decay at ``u = level_sums(rho)``; parameters ``(S, 1)``."""
    ratio = u * (mean_lambda / alpha)
    log_growth = ratio.log1p()
    kappa = (log_growth * -alpha).exp_()

    def pullback(g_single: Tensor, g_sums: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.cat([g_single, g_sums.flatten(1)], 1).mul_(kappa)
        quotient = ratio / (ratio + 1.0)
        by_lambda = (g * quotient).sum(1, keepdim=True)
        return by_lambda - (g * log_growth).sum(1, keepdim=True), by_lambda * (-alpha / mean_lambda)

    return Decay(kappa[:, :n_levels], kappa[:, n_levels:].unflatten(1, (n_levels, n_levels)), pullback)


def decay_table(
    rho: Tensor, alpha: Tensor, mean_lambda: Tensor, gamma: Tensor, delta: Tensor, mean: Tensor
) -> tuple[DecayTable, Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]]:
    """Moments of ``h(x) (1 - delta e^{-lambda rho}) + gamma e^{-lambda rho}`` over levels, ``lambda`` gamma-distributed
    with shape ``alpha`` and mean ``mean_lambda`` and common to all curves.

    With ``kappa`` of :class:`Decay` and ``e = gamma - delta mean``::

        mean   = mean + kappa(rho) e
        scale  = 1 - delta (kappa(rho) + kappa(rho') - delta kappa(rho + rho'))
        shift  = e^2 (kappa(rho + rho') - kappa(rho) kappa(rho'))

    (Swersky, Snoek, Adams 2014; Klein, Tiao, Lienart, Archambeau, Seeger 2020.)

    Args:
        rho: ``(L,)`` levels. The others have shape ``(S, 1)``.

    Returns:
        the table, and a pullback from gradients of its fields to gradients of the parameters, by name.
    """
    kappa, kappa2, pull_decay = decay_at(level_sums(rho), len(rho), alpha, mean_lambda)
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
        g_alpha, g_lambda = pull_decay(g_kappa, g_kappa2)
        g_delta = total(g_scale * 2.0 * delta3 * kappa2) - (both.sum(-1) * kappa).sum(1, keepdim=True) - g_e * mean
        return {
            "alpha": g_alpha,
            "mean_lambda": g_lambda,
            "gamma": g_e,
            "delta": g_delta,
            "mean": g_mean.sum(1, keepdim=True) - delta * g_e,
        }

    return table, pullback


def decay_sum(
    u: Tensor, n_levels: int, alpha: Tensor, mean_lambda: Tensor, gamma: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], dict[str, Tensor]]]:
    """Mean ``(S, L)`` and shift ``(S, L, L)`` of :func:`decay_table` for ``delta = 0``, where the scale is 1.

    Args:
        u: ``level_sums(rho)``.

    Returns:
        also a pullback from gradients of the two, that of the shift symmetric, to those of the parameters, by name.
    """
    kappa, kappa2, pull_decay = decay_at(u, n_levels, alpha, mean_lambda)
    column = kappa.unsqueeze(-1)
    covariance = kappa2 - column * kappa.unsqueeze(-2)
    square = gamma.square().unsqueeze(-1)

    def pullback(g_mean: Tensor, g_shift: Tensor) -> dict[str, Tensor]:
        g_covariance = g_shift * square
        g_kappa = torch.addcmul((g_covariance @ column).squeeze(-1).mul_(-2.0), g_mean, gamma)
        g_alpha, g_lambda = pull_decay(g_kappa, g_covariance)
        g_gamma = torch.addcmul((g_mean * kappa).sum(1, keepdim=True), gamma, inner(g_shift, covariance), value=2.0)
        g_own = g_mean.sum(1, keepdim=True)
        return {"alpha": g_alpha, "mean_lambda": g_lambda, "gamma": g_gamma, "mean": g_own}

    return torch.addcmul(mean, kappa, gamma), covariance * square, pullback


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

    With the ``(n, L)`` indicator ``E`` of levels, ``B = [y, E]`` has ``1 + L`` columns. A bar is the mean over a
    configuration's observations.
    """

    inverse_counts: Tensor
    """One over the observations per configuration, ``(m,)``."""
    log_counts: Tensor
    """Sum of the logarithms of the observations per configuration, ``()``."""
    means: Tensor
    """Mean of ``B`` per configuration, ``(m, 1 + L)``."""
    scatter: Tensor
    """``(B - B̄)ᵀ (B - B̄)``, ``(1 + L, 1 + L)``."""
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
        return cls(1.0 / count, count.log().sum(), means, within.mT @ within, len(y))


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
        covariance: ``(S, m, m)`` over configurations; overwritten.
        shift: ``(S, L, L)``, positive semidefinite.
        mean: ``(S, L)``.
        noise: ``(S, 1)``.

    Raises:
        NumericalError: see :func:`cholesky`.
    """
    m, size = data.means.shape
    noise3 = noise.unsqueeze(-1)
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise * data.inverse_counts)
    factor = cholesky(covariance)
    solved = torch.cholesky_solve(data.means.expand(len(noise), m, size), factor)
    # gram = Bᵀ A⁻¹ B with A = Z covariance Zᵀ + noise I; q is its part of E alone
    gram = data.means.mT @ solved + data.scatter / noise3
    q = gram[:, 1:, 1:]
    # B residual = y - E mean, and p = Eᵀ A⁻¹ (y - E mean)
    residual = torch.nn.functional.pad(-mean, (1, 0), value=1.0).unsqueeze(-1)
    gram_residual = gram @ residual
    p = gram_residual[:, 1:]
    lu, pivots, _ = torch.linalg.lu_factor_ex(torch.eye(size - 1, dtype=q.dtype, device=q.device) + shift @ q)
    h = torch.linalg.lu_solve(lu, pivots, shift)
    h = torch.nn.functional.pad(h + h.mT, (1, 0, 1, 0)).mul_(0.5)
    # B solution = (y - E mean) - E h p, and A⁻¹ B solution is the inverse of the whole covariance times the residual
    solution = torch.cat([residual[:, :1], residual[:, 1:] - h[:, 1:, 1:] @ p], 1)
    log_det = (
        2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        + lu.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        + (data.total - m) * noise.log().squeeze(-1)
    )
    quadratic = (solution * gram_residual).sum((1, 2))
    value = 0.5 * (quadratic + log_det + (data.log_counts + data.total * LOG_2PI))

    middle = torch.baddbmm(h, solution, solution.mT)
    inverse = torch.cholesky_inverse(factor)
    g_covariance = inverse.baddbmm_(solved @ middle, solved.mT, beta=0.5, alpha=-0.5)
    g_shift = torch.baddbmm(gram, gram @ middle, gram, beta=0.5, alpha=-0.5)[:, 1:, 1:]
    g_mean = -(gram @ solution).squeeze(-1)[:, 1:]
    within = ((data.total - m) - (middle * data.scatter).sum((1, 2)).unsqueeze(-1) / noise) / noise
    g_noise = g_covariance.diagonal(dim1=-2, dim2=-1) @ data.inverse_counts.unsqueeze(-1) + 0.5 * within
    return AdditiveTerms(value, g_covariance, g_shift, g_mean, g_noise)
