"""Hyper-Tune's ranking losses, weights, bracket distribution and ensemble against recorded numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_hpo.surrogates import ensemble
from lightning_hpo.surrogates.models import IndependentModel, JointModel
from lightning_hpo.surrogates.posterior import EnsemblePosterior
from tests.golden.gp_records import data_of, model_of, tensor, theta_of
from tests.golden.test_gp import assert_close

Record = dict[str, Any]


@pytest.mark.golden("hypertune", kind="ranking_loss")
def test_ranking_losses(record: Record) -> None:
    losses = ensemble.ranking_losses(tensor(record["samples"]), tensor(record["targets"]))
    assert_close(losses, record["losses"], 1e-9)


@pytest.mark.golden("hypertune", kind="cv_loss")
def test_cross_validation(record: Record) -> None:
    targets = tensor(record["targets"])
    blocks = ensemble.folds(len(targets))
    assert [list(range(len(targets)))[b] for b in blocks] == [fold["test"] for fold in record["folds"]]
    losses = [
        ensemble.ranking_losses(tensor(fold["samples"]), targets[block])
        for fold, block in zip(record["folds"], blocks, strict=True)
    ]
    assert_close(torch.stack(losses).mean(0), record["losses"], 1e-9)


@pytest.mark.golden("hypertune", kind="theta")
def test_weights_and_brackets(record: Record) -> None:
    weights = ensemble.level_weights(tensor(record["losses"])).tolist()
    by_level = dict(zip(record["rung_levels"], weights, strict=False))
    kept = ensemble.ensemble_weights(by_level, renormalize=False)
    assert {str(r) for r in kept} == set(record["ensemble"])
    assert kept == pytest.approx({int(r): w for r, w in record["ensemble"].items()}, abs=1e-9)
    merged = ensemble.bracket_distribution(by_level, record["default_distribution"])
    assert merged == pytest.approx(record["merged_distribution"], abs=1e-9)
    head = len(record["bracket_distribution"])
    mass = sum(record["default_distribution"][:head])
    assert [p / mass for p in merged[:head]] == pytest.approx(record["bracket_distribution"], abs=1e-9)


@pytest.mark.golden("hypertune", kind="end_to_end")
def test_losses_and_ensemble_of_a_model(record: Record) -> None:
    model = model_of(record)
    assert isinstance(model, (JointModel, IndependentModel))
    data, theta = data_of(record), theta_of(record, model)
    posterior = model.posterior(data, theta)
    levels = record["rung_levels"]
    counts = [int((data.resource == r).sum()) for r in levels]
    supported = ensemble.highest_supported(counts)
    assert supported == record["num_supported"]
    recorded = [tensor(z) for z in record["normals"]]
    remaining = iter(recorded)

    def normals(n: int) -> torch.Tensor:
        z = next(remaining)
        assert len(z) == n
        return z

    losses = ensemble.level_losses(model, data, theta, posterior, levels[:supported], normals)
    assert_close(losses, record["losses"], 1e-9)
    assert next(remaining, None) is None
    mixed = EnsemblePosterior(posterior, {int(r): w for r, w in record["ensemble"].items()})
    prediction = mixed.predict(tensor(record["X_test"]), levels[0])
    assert_close(prediction.mean[:, 0], record["ensemble_mean"], 1e-6)
    assert_close(prediction.variance, record["ensemble_variance"], 1e-6)
