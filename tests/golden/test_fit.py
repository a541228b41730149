"""Fitting against recorded objective values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_hpo.surrogates.fit import FitOptions, fit
from tests.golden.gp_records import data_of, model_of, theta_of
from tests.golden.test_gp import check_posterior

Record = dict[str, Any]


@pytest.mark.golden("fit")
def test_fit_reaches_the_recorded_objective(record: Record) -> None:
    record = {**record, "hyper": record["fitted"]}
    model, data = model_of(record), data_of(record)
    initial = float(model.objective(data)(model.space.initial[None])[0])
    assert initial == pytest.approx(record["objective_initial"], abs=1e-6 * max(1.0, abs(initial)))
    options = FitOptions(opt_nstarts=4, opt_maxiter=200)
    found = fit(model, data, options, np.random.default_rng(0))
    best = record["objective_fitted"]
    assert not found.failed
    assert found.objective <= best + 0.01 * abs(best) + 0.1
    assert float(model.objective(data)(found.theta[None])[0]) == pytest.approx(found.objective, abs=1e-8)


@pytest.mark.golden("fit")
def test_posterior_at_the_recorded_parameters(record: Record) -> None:
    if record["fitted"]["noise_variance"] <= 1e-6:
        pytest.skip("the matrix is close to singular: jitter decides")
    record = {**record, "hyper": record["fitted"]}
    model = model_of(record)
    check_posterior(record, model.posterior(data_of(record), theta_of(record, model)))
