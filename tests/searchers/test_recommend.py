from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_hpo.core.options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.errors import NumericalError, ReportError
from lightning_hpo.searchers.recommend import moving_average, recommend, report_noise
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})
OPTIONS = SearcherOptions()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_moving_averages_of_full_windows():
    assert moving_average({1: 1.0, 2: 2.0, 3: 6.0}, 2) == pytest.approx([1.5, 4.0])
    assert moving_average({5: 1.0, 10: 3.0}, 5) == pytest.approx([2.0])
    assert moving_average({5: 1.0, 10: 3.0}, 1) == pytest.approx([1.0, 3.0])


def test_noise_is_estimated_from_second_differences():
    rng = np.random.default_rng(0)
    decay = 1.0 / np.arange(1, 401)
    curves = [decay + 0.05 * rng.standard_normal(400) for _ in range(5)]
    assert np.sqrt(report_noise(curves)) == pytest.approx(0.05, rel=0.1)
    assert report_noise([np.linspace(1.0, 0.0, 20)]) == pytest.approx(0.0, abs=1e-12)
    assert report_noise([np.array([0.5])]) == 0.0


def test_the_luckiest_report_does_not_win():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    steady = [0.30] * 27
    view.add({"x": 0.1}, *steady)
    lucky = [0.40] * 27
    lucky[20] = 0.25
    view.add({"x": 0.2}, *lucky)
    found = recommend(view, OPTIONS)
    assert (found.trial_id, found.config) == (0, {"x": 0.1})
    assert found.mean == pytest.approx(0.30)


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
    best_average = min(moving_average(view.curve(i), 5).min() for i in range(6))
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


def test_a_single_report_and_none():
    view = View(LINE, rung_levels=(1, 3))
    with pytest.raises(ReportError, match="Tell the study"):
        recommend(view, OPTIONS)
    view.add({"x": 0.1}, 0.7)
    found = recommend(view, OPTIONS)
    assert (found.trial_id, found.mean, found.std) == (0, 0.7, 0.0)


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
    averages = [moving_average(view.curve(i), 5).min() for i in range(4)]
    assert recommend(view, OPTIONS).trial_id == int(np.argmin(averages))
