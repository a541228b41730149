from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.searcher import Observation, Pending
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, choice, uniform
from lightning_hpo.searchers.history import (
    learning_curves,
    limit_outliers,
    multi_fidelity,
    needs_refit,
    promotion_cuts,
    single_fidelity,
    too_early,
)
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 10)})


def rungs():
    view = View(LINE, rung_levels=(1, 3))
    view.add({"x": 1.0}, 0.5, 0.4, 0.3, pending=9)
    view.add({"x": 2.0}, 0.6)
    view.add({"x": 3.0}, pending=1)
    return view


def test_observations_at_their_resources():
    history = multi_fidelity(rungs(), at_levels_only=True)
    assert history.observed.trial_ids == (0, 0, 1)
    assert history.observed.resources == (1, 3, 1)
    assert history.observed.inputs[:, 0] == pytest.approx([0.1, 0.1, 0.2])
    assert history.values.tolist() == [0.5, 0.3, 0.6]
    assert (history.pending.trial_ids, history.pending.resources) == ((0, 2), (9, 1))
    assert history.pending.inputs[:, 0] == pytest.approx([0.1, 0.3])
    assert history.counts() == {1: 2, 3: 1}


def test_observations_between_levels_only_where_the_model_can_use_them():
    view = rungs()
    view.observations.append(Observation(0, 2, 0.4))
    view.pending.append(Pending(1, 2))
    assert len(multi_fidelity(view, at_levels_only=True)) == 3
    history = multi_fidelity(view, at_levels_only=False)
    assert len(history) == 4
    assert history.pending.resources == (9, 1, 2)


def test_one_observation_per_trial_without_fidelity():
    view = View(LINE)
    view.add({"x": 1.0}, 0.5, 0.4)
    view.add({"x": 2.0}, 0.6, 0.7, 0.8)
    view.add({"x": 3.0}, pending=9)
    history = single_fidelity(view)
    assert history.values.tolist() == [0.4, 0.8]
    assert history.observed.resources == (1, 1)
    assert (history.pending.trial_ids, history.pending.resources) == ((2,), (1,))


def test_curves_end_at_the_first_gap_and_pending_ones_follow_directly():
    view = View(LINE, rung_levels=(1, 3))
    gap = view.add({"x": 1.0}, 0.5, 0.4, 0.3, 0.2, pending=9)
    del view.curves[gap][3]
    view.add({"x": 2.0}, 0.6, 0.5, 0.4)
    view.add({"x": 3.0}, pending=1)
    history = learning_curves(view)
    assert list(zip(history.observed.trial_ids, history.observed.resources, strict=True)) == [
        (0, 1), (0, 2), (1, 1), (1, 2), (1, 3),
    ]  # fmt: skip
    assert history.values.tolist() == [0.5, 0.4, 0.6, 0.5, 0.4]
    assert history.pending.trial_ids == (0,) * 7 + (2,)
    assert history.pending.resources == (3, 4, 5, 6, 7, 8, 9, 1)


def test_nothing_observed_gives_empty_arrays_of_the_right_shape():
    view = View(LINE, rung_levels=(1, 3))
    for make in (single_fidelity, learning_curves, lambda v: multi_fidelity(v, True)):
        history = make(view)
        assert history.observed.inputs.shape == (0, 1)
        assert len(history) == len(history.pending) == 0


def test_suggested_configurations_count_for_the_random_beginning_whatever_became_of_them():
    options = SearcherOptions()
    view = View(LINE)
    view.add({"x": 1.0}, pending=9)
    view.add({"x": 2.0}, failed=True)
    assert too_early(view, options) == "random: configuration 3 of the first 3"
    view.add({"x": 3.0}, pending=9)
    assert too_early(view, options) == "random: nothing is observed yet"
    view.add({"x": 4.0}, 0.5)
    assert too_early(view, options) is None


def test_six_random_configurations_with_rungs_unless_told_otherwise():
    view = View(LINE, rung_levels=(1, 3))
    for x in range(5):
        view.add({"x": float(x)}, 0.5)
    assert too_early(view, SearcherOptions()) == "random: configuration 6 of the first 6"
    assert too_early(view, SearcherOptions(num_init_random=5)) is None
    view.add({"x": 4.0}, 0.5)  # a duplicate is no further configuration
    assert too_early(view, SearcherOptions()) is not None


def test_a_model_takes_over_when_there_is_nothing_else_to_try_first():
    view = View(SearchSpace({"c": choice(["a", "b"])}), rung_levels=(1, 3))
    view.add({"c": "a"}, 0.5)
    options = SearcherOptions(allow_duplicates=True)
    assert too_early(view, options) == "random: configuration 2 of the first 2"
    view.add({"c": "b"}, 0.4)
    assert too_early(view, options) is None
    restricted = View(LINE)
    restricted.add({"x": 1.0}, 0.5)
    assert too_early(restricted, SearcherOptions(restrict_configurations=[{"x": 1.0}])) is None


def refits(sizes, max_t_counts=None, **options):
    """At which of these successive data sizes the parameters are fitted."""
    state, fitted = None, []
    for n, at_max_t in zip(sizes, max_t_counts or [0] * len(sizes), strict=True):
        if needs_refit(state, SearcherOptions(**options), n, at_max_t):
            fitted.append(n)
            state = {"num_observations": n, "num_at_max_t": at_max_t}
    return fitted


