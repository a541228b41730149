"""Additive models: one pseudo-observation per curve is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from lightning_hpo.surrogates.additive import AdditiveModel, ExponentialDecayModel, InnovationModel
from lightning_hpo.surrogates.curves import Curves
from lightning_hpo.surrogates.data import Observations, fidelity
from lightning_hpo.surrogates.fused import matern52
from lightning_hpo.surrogates.posterior import SAMPLING_JITTER
from tests.surrogates.problems import curves, random_theta

R_MAX = 9


def over_configs(values: dict[str, list[float]], x: Tensor) -> Tensor:
    return values["outputscale"][0] * matern52(x / torch.tensor(values["lengthscale"], dtype=torch.float64))[0]


def dense_decay(
    model: ExponentialDecayModel, values: dict[str, list[float]], x: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the latent values, written down entry by entry."""
    (alpha,), (rate,), (gamma,) = values["alpha"], values["mean_lambda"], values["gamma"]
    u = fidelity(r, R_MAX) if model.normalize_resource else r.double()

    def kappa(t: Tensor) -> Tensor:
        return (1.0 + t * rate / alpha) ** -alpha

    same = (x[:, None] == x).all(-1)
    decay = gamma**2 * (kappa(u[:, None] + u) - kappa(u)[:, None] * kappa(u))
    return values["mean"][0] + gamma * kappa(u), over_configs(values, x) + same * decay


