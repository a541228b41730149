"""The probability to get past the rungs below."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_hpo.surrogates.acquisition import evaluate, incumbent, log_expected_improvement, minimize_acquisition
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import IndependentModel
from lightning_hpo.surrogates.posterior import Posterior, Prediction
from lightning_hpo.surrogates.promotion import PromotionProbability
from tests.surrogates.numeric import assert_gradient
from tests.surrogates.problems import random_theta


class Known(Posterior):
    """Mean ``x + shift`` of the rung, in every column, and its standard deviation."""

    def __init__(self, moments: dict[int, tuple[list[float], float]]) -> None:
        self.moments = moments
        self.columns = len(next(iter(moments.values()))[0])

    def predict(self, x: Tensor, resource: int) -> Prediction:
        shifts, std = self.moments[resource]
        mean = x[:, :1] + torch.tensor(shifts, dtype=x.dtype)
        return Prediction(mean, torch.full((len(x),), std**2, dtype=x.dtype), lambda m, v: m.sum(-1, keepdim=True))

    def joint(self, x, resource):
        raise NotImplementedError

    def fantasize(self, x, resource, normals):
        raise NotImplementedError

    def inputs_at(self, resource):
        raise NotImplementedError


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def test_it_is_the_normal_probability_to_stay_below_the_cut() -> None:
    probability = PromotionProbability(Known({1: ([0.5], 2.0)}), {1: 1.5})
    found, _ = probability.log(column(0.0, 1.0, 3.0))
    # (1.5 - 0.5 - x) / 2
    assert found.exp().tolist() == pytest.approx(stats.norm.cdf([0.5, 0.0, -1.0]).tolist())


def test_the_hardest_rung_decides() -> None:
    posterior = Known({1: ([0.0], 1.0), 3: ([0.0], 0.1)})
    found, _ = PromotionProbability(posterior, {1: 0.0, 3: 0.2}).log(column(0.1, 0.3))
    # z = -0.1 and 1 at x = 0.1; -0.3 and -1 at x = 0.3
    assert found.exp().tolist() == pytest.approx(stats.norm.cdf([-0.1, -1.0]).tolist())


def test_it_is_averaged_over_fantasies() -> None:
    found, _ = PromotionProbability(Known({1: ([0.0, 2.0], 1.0)}), {1: 1.0}).log(column(0.0))
    assert found.exp().tolist() == pytest.approx([0.5 * (stats.norm.cdf(1.0) + stats.norm.cdf(-1.0))])


def test_without_rungs_it_is_one() -> None:
    value, gradient = PromotionProbability(Known({1: ([0.0], 1.0)}), {}).log(column(0.3))
    assert (value.tolist(), gradient.tolist()) == ([0.0], [[0.0]])


def test_far_below_the_cut_it_is_finite_and_still_has_a_slope() -> None:
    value, gradient = PromotionProbability(Known({1: ([0.0], 1e-3)}), {1: 0.0}).log(column(1.0))
    # log Phi(-1000) is about -1000^2 / 2, its derivative by x about -1000 / 1e-3
    assert float(value) == pytest.approx(-0.5e6, rel=1e-4)
    assert float(gradient) == pytest.approx(-1e6, rel=1e-4)


def test_draws_pass_only_where_all_rungs_are_passed() -> None:
    probability = PromotionProbability(Known({1: ([0.0, 0.2], 1.0), 3: ([0.0, 0.0], 2.0)}), {1: 1.0, 3: 1.0})
    normals = torch.tensor([0.4, 0.6, -0.2], dtype=torch.float64)
    # draws 0.5, 0.7 and 1.1 at rung 1 (the mean of its columns is x + 0.1); 0.8, 1.2 and 0.8 at rung 3
    assert probability.passes(column(0.0, 0.0, 1.2), normals).tolist() == [True, False, False]


def fitted() -> Posterior:
    generator = torch.Generator().manual_seed(1)
    resource = torch.tensor([1] * 8 + [3] * 4 + [9] * 3)
    x = torch.rand(len(resource), 2, dtype=torch.float64, generator=generator)
    model = IndependentModel(2, (1, 3, 9))
    data = Observations.from_rows(x, (x - 0.5).sum(1) + 0.1 * resource, resource)
    posterior = model.posterior(data, random_theta(model, 3)[0])
    pending = torch.rand(2, 2, dtype=torch.float64, generator=generator)
    normals = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    return posterior.fantasize(pending, torch.tensor([1, 3]), normals)


@torch.no_grad()
def test_gradients() -> None:
    probability = PromotionProbability(fitted(), {1: 0.1, 3: 0.3})
    x = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert_gradient(lambda t: probability.log(t)[0].sum(), x, probability.log(x)[1])


@torch.no_grad()
def test_weighted_improvements_are_minimised() -> None:
    posterior = fitted()
    probability = PromotionProbability(posterior, {1: 0.1, 3: 0.3})
    acquisition = log_expected_improvement(incumbent(posterior, 9), 0.01)
    starts = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    x, value = minimize_acquisition(posterior, acquisition, starts, 9, promotion=probability)

    def weighted(at: Tensor) -> Tensor:
        return evaluate(posterior, acquisition, at, 9)[0] - probability.log(at)[0]

    assert torch.allclose(value, weighted(x))
    assert (value <= weighted(starts) + 1e-9).all()
    assert math.isfinite(float(value.sum()))
