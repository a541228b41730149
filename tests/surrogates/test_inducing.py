"""Variational inducing points: the bound, the posterior, and what they become with as many points as data."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from gpytorch.kernels import InducingPointKernel
from gpytorch.settings import sgpr_diagonal_correction
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_hpo.errors import NumericalError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fit import FitOptions, fit
from lightning_hpo.surrogates.inducing import InducingModel, InducingPosterior
from lightning_hpo.surrogates.kernels import exact_gp, inputs
from lightning_hpo.surrogates.models import RESOURCE_KERNELS, JointModel, multitask, single_fidelity
from lightning_hpo.surrogates.posterior import DensePosterior
from tests.surrogates.numeric import assert_gradient
from tests.surrogates.problems import random_theta, rungs


def models() -> dict[str, JointModel]:
    kernels = {kernel: multitask(3, 9, kernel) for kernel in RESOURCE_KERNELS}
    return {"single-fidelity": single_fidelity(3), "warped": multitask(3, 9, warped=(1,)), **kernels}


def inducing(exact: JointModel, num_inducing: int) -> InducingModel:
    return InducingModel(exact.covariance, exact.max_resource, num_inducing)


def data_for(model: JointModel, n_configs: int = 12) -> Observations:
    data = rungs(n_configs)
    return data if model.max_resource else data.at(1)


def prior(model: JointModel, data: Observations, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and noise variance, all observations at once."""
    with torch.no_grad():
        gp = exact_gp(model, data, theta)
        x = inputs(model, data)
        return gp.mean_module(x), gp.covar_module(x).to_dense(), gp.likelihood.noise


@pytest.mark.parametrize("name", models())
def test_the_objective_is_titsias_bound(name: str) -> None:
    exact = models()[name]
    data, theta = data_for(exact), random_theta(exact)
    model = inducing(exact, 5)
    chosen = model.inducing_points(data)
    assert len(chosen) == len(set(chosen.tolist())) == 5
    mean, covariance, noise = prior(exact, data, theta[0])
    rows = covariance[chosen]
    nystroem = rows.mT @ torch.linalg.inv(covariance[chosen][:, chosen]) @ rows
    # log N(y; mean, Q + noise I) - tr(K - Q) / (2 noise): eq. 9
    density = torch.distributions.MultivariateNormal(mean, nystroem + noise * torch.eye(len(data)))
    bound = density.log_prob(data.y) - (covariance - nystroem).trace() / (2.0 * noise)
    penalty = exact.space.penalty(exact.space.natural(theta))[0]
    objective = model.objective(data)
    value, gradient = objective(theta)
    torch.testing.assert_close(value, -bound + penalty, rtol=1e-6, atol=1e-6)
    direction = torch.linspace(-1.0, 1.0, theta.shape[1], dtype=torch.float64)
    up, down = (objective(theta + s * direction)[0] for s in (1e-5, -1e-5))
    torch.testing.assert_close((up - down) / 2e-5, gradient @ direction, rtol=1e-5, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.integers(2, 16))
def test_the_bound_is_never_below_the_exact_objective(seed: int, num_inducing: int) -> None:
    exact, data = multitask(3, 9), rungs(seed=seed)
    theta = random_theta(exact, seed, 2)
    bound, value = inducing(exact, num_inducing).objective(data)(theta)[0], exact.objective(data)(theta)[0]
    assert (bound >= value - 1e-6).all()