def test_without_rungs_every_trial_reaches_max_t_and_only_the_period_counts():
    sizes = list(range(3, 12))
    without_rungs = {"max_t_counts": [None] * len(sizes), "opt_skip_init_length": 5, "opt_skip_period": 3}
    assert refits(sizes, **without_rungs, opt_skip_num_max_resource=True) == [3, 4, 5, 8, 11]


def test_changed_data_are_fitted_and_unchanged_are_not():
    assert refits([1, 1, 2, 2, 2, 5, 5]) == [1, 2, 5]


def test_every_so_many_observations_above_the_initial_length():
    sizes = list(range(8, 25))
    assert refits(sizes, opt_skip_init_length=10, opt_skip_period=4) == [8, 9, 10, 14, 18, 22]
    # Data that grow in jumps: the period counts observations, and a fit that is due is not lost.
    assert refits([10, 13, 13, 14, 14, 19], opt_skip_init_length=10, opt_skip_period=4) == [10, 14, 19]


def test_only_when_a_trial_reached_the_end():
    at_max_t = [0, 0, 0, 1, 1, 1, 2, 2]
    options = {"opt_skip_init_length": 10, "opt_skip_period": 4, "opt_skip_num_max_resource": True}
    assert refits(range(9, 17), at_max_t, **options) == [9, 10, 12, 15]


def test_shrunken_data_are_fitted_anew():
    assert refits([20, 19], opt_skip_init_length=10, opt_skip_period=4) == [20, 19]


def test_with_rungs_at_least_so_many_random_configurations_for_each_hyperparameter():
    view = View(LINE, rung_levels=(1, 3))
    for x in range(9):
        view.add({"x": float(x)}, 0.5)
    options = SearcherOptions(num_init_random=6, num_init_random_factor=9.5)
    assert too_early(view, options) == "random: configuration 10 of the first 10"
    assert too_early(view, SearcherOptions(num_init_random=6, num_init_random_factor=9.0)) is None
    without_rungs = View(LINE)
    for x in range(6):
        without_rungs.add({"x": float(x)}, 0.5)
    assert too_early(without_rungs, options) is None


def test_the_worst_value_of_those_that_go_on_from_each_rung_below():
    view = View(LINE, rung_levels=(1, 3))
    for value in (0.9, 0.3, 0.5, 0.7, 0.2, 0.8):
        view.add({"x": value}, value)
    view.add({"x": 1.0}, 0.6, 0.5, 0.4)
    history = multi_fidelity(view, at_levels_only=True)
    # A third of seven goes on from rung 1: the best two. The one at rung 3 is no third.
    assert promotion_cuts(view, history, 9, first=1) == {1: 0.3}
    assert promotion_cuts(view, history, 3, first=1) == {1: 0.3}
    assert promotion_cuts(view, history, 1, first=1) == {}
    for value in (0.1, 0.15):
        view.add({"x": value}, 0.05, 0.05, value)
    history = multi_fidelity(view, at_levels_only=True)
    assert promotion_cuts(view, history, 9, first=1) == {1: 0.2, 3: 0.1}
    # A trial of the second bracket is judged at 3 first, one of the third nowhere below 9.
    assert promotion_cuts(view, history, 9, first=3) == {3: 0.1}
    assert promotion_cuts(view, history, 9, first=9) == {}


def test_rungs_that_lie_closer_promote_more():
    view = View(LINE, max_t=4, rung_levels=(2,))
    for value in (0.4, 0.3, 0.2, 0.1):
        view.add({"x": value}, value, value)
    assert promotion_cuts(view, multi_fidelity(view, at_levels_only=True), 4, first=2) == {2: 0.2}


def test_a_diverged_value_is_brought_near_the_others_of_its_level() -> None:
    y = np.array([0.2, 0.4, 1e6, 5.0, 8.0, 1e6, 9.0])
    resource = np.array([9, 9, 9, 1, 1, 1, 1])
    # Medians 0.4 and 8.5, of all 8; the best are 0.2 and 5, of all 0.2: limits 0.4 + 10 * 7.8 and 8.5 + 10 * 7.8.
    np.testing.assert_allclose(limit_outliers(y, resource), [0.2, 0.4, 78.4, 5.0, 8.0, 86.5, 9.0])
    assert y[2] == 1e6  # the study's own data stay
    np.testing.assert_allclose(limit_outliers(y, resource, far=3.0)[[2, 5]], [0.4 + 3 * 7.8, 8.5 + 3 * 7.8])


def test_a_level_that_is_worse_as_a_whole_is_left_as_it_is() -> None:
    y = np.array([50.0, 60.0, 70.0, 0.10, 0.11, 0.12, 0.13, 0.14])
    resource = np.array([1, 1, 1, 9, 9, 9, 9, 9])
    np.testing.assert_array_equal(limit_outliers(y, resource), y)


def test_where_most_values_are_equal_no_other_is_moved() -> None:
    np.testing.assert_array_equal(limit_outliers(np.array([0.9, 0.3, 0.3, 0.3])), [0.9, 0.3, 0.3, 0.3])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_limiting_outliers_keeps_the_order_and_the_better_half(values: list[float]) -> None:
    y = np.array(values)
    limited = limit_outliers(y)
    assert (limited <= y).all()
    assert (np.diff(limited[np.argsort(y, kind="stable")]) >= 0).all()
    better = y <= np.median(y)
    np.testing.assert_array_equal(limited[better], y[better])
