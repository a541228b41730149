"""What a free worker is given to do."""

from __future__ import annotations

import pytest

from lightning_hpo.core.events import (
    Finish,
    Idle,
    Start,
    StudyContinued,
    Suggested,
    SuggestionWanted,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import StudyError
from tests.core.driving import Driven, promotion


class TestStarting:
    def test_initial_configurations_come_first_and_are_completed(self):
        study = Driven(max_t=9, points_to_evaluate=[{"x": 0.25}, {}])
        first, second, third = study.ready(), study.ready(), study.ready()
        assert [d.config for d in (first, second, third)] == [{"x": 0.25}, {"x": 0.5}, {"x": 0.0003}]
        assert [t.origin for t in study.state.trials.values()] == ["initial", "initial", "random"]

    def test_of_restricted_configurations_only_those_are_initial_that_are_among_them(self):
        searcher = {"restrict_configurations": [{"x": 0.25}, {"x": 0.75}]}
        study = Driven(algorithm="random", max_t=9, points_to_evaluate=[{}, {"x": 0.25}], searcher=searcher)
        assert list(study.state.initial_configs) == [{"x": 0.25}]
        assert list(Driven(max_t=9, points_to_evaluate=None, searcher=searcher).state.initial_configs) == []

    def test_that_nothing_was_left_to_do_does_not_hold_when_trials_are_attached(self):
        """What they tell may let others go on, as if the question had not been asked in between."""
        study = promotion(max_t=3, n_trials=1)
        study.ready()
        study.train(0, 0.5)
        assert isinstance(study.ready(), Finish)
        for trial in (1, 2):
            study.handle(Suggested(0.0, trial, {"x": 0.1 * trial}, "attached", "chosen outside"))
            study.train(trial, 0.6)
        assert study.job() == "0->3"

    def test_without_initial_configurations_the_middle_of_the_space_is_tried(self):
        study = Driven(max_t=9, points_to_evaluate=None)
        assert study.ready().config == {"x": 0.5}

    def test_a_trial_is_pending_from_the_moment_it_is_decided_on(self):
        study = promotion()
        study.ready()
        assert study.state.data.pending() == [(0, 1)]

    def test_no_second_suggestion_is_wanted_before_the_first_has_come(self):
        study = promotion()
        (wanted,) = study.handle(WorkerReady(0.0))
        assert isinstance(wanted, SuggestionWanted) and study.state.wanted == wanted
        (decision,) = study.handle(WorkerReady(0.0))
        assert decision == Idle("waiting for the searcher")
        study.suggest(0)
        assert study.state.wanted is None

    def test_a_promotion_goes_before_a_new_trial(self):
        study = promotion()
        for value in (0.5, 0.3, 0.4):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        assert study.job() == "1->3"

    def test_n_trials_is_a_total(self):
        study = Driven(algorithm="random", max_t=2, n_trials=3)
        assert study.run(lambda i, r: 0.5) == "n0 n1 n2"
        assert study.ready() == Finish("all 3 trials are done")

    def test_a_total_below_what_there_is_already_is_told_as_that(self):
        study = Driven(algorithm="random", max_t=2, n_trials=3)
        study.run(lambda i, r: 0.5)
        study.handle(StudyContinued(study.time, {**study.options.limits(), "n_trials": 2}))
        assert study.ready() == Finish("n_trials is 2, and there are 3 trials already")

    def test_promotions_go_on_when_all_trials_are_started(self):
        study = promotion(n_trials=3)
        jobs = study.run(lambda i, r: 0.1 * i)
        assert jobs == "n0 n1 n2 0->3"
        assert study.ready() == Finish("all 3 trials are done")

    def test_a_finite_space_ends_with_what_is_left_to_promote(self):
        study = promotion()
        for value in (0.5, 0.3, 0.4):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        (wanted,) = study.handle(WorkerReady(0.0))
        assert study.handle(Suggested(0.0, wanted.trial_id, None, "none", "nothing is left")) == []
        assert study.job() == "idle"
        study.train(1, 0.3, 0.3)
        assert study.ready() == Finish("every configuration has been tried")

    def test_suggestions_are_answered_in_order(self):
        study = promotion()
        study.handle(WorkerReady(0.0))
        with pytest.raises(StudyError, match="next trial is 0, not 1"):
            study.suggest(1)
        assert study.state.wanted is not None  # the right answer may still come
        study.suggest(0)

    def test_an_attached_trial_needs_no_request(self):
        study = promotion()
        (start,) = study.handle(Suggested(0.0, 0, {"x": 0.7}, "attached", "by hand"))
        assert isinstance(start, Start) and start.milestone == 1
        study.train(0, 0.5)
        assert study[0].status is TrialStatus.PAUSED

    def test_constants_reach_the_trial_but_not_the_searcher(self):
        from lightning_hpo.core.domains import uniform

        space = SearchSpace({"x": uniform(0, 1), "epochs": 9})
        state = StudyState(space, StudyOptions.from_mapping({"metric": "m", "algorithm": "asha", "max_t": 9}))
        (start,) = state.handle(WorkerReady(0.0))
        assert start.config == {"x": 0.5, "epochs": 9}
        assert state.view().configs == {0: {"x": 0.5}}


def test_why_a_study_ends_is_told_with_the_numbers_of_now_also_after_a_replay():
    study = Driven(algorithm="random", max_t=9, stop={"max_num_evaluations": 2})
    study.ready()
    study.train(0, 0.5, 0.4, 0.3)
    assert study.ready() == Finish("3 evaluations were reported, max_num_evaluations is 2")
    study.train(0, 0.2)
    live, replayed = study.ready(), study.replayed().handle(WorkerReady(study.time))[0]
    assert live == replayed == Finish("4 evaluations were reported, max_num_evaluations is 2")


class TestBatches:
    def test_start_together_and_only_when_nothing_runs(self):
        study = Driven(algorithm="random", max_t=1, asynchronous=False, n_workers=3)
        assert [study.job() for _ in range(4)] == ["n0", "n1", "n2", "idle"]
        study.train(0, 0.5)
        study.train(2, 0.5)
        assert study.ready() == Idle("the batch is not complete")
        study.train(1, 0.5)
        assert [study.job() for _ in range(4)] == ["n3", "n4", "n5", "idle"]

    def test_do_not_begin_with_a_worker_that_finds_nothing_to_do(self):
        """A rung sends on one of four, and only three may start: nothing to do."""
        study = promotion(max_t=16, reduction_factor=4, asynchronous=False, n_workers=3, n_trials=3)
        for _ in range(3):
            study.ready()
        for trial in range(3):
            study.train(trial, 0.1 * trial)
        assert isinstance(study.ready(), Finish)
        for trial in (3, 4):
            study.handle(Suggested(study.time, trial, {"x": 0.5}, "attached", ""))
        study.train(3, 0.9)
        live, replayed = study.ready(), study.replayed().handle(WorkerReady(study.time))[0]
        assert live == replayed == Idle("the batch is not complete")

    def test_resumed_trials_count(self):
        study = promotion(asynchronous=False, n_workers=3)
        for _ in range(3):
            study.ready()
        for trial, value in enumerate((0.5, 0.3, 0.4)):
            study.train(trial, value)
        assert [study.job() for _ in range(4)] == ["1->3", "n3", "n4", "idle"]
