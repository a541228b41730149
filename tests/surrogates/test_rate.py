"""Expected improvement per unit of resource, of trials that may be given up on the way."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.rate import improvement_limits, improvement_rates
from lightning_hpo.surrogates.rungs import RungCovariance, RungModel
from tests.surrogates.problems import LEVELS, random_theta, rungs

# E[max(z, 0)] of a standard normal z
HALF_NORMAL = 1.0 / math.sqrt(2.0 * math.pi)


def rate(covariance, noise, cost, mean=0.0, incumbent=0.0):
    """Of one trial."""
    numbers = [torch.tensor(t, dtype=torch.float64) for t in ([mean], [covariance], noise, cost, incumbent)]
    return float(improvement_rates(*numbers)[0])


def test_at_the_last_rung_it_is_the_expected_improvement_over_its_cost() -> None:
    assert rate([[1.0]], [0.1], [18.0]) == pytest.approx(HALF_NORMAL / 18.0)
    assert rate([[4.0]], [0.1], [2.0], mean=1.0, incumbent=1.0) == pytest.approx(2.0 * HALF_NORMAL / 2.0)


def test_a_rung_that_tells_nothing_is_worth_nothing() -> None:
    uncorrelated = [[1.0, 0.0], [0.0, 1.0]]
    assert rate(uncorrelated, [0.0, 0.0], [1.0, 9.0]) == pytest.approx(HALF_NORMAL / 9.0)


def test_a_rung_that_tells_all_is_worth_what_is_kept_of_the_improvement_for_what_it_costs() -> None:
    """The value at the first rung is that at the last: go on if it is good, else nothing more is paid.

    By quantiles q of the value z: E[max(-z, 0); z in the best q] = phi(z_q) for q <= 1/2, over 1 + 8 q.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    shares = torch.linspace(0.001, 0.5, 2000)
    best = (normal.log_prob(normal.icdf(shares)).exp() / (1.0 + 8.0 * shares)).max()
    assert rate([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], [1.0, 9.0]) == pytest.approx(float(best), rel=0.05)


def test_no_luck_rarer_than_one_in_twenty_four_is_counted_on() -> None:
    """The rung tells all, and an improvement needs a value 3 deviations better than expected there: one in 740."""
    normal = torch.distributions.Normal(0.0, 1.0)
    improvement = float(normal.log_prob(torch.tensor(3.0)).exp() - 3.0 * normal.cdf(torch.tensor(-3.0)))
    found = rate([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], [1.0, 27.0], incumbent=-3.0)
    assert found == pytest.approx(improvement / 27.0, rel=1e-3)


def test_it_is_the_best_ratio_over_the_shares_that_go_on() -> None:
    """By a simulation of the policy: train to the rung, go on if the value is in the best share, stop otherwise."""
    covariance, noise, cost = [[1.0, 0.8], [0.8, 1.2]], [0.3, 0.1], [2.0, 18.0]
    g = torch.Generator().manual_seed(0)
    n = 200_000
    factor = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
    latent = torch.randn(n, 2, dtype=torch.float64, generator=g) @ factor.mT + torch.tensor([0.0, 0.4])
    seen = latent[:, 0] + math.sqrt(0.3) * torch.randn(n, dtype=torch.float64, generator=g)
    gain = (-latent[:, 1]).clamp_min(0.0)[seen.argsort()]
    kept = gain.cumsum(0) / n
    shares = torch.arange(1, n + 1) / n
    ratios = kept / (2.0 + 16.0 * shares)
    assert rate(covariance, noise, cost, mean=0.4) == pytest.approx(float(ratios[1000:].max()), rel=0.03)


@pytest.mark.parametrize("lower", ["mean", "cost", "variance"])
def test_better_cheaper_and_less_certain_trials_have_higher_rates(lower) -> None:
    base = rate([[1.0, 0.5], [0.5, 1.0]], [0.1, 0.1], [1.0, 9.0], mean=1.0)
    better = {
        "mean": rate([[1.0, 0.5], [0.5, 1.0]], [0.1, 0.1], [1.0, 9.0], mean=0.5),
        "cost": rate([[1.0, 0.5], [0.5, 1.0]], [0.1, 0.1], [0.5, 8.0], mean=1.0),
        "variance": rate([[2.0, 1.0], [1.0, 2.0]], [0.1, 0.1], [1.0, 9.0], mean=1.0),
    }[lower]
    assert better > base > 0.0


def test_hopeless_trials_have_a_rate_of_zero_and_no_nan() -> None:
    found = improvement_rates(
        torch.tensor([1e3, 0.0], dtype=torch.float64),
        torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1e-30, 0.0], [0.0, 1e-30]]], dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor(0.0, dtype=torch.float64),
    )
    assert torch.isfinite(found).all() and (found >= 0.0).all()
    assert float(found[0]) == 0.0


