"""The process over configurations and rungs, and what it expects of trials."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.kernels import RungKernel, matern_kernel
from lightning_hpo.surrogates.rungs import RungCovariance, RungModel, RungPosterior, RungSpread
from tests.surrogates.problems import LEVELS, random_theta, rungs

ODD = RungSpread(
    torch.tensor([1.0, 0.02, 50.0, 1.0][: len(LEVELS)], dtype=torch.float64),
    torch.tensor([1e4, 0.0, 0.0, 0.0][: len(LEVELS)], dtype=torch.float64),
)
MODELS = {
    "plain": RungModel(RungCovariance(3, LEVELS)),
    "warped, one length scale": RungModel(RungCovariance(3, LEVELS, warped=(0, 2), ard=False)),
    "rungs out of proportion": RungModel(RungCovariance(3, LEVELS, spread=ODD)),
    "uniform prior of length scales": RungModel(RungCovariance(3, LEVELS, lengthscale_prior="uniform")),
}


def kernel_of(model: RungModel, theta: torch.Tensor) -> RungKernel:
    """The gpytorch kernel with these parameters."""
    kernel = RungKernel(matern_kernel(model.covariance.terms[0]), model.covariance.positions)
    for path, parameter in kernel.named_parameters():
        name = path.rsplit(".", 1)[-1].removeprefix("raw_")
        parameter.data = theta[model.space.slices[name]].reshape(parameter.shape).clone()
        if name == "scale":
            parameter.data += model.covariance.spread.units.log().reshape(parameter.shape)
    return kernel


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_likelihood_and_gradient_are_those_of_the_gpytorch_kernel(name: str, seed: int) -> None:
    model, data = MODELS[name], rungs()
    theta = random_theta(model, seed)
    value, gradients = model.negative_log_likelihood(data)(model.space.natural(theta))
    kernel = kernel_of(model, theta[0])
    log_noise = theta[0, model.space.slices["noise"]].clone().requires_grad_()
    x = torch.cat([data.rows, (data.resource.double() / LEVELS[0]).log().unsqueeze(-1)], -1)
    rung = torch.searchsorted(torch.tensor(LEVELS), data.resource)
    scale, veil = kernel.values["scale"][rung], model.covariance.spread.veil[rung]
    covariance = kernel(x).to_dense() + (log_noise.exp() * scale.square() + veil).diag()
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(data)).double(), covariance)
    theirs = -normal.log_prob(data.y)
    theirs.backward()
    torch.testing.assert_close(value[0], theirs.detach(), rtol=1e-10, atol=1e-9)
    ours = model.space.natural(theta).pull(gradients)[0]
    found = {path.rsplit(".", 1)[-1].removeprefix("raw_"): parameter for path, parameter in kernel.named_parameters()}
    found["noise"] = log_noise
    assert set(found) == set(model.space.slices)
    for parameter, part in model.space.slices.items():
        assert found[parameter].grad is not None
        torch.testing.assert_close(ours[part], found[parameter].grad.reshape(-1), rtol=1e-7, atol=1e-8)


def test_smooth_parts_have_the_variances_of_their_scales_and_the_correlation_of_autoregression() -> None:
    """By hand: f_1 = f_0 + an independent part of variance 3 u, so var f_1 = 1 + 3 u and cov(f_0, f_1) = 1."""
    model = RungModel(RungCovariance(1, (1, 3)))
    values = {
        "noise": 0.0, "lengthscale": 0.5, "scale": [1.0, 2.0], "drift": 3.0, "own": 0.5, "own_drift": 0.25,
        "settling": 1.0, "offset": 0.125,
    }  # fmt: skip
    natural = model.space.natural(model.space.theta(values)[None])
    table = model.covariance.table(natural, model.covariance.positions)
    u = 1.0 - 1.0 / 3.0
    root = math.sqrt(1.0 + 3.0 * u)
    assert table.shift is not None and table.own is not None
    for found, expected in (
        (table.scales[0], [[1.0, 2.0 / root], [2.0 / root, 4.0]]),
        (table.own, [[0.5, 1.0 / root], [1.0 / root, 4.0 * (0.5 + 0.25 * u) / root**2]]),
        (table.shift, [[0.125, 0.125], [0.125, 0.25]]),
    ):
        torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_moments_across_rungs_are_those_of_one_rung_after_the_other(name: str) -> None:
    model, data = MODELS[name], rungs()
    posterior = model.posterior(data, random_theta(model, 3)[0])
    x = torch.cat([data.x[:2], torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))])
    mean, covariance = posterior.across(x)
    for j, level in enumerate(LEVELS):
        prediction = posterior.predict(x, level)
        torch.testing.assert_close(mean[:, j], prediction.mean[:, 0])
        torch.testing.assert_close(covariance[:, j, j], prediction.variance, rtol=1e-8, atol=1e-10)
    lowest, highest = (torch.tensor([level]).expand(1) for level in (LEVELS[0], LEVELS[-1]))
    together = posterior._joint(x[2:3].expand(2, -1), torch.cat([lowest, highest]))[1]
    torch.testing.assert_close(covariance[2, 0, -1], together[0, 1])


def test_a_trial_tells_more_about_itself_than_about_the_same_configuration_next_to_it() -> None:
    model, data = MODELS["plain"], rungs()
    posterior = model.posterior(data, model.space.initial)
    own, near = posterior.across(torch.stack([data.x[-1], data.x[-1] + 1e-9]))[1][:, -1, -1]
    assert own < near


def test_believed_values_change_no_mean_and_lower_the_variance() -> None:
    model, data = MODELS["plain"], rungs()
    posterior = model.posterior(data, random_theta(model, 4)[0])
    x = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    believing = posterior.believe(x[:2], torch.tensor([3, 9]))
    assert isinstance(believing, RungPosterior)
    before, after = posterior.across(x), believing.across(x)
    torch.testing.assert_close(before[0], after[0], rtol=1e-7, atol=1e-8)
    assert (after[1].diagonal(dim1=-2, dim2=-1) < before[1].diagonal(dim1=-2, dim2=-1)).all()
    noise = posterior.new_noise(torch.tensor([9]))[0]
    alone = posterior.believe(x[1:2], torch.tensor([9])).across(x)[1][1, -1, -1]
    prior = before[1][1, -1, -1]
    torch.testing.assert_close(alone, prior * noise / (prior + noise))


def test_observations_between_rungs_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[4\] are at none of the levels"):
        RungModel(RungCovariance(3, LEVELS)).negative_log_likelihood(Observations.from_rows([[0.1] * 3], [0.0], [4]))


def test_the_larger_a_rung_the_more_it_tells_of_the_next_one() -> None:
    """By hand, before any data: u = 4 (1 - r^(-1/4)) is 0, 0.9607, 1.6906 and 2.2453, and the drift is 1."""
    covariance = RungCovariance(1, (1, 3, 9, 27))
    space = RungModel(covariance).space
    table = covariance.table(space.natural(space.initial[None]), covariance.positions)
    smooth = table.scales[0][0]
    correlation = smooth / (smooth.diagonal()[:, None] * smooth.diagonal()).sqrt()
    expected = torch.tensor([1 / 1.9607, 1.9607 / 2.6906, 2.6906 / 3.2453], dtype=torch.float64).sqrt()
    torch.testing.assert_close(correlation.diagonal(1), expected, rtol=1e-4, atol=0.0)
    assert (expected.diff() > 0).all()


def spread_of(**values: list[float]) -> RungSpread:
    """Of rungs 1, 3 and 9: what was reported at each of them."""
    rungs = {int(name[1:]): given for name, given in values.items()}
    y = torch.tensor([v for given in rungs.values() for v in given], dtype=torch.float64)
    resource = torch.tensor([level for level, given in rungs.items() for _ in given])
    return RungSpread.of(y, resource, (1, 3, 9))


def evenly(n: int, deviation: float) -> list[float]:
    """``n`` values, an even number, with mean 0 and this standard deviation."""
    return [deviation, -deviation] * (n // 2)


def test_rungs_whose_spreads_are_in_proportion_have_the_same_unit_and_all_count() -> None:
    """Up to sixteen times more or less: those who are sent on are alike."""
    found = spread_of(r1=evenly(20, 1.0), r3=evenly(6, 0.1), r9=[0.5, 0.5])
    assert found.units.tolist() == [1.0] * 3 and found.veil.tolist() == [0.0] * 3


def test_a_spread_far_out_of_proportion_is_the_unit_of_its_rung_and_of_those_that_few_have_reached() -> None:
    """Beyond 16 ** 2 it is the spread itself; at 1 / 64 it is 16 times too far by a factor of 4, which is squared."""
    found = spread_of(r1=evenly(20, 1.0), r3=evenly(6, 1e-3), r9=[1e-4, 2e-4])
    torch.testing.assert_close(found.units, torch.tensor([1.0, 1e-3, 1e-3], dtype=torch.float64))
    found = spread_of(r1=evenly(20, 1.0), r3=evenly(6, 1 / 64))
    torch.testing.assert_close(found.units[1:], torch.tensor([1 / 16, 1 / 16], dtype=torch.float64))
    assert found.veil.tolist() == [0.0] * 3


@pytest.mark.parametrize("deviation", [0.0, 1e-12, 0.01])
def test_what_differs_by_next_to_nothing_tells_nothing_of_the_rungs_above(deviation: float) -> None:
    found = spread_of(r1=evenly(20, deviation), r3=evenly(6, 1.0), r9=[0.1, 0.9])
    assert found.veil.tolist() == [1e4, 0.0, 0.0]
    assert spread_of(r1=evenly(4, deviation), r3=evenly(6, 1.0)).veil.tolist() == [0.0] * 3, "four values say nothing"


def test_at_the_last_rung_equal_values_are_what_there_is() -> None:
    found = spread_of(r1=evenly(20, 1.0), r3=evenly(6, 1.0), r9=[0.5] * 6)
    assert found.veil.tolist() == [0.0] * 3 and found.units.tolist() == [1.0] * 3


def test_a_veiled_value_changes_nothing_that_is_expected_at_other_rungs() -> None:
    """Its noise is 1e4 times the variance of all values."""
    veiled = RungModel(RungCovariance(1, (1, 3), spread=RungSpread.of(*told(evenly(6, 0.0), evenly(6, 1.0)))))
    x = torch.linspace(0.0, 1.0, 6, dtype=torch.float64)[:, None]
    upper = Observations.from_rows(x, torch.tensor(evenly(6, 1.0), dtype=torch.float64), torch.full((6,), 3))
    lower = Observations.from_rows(
        torch.cat([x, x]),
        torch.tensor([5.0] * 6 + evenly(6, 1.0), dtype=torch.float64),
        torch.tensor([1] * 6 + [3] * 6),
    )
    theta = veiled.space.initial
    without, beside = (veiled.posterior(data, theta).predict(x, 3) for data in (upper, lower))
    torch.testing.assert_close(beside.mean, without.mean, rtol=0.0, atol=5e-3)
    torch.testing.assert_close(beside.variance, without.variance, rtol=1e-2, atol=1e-4)


def told(*rungs: list[float]) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    y = torch.tensor([v for rung in rungs for v in rung], dtype=torch.float64)
    levels = (1, 3, 9)[: len(rungs)]
    return y, torch.tensor([level for level, rung in zip(levels, rungs, strict=True) for _ in rung]), levels
