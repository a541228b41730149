"""Parameters, priors and the vector of internal coordinates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates import parameters as p
from tests.surrogates.numeric import assert_gradient

SPACE = p.ParameterSpace([p.noise(), p.lengthscale(2), p.outputscale(), p.mean(), *p.warping(1, "warp")])


def test_priors_are_the_named_densities() -> None:
    x = 0.37
    theta = SPACE.theta({"noise": x, "lengthscale": [x, x], "outputscale": x, "mean": x, "warp_a": x, "warp_b": x})
    penalty = float(SPACE.penalty(SPACE.natural(theta[None]))[0])
    half_log_2pi = 0.5 * np.log(2.0 * np.pi)
    expected = (
        -stats.gamma(0.1).logpdf(x)
        + 2.0 * np.log(100.0 - 1e-4)
        - (stats.lognorm(1.0).logpdf(x) + half_log_2pi)
        - (stats.norm.logpdf(x) + half_log_2pi)
        - 2.0 * (stats.lognorm(0.75).logpdf(x) + half_log_2pi)
    )
    assert penalty == pytest.approx(expected, abs=1e-12)


def test_the_log_normal_prior_of_length_scales_has_its_mode_at_one() -> None:
    """-log p(x) = log x + (log x - 1/4)^2 / (2 / 4) + log 0.5 without log(2 pi) / 2, as the mode is exp(mu - 1/4)."""
    space = p.ParameterSpace([p.lengthscale(1, prior="log_normal")])

    def penalty(x: float) -> float:
        return float(space.penalty(space.natural(space.theta({"lengthscale": x})[None]))[0])

    assert penalty(1.0) == pytest.approx(0.125 + np.log(0.5), abs=1e-12)
    assert penalty(np.e) == pytest.approx(1.0 + 2.0 * 0.75**2 + np.log(0.5), abs=1e-12)
    assert penalty(1.0) < min(penalty(0.98), penalty(1.02))


def test_initial_values_and_bounds_are_in_internal_coordinates() -> None:
    part = SPACE.slices["lengthscale"]
    assert SPACE.initial[part].tolist() == [0.0, 0.0]
    assert SPACE.lower[part].exp().tolist() == pytest.approx([0.01, 0.01])
    assert SPACE.upper[part].exp().tolist() == pytest.approx([1e4, 1e4])
    assert float(SPACE.lower[SPACE.slices["mean"]]) == -np.inf
    assert float(SPACE.initial[SPACE.slices["noise"]].exp()) == pytest.approx(1e-3)


@given(st.lists(st.floats(-4.0, 1.0), min_size=7, max_size=7))
def test_values_as_json_give_the_vector_back(entries: list[float]) -> None:
    theta = torch.tensor(entries, dtype=torch.float64).clamp(SPACE.lower, SPACE.upper)
    values = json.loads(json.dumps(SPACE.values(theta)))
    torch.testing.assert_close(SPACE.theta(values), theta, rtol=1e-12, atol=1e-12)


@given(st.lists(st.floats(-1.3, 1.3), min_size=7, max_size=7))
def test_gradient_of_the_penalty(entries: list[float]) -> None:
    theta = torch.tensor([entries], dtype=torch.float64)
    gradient = SPACE.penalty(SPACE.natural(theta))[1]
    assert_gradient(lambda t: SPACE.penalty(SPACE.natural(t))[0][0], theta, gradient)


def test_values_outside_the_bounds_are_clipped() -> None:
    values = SPACE.values(SPACE.initial) | {"noise": [1e-20]}
    assert float(SPACE.theta(values)[SPACE.slices["noise"]].exp()) == pytest.approx(1e-9)


def test_values_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match="'lengthscale' needs 2 values and got 3"):
        SPACE.theta(SPACE.values(SPACE.initial) | {"lengthscale": [1.0, 1.0, 1.0]})
    with pytest.raises(ShapeError, match="same name"):
        p.ParameterSpace([p.mean(), p.mean()])
