from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_hpo.core.confirmation import moving_average
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.errors import NumericalError, ReportError
from lightning_hpo.searchers.recommend import recommend, report_noise
from lightning_hpo.surrogates.data import Observations
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})
OPTIONS = SearcherOptions()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_moving_averages_of_full_windows():
    assert moving_average({1: 1.0, 2: 2.0, 3: 6.0}, 2) == pytest.approx([1.5, 4.0])
    assert moving_average({3: 1.0, 4: 3.0}, 5) == pytest.approx([2.0])
    assert moving_average({5: 1.0, 10: 3.0}, 5) == pytest.approx([1.0, 3.0])
    assert moving_average({5: 1.0, 10: 3.0}, 1) == pytest.approx([1.0, 3.0])


def test_noise_is_estimated_from_second_differences():
    rng = np.random.default_rng(0)
    decay = 1.0 / np.arange(1, 401)
    curves = [decay + 0.05 * rng.standard_normal(400) for _ in range(5)]
    assert np.sqrt(report_noise(curves)) == pytest.approx(0.05, rel=0.1)
    assert report_noise([np.linspace(1.0, 0.0, 20)]) == pytest.approx(0.0, abs=1e-12)
    assert report_noise([np.array([0.5])]) is None


def test_the_luckiest_report_does_not_win():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    steady = [0.30] * 27
    view.add({"x": 0.1}, *steady)
    lucky = [0.40] * 27
    lucky[20] = 0.25
    view.add({"x": 0.2}, *lucky)
    found = recommend(view, OPTIONS)
    assert (found.trial_id, found.config, found.confirmations) == (0, {"x": 0.1}, 0)
    assert found.mean == pytest.approx(0.30)


def test_a_configuration_that_failed_is_recommended_only_if_all_did():
    view = View(LINE, max_t=9)
    view.add({"x": 0.1}, *[0.1] * 9)
    view.add({"x": 0.2}, *[0.2] * 9)
    view.failed.add(0)
    assert recommend(view, OPTIONS).trial_id == 1
    view.failed.add(1)
    assert recommend(view, OPTIONS).trial_id == 0


def test_a_curve_that_gets_worse_counts_by_its_best_stretch():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    view.add({"x": 0.1}, *[0.30] * 27)
    view.add({"x": 0.2}, *[0.25] * 15, *[0.50] * 12)
    assert recommend(view, OPTIONS).trial_id == 1


def test_trials_of_the_two_highest_levels_are_candidates():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    view.add({"x": 0.1}, *[0.30] * 27)
    view.add({"x": 0.2}, *[0.28] * 9)
    view.add({"x": 0.3}, *[0.10] * 3)
    assert recommend(view, OPTIONS).trial_id == 1


def test_without_rungs_only_complete_trials_are_candidates_unless_there_is_none():
    view = View(LINE, max_t=27)
    view.add({"x": 0.1}, *[0.10] * 5)
    assert recommend(view, OPTIONS).trial_id == 0
    view.add({"x": 0.2}, *[0.30] * 27)
    assert recommend(view, OPTIONS).trial_id == 1


def test_noise_draws_expectations_together():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    rng = np.random.default_rng(0)
    for i in range(6):
        view.add({"x": i / 6}, *(0.5 + 0.01 * i + 0.1 * rng.standard_normal(27)))
    best_average = min(min(moving_average(view.curve(i), 5)) for i in range(6))
    found = recommend(view, OPTIONS)
    assert best_average < found.mean < 0.55
    # The mean of five reports with standard deviation 0.1 has 0.045.
    assert 0.0 <= found.std < 0.055


def test_a_study_with_a_model_smooths_over_configurations():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    rng = np.random.default_rng(1)
    for i in range(12):
        x = (i + 0.5) / 12
        view.add({"x": x}, *((x - 0.6) ** 2 + 0.2 + 0.08 * rng.standard_normal(27)))
    view.state = {"parameters": {}}
    found = recommend(view, OPTIONS)
    assert found.config["x"] == pytest.approx(0.6, abs=0.15)
    assert 0.0 < found.std < 0.08
    assert found == recommend(view, OPTIONS)


def test_a_model_that_fails_leaves_the_simpler_answer(monkeypatch):
    def refuse(self, data, theta):
        raise NumericalError("Not positive definite. Use other data.")

    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    view.add({"x": 0.1}, *[0.30] * 27)
    view.add({"x": 0.2}, *[0.40] * 27)
    simple = recommend(view, OPTIONS)
    view.state = {"parameters": {}}
    monkeypatch.setattr("lightning_hpo.surrogates.models.JointModel.posterior", refuse)
    assert recommend(view, OPTIONS) == simple