@pytest.mark.parametrize("name", models())
def test_with_as_many_inducing_points_as_data_the_posterior_is_the_exact_one(name: str) -> None:
    exact = models()[name]
    data, theta = data_for(exact), random_theta(exact)[0]
    natural = exact.space.natural(theta[None])
    dense = exact.posterior(data, theta)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    sparse = InducingPosterior(exact.covariance, natural, exact.max_resource, data, order)
    x = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for r in (1, 3, 9):
        ours, theirs = sparse.predict(x, r), dense.predict(x, r)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sparse.inputs_at(r), dense.inputs_at(r))
    for ours, theirs in zip(sparse.joint(x, 3), dense.joint(x, 3), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", models())
def test_an_inducing_point_that_others_determine_changes_nothing(name: str) -> None:
    exact = models()[name]
    data, theta = data_for(exact), random_theta(exact)[0]
    natural = exact.space.natural(theta[None])

    def predicted(*inducing: int) -> tuple[Tensor, Tensor]:
        posterior = InducingPosterior(exact.covariance, natural, exact.max_resource, data, torch.tensor(inducing))
        found = posterior.predict(data.rows, 1)
        return found.mean, found.variance

    for ours, theirs in zip(predicted(0, 1, 2, 0, 1), predicted(0, 1, 2), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def few(num_inducing: int = 6) -> tuple[JointModel, Observations, Tensor, InducingModel, DensePosterior]:
    exact, data = multitask(3, 9), rungs()
    theta = random_theta(exact)[0]
    model = inducing(exact, num_inducing)
    return exact, data, theta, model, model.posterior(data, theta)


def test_the_posterior_at_the_inducing_points_is_the_optimal_distribution() -> None:
    exact, data, theta, model, posterior = few()
    assert isinstance(posterior, InducingPosterior)
    chosen = model.inducing_points(data)
    mean, covariance, noise = prior(exact, data, theta)
    of_u, cross = covariance[chosen][:, chosen], covariance[chosen]
    # eq. 10: covariance Kmm S Kmm, mean Kmm S Kmn (y - mean) / noise, S = (Kmm + Kmn Knm / noise)^-1
    s = torch.linalg.inv(of_u + cross @ cross.mT / noise)
    expected_mean = mean[chosen] + of_u @ s @ cross @ (data.y - mean) / noise
    expected_covariance = of_u @ s @ of_u
    for position, row in enumerate(chosen.tolist()):
        found = posterior.predict(data.rows[row][None], int(data.resource[row]))
        assert float(found.mean) == pytest.approx(float(expected_mean[position]), rel=1e-6, abs=1e-8)
        assert float(found.variance) == pytest.approx(float(expected_covariance[position, position]), rel=1e-6)


def test_the_mean_is_that_of_gpytorch() -> None:
    exact, data, theta, model, posterior = few()
    gp = exact_gp(exact, data, theta)
    at = inputs(exact, data)[model.inducing_points(data)]
    gp.covar_module = InducingPointKernel(gp.covar_module, at, gp.likelihood)
    gp.eval()
    x = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    new = Observations.from_rows(x, torch.zeros(4), torch.full((4,), 3))
    # with gpytorch's correction of the diagonal it would be the mean of another approximation (FITC)
    with torch.no_grad(), sgpr_diagonal_correction(False):
        expected = gp(inputs(exact, new)).mean
    torch.testing.assert_close(posterior.predict(x, 3).mean[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_predictions() -> None:
    *_, posterior = few()
    x = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = posterior.predict(x, 9)
    ones = torch.ones_like(found.mean)
    gradient = found.pullback(ones, 2.0 * torch.ones_like(found.variance))

    def total(t: Tensor) -> Tensor:
        prediction = posterior.predict(t, 9)
        return prediction.mean.sum() + 2.0 * prediction.variance.sum()

    assert_gradient(total, x, gradient)


def test_fantasies_are_remembered_and_narrow_the_posterior() -> None:
    *_, posterior = few()
    x = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before = posterior.predict(x, 3)
    normals = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    after = posterior.fantasize(x, torch.tensor([3, 3]), normals)
    found = after.predict(x, 3)
    assert (found.variance < before.variance).all()
    # the first column continues by the mean itself, which changes nothing
    torch.testing.assert_close(found.mean[:, :1], before.mean, rtol=1e-6, atol=1e-6)
    assert float(found.mean[0, 1]) > float(before.mean[0, 0])
    torch.testing.assert_close(after.inputs_at(3)[-2:], x)
    assert len(after.inputs_at(3)) == len(posterior.inputs_at(3)) + 2


def test_few_data_are_treated_exactly() -> None:
    exact, data = multitask(3, 9), rungs()
    model, theta = inducing(exact, len(data)), random_theta(exact)
    torch.testing.assert_close(model.objective(data)(theta)[0], exact.objective(data)(theta)[0])
    assert type(model.posterior(data, theta[0])) is DensePosterior


def test_inducing_points_spread_out() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.01, 0.0], [1.0, 1.0], [0.0, 0.01], [0.99, 1.0]], dtype=torch.float64)
    data = Observations.from_rows(corners, [0.0, 1.0, 2.0, 3.0, 4.0])
    chosen = inducing(single_fidelity(2), 2).inducing_points(data).tolist()
    assert sorted(i in (2, 4) for i in chosen) == [False, True]


def test_a_fit_comes_close_to_the_exact_one_and_is_repeatable() -> None:
    exact, data, options = single_fidelity(2), rungs(40, dimension=2).at(1), FitOptions(opt_nstarts=1)
    model = inducing(exact, 25)
    first, second = (fit(inducing(exact, 25), data, options, np.random.default_rng(0)) for _ in range(2))
    assert first.theta.tolist() == second.theta.tolist()
    best = fit(exact, data, options, np.random.default_rng(0))
    assert best.objective - 1e-3 <= first.objective <= best.objective + 1.0
    x = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ours, theirs = (m.posterior(data, f.theta).predict(x, 1) for m, f in ((model, first), (exact, best)))
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0.0, atol=0.05)


def test_inducing_points_that_are_nearly_alike_are_no_news_to_the_user() -> None:
    exact = single_fidelity(3)
    data, theta = data_for(exact), exact.space.initial.clone()
    theta[exact.space.slices["lengthscale"]] = math.log(1e4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, _ = inducing(exact, 5).objective(data)(theta[None])
    assert torch.isfinite(value).all()


def test_a_matrix_beyond_repair_is_named() -> None:
    exact, data = multitask(3, 9), rungs()
    theta = exact.space.initial[None].clone()
    theta[:, exact.space.slices["outputscale"]] = torch.nan
    with pytest.raises(NumericalError, match=r"Set searcher\.num_inducing to a smaller number\."):
        inducing(exact, 5).objective(data)(theta)


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    exact, data, theta, model, posterior = few()
    on_gpu = inducing(exact, 6)
    value, gradient = model.objective(data)(theta[None])
    value_gpu, gradient_gpu = on_gpu.objective(data.to("cuda"))(theta[None].cuda())
    torch.testing.assert_close(value_gpu.cpu(), value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradient_gpu.cpu(), gradient, rtol=1e-6, atol=1e-6)
    x = torch.rand(3, 3, dtype=torch.float64)
    ours, theirs = posterior.predict(x, 9), on_gpu.posterior(data.to("cuda"), theta).predict(x.cuda(), 9)
    torch.testing.assert_close(theirs.mean.cpu(), ours.mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(theirs.variance.cpu(), ours.variance, rtol=1e-7, atol=1e-7)
