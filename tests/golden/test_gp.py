"""Gaussian processes: kernel, mean, likelihood, prior, posterior of every model against recorded numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lightning_hpo.surrogates.covariances import Points
from lightning_hpo.surrogates.data import fidelity
from lightning_hpo.surrogates.models import JointModel
from lightning_hpo.surrogates.posterior import Posterior
from tests.golden.gp_records import data_of, model_of, tensor, theta_of

Record = dict[str, Any]


def assert_close(ours: torch.Tensor, recorded: Any, atol: float, relative: bool = False) -> None:
    recorded = tensor(recorded)
    tolerance = atol * recorded.abs().clamp_min(1.0) if relative else atol
    worst = ((ours - recorded).abs() / tolerance).max()
    assert worst <= 1.0, f"largest difference is {float(worst)} times the tolerance"


def check_likelihood(record: Record) -> None:
    model = model_of(record)
    theta = theta_of(record, model)[None]
    natural = model.space.natural(theta)
    data = data_of(record)
    nll, _ = model.negative_log_likelihood(data)(natural)
    penalty, _ = model.space.penalty(natural)
    assert_close(nll, [record["nll"]], 1e-6, relative=True)
    assert_close(penalty, [record["neg_log_prior"]], 1e-8)
    assert_close(model.objective(data)(theta)[0], [record["objective"]], 1e-6, relative=True)


def predict_rows(posterior: Posterior, x: torch.Tensor, resource: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    predictions = [posterior.predict(row[None], r) for row, r in zip(x, resource, strict=True)]
    return torch.cat([q.mean for q in predictions]), torch.cat([q.variance for q in predictions])


def check_posterior(record: Record, posterior: Posterior) -> None:
    x = tensor(record["X_test"])
    resource = record.get("r_test") or [1] * len(x)
    mean, variance = predict_rows(posterior, x, resource)
    assert_close(mean[:, 0], record["posterior_mean"], 1e-5)
    assert_close(variance, record["posterior_variance"], 1e-6)


@pytest.mark.golden("gp", "gp_independent", "gp_expdecay", "gp_issm")
def test_likelihood_prior_and_posterior(record: Record) -> None:
    check_likelihood(record)
    model = model_of(record)
    check_posterior(record, model.posterior(data_of(record), theta_of(record, model)))


@pytest.mark.golden("gp")
def test_kernel_and_mean(record: Record) -> None:
    model = model_of(record)
    assert isinstance(model, JointModel)
    x = tensor(record["X"])
    rho = torch.zeros(len(x), dtype=torch.float64)
    if "r" in record:
        rho = fidelity(torch.tensor(record["r"]), record["r_max"])
        assert_close(rho, record["r_encoded"], 1e-12)
    natural = model.space.natural(theta_of(record, model)[None])
    points = Points.of(x, rho)
    mean, covariance, _ = model.covariance.moments(natural, points)
    assert_close(covariance[0, : len(record["kernel_rows"])], record["kernel_rows"], 1e-7)
    assert_close(covariance[0].diagonal(), record["kernel_diagonal"], 1e-7)
    assert_close(torch.linalg.matrix_norm(covariance[0]), record["kernel_frobenius"], 1e-7, relative=True)
    assert_close(mean[0], record["mean_vector"], 1e-7)


@pytest.mark.golden("gp")
def test_columns_of_targets_share_the_posterior_variance(record: Record) -> None:
    model = model_of(record)
    data, theta = data_of(record), theta_of(record, model)
    x = tensor(record["X_test"])
    resource = record.get("r_test") or [1] * len(x)
    for column, last in enumerate(record["fantasy_last_target"]):
        y = data.y.clone()
        y[-1] = last
        mean, variance = predict_rows(model.posterior(dataclasses.replace(data, y=y), theta), x, resource)
        assert_close(mean[:, 0], [row[column] for row in record["fantasy_posterior_mean"]], 1e-5)
        assert_close(variance, record["posterior_variance"], 1e-6)


@pytest.mark.golden("gp_expdecay", "gp_issm")
def test_additive_models_at_the_largest_resource(record: Record) -> None:
    model = model_of(record)
    posterior = model.posterior(data_of(record), theta_of(record, model))
    prediction = posterior.predict(tensor(record["X_test"]), record["r_max"])
    assert_close(prediction.mean[:, 0], record["posterior_mean_at_r_max"], 1e-5)
    assert_close(prediction.variance, record["posterior_variance_at_r_max"], 1e-6)


@pytest.mark.golden("gp_issm")
def test_innovations_with_the_variance_of_the_noise(record: Record) -> None:
    model = model_of(record)
    model.unit_innovations = False
    theta, data, expected = theta_of(record, model), data_of(record), record["consistent"]
    nll, _ = model.negative_log_likelihood(data)(model.space.natural(theta[None]))
    assert_close(nll, [expected["nll"]], 1e-6, relative=True)
    posterior = model.posterior(data, theta)
    check_posterior({**record, **expected}, posterior)
    if "posterior_mean_at_r_max" in expected:
        prediction = posterior.predict(tensor(record["X_test"]), record["r_max"])
        assert_close(prediction.mean[:, 0], expected["posterior_mean_at_r_max"], 1e-5)
        assert_close(prediction.variance, expected["posterior_variance_at_r_max"], 1e-6)