@pytest.mark.parametrize("diverged", [1e3, 1e15, 1e100])
@pytest.mark.parametrize("state", [None, {"parameters": {}}])
def test_beside_a_diverged_trial_the_others_are_told_apart(diverged, state):
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    view.add({"x": 0.9}, *[diverged] * 27)
    for i in range(8):
        x = i / 10
        view.add({"x": x}, *[(x - 0.3) ** 2 + 0.2] * 27)
    view.state = state
    found = recommend(view, OPTIONS)
    assert found.config["x"] == 0.3
    assert found.mean == pytest.approx(0.2, abs=0.02)
    assert found.std < 0.1


def test_whatever_the_noise_of_the_reports_there_is_an_answer():
    view = View(LINE, max_t=9, rung_levels=(1, 3), state={"parameters": {}})
    for i in range(4):
        view.add({"x": i / 4}, *[10.0 ** -(100 + i)] * 4, 1e100, 1.0, 1e100, 1.0, 1e100)
    assert math.isfinite(recommend(view, OPTIONS).mean)


def test_of_many_candidates_the_model_sees_no_more_than_a_search_shows_it(monkeypatch):
    """Its cost grows with their third power: two thousand would take minutes."""
    view, rng = View(LINE, max_t=9, state={"parameters": {}}), np.random.default_rng(0)
    for _ in range(120):
        x = float(rng.uniform())
        view.add({"x": x}, *(x - 0.3) ** 2 + 0.02 * rng.standard_normal(9))
    sizes, rows = [], Observations.from_rows
    monkeypatch.setattr(Observations, "from_rows", lambda x, y: sizes.append(len(y)) or rows(x, y))
    found = recommend(view, SearcherOptions(max_size_data_for_model=40, max_size_top_fraction=0.0))
    assert sizes == [40]
    assert found.config["x"] == pytest.approx(0.3, abs=0.05)
    assert found.config == view.configs[found.trial_id]
    assert 0.0 < found.std < 0.02


def test_the_only_bad_trial_is_not_recommended_beside_equal_ones():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    view.add({"x": 0.9}, *[0.9] * 27)
    for x in (0.1, 0.2, 0.3):
        view.add({"x": x}, *[0.3] * 27)
    assert recommend(view, OPTIONS).config["x"] < 0.9


@pytest.mark.parametrize("unit", [1e-300, 1e-12, 1e12, 1e90])
def test_the_unit_of_the_metric_does_not_matter(unit):
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    for i in range(8):
        x = i / 10
        view.add({"x": x}, *[unit * ((x - 0.3) ** 2 + 0.2)] * 27)
    view.state = {"parameters": {}}
    found = recommend(view, OPTIONS)
    assert found.config["x"] == 0.3
    assert found.mean == pytest.approx(0.2 * unit, rel=0.05)


def test_a_single_report_and_none():
    view = View(LINE, rung_levels=(1, 3))
    with pytest.raises(ReportError, match="Tell the study"):
        recommend(view, OPTIONS)
    view.add({"x": 0.1}, 0.7)
    found = recommend(view, OPTIONS)
    assert (found.trial_id, found.mean, found.std) == (0, 0.7, math.inf)


def test_equal_trials():
    view = View(LINE, rung_levels=(1, 3))
    for i in range(4):
        view.add({"x": i / 4}, *[0.5] * 9)
    assert recommend(view, OPTIONS).mean == pytest.approx(0.5)
    view.state = {"parameters": {}}
    assert recommend(view, OPTIONS).mean == pytest.approx(0.5)


def test_where_noise_explains_everything_the_lowest_average_still_wins():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    rng = np.random.default_rng(3)
    for i in range(4):
        view.add({"x": i / 4}, *(0.5 + 0.2 * rng.standard_normal(27)))
    averages = [min(moving_average(view.curve(i), 5)) for i in range(4)]
    assert recommend(view, OPTIONS).trial_id == int(np.argmin(averages))


