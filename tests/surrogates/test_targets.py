"""Targets before they reach a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.targets import Normalisation, box_cox_lambda, subsample, subsample_levels


@pytest.mark.parametrize("unit", [1e-12, 1e12, -1e-6])
def test_targets_in_another_unit_are_the_same_to_the_model(unit: float) -> None:
    y = np.array([0.3, 0.1, 0.9, 0.5])
    same = Normalisation.of(unit * y).forward(unit * y)
    np.testing.assert_allclose(same, np.sign(unit) * Normalisation.of(y).forward(y), rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e8])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_also_if_they_are_transformed(unit: float, skew: float) -> None:
    """Of left-skewed targets the power is near 2, and squares of small numbers vanish beside 1."""
    z = np.random.default_rng(1).uniform(size=60)
    y = 1.0 - 0.9 * z**3 if skew else np.exp(z)
    same = Normalisation.of(unit * y, box_cox=True).forward(unit * y)
    np.testing.assert_allclose(same, Normalisation.of(y, box_cox=True).forward(y), rtol=1e-5, atol=1e-5)


def test_population_standard_deviation() -> None:
    # mean 3, squared deviations 4, 0, 4: population variance 8/3
    y = np.array([1.0, 3.0, 5.0])
    normalisation = Normalisation.of(y)
    assert normalisation.scale == pytest.approx((8.0 / 3.0) ** 0.5)
    np.testing.assert_allclose(normalisation.forward(y), [-(1.5**0.5), 0.0, 1.5**0.5])


@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-1e3, 1e3)))
def test_moments_go_back_to_units_of_the_targets(y: np.ndarray) -> None:
    normalisation = Normalisation.of(y)
    back, std = normalisation.mean_and_std(normalisation.forward(y), np.ones(1))
    np.testing.assert_allclose(back, y, atol=1e-9)
    assert std == normalisation.scale


@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(1e-3, 1e3)), st.booleans())
def test_targets_come_back(y: np.ndarray, box_cox: bool) -> None:
    normalisation = Normalisation.of(y, box_cox, offset=0.5)
    np.testing.assert_allclose(normalisation.backward(normalisation.forward(y)), y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("power", [-1.0, 2.0])
def test_what_no_target_is_transformed_to_comes_back_as_the_nearest_that_is(power: float) -> None:
    """By hand: (y^2 - 1) / 2 is above -1/2, which is that of y = 0; 1 - 1/y is below 1, that of an infinite y."""
    normalisation = Normalisation(0.0, 1.0, power)
    back = normalisation.backward(np.array([-3.0, 0.0, 3.0]))
    assert back[1] == pytest.approx(1.0) and np.isfinite(back).all() and (np.diff(back) > 0.0).all()
    assert back[0] == pytest.approx(0.0, abs=1e-6) if power > 0.0 else back[2] > 1e12


def test_equal_targets_become_zero() -> None:
    assert Normalisation.of(np.full(4, 0.3)).forward(np.full(4, 0.3)).tolist() == [0.0] * 4


def test_targets_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ShapeError, match="not finite"):
        Normalisation.of(np.array([1.0, np.nan]))


def test_box_cox_of_lognormal_targets_is_near_the_logarithm() -> None:
    y = np.exp(np.random.default_rng(0).standard_normal(400))
    assert abs(box_cox_lambda(y)) < 0.15
    normalised = Normalisation.of(y, box_cox=True).forward(y)
    assert abs(float((normalised**3).mean())) < 0.3
    assert float((Normalisation.of(y).forward(y) ** 3).mean()) > 1.0


def test_box_cox_needs_positive_targets() -> None:
    assert Normalisation.of(np.array([-1.0, 2.0]), box_cox=True).box_cox_lambda is None
    assert Normalisation.of(np.array([2.0, 2.0]), box_cox=True).box_cox_lambda == 0.5


def test_the_best_targets_are_kept() -> None:
    y = np.random.default_rng(0).permutation(100).astype(float)
    kept = subsample(y, 40, np.random.default_rng(1))
    assert len(kept) == len(set(kept.tolist())) == 40
    assert kept.tolist() == sorted(kept.tolist())
    assert set(range(10)) <= set(y[kept])  # a quarter of 40, the lowest
    assert subsample(y, None, np.random.default_rng(1)).tolist() == list(range(100))
    assert subsample(y, 100, np.random.default_rng(1)).tolist() == list(range(100))


def test_other_targets_are_drawn_uniformly() -> None:
    y = np.arange(20.0)
    counts = np.zeros(20)
    for seed in range(300):
        counts[subsample(y, 8, np.random.default_rng(seed))] += 1
    assert counts[:2].tolist() == [300, 300]
    # 6 of 18 are drawn: 100 expected, standard deviation about 8
    assert counts[2:].min() > 60
    assert counts[2:].max() < 140


def test_trials_that_went_far_are_kept_whole() -> None:
    # trial 0 to level 9, trials 1 and 2 to level 3, trials 3..8 at level 1
    trial = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 0])
    resource = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 9])
    kept = subsample_levels(trial, resource, 9, np.random.default_rng(0)).tolist()
    whole = [i for i, t in enumerate(trial) if t <= 2]
    assert set(whole) <= set(kept)
    assert len(kept) == 9
    assert len(set(kept) - set(whole)) == 2
    values = np.arange(13.0)[::-1]  # of trials 3 to 8 those of the last are the lowest
    kept = subsample_levels(trial, resource, 9, np.random.default_rng(0), (values, 1.0)).tolist()
    assert set(kept) - set(whole) == {7, 8}


def test_of_the_block_that_does_not_fit_the_lowest_level_is_dropped_first() -> None:
    trial = np.array([0, 1, 2, 0, 1, 2])
    resource = np.array([1, 1, 1, 3, 3, 3])
    kept = subsample_levels(trial, resource, 4, np.random.default_rng(0))
    assert sorted(resource[kept]) == [1, 3, 3, 3]
    kept = subsample_levels(trial, resource, 2, np.random.default_rng(0))
    assert sorted(resource[kept]) == [3, 3]
    assert len(subsample_levels(trial, resource, None, np.random.default_rng(0))) == 6


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_the_limit_is_used_exactly(n: int, limit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trial = rng.integers(0, 15, n)
    resource = rng.integers(1, 5, n)
    pairs = np.unique(np.stack([trial, resource], 1), axis=0)
    kept = subsample_levels(pairs[:, 0], pairs[:, 1], limit, rng)
    assert len(kept) == len(set(kept.tolist())) == min(limit, len(pairs))


@pytest.mark.parametrize("value", [3.0, 100.0, 1e10, 1e100])
def test_values_that_differ_by_their_last_digit_only_have_a_power_all_the_same(value):
    assert -1.0 <= box_cox_lambda(np.array([value, np.nextafter(value, np.inf), value])) <= 2.0


def test_no_power_overflows():
    with np.errstate(all="raise"):
        assert box_cox_lambda(np.array([1e-300, 1.0, 1e300])) == 0.0
