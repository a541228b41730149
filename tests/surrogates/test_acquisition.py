"""Acquisition functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from scipy import stats
from torch import Tensor

from lightning_hpo.errors import OptionError, ShapeError
from lightning_hpo.surrogates.acquisition import (
    acquisition_resource,
    evaluate,
    incumbent,
    log_expected_improvement,
    log_improvement,
    lower_confidence_bound,
    minimize_acquisition,
    thompson,
)
from lightning_hpo.surrogates.models import multitask, single_fidelity
from tests.surrogates.numeric import assert_gradient
from tests.surrogates.problems import random_theta, rungs


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (0.0, -0.5 * math.log(2.0 * math.pi)),
        (3.0, math.log(3.0 * stats.norm.cdf(3.0) + stats.norm.pdf(3.0))),
        (-3.0, math.log(-3.0 * stats.norm.cdf(-3.0) + stats.norm.pdf(-3.0))),
        # phi(u) / u^2 (1 - 3 / u^2 + 15 / u^4 - ..) for large negative u
        (-1e3, -0.5e6 - 0.5 * math.log(2.0 * math.pi) - 2.0 * math.log(1e3) + math.log1p(-3e-6 + 15e-12)),
        (-1e8, -0.5e16 - 0.5 * math.log(2.0 * math.pi) - 2.0 * math.log(1e8)),
    ],
)
def test_log_improvement_from_the_centre_to_the_far_tail(u: float, expected: float) -> None:
    value, _ = log_improvement(torch.tensor([u], dtype=torch.float64))
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_log_improvement_is_smooth_where_its_formulas_meet() -> None:
    edges = torch.tensor([-1e4, 30.0], dtype=torch.float64)
    inner, outer = edges * (1.0 - 1e-9), edges * (1.0 + 1e-9)
    for at_inner, at_outer in zip(log_improvement(inner), log_improvement(outer), strict=True):
        torch.testing.assert_close(at_inner, at_outer, rtol=1e-7, atol=0.0)
    u = torch.tensor([-9.9e3, -50.0, -5.0, -0.5, 0.0, 3.0, 29.0, 31.0], dtype=torch.float64)
    slope = log_improvement(u)[1]
    assert_gradient(lambda t: log_improvement(t)[0].sum(), u[1:], slope[1:])
    # d log h / du tends to -u below and to 1 / u above
    assert float(slope[0]) == pytest.approx(9.9e3, rel=1e-4)
    far = log_improvement(torch.tensor([-1.1e4, -1e12, 1e3], dtype=torch.float64))
    assert far[1].tolist() == pytest.approx([1.1e4, 1e12, 1e-3], rel=1e-4)
    assert float(far[0][2]) == pytest.approx(math.log(1e3))


def test_far_from_any_improvement_the_gradient_still_points_the_way() -> None:
    score = log_expected_improvement(torch.tensor([0.0]).double())(
        torch.full((1, 1), 40.0).double(), torch.tensor([1e-2]).double()
    )
    assert torch.isfinite(score.value).all()
    assert float(score.mean) > 1.0
    assert float(score.variance) < 0.0


ACQUISITIONS = {
    "log EI": log_expected_improvement(torch.tensor([0.1, -0.2, 0.3]).double(), 0.01),
    "lower confidence bound": lower_confidence_bound(1.5),
}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_derivatives_by_mean_and_variance(name: str) -> None:
    acquisition, mean, variance = ACQUISITIONS[name], uniform(4, 3), 0.2 + uniform(4, seed=1)
    score = acquisition(mean, variance)
    assert_gradient(lambda m: acquisition(m, variance).value.sum(), mean, score.mean)
    assert_gradient(lambda v: acquisition(mean, v).value.sum(), variance, score.variance)


def test_thompson_scores_are_draws_averaged_over_columns() -> None:
    mean, variance = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([4.0]).double()
    score = thompson(torch.tensor([[0.5, -1.5]]).double())(mean, variance)
    assert score.value.tolist() == [(1.0 + 2.0 * 0.5 + 3.0 - 2.0 * 1.5) / 2.0]


def test_log_ei_is_that_of_botorch() -> None:
    model, data = single_fidelity(3), rungs().at(1)
    values = model.space.values(random_theta(model)[0]) | {"mean": [0.0]}
    theta = model.space.theta(values)
    posterior = model.posterior(data, theta)
    reference = SingleTaskGP(
        data.rows, data.y[:, None], covar_module=_scaled_matern(values), outcome_transform=None, input_transform=None
    )
    reference.likelihood.noise = values["noise"][0]
    reference.mean_module.constant = 0.0
    reference.eval()
    x = uniform(20, 3, seed=9)
    best = incumbent(posterior, 1)
    with torch.no_grad():
        theirs = LogExpectedImprovement(reference, best_f=best[0] - 0.01, maximize=False)(x.unsqueeze(1))
    ours, _ = evaluate(posterior, log_expected_improvement(best, 0.01), x, 1)
    torch.testing.assert_close(-ours, theirs, rtol=1e-6, atol=1e-6)


def _scaled_matern(values: dict[str, list[float]]):  # type: ignore[no-untyped-def]
    from gpytorch.kernels import MaternKernel, ScaleKernel

    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=3)).double()
    kernel.base_kernel.lengthscale = torch.tensor(values["lengthscale"], dtype=torch.float64)
    kernel.outputscale = values["outputscale"][0]
    return kernel


def test_incumbent_is_the_lowest_posterior_mean_at_the_resource() -> None:
    model, data = multitask(3, 9), rungs()
    posterior = model.posterior(data, random_theta(model)[0])
    assert incumbent(posterior, 3) == posterior.predict(data.at(3).rows, 3).mean.min()
    with pytest.raises(ShapeError, match="Nothing is observed or pending at resource 2"):
        incumbent(posterior, 2)


def test_local_search_improves_every_start_within_the_box() -> None:
    model, data = multitask(3, 9), rungs()
    posterior = model.posterior(data, random_theta(model)[0])
    acquisition = log_expected_improvement(incumbent(posterior, 9))
    starts, lower = uniform(6, 3), torch.tensor([0.0, 0.25, 0.0]).double()
    upper = torch.tensor([1.0, 0.25, 0.9]).double()
    x, value = minimize_acquisition(posterior, acquisition, starts, 9, lower=lower, upper=upper)
    clipped = starts.clamp(lower, upper)
    assert (value <= evaluate(posterior, acquisition, clipped, 9)[0]).all()
    assert (x >= lower).all()
    assert (x <= upper).all()
    assert (x[:, 1] == 0.25).all()
    projected = x - (x - evaluate(posterior, acquisition, x, 9)[1]).clamp(lower, upper)
    assert float(projected.abs().max()) < 1e-2
    # several starts in one batch end where each ends alone
    alone, _ = minimize_acquisition(posterior, acquisition, starts[2:3], 9, lower=lower, upper=upper)
    np.testing.assert_allclose(x[2], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "expected"), [("bohb", 3), ("first", 9), ("final", 3)]
)  # fmt: skip
def test_resource_of_the_acquisition(rule: str, expected: int) -> None:
    counts = {1: 9, 3: 3, 9: 2, 27: 0}
    assert acquisition_resource(counts, rule, 3, milestone=9, max_t=27) == expected


def test_resource_of_the_acquisition_with_few_observations() -> None:
    assert acquisition_resource({3: 1, 9: 2}, "bohb", 3) == 3
    with pytest.raises(ShapeError, match="Nothing is observed"):
        acquisition_resource({1: 0})
    with pytest.raises(OptionError, match="no rule 'last'"):
        acquisition_resource({1: 1}, "last")
