"""Covariance functions and likelihoods: values and closed-form gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_hpo.errors import NumericalError
from lightning_hpo.surrogates.fused import (
    LevelStatistics,
    cholesky,
    decay_table,
    gaussian_nll,
    level_additive_nll,
    matern52,
    pull_distances,
    warp,
)
from tests.surrogates.numeric import assert_gradient


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_matern_at_distance_one() -> None:
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    # (1 + sqrt(5) + 5/3) exp(-sqrt(5))
    expected = (1.0 + math.sqrt(5.0) + 5.0 / 3.0) * math.exp(-math.sqrt(5.0))
    correlation, _ = matern52(z)
    torch.testing.assert_close(correlation, torch.tensor([[1.0, expected], [expected, 1.0]]).double())


def test_gradient_of_the_matern_with_respect_to_inputs() -> None:
    z, other, weight = uniform(4, 3), uniform(5, 3, seed=1), uniform(4, 5, seed=2)
    _, slope = matern52(z, other)
    assert_gradient(lambda a: (weight * matern52(a, other)[0]).sum(), z, pull_distances(weight * slope, z, other))
    within = weight[:, :4] + weight[:, :4].mT
    _, slope = matern52(z)
    assert_gradient(lambda a: (within * matern52(a)[0]).sum(), z, pull_distances(within * slope, z))


def test_duplicates_have_correlation_one_and_finite_gradient() -> None:
    z = uniform(1, 3).expand(3, 3) * 50.0
    correlation, slope = matern52(z)
    torch.testing.assert_close(correlation, torch.ones(3, 3).double(), rtol=0.0, atol=1e-10)
    assert torch.isfinite(slope).all()


def test_warping_with_unit_concentrations_changes_nothing() -> None:
    x, ones = uniform(5, 2), torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(warp(x, ones, ones)[0], x, rtol=0.0, atol=2e-9)


def test_warping_by_hand_and_its_gradients() -> None:
    half = torch.full((1, 1), 0.5, dtype=torch.float64)
    a, b = torch.tensor([2.0]).double(), torch.tensor([3.0]).double()
    # 1 - (1 - 1/4)^3
    assert float(warp(half, a, b)[0]) == pytest.approx(1.0 - 0.75**3, abs=1e-8)
    x, a, b, weight = uniform(4, 2), 0.5 + uniform(2, seed=1), 0.5 + uniform(2, seed=2), uniform(4, 2, seed=3)
    g_x, g_a, g_b = warp(x, a, b)[1](weight)
    assert_gradient(lambda t: (weight * warp(t, a, b)[0]).sum(), x, g_x)
    assert_gradient(lambda t: (weight * warp(x, t, b)[0]).sum(), a, g_a)
    assert_gradient(lambda t: (weight * warp(x, a, t)[0]).sum(), b, g_b)
    for edge in (0.0, 1.0):
        value, pullback = warp(torch.full((1, 2), edge, dtype=torch.float64), a, b)
        assert all(torch.isfinite(t).all() for t in (value, *pullback(torch.ones(1, 2).double())))


def test_decay_by_hand() -> None:
    # alpha = mean_lambda = 1: kappa(u) = 1 / (1 + u)
    one = torch.ones(1, 1, dtype=torch.float64)
    table, _ = decay_table(torch.tensor([1.0, 3.0]).double(), one, one, 0.5 * one, 0.0 * one, 2.0 * one)
    assert table.mean[0].tolist() == pytest.approx([2.0 + 0.5 / 2, 2.0 + 0.5 / 4])
    # gamma^2 (kappa(1 + 3) - kappa(1) kappa(3))
    assert float(table.shift[0, 0, 1]) == pytest.approx(0.25 * (1 / 5 - 1 / 8))
    assert table.scale[0].flatten().tolist() == [1.0] * 4
    # delta = 1, mean = 2: e = 0.5 - 2
    table, _ = decay_table(torch.tensor([1.0, 3.0]).double(), one, one, 0.5 * one, one, 2.0 * one)
    assert table.mean[0].tolist() == pytest.approx([2.0 - 1.5 / 2, 2.0 - 1.5 / 4])
    assert float(table.scale[0, 0, 1]) == pytest.approx(1.0 - (1 / 2 + 1 / 4 - 1 / 5))
    assert float(table.shift[0, 0, 1]) == pytest.approx(1.5**2 * (1 / 5 - 1 / 8))


def test_gradients_of_the_decay() -> None:
    rho = uniform(4)
    names = ("alpha", "mean_lambda", "gamma", "delta", "mean")
    values = 0.2 + uniform(2, 5, seed=1)
    weights = [uniform(2, 4, seed=2), uniform(2, 4, 4, seed=3), uniform(2, 4, 4, seed=4)]

    def total(parameters: Tensor) -> Tensor:
        table, _ = decay_table(rho, *(parameters[:, i : i + 1] for i in range(5)))
        return torch.stack([(w * t).sum() for w, t in zip(weights, table, strict=True)]).sum()

    _, pullback = decay_table(rho, *(values[:, i : i + 1] for i in range(5)))
    gradients = pullback(*weights)
    assert_gradient(total, values, torch.cat([gradients[name] for name in names], 1))


def positive_definite(n: int, seed: int) -> Tensor:
    a = uniform(n, n, seed=seed)
    return a @ a.mT + 0.1 * torch.eye(n, dtype=torch.float64)


def test_gaussian_density_and_gradients() -> None:
    covariance, residual = torch.stack([positive_definite(4, s) for s in (0, 1)]), uniform(2, 4, seed=2)
    terms = gaussian_nll(covariance, residual)
    expected = -torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(residual)
    torch.testing.assert_close(terms.value, expected)
    assert_gradient(lambda r: gaussian_nll(covariance, r).value.sum(), residual, terms.residual)
    direction = positive_definite(4, 5)
    along = central = 1e-6
    up, down = (gaussian_nll(covariance + s * direction, residual).value for s in (along, -central))
    torch.testing.assert_close((up - down) / 2e-6, (terms.covariance * direction).sum((1, 2)), rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 99))
def test_additive_likelihood_is_that_of_the_full_matrix(pairs: list[tuple[int, int]], seed: int) -> None:
    configs = sorted({c for c, _ in pairs})
    config = torch.tensor([configs.index(c) for c, _ in pairs])
    level = torch.tensor([k for _, k in pairs])
    m = len(configs)
    y, over_x = uniform(len(pairs), seed=seed), positive_definite(m, seed)[None]
    root, mean, noise = uniform(3, 2, seed=seed + 1), uniform(1, 3, seed=seed + 2), 0.05 + uniform(1, 1, seed=seed + 3)
    shift = (root @ root.mT)[None]
    data = LevelStatistics.of(y, config, level, m, 3)
    terms = level_additive_nll(data, over_x.clone(), shift, mean, noise)
    full = over_x[:, config][:, :, config] + shift[:, level][:, :, level]
    full = full + noise.unsqueeze(-1) * torch.eye(len(pairs), dtype=torch.float64)
    dense = gaussian_nll(full, y - mean[:, level])
    to_config = torch.nn.functional.one_hot(config, m).double()
    to_level = torch.nn.functional.one_hot(level, 3).double()
    expected = (
        dense.value,
        to_config.mT @ dense.covariance @ to_config,
        to_level.mT @ dense.covariance @ to_level,
        -dense.residual @ to_level,
        dense.covariance.diagonal(dim1=1, dim2=2).sum(1, keepdim=True),
    )
    for ours, theirs in zip(terms, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_jitter_mends_a_singular_matrix() -> None:
    singular = torch.ones(3, 3, dtype=torch.float64) - 1e-12 * torch.eye(3, dtype=torch.float64)
    factor = cholesky(singular)
    torch.testing.assert_close(factor @ factor.mT, singular, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("entry", [-1.0, math.nan])
def test_a_matrix_beyond_repair_is_named(entry: float) -> None:
    with pytest.raises(NumericalError, match="size 2 is not positive definite"):
        cholesky(torch.diag(torch.tensor([1.0, entry], dtype=torch.float64)))
