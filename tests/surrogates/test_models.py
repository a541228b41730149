"""Every model: gradients, invariances, degenerate data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.errors import OptionError, ShapeError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fit import FitOptions, fit
from lightning_hpo.surrogates.models import IndependentModel, multitask, single_fidelity
from tests.surrogates.numeric import assert_gradient
from tests.surrogates.problems import data_for, models, random_theta, rungs

MODELS = models()


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_objective(name: str) -> None:
    model, data = MODELS[name], data_for(name)
    theta = random_theta(model)
    objective = model.objective(data)
    assert_gradient(lambda t: objective(t)[0][0], theta, objective(theta)[1], rtol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_its_members_give(name: str) -> None:
    model, data = MODELS[name], data_for(name)
    theta = random_theta(model, size=3)
    values, gradients = model.objective(data)(theta)
    for i in range(3):
        value, gradient = model.objective(data)(theta[i : i + 1])
        torch.testing.assert_close(values[i], value[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients[i], gradient[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_observations_does_not_matter(name: str, seed: int) -> None:
    model, data = MODELS[name], data_for(name)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))
    shuffled = Observations.from_rows(data.rows[order], data.y[order], data.resource[order])
    theta = random_theta(model)
    torch.testing.assert_close(
        model.objective(data)(theta)[0], model.objective(shuffled)(theta)[0], rtol=1e-9, atol=1e-9
    )
    x = torch.full((1, 3), 0.3, dtype=torch.float64)
    predictions = (model.posterior(d, theta[0]).predict(x, 9)[:2] for d in (data, shuffled))
    for ours, theirs in zip(*predictions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


DEGENERATE = {
    "one observation": ([[0.3, 0.3, 0.3]], [0.0], [1]),
    "two observations": ([[0.3, 0.3, 0.3], [0.6, 0.1, 0.9]], [1.0, -1.0], [1, 1]),
    "all targets equal": ([[0.1 * i, 0.5, 0.2] for i in range(5)], [0.0] * 5, [1] * 5),
    "the same observation four times": ([[0.5, 0.5, 0.5]] * 4, [0.3, 0.3, 0.3, 0.3], [1] * 4),
    "the same input, different targets": ([[0.5, 0.5, 0.5]] * 4, [1.0, -1.0, 0.5, -0.5], [1] * 4),
    "two levels": ([[0.5, 0.5, 0.5]] * 2 + [[0.1, 0.2, 0.3]], [1.0, -1.0, 0.5], [1, 2, 1]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_data_can_be_fitted(name: str, case: str) -> None:
    x, y, resource = DEGENERATE[case]
    if name.startswith("independent"):
        resource = [3 if r == 2 else r for r in resource]
    data, model = Observations.from_rows(x, y, resource), MODELS[name]
    found = fit(model, data, FitOptions(opt_maxiter=15), np.random.default_rng(0))
    assert not found.failed
    assert np.isfinite(found.objective)
    mean, variance, _ = model.posterior(data, found.theta).predict(torch.rand(3, 3).double(), 1)
    assert torch.isfinite(mean).all()
    assert (variance > 0.0).all()


@pytest.mark.parametrize("name", MODELS)
def test_without_data_the_posterior_is_the_prior(name: str) -> None:
    model = MODELS[name]
    data = Observations.from_rows(torch.zeros(0, 3), torch.zeros(0))
    found = fit(model, data, FitOptions(), np.random.default_rng(0))
    torch.testing.assert_close(found.theta, model.space.initial)
    x = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.9, 0.9]], dtype=torch.float64)
    mean, variance, _ = model.posterior(data, found.theta).predict(x, 9)
    assert torch.isfinite(mean).all()
    torch.testing.assert_close(variance[0], variance[1])


@pytest.mark.parametrize("dimension", [1, 40])
def test_few_and_many_dimensions(dimension: int) -> None:
    data = rungs(12, dimension)
    model = multitask(dimension, 9)
    found = fit(model, data, FitOptions(opt_maxiter=20), np.random.default_rng(0))
    before = float(model.objective(data)(model.space.initial[None])[0])
    assert found.objective < before


def test_a_level_without_data_is_predicted_by_its_prior() -> None:
    data = rungs()
    known = data.resource < 9
    data = Observations.from_rows(data.rows[known], data.y[known], data.resource[known])
    model = IndependentModel(3, (1, 3, 9))
    values = model.space.values(model.space.initial) | {"mean": [0.0, 0.0, 0.7], "outputscale": [1.0, 1.0, 2.5]}
    posterior = model.posterior(data, model.space.theta(values))
    mean, variance, _ = posterior.predict(data.x, 9)
    assert mean.unique().tolist() == pytest.approx([0.7])
    assert variance.unique().tolist() == pytest.approx([2.5])


def test_observations_between_levels_are_refused_by_independent_processes() -> None:
    data = Observations.from_rows([[0.5]], [1.0], [2])
    with pytest.raises(ShapeError, match=r"at \[2\] are at none of the levels \[1, 3\]"):
        IndependentModel(1, (1, 3)).objective(data)


def test_unknown_resource_kernel() -> None:
    with pytest.raises(OptionError, match="Did you mean 'exp-decay-sum'"):
        multitask(2, 9, "exp-decay-sums")


def test_a_coordinate_that_does_not_matter_gets_a_long_length_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((40, 2))
    y = np.sin(6.0 * x[:, 0])
    model = single_fidelity(2)
    found = fit(model, Observations.from_rows(torch.from_numpy(x), torch.from_numpy(y)), FitOptions(), rng)
    relevant, irrelevant = found.state["parameters"]["lengthscale"]
    assert irrelevant > 10.0 * relevant