def dense_innovation(values: dict[str, list[float]], x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the *observations*: y_r = h - sum_{s>r} a_s (1 + gamma eps_s) + eps_r."""
    alpha, beta = -values["negative_alpha"][0], torch.tensor(values["beta"][0], dtype=torch.float64)
    gamma = values.get("gamma", [1.0])[0]
    s = torch.arange(1, R_MAX + 1, dtype=torch.float64)
    a = alpha * torch.exp(beta) * s ** (alpha - 1.0)
    after = (s > r[:, None]).double()
    loading = (s == r[:, None]).double() - gamma * a * after
    same = (x[:, None] == x).all(-1)
    noise = values["noise"][0] * loading @ loading.mT
    return values["mean"][0] - after @ a, over_configs(values, x) + same * noise


def dense(model: AdditiveModel, values: dict[str, list[float]], x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the observations."""
    if isinstance(model, ExponentialDecayModel):
        mean, covariance = dense_decay(model, values, x, r)
        return mean, covariance + values["noise"][0] * torch.eye(len(r), dtype=torch.float64)
    return dense_innovation(values, x, r)


MODELS = {
    "expdecay": ExponentialDecayModel(3, R_MAX),
    "expdecay, normalised": ExponentialDecayModel(3, R_MAX, normalize_resource=True),
    "issm": InnovationModel(3, R_MAX),
    "issm, gamma one": InnovationModel(3, R_MAX, gamma_one=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [(9, 2, 4, 1), (1,), (1, 1, 1), (9, 9)])
def test_likelihood_is_that_of_the_full_gaussian(name: str, lengths: tuple[int, ...]) -> None:
    model, data = MODELS[name], curves(lengths)
    theta = random_theta(model)
    mean, covariance = dense(model, model.space.values(theta[0]), data.rows, data.resource)
    expected = -MultivariateNormal(mean, covariance).log_prob(data.y)
    value, _ = model.negative_log_likelihood(data)(model.space.natural(theta))
    torch.testing.assert_close(value[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_prediction_is_that_of_the_full_gaussian(name: str) -> None:
    model, data = MODELS[name], curves()
    theta = random_theta(model)[0]
    values = model.space.values(theta)
    new = torch.tensor([[0.2, 0.4, 0.6]], dtype=torch.float64)
    x, r = torch.cat([data.rows, new]), torch.cat([data.resource, torch.tensor([4])])
    mean, covariance = dense(model, values, x, r)
    n = len(data)
    gain = torch.linalg.solve(covariance[:n, :n], covariance[:n, n:]).mT
    prediction = model.posterior(data, theta).predict(new, 4)
    torch.testing.assert_close(prediction.mean[:, 0], mean[n:] + gain @ (data.y - mean[:n]), rtol=1e-8, atol=1e-9)
    variance = covariance[n:, n:] - gain @ covariance[:n, n:] - values["noise"][0]
    torch.testing.assert_close(prediction.variance, variance[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_fantasies_are_joint_samples_along_and_across_curves(name: str) -> None:
    """Zero normals give the conditional mean, unit normals the columns of a root of the conditional covariance."""
    model, data = MODELS[name], curves((3, 2, 4))
    theta = random_theta(model)[0]
    values = model.space.values(theta)
    new = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    rows = [(data.x[0], 4), (data.x[0], 5), (data.x[1], 3), (new, 1), (new, 2)]
    x, r = torch.stack([row for row, _ in rows]), torch.tensor([k for _, k in rows])
    p, n = len(rows), len(data)
    normals = torch.cat([torch.zeros(p, 1).double(), torch.eye(p, dtype=torch.float64)], 1)
    posterior = model.posterior(data, theta).fantasize(x, r, normals)
    drawn = torch.stack([_value(posterior.curves, row, k) for row, k in rows])

    all_x, all_r = torch.cat([data.rows, x]), torch.cat([data.resource, r])
    mean, covariance = dense(model, values, all_x, all_r)
    if isinstance(model, ExponentialDecayModel):  # latent values are drawn
        covariance[n:, n:] -= values["noise"][0] * torch.eye(p, dtype=torch.float64)
    gain = torch.linalg.solve(covariance[:n, :n], covariance[:n, n:]).mT
    torch.testing.assert_close(drawn[:, 0], mean[n:] + gain @ (data.y - mean[:n]), rtol=1e-7, atol=1e-8)
    root = drawn[:, 1:] - drawn[:, :1]
    expected = covariance[n:, n:] - gain @ covariance[:n, n:] + SAMPLING_JITTER * torch.eye(p, dtype=torch.float64)
    torch.testing.assert_close(root @ root.mT, expected, rtol=1e-6, atol=1e-8)


def _value(found: Curves, config: Tensor, resource: int) -> Tensor:
    index = int((found.x == config).all(-1).nonzero()[0])
    return found.y[index, resource - 1]


def test_curves_end_at_a_gap_and_a_repeated_configuration_has_two() -> None:
    rows = [[0.1], [0.1], [0.1], [0.7], [0.7], [0.4]]
    data = Observations.from_rows(rows, [1.0, 2.0, 4.0, 5.0, 6.0, 7.0], [1, 2, 4, 1, 1, 2])
    found = Curves.of(data)
    assert found.x[:, 0].tolist() == [0.1, 0.7, 0.7]
    assert found.length.tolist() == [2, 1, 1]
    assert found.y[:, :, 0].tolist() == [[1.0, 2.0], [5.0, 0.0], [6.0, 0.0]]


def test_a_pending_value_that_does_not_follow_its_curve_is_left_out() -> None:
    model, data = MODELS["expdecay"], curves((3,))
    posterior = model.posterior(data, random_theta(model)[0])
    x = data.x[[0, 0]]
    fantasised = posterior.fantasize(x, torch.tensor([4, 7]), torch.zeros(2, 3).double())
    assert fantasised.curves.length.tolist() == [4]
    assert posterior.fantasize(x, torch.tensor([6, 7]), torch.zeros(2, 3).double()) is posterior


def test_unit_innovations_widen_the_prediction_only_by_the_innovations() -> None:
    """Variance gamma^2 sum a^2 instead of noise gamma^2 sum a^2 for what comes after the last observation."""
    data = curves((9,))
    ours, other = InnovationModel(3, R_MAX), InnovationModel(3, R_MAX, unit_innovations=True)
    theta = ours.space.initial
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    at_max = [m.posterior(data, theta).predict(x, R_MAX).variance for m in (ours, other)]
    torch.testing.assert_close(*at_max)
    # initial values: alpha = -1/2, beta = 0, gamma = 1, noise = 1e-3; a_r = -r^{-3/2} / 2
    squares = sum(0.25 * r**-3.0 for r in range(4, 10))
    at_three = [float(m.posterior(data, theta).predict(x, 3).variance) for m in (ours, other)]
    assert at_three[1] - at_three[0] == pytest.approx((1.0 - 1e-3) * squares, rel=1e-9)
