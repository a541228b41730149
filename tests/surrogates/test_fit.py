"""The fit: where it starts, what it keeps, what it repeats."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fit import FitOptions, fit
from lightning_hpo.surrogates.models import JointModel, multitask, single_fidelity
from tests.surrogates.problems import rungs

MODEL = multitask(3, 9)


def grown(n: int) -> Observations:
    data = rungs(40)
    first = torch.from_numpy(np.random.default_rng(0).permutation(len(data))[:n])
    return Observations.from_rows(data.rows[first], data.y[first], data.resource[first])


def test_the_same_seed_gives_the_same_parameters() -> None:
    first, second = (fit(MODEL, rungs(), FitOptions(), np.random.default_rng(3)) for _ in range(2))
    assert first.theta.tolist() == second.theta.tolist()
    assert first.state == second.state


def test_between_full_searches_a_few_evaluations_suffice() -> None:
    options = FitOptions(opt_initial_growth=0.1)
    cold = fit(MODEL, grown(40), options, np.random.default_rng(0))
    state = json.loads(json.dumps(cold.state))
    warm = fit(MODEL, grown(42), options, np.random.default_rng(1), state)
    assert warm.evaluations < cold.evaluations / 2
    assert warm.state["searched"] == 40
    again = fit(MODEL, grown(44), options, np.random.default_rng(1), state)
    assert again.state["searched"] == 44


def test_a_bad_optimum_is_left_between_full_searches() -> None:
    """The initial values are tried again when the data have grown by three in a hundred, not only by a tenth."""
    stuck = {"parameters": MODEL.space.values(MODEL.space.upper.clamp(max=5.0)), "searched": 40, "restarted": 39}
    fresh = fit(MODEL, grown(41), FitOptions(opt_nstarts=1), np.random.default_rng(0))
    found = fit(MODEL, grown(41), FitOptions(), np.random.default_rng(0), stuck)
    assert (found.state["searched"], found.state["restarted"]) == (40, 41)
    assert found.objective <= fresh.objective + 1e-9
    later = {**stuck, "restarted": 40}  # grown by 2.5 in a hundred
    alone = fit(MODEL, grown(41), FitOptions(opt_maxiter=1), np.random.default_rng(0), later)
    assert alone.state["restarted"] == 40
    assert alone.objective > found.objective + 1.0


def test_a_full_search_is_never_worse_than_the_current_parameters() -> None:
    good = fit(MODEL, grown(40), FitOptions(opt_nstarts=6, opt_maxiter=200), np.random.default_rng(0))
    hasty = FitOptions(opt_nstarts=2, opt_maxiter=2, opt_restart_growth=0.0)
    found = fit(MODEL, grown(40), hasty, np.random.default_rng(0), good.state)
    assert found.objective <= good.objective + 1e-9


def test_parameters_stay_within_their_bounds() -> None:
    found = fit(MODEL, rungs(30), FitOptions(opt_nstarts=5), np.random.default_rng(0))
    assert (found.theta >= MODEL.space.lower).all()
    assert (found.theta <= MODEL.space.upper).all()


class Broken(JointModel):
    """Its objective is never finite."""

    def objective(self, data):  # type: ignore[no-untyped-def]
        return lambda theta: (theta.sum(1) * torch.nan, theta)


def test_a_failed_fit_keeps_the_old_parameters_and_says_so() -> None:
    good = fit(single_fidelity(3), rungs().at(1), FitOptions(), np.random.default_rng(0))
    found = fit(
        Broken(single_fidelity(3).covariance, None), rungs().at(1), FitOptions(), np.random.default_rng(0), good.state
    )
    assert found.failed
    torch.testing.assert_close(found.theta, good.theta)


@pytest.mark.gpu
def test_a_fit_on_the_gpu_reaches_the_objective_of_the_cpu() -> None:
    cpu = fit(MODEL, rungs(30), FitOptions(), np.random.default_rng(0))
    gpu = fit(MODEL, rungs(30).to("cuda"), FitOptions(), np.random.default_rng(0))
    assert gpu.objective == pytest.approx(cpu.objective, abs=1e-3)
