"""Posteriors: gradients, fantasies, ensembles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import IndependentModel, multitask, single_fidelity
from lightning_hpo.surrogates.posterior import SAMPLING_JITTER, EnsemblePosterior, Posterior
from tests.surrogates.numeric import assert_gradient
from tests.surrogates.problems import LEVELS, data_for, models, random_theta, rungs

MODELS = models()
DENSE = [name for name in MODELS if not name.startswith(("expdecay", "issm", "independent"))]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def posterior_of(name: str) -> Posterior:
    model = MODELS[name]
    return model.posterior(data_for(name), random_theta(model)[0])


@pytest.mark.parametrize("name", MODELS)
def test_pullback_is_the_gradient_of_mean_and_variance(name: str) -> None:
    posterior = posterior_of(name)
    pending = torch.tensor([1, 1])
    posterior = posterior.fantasize(uniform(2, 3, seed=5), pending, normals(2, 3))
    x = 0.1 + 0.8 * uniform(4, 3)
    g_mean, g_variance = normals(4, 3, seed=1), normals(4, seed=2)

    def total(points: Tensor) -> Tensor:
        mean, variance, _ = posterior.predict(points, 9)
        return (g_mean * mean).sum() + (g_variance * variance).sum()

    assert_gradient(total, x, posterior.predict(x, 9).pullback(g_mean, g_variance), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_marginals_agree_with_the_joint_distribution(name: str) -> None:
    posterior, x = posterior_of(name), uniform(5, 3, seed=3)
    mean, covariance = posterior.joint(x, 3)
    marginal = posterior.predict(x, 3)
    torch.testing.assert_close(marginal.mean, mean)
    torch.testing.assert_close(marginal.variance, covariance.diagonal(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DENSE)
def test_a_block_update_equals_the_posterior_of_all_data(name: str) -> None:
    model, data, theta = MODELS[name], data_for(name), random_theta(MODELS[name])[0]
    # the second pending input repeats an observed configuration, as a promoted trial does
    x = torch.cat([uniform(2, 3, seed=7), data.x[:1]])
    resource = torch.tensor([1, 3, 9])
    fantasised = model.posterior(data, theta).fantasize(x, resource, normals(3, 4))
    query = uniform(5, 3, seed=8)
    for column in range(4):
        values = fantasised.targets[len(data) :, column]
        everything = Observations.from_rows(
            torch.cat([data.rows, x]), torch.cat([data.y, values]), torch.cat([data.resource, resource])
        )
        scratch = model.posterior(everything, theta).predict(query, 9)
        prediction = fantasised.predict(query, 9)
        torch.testing.assert_close(prediction.mean[:, column], scratch.mean[:, 0], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(prediction.variance, scratch.variance, rtol=1e-7, atol=1e-8)


def test_one_pending_input_is_sampled_from_its_marginal() -> None:
    posterior, x = posterior_of("exp-decay-sum"), uniform(1, 3, seed=4)
    z = normals(1, 5)
    marginal = posterior.predict(x, 3)
    values = posterior.fantasize(x, torch.tensor([3]), z).targets[-1]
    torch.testing.assert_close(values, (marginal.mean + marginal.variance.sqrt() * z)[0])


def test_several_pending_inputs_are_sampled_jointly() -> None:
    posterior, x = posterior_of("matern52"), uniform(3, 3, seed=4)
    mean, covariance = posterior.joint(x, 3)
    values = posterior.fantasize(x, torch.tensor([3, 3, 3]), torch.eye(3, dtype=torch.float64)).targets[-3:]
    root = values - mean
    expected = covariance + SAMPLING_JITTER * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(root @ root.mT, expected)


def test_pending_inputs_may_come_in_two_steps() -> None:
    posterior, x = posterior_of("single-fidelity"), uniform(2, 3, seed=4)
    one = torch.ones(1, dtype=torch.int64)
    twice = posterior.fantasize(x[:1], one, normals(1, 4)).fantasize(x[1:], one, normals(1, 4, seed=1))
    assert twice.columns == 4
    with pytest.raises(ShapeError, match="has 4 columns of fantasies and 7 more"):
        twice.fantasize(x[:1], one, normals(1, 7))


def test_nothing_pending_changes_nothing() -> None:
    posterior = posterior_of("exp-decay-sum")
    none = torch.zeros(0, dtype=torch.int64)
    assert posterior.fantasize(torch.zeros(0, 3).double(), none, torch.zeros(0, 20).double()).columns == 1


def test_eight_pending_and_nothing_observed() -> None:
    data = Observations.from_rows(torch.zeros(0, 3), torch.zeros(0))
    for name in MODELS:
        model = MODELS[name]
        posterior = model.posterior(data, model.space.initial)
        posterior = posterior.fantasize(uniform(8, 3), torch.ones(8, dtype=torch.int64), normals(8, 20))
        mean, variance, _ = posterior.predict(uniform(4, 3, seed=1), 1)
        assert torch.isfinite(mean).all(), name
        assert (variance > 0.0).all(), name


def test_fantasies_at_a_level_without_data_are_its_prior_mean() -> None:
    data = rungs().at(1)
    model = IndependentModel(3, LEVELS)
    values = model.space.values(model.space.initial) | {"mean": [0.0, 0.4, 0.0]}
    posterior = model.posterior(data, model.space.theta(values))
    pending = posterior.fantasize(uniform(2, 3), torch.tensor([3, 1]), normals(2, 5))
    assert pending.levels[3].targets.unique().tolist() == pytest.approx([0.4])
    assert len(pending.levels[1].targets.unique()) == len(data) + 5
    assert pending.predict(uniform(1, 3), 3).mean.shape == (1, 5)


def test_levels_that_are_unknown_are_named() -> None:
    posterior = posterior_of("independent")
    with pytest.raises(ShapeError, match=r"Resource 2 is none of the model's levels \[1, 3, 9\]"):
        posterior.predict(uniform(1, 3), 2)


def test_ensemble_is_a_weighted_sum() -> None:
    posterior, x = posterior_of("independent"), uniform(4, 3)
    mixed = EnsemblePosterior(posterior, {1: 0.25, 9: 0.75})
    low, high, both = posterior.predict(x, 1), posterior.predict(x, 9), mixed.predict(x, 3)
    torch.testing.assert_close(both.mean, 0.25 * low.mean + 0.75 * high.mean)
    torch.testing.assert_close(both.variance, 0.0625 * low.variance + 0.5625 * high.variance)
    g_mean, g_variance = normals(4, 1), normals(4, seed=1)

    def total(points: Tensor) -> Tensor:
        mean, variance, _ = mixed.predict(points, 3)
        return (g_mean * mean).sum() + (g_variance * variance).sum()

    assert_gradient(total, x, both.pullback(g_mean, g_variance), rtol=1e-5)
    with pytest.raises(ShapeError, match="no member"):
        EnsemblePosterior(posterior, {})


def test_at_noise_free_data_the_posterior_interpolates() -> None:
    model = single_fidelity(3)
    data = rungs().at(1)
    values = model.space.values(model.space.initial) | {"noise": [1e-9]}
    mean, variance, _ = model.posterior(data, model.space.theta(values)).predict(data.rows, 1)
    torch.testing.assert_close(mean[:, 0], data.y, rtol=0.0, atol=1e-5)
    assert float(variance.max()) < 1e-7


def test_inputs_at_a_resource_include_pending_ones() -> None:
    posterior = posterior_of("exp-decay-sum")
    x = uniform(1, 3)
    assert len(posterior.fantasize(x, torch.tensor([9]), normals(1, 2)).inputs_at(9)) == len(posterior.inputs_at(9)) + 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_the_gpu_gives_what_the_cpu_gives(name: str) -> None:
    model, data, theta = MODELS[name], data_for(name), random_theta(MODELS[name])
    value, gradient = model.objective(data)(theta)
    value_gpu, gradient_gpu = model.objective(data.to("cuda"))(theta.cuda())
    torch.testing.assert_close(value_gpu.cpu(), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient_gpu.cpu(), gradient, rtol=1e-7, atol=1e-7)
    x, pending, z = uniform(4, 3), torch.tensor([1, 1]), normals(2, 3)
    predictions = []
    for device in ("cpu", "cuda"):
        posterior = model.posterior(data.to(device), theta[0])
        posterior = posterior.fantasize(uniform(2, 3, seed=5).to(device), pending.to(device), z.to(device))
        mean, variance, pullback = posterior.predict(x.to(device), 9)
        predictions.append((mean, variance, pullback(mean, variance)))
    for cpu, gpu in zip(*predictions, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-7, atol=1e-8)


def test_multitask_borrows_strength_from_the_lower_level() -> None:
    """Two configurations observed at level 1 only: their order is expected at level 9 too."""
    data = Observations.from_rows([[0.1], [0.9], [0.5], [0.5]], [-1.0, 1.0, 0.0, -0.5], [1, 1, 1, 9])
    model = multitask(1, 9)
    values = model.space.values(model.space.initial) | {"lengthscale": [0.2], "noise": [1e-3]}
    mean, _, _ = model.posterior(data, model.space.theta(values)).predict(torch.tensor([[0.1], [0.9]]).double(), 9)
    assert mean[0] < mean[1] - 1.0
