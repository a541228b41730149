"""What a searcher sees."""

from __future__ import annotations

import math

import pytest

from lightning_hpo.core.events import (
    WorkerReady,
)
from lightning_hpo.core.trial import TrialStatus
from tests.core.driving import Driven, promotion


class TestView:
    def test_curves_are_finite_and_minimised(self):
        study = Driven(algorithm="random", max_t=9, mode="max")
        study.ready()
        study.train(0, 0.5, math.nan, 0.7)
        assert study.state.view().curve(0) == {1: -0.5, 3: -0.7}

    def test_what_ended_with_a_report_that_is_not_finite_or_failed_without_any_is_infeasible(self):
        study = Driven(algorithm="random", max_t=3, confirm={"top": 1, "seeds": 1}, n_trials=5)
        for trial, curve in enumerate([(0.5, math.nan, 0.4), (0.5, 0.4, math.inf), (0.5, -math.inf)]):
            study.ready()
            study.train(trial, *curve)
        assert study.state.view().infeasible == {1: 3}  # the last one still runs
        study.fail(2)
        assert study.state.view().infeasible == {1: 3, 2: 2}
        study.ready()
        study.train(3, 0.3, 0.3, 0.3)
        study.ready()  # a confirmation
        assert study[4].confirms is not None
        study.train(4, 0.5, 0.5, math.nan)
        assert study.state.view().infeasible == {1: 3, 2: 2}

    def test_what_failed_before_its_first_report_is_infeasible_but_not_what_was_lost(self):
        study = Driven(algorithm="random", max_t=3, max_retries=0, max_failures_in_a_row=100)
        study.ready()
        study.fail(0)
        study.ready()
        study.lose(1)
        assert [study[i].status for i in (0, 1)] == [TrialStatus.FAILED] * 2
        assert study.state.view().infeasible == {0: 1}

    def test_what_failed_after_a_finite_report_is_not(self):
        study = Driven(algorithm="random", max_t=3)
        study.ready()
        study.train(0, 0.5)
        study.fail(0)
        assert study[0].status is TrialStatus.FAILED
        assert study.state.view().infeasible == {}

    def test_a_trial_is_busy_while_it_trains_and_not_while_it_waits(self):
        study = promotion(max_t=9)
        study.time = 10.0
        study.ready()
        study.time = 14.0
        study.train(0, 0.5)
        assert study.state.busy_seconds(0) == pytest.approx(4.0)
        for trial in (1, 2):
            study.ready()
            study.train(trial, 0.6)
        study.time = 1000.0
        assert study.job() == "0->3"
        study.time = 1006.0
        study.train(0, 0.5, 0.5)
        assert study.state.busy_seconds(0) == pytest.approx(10.0)

    def test_what_the_searcher_remembers_comes_back_as_json_would_bring_it(self):
        study = promotion()
        study.handle(WorkerReady(0.0))
        study.suggest(0, searcher_state={"theta": (0.5, math.nan), "n": 3})
        assert study.state.view().state == {"theta": [0.5, "nan"], "n": 3}
        assert study.replayed().searcher_state == study.state.searcher_state

    def test_the_next_request_is_the_one_that_will_come(self):
        study = promotion(brackets=3, random_seed=5)
        for _ in range(30):
            expected = study.state.next_request()
            (wanted,) = study.handle(WorkerReady(0.0))
            assert study.state.request(wanted) == expected
            study.suggest(wanted.trial_id)
