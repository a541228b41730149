from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.errors import ShapeError
from lightning_hpo.searchers.density import (
    FeatureKind,
    ProductKernelDensity,
    density_ratio,
    is_usable,
    num_good,
    split,
    truncated_normal,
)

NUMBER, INTEGER, CATEGORY = FeatureKind.CONTINUOUS, FeatureKind.ORDERED, FeatureKind.UNORDERED


def test_bandwidths_follow_the_normal_reference_rule():
    # Population std of (0, 1) is 1/2; n = 2, d = 1: 1.06 * 0.5 * 2**(-1/5).
    density = ProductKernelDensity.fit(np.array([[0.0], [1.0]]), [NUMBER], [1], 1e-3)
    assert density.bandwidths == pytest.approx([0.53 * 2 ** (-0.2)])
    assert ProductKernelDensity.fit(np.array([[0.0], [0.0]]), [NUMBER], [1], 0.1).bandwidths == pytest.approx([0.1])


def test_kernels_by_hand():
    def at(kind, x, z, h, categories=1):
        return ProductKernelDensity(np.array([[z]]), np.array([h]), (kind,), (categories,))(np.array([[x]]))[0]

    assert at(NUMBER, 0.5, 0.3, 0.2) == pytest.approx(math.exp(-0.5) / (math.sqrt(2 * math.pi) * 0.2))
    assert at(INTEGER, 0.5, 0.5, 0.1) == pytest.approx(0.9)
    assert at(INTEGER, 0.5, 0.0, 0.1) == pytest.approx(0.45 * 0.1**0.5)
    assert at(CATEGORY, 0.25, 0.25, 0.1, 4) == pytest.approx(0.9)
    assert at(CATEGORY, 0.5, 0.25, 0.1, 4) == pytest.approx(0.1 / 3)


def test_a_product_over_features_and_a_mean_over_points():
    density = ProductKernelDensity(
        np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([0.2, 0.2]), (CATEGORY, CATEGORY), (2, 2)
    )
    # At (0, .5) each of the two points agrees in one of two coordinates: 0.8 * 0.2 each.
    assert density(np.array([[0.0, 0.5], [0.0, 0.0]])) == pytest.approx([0.16, (0.64 + 0.04) / 2])


@given(st.integers(1, 6), st.integers(2, 5), st.floats(1e-3, 0.5))
def test_the_unordered_kernel_is_a_distribution_over_all_categories(n, categories, floor):
    data = np.random.default_rng(n).integers(categories, size=(n, 1)) / categories
    density = ProductKernelDensity.fit(data, [CATEGORY], [categories], floor)
    assert density(np.arange(categories)[:, None] / categories).sum() == pytest.approx(1.0)


def test_a_category_absent_from_the_good_points_has_a_finite_density():
    density = ProductKernelDensity.fit(np.zeros((4, 1)), [CATEGORY], [3], 0.1)
    assert density(np.array([[0.0], [1 / 3], [2 / 3]])) == pytest.approx([0.9, 0.05, 0.05])


def test_ratio_of_vanishing_densities_is_one():
    far = ProductKernelDensity(np.array([[0.0]]), np.array([1e-3]), (NUMBER,), (1,))
    assert density_ratio(far, far, np.array([[1.0]])) == pytest.approx([1.0])


def test_size_of_the_good_part():
    assert num_good(40, 3, 15) == 6
    assert num_good(19, 3, 15) == 3
    # More good points than features are needed: 14, 20, 27, 54 observations for 1, 2, 3, 7 features with the defaults.
    for d, first in ((1, 14), (2, 20), (3, 27), (7, 54)):
        usable = [n for n in range(1, 60) if is_usable(n, num_good(n, d, 15), d)]
        assert usable[0] == first
    # With a floor of twice the features: 3d + 1.
    assert next(n for n in range(60) if is_usable(n, num_good(n, 6, 15), 3)) == 10


def test_equal_values_are_split_in_the_order_of_arrival():
    good, bad = split([1.0, 0.0, 1.0, 1.0], 2)
    assert good.tolist() == [1, 0]
    assert bad.tolist() == [2, 3]


@given(st.floats(0, 1), st.floats(1e-3, 10), st.floats(0, 1, exclude_max=True))
def test_truncated_normal_stays_in_the_interval(mean, scale, quantile):
    assert 0.0 <= truncated_normal(mean, scale, quantile) <= 1.0


def test_truncated_normal_by_hand():
    assert truncated_normal(0.5, 0.1, 0.5) == pytest.approx(0.5)
    # Half a normal: the median of the positive part is the 3/4 quantile, 0.67449 standard deviations.
    assert truncated_normal(0.0, 0.1, 0.5) == pytest.approx(0.067449, abs=1e-6)
    # A very wide normal is uniform on [0, 1].
    assert truncated_normal(0.3, 1e3, 0.9) == pytest.approx(0.9, abs=1e-5)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError):
        ProductKernelDensity.fit(np.zeros((0, 1)), [NUMBER], [1], 0.1)
    with pytest.raises(ShapeError):
        ProductKernelDensity.fit(np.zeros((2, 2)), [NUMBER], [1], 0.1)
