"""Expected improvement against recorded numbers, alone and with fantasised pending evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_hpo.surrogates.acquisition import incumbent, log_expected_improvement, lower_confidence_bound
from lightning_hpo.surrogates.data import Observations
from tests.golden.gp_records import model_of, tensor, theta_of
from tests.golden.test_gp import assert_close

Record = dict[str, Any]


@pytest.mark.golden("acquisition", kind="head")
def test_values_and_derivatives(record: Record) -> None:
    mean, std = tensor(record["mean"]), tensor(record["std"])
    score = log_expected_improvement(tensor(record["current_best"]), record["jitter"])(mean, std**2)
    minus_ei = -(-score.value).exp()
    assert_close(minus_ei, record["minus_ei"], 1e-10)
    # d(-EI) = EI d(-log EI)
    gradients = record["gradient_minus_ei"]
    assert_close(-minus_ei[:, None] * score.mean, [g["d_mean"] for g in gradients], 1e-10)
    d_std = torch.stack([tensor(g["d_std"]).reshape(-1).sum() for g in gradients])
    assert_close(-minus_ei * score.variance * 2.0 * std, d_std.tolist(), 1e-10)
    bound = lower_confidence_bound(record["kappa"])(mean, std**2)
    assert_close(bound.value, record["lcb"], 1e-10)


@pytest.mark.golden("acquisition", kind="fantasies")
def test_pending_evaluations_are_integrated_out(record: Record) -> None:
    model = model_of(record)
    shift, scale = record["target_mean"], record["target_std"]
    data = Observations.from_rows(record["X"], (tensor(record["y"]) - shift) / scale, record.get("r"))
    pending = tensor(record["X_pending"])
    resource = torch.tensor(record.get("r_pending") or [1] * len(pending))
    at = record.get("r_acq", 1)
    posterior = model.posterior(data, theta_of(record, model)).fantasize(pending, resource, tensor(record["normals"]))
    assert_close(posterior.targets[len(data) :], record["fantasies"], 1e-5)
    prediction = posterior.predict(tensor(record["X_test"]), at)
    assert_close(prediction.mean * scale + shift, record["mean"], 1e-5)
    assert_close(prediction.variance.sqrt() * scale, record["std"], 1e-5)
    best = incumbent(posterior, at)
    assert_close(best * scale + shift, record["current_best"], 1e-5)
    score = log_expected_improvement(best, record["jitter"] / scale)(prediction.mean, prediction.variance)
    assert_close(-(-score.value).exp() * scale, record["minus_ei"], 1e-5)