class TestStandardDeviation:
    """Moving averages have a width of one report: ``max_t`` is 4."""

    def test_what_is_to_come_until_max_t_counts_by_what_came_in_trials_that_got_there(self):
        view = View(LINE, max_t=4, rung_levels=(1, 2))
        view.add({"x": 0.1}, 0.9, 0.6, 0.5, 0.4)
        view.add({"x": 0.2}, 0.9, 0.6, 0.5, 0.5)
        view.add({"x": 0.3}, 0.9, 0.3)
        found = recommend(view, OPTIONS)
        # From 2 to 4 epochs the complete trials changed by 0.2 and 0.1: mean square 0.025. The values 0.4, 0.5 and 0.3
        # have the variance 0.01, which bounds their noise: second differences are too few to tell it.
        assert (found.trial_id, found.mean) == (2, 0.3)
        assert found.std == pytest.approx(math.sqrt(0.025 + 0.01))

    def test_where_no_trial_got_there_the_change_so_far_counts(self):
        view = View(LINE, max_t=16, rung_levels=(1, 4))
        view.add({"x": 0.1}, 0.9, 0.8, 0.7, 0.7)
        found = recommend(view, OPTIONS)
        # Averages of five reports: that of the first one (4 * 4 / 16) is 0.9, of all four 0.775. A single trial does
        # not tell the noise of its reports.
        assert (found.mean, found.std) == (pytest.approx(0.775), math.inf)
        view.add({"x": 0.2}, 0.9, 0.9, 0.9, 0.9)
        # Changes of 0.125 and 0: mean square 0.0078125. Variance of 0.775 and 0.9: 0.0078125.
        assert recommend(view, OPTIONS).std == pytest.approx(math.sqrt(2 * 0.0078125))

    def test_a_complete_trial_has_nothing_to_come(self):
        view = View(LINE, max_t=3)
        view.add({"x": 0.1}, 0.5, 0.4, 0.3)
        view.add({"x": 0.2}, 0.9, 0.8, 0.5)
        assert recommend(view, OPTIONS).std == pytest.approx(math.sqrt(0.02))

    def test_where_noise_explains_everything_the_common_mean_is_uncertain_still(self):
        view = View(LINE, max_t=27)
        for x, sign in ((0.1, 1), (0.2, -1)):
            view.add({"x": x}, *([0.5 + sign * 0.1, 0.5 - sign * 0.1] * 14)[:27])
        noise = (0.4 / 0.6745) ** 2 / 6 / 5  # all second differences are 0.4; averages of five
        found = recommend(view, OPTIONS)
        assert found.mean == pytest.approx(0.48)  # both lowest averages
        assert found.std == pytest.approx(math.sqrt(noise / 2))


class TestConfirmed:
    def test_the_mean_over_confirmations_decides_and_the_lucky_search_does_not(self):
        view = View(LINE, max_t=3, rung_levels=(1,))
        lucky = view.add({"x": 0.1}, 0.5, 0.4, 0.1)
        steady = view.add({"x": 0.2}, 0.5, 0.4, 0.2)
        view.add({"x": 0.3}, 0.5, 0.4, 0.05)
        view.confirm(lucky, [0.9, 0.5, 0.6], [0.9, 0.8, 0.7])
        view.confirm(steady, [0.9, 0.6, 0.2], [0.9, 0.6, 0.4])
        view.state = {"parameters": {}}
        found = recommend(view, OPTIONS)
        # Means 0.6 (0.5, 0.7: the best epochs) and 0.3; squares 0.02 + 0.02 over 2 degrees of freedom: variance 0.02 of
        # a training, 0.01 of a mean. Means spread by 0.045, of which 0.035 is not noise: 7/9 of the distance stays.
        kept = 0.035 / 0.045
        assert (found.trial_id, found.config, found.confirmations) == (steady, {"x": 0.2}, 2)
        assert found.mean == pytest.approx(0.45 - kept * 0.15)
        assert found.std == pytest.approx(math.sqrt(kept * 0.01 + (1 - kept) ** 2 * 0.045 / 2))

    def test_fewer_confirmations_are_trusted_less(self):
        view = View(LINE, max_t=3, rung_levels=(1,))
        for i in range(3):
            view.add({"x": i / 3}, 0.5, 0.4, 0.3)
        view.confirm(0, [0.30], [0.50], [0.40])
        view.confirm(1, [0.60], [0.80], [0.70])
        view.confirm(2, [0.38])
        # Variance of a training 0.01: of the means 0.01 / 3, 0.01 / 3 and 0.01. Trial 2 is lower by 0.02 only.
        found = recommend(view, OPTIONS)
        assert (found.trial_id, found.confirmations) == (0, 3)

    def test_a_configuration_that_diverged_once_is_not_recommended(self):
        view = View(LINE, max_t=3)
        view.add({"x": 0.1}, 0.5, 0.4, 0.1)
        view.add({"x": 0.2}, 0.5, 0.4, 0.2)
        view.confirm(0, [0.1, 0.1, 0.1], [])
        view.confirm(1, [0.6, 0.5, 0.4])
        found = recommend(view, OPTIONS)
        assert (found.trial_id, found.mean, found.std, found.confirmations) == (1, 0.4, math.inf, 1)
        view.confirmations = {0: [1000 + 3]}
        assert recommend(view, OPTIONS).confirmations == 0


def test_many_trials_that_were_trained_less_do_not_hide_the_one_that_is_complete() -> None:
    """Their values are higher because they were trained less; beside thirty of them a low one looks like noise."""
    view = View(SearchSpace({"x": uniform(0.0, 1.0)}), max_t=9, rung_levels=(1, 3))
    view.state = {"parameters": {}}
    xs = [0.285, *np.linspace(0.05, 0.6, 30)]
    for x, length in zip(xs, [9] + [3] * 30, strict=True):
        view.add({"x": float(x)}, *[(x - 0.3) ** 2 + 1.0 / r for r in range(1, length + 1)])
    found = recommend(view, SearcherOptions())
    assert found.trial_id == 0
    assert found.mean < 0.3