def rival_of(rate):
    """One that improves at the same rate whatever is to be improved on."""
    return lambda best: torch.full_like(best, rate)


def limits(covariance, noise, cost, wanted, mean=(0.0, 0.0), incumbent=0.0):
    """Of one trial."""
    numbers = [torch.tensor(t, dtype=torch.float64) for t in ([mean], [covariance], noise, cost, [incumbent])]
    return improvement_limits(*numbers, rival_of(wanted))[0].tolist()


def test_at_its_limit_a_trial_improves_at_the_rate_that_was_asked_for() -> None:
    """By hand: with correlation 0.6 a value of 1 lowers the mean at the last rung by -0.6, and leaves 0.64 of its
    variance, so the rate is that of a gap of -0.6 and a deviation of 0.8 over the 8 units that are left."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = torch.tensor(-0.6 / 0.8, dtype=torch.float64)
    wanted = 0.8 * float(normal.log_prob(z).exp() + z * normal.cdf(z)) / 8.0
    (found,) = limits([[1.0, 0.6], [0.6, 1.0]], [0.0, 0.0], [1.0, 9.0], wanted)
    assert found == pytest.approx(1.0, abs=1e-3)


def test_a_trial_that_is_its_own_best_is_to_improve_on_itself() -> None:
    """All that lowers what is expected of it below the best leaves the same to be improved: any of these goes on."""
    alone = 0.8 * HALF_NORMAL / 8.0
    (found,) = limits([[1.0, 0.6], [0.6, 1.0]], [0.0, 0.0], [1.0, 9.0], 0.99 * alone)
    assert 0.0 < found < 0.1
    assert limits([[1.0, 0.6], [0.6, 1.0]], [0.0, 0.0], [1.0, 9.0], 1.01 * alone) == [-6.0]


def test_limits_lie_within_six_deviations_of_what_is_expected() -> None:
    given = ([[1.0, 0.6], [0.6, 1.0]], [3.0, 0.0], [1.0, 9.0])
    assert limits(*given, 0.0, mean=(5.0, 0.0)) == [5.0 + 6.0 * 2.0]
    assert limits(*given, 1e9, mean=(5.0, 0.0)) == [5.0 - 6.0 * 2.0]
    assert limits(*given, 1e-3, incumbent=-1e6) == [-6.0 * 2.0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_limits_are_those_of_a_model_that_is_told_the_value(seed: int) -> None:
    """The trial's value at each rung is added to the data of the process; its rate from there is the wanted one."""
    model, data = RungModel(RungCovariance(3, LEVELS)), rungs()
    theta = random_theta(model, seed)[0]
    posterior = model.posterior(data, theta)
    x = torch.tensor([[0.3, 0.6, 0.2]], dtype=torch.float64)
    levels = torch.tensor(LEVELS)
    noise, cost = posterior.new_noise(levels), levels.double()
    mean, covariance = posterior.across(x)
    incumbent = mean[:, -1] - 0.3 * covariance[:, -1, -1].sqrt()
    start = improvement_rates(mean[:, -1], covariance, noise, cost, incumbent)
    wanted = 0.8 * float(start)
    found = improvement_limits(mean, covariance, noise, cost, incumbent, rival_of(wanted))
    span = 6.0 * (covariance.diagonal(dim1=-2, dim2=-1) + noise).sqrt()[:, :-1]
    inside = ((found - mean[:, :-1]).abs() < 0.999 * span)[0]
    for j in inside.nonzero()[:, 0].tolist():
        told = Observations.from_rows(
            torch.cat([data.rows, x]), torch.cat([data.y, found[:, j]]), torch.cat([data.resource, levels[j : j + 1]])
        )
        after, rest = model.posterior(told, theta).across(x)
        rate = improvement_rates(
            after[:, -1], rest[:, j + 1 :, j + 1 :], noise[j + 1 :], cost[j + 1 :] - cost[j],
            torch.minimum(incumbent, after[:, -1]),
        )  # fmt: skip
        assert float(rate) == pytest.approx(wanted, rel=0.02)
    assert inside.any()


def test_a_value_far_better_than_expected_is_worth_more_than_any_rival_that_has_to_beat_it() -> None:
    """An equal one that has not begun has its luck before it, and costs an eighth more: what is two deviations better
    than expected at the first rung is worth more than that, and what is a little worse than expected less."""
    given = [[1.0, 0.95], [0.95, 1.0]], [0.0, 0.0], [1.0, 9.0]
    tensors = [torch.tensor(t, dtype=torch.float64) for t in given]
    both = torch.zeros(1, 2, dtype=torch.float64), tensors[0][None]

    def equal(best):
        return improvement_rates(both[0][0, -1], both[1][0], tensors[1], tensors[2], best)

    (found,) = improvement_limits(*both, *tensors[1:], torch.zeros(1, dtype=torch.float64), equal)[0].tolist()
    assert -2.0 < found < 0.0
