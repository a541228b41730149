from __future__ import annotations

import math

import pytest

from lightning_hpo.core.observations import SearcherData
from lightning_hpo.errors import OptionError
from tests.core.driving import Driven


def seen(study: Driven):
    return [tuple(o) for o in study.state.data.observations()], [tuple(p) for p in study.state.data.pending()]


class TestRungs:
    def test_only_reports_at_levels_are_observed_and_only_the_next_milestone_is_pending(self):
        study = Driven(max_t=9)
        study.ready()
        assert seen(study) == ([], [(0, 1)])
        study.tell(0, 1, 0.5)
        assert seen(study) == ([(0, 1, 0.5)], [(0, 3)])
        study.tell(0, 2, 0.4)
        assert seen(study) == ([(0, 1, 0.5)], [(0, 3)])
        study.tell(0, 3, 0.3)
        assert seen(study) == ([(0, 1, 0.5), (0, 3, 0.3)], [(0, 9)])
        for resource in range(4, 10):
            study.tell(0, resource, 0.2)
        assert seen(study) == ([(0, 1, 0.5), (0, 3, 0.3), (0, 9, 0.2)], [])

    def test_levels_that_the_trials_bracket_skips_are_observed_too(self):
        study = Driven(max_t=9, brackets=3, random_seed=1)
        while not study.state.trials or study[len(study.state.trials) - 1].bracket == 0:
            study.ready()
        trial = len(study.state.trials) - 1
        assert study[trial].milestone > 1
        study.tell(trial, 1, 0.5)
        assert (trial, 1, 0.5) in seen(study)[0]

    def test_a_level_that_was_jumped_over_is_not_expected_any_more(self):
        study = Driven(max_t=27)
        study.ready()
        study.tell(0, 2, 0.5)  # counts for level 1
        assert seen(study) == ([(0, 1, 0.5)], [(0, 3)])
        study.tell(0, 10, 0.4)  # passes 3 and 9
        assert seen(study) == ([(0, 1, 0.5), (0, 9, 0.4)], [(0, 27)])

    def test_nor_if_it_is_lost(self):
        study = Driven(max_t=27, late_reports="lost")
        study.ready()
        study.tell(0, 2, 0.5)
        assert seen(study) == ([], [(0, 3)])
        study.tell(0, 3, 0.4)
        assert seen(study) == ([(0, 3, 0.4)], [(0, 9)])

    def test_a_paused_trial_has_nothing_pending_until_it_is_resumed(self):
        study = Driven(type="promotion", max_t=9)
        for value in (0.5, 0.3, 0.4):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        assert seen(study)[1] == []
        assert study.job() == "1->3"
        assert seen(study)[1] == [(1, 3)]

    def test_a_trial_that_ended_between_two_levels_counts_at_the_next(self):
        study = Driven(max_t=9)
        study.ready()
        study.train(0, 0.5, 0.4)
        study.state.data.complete(0, 2, 0.4)
        assert seen(study) == ([(0, 1, 0.5), (0, 3, 0.4)], [])


class TestAll:
    def test_every_report_is_observed_and_every_unit_up_to_the_milestone_is_pending(self):
        study = Driven(max_t=9, searcher_data="all")
        study.ready()
        assert seen(study) == ([], [(0, 1)])
        study.tell(0, 1, 0.5)
        assert seen(study) == ([(0, 1, 0.5)], [(0, 2), (0, 3)])
        study.tell(0, 2, 0.4)
        assert seen(study) == ([(0, 1, 0.5), (0, 2, 0.4)], [(0, 3)])

    def test_a_resumed_trial_is_expected_from_where_it_paused(self):
        study = Driven(type="promotion", max_t=9, searcher_data="all")
        for value in (0.5, 0.3, 0.4):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        assert seen(study)[1] == [(1, 2), (1, 3)]

    def test_repeated_reports_of_a_trial_trained_again_from_scratch_are_not_observed_again(self):
        study = Driven(type="promotion", max_t=9, searcher_data="all")
        for value in (0.5, 0.3, 0.4):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        study.report(1, 1, 0.99)
        assert (1, 1, 0.3) in seen(study)[0] and seen(study)[1] == [(1, 2), (1, 3)]

    def test_myopic_registers_only_the_next_unit(self):
        study = Driven(max_t=9, searcher_data="all", register_pending_myopic=True)
        study.ready()
        for resource in range(1, 5):
            assert seen(study)[1] == [(0, resource)]
            study.tell(0, resource, 0.5)

    def test_myopic_means_nothing_for_rungs(self):
        study = Driven(max_t=27, register_pending_myopic=True)
        study.ready()
        study.train(0, 0.5, 0.5, 0.5)
        assert seen(study)[1] == [(0, 9)]


class TestRungsAndLast:
    def test_keeps_milestones_and_the_last_report(self):
        study = Driven(max_t=9, searcher_data="rungs_and_last")
        study.ready()
        study.train(0, 0.5, 0.4)
        assert seen(study)[0] == [(0, 1, 0.5), (0, 2, 0.4)]
        study.train(0, 0.3)
        assert seen(study)[0] == [(0, 1, 0.5), (0, 3, 0.3)]
        study.train(0, 0.2, 0.1)
        assert seen(study)[0] == [(0, 1, 0.5), (0, 3, 0.3), (0, 5, 0.1)]


class TestFailures:
    @pytest.mark.parametrize("data", ["rungs", "all", "rungs_and_last"])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_values_that_are_not_finite_are_no_observations_and_leave_nothing_pending(self, data, bad):
        study = Driven(max_t=9, searcher_data=data)
        study.ready()
        study.tell(0, 1, bad)
        assert seen(study) == ([], [])

    @pytest.mark.parametrize(("value", "seen"), [(1e308, 1e100), (-1e308, -1e100), (1e99, 1e99)])
    def test_a_value_whose_square_would_overflow_is_cut(self, value, seen):
        data = SearcherData(levels=[1, 3], max_t=9)
        data.start(0, 1)
        data.report(0, 1, value, level=1, milestone=3, continues=True)
        data.complete(0, 2, value)
        assert [o.value for o in data.observations()] == [seen, seen]

    def test_a_failed_trial_has_nothing_pending_and_the_others_keep_theirs(self):
        study = Driven(max_t=9)
        study.ready()
        study.ready()
        study.fail(0)
        assert seen(study) == ([], [(1, 1)])

    def test_a_lost_trial_that_will_be_tried_again_stays_pending(self):
        study = Driven(max_t=9)
        study.ready()
        study.lose(0)
        assert seen(study)[1] == [(0, 1)]


class TestFifo:
    def test_learns_from_the_last_report_of_complete_trials(self):
        study = Driven(algorithm="random", max_t=3)
        study.ready()
        study.train(0, 0.1, 0.2)
        assert seen(study) == ([], [(0, 3)])
        study.train(0, 0.3)
        assert seen(study) == ([(0, 3, 0.3)], [])


def test_maximised_metrics_are_observed_negated():
    study = Driven(max_t=9, mode="max")
    study.ready()
    study.train(0, 0.9)
    assert seen(study)[0] == [(0, 1, -0.9)]


def test_a_view_keeps_what_it_was_given():
    study = Driven(max_t=9)
    study.ready()
    before = study.state.view().observations
    study.train(0, 0.5)
    assert before == [] and len(study.state.view().observations) == 1
    assert study.state.view().observations is study.state.view().observations


def test_an_unknown_kind_is_refused():
    with pytest.raises(OptionError, match="Choose one of rungs, all, rungs_and_last"):
        SearcherData("rung")
