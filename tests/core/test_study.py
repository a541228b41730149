from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    DropCheckpoint,
    Finish,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    StudyContinued,
    Told,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.trial import Checkpoint, TrialStatus
from lightning_hpo.errors import ReportError
from tests.core.driving import SETTINGS, Driven, play, promotion, snapshot, stories


class TestReports:
    def test_of_a_trial_that_is_not_known_are_refused(self):
        study = promotion()
        with pytest.raises(ReportError, match=r"no trial 7.*an id that ask\(\) returned\.$"):
            study.handle(Reported(0.0, 7, 1, 1, 0.5))

    @pytest.mark.parametrize("resource", [0, -1, 1.5, True, "2"])
    def test_at_an_impossible_resource_are_refused(self, resource):
        study = promotion()
        study.ready()
        with pytest.raises(ReportError, match="Report after 1, 2, 3"):
            study.report(0, resource, 0.5)

    def test_that_are_refused_leave_the_clock_as_it_was(self):
        study = promotion()
        study.ready()
        before = study.state.progress.time
        study.time += 99.0
        with pytest.raises(ReportError):
            study.report(0, 0, 0.5)
        assert study.state.progress.time == before

    def test_that_come_twice_change_nothing(self):
        study = Driven(max_t=9, searcher_data="all")
        study.ready()
        study.tell(0, 1, 0.5)
        study.tell(0, 2, 0.4)
        before = snapshot(study.state)
        assert study.report(0, 2, 0.1).verdict is Verdict.CONTINUE
        assert study.report(0, 1, 0.1).verdict is Verdict.CONTINUE
        assert snapshot(study.state) == before

    def test_out_of_order_change_nothing(self):
        """Values at 1, 2 and 4 arrive, then the one of 3, which is a rung: the report at 4 has counted for it."""
        study = Driven(max_t=9)
        study.ready()
        for resource in (1, 2, 4):
            study.tell(0, resource, 0.5)
        before = snapshot(study.state)
        study.report(0, 3, 0.1)
        assert snapshot(study.state) == before
        assert study.state.data.observations() == [(0, 1, 0.5), (0, 3, 0.5)]

    def test_after_the_decision_get_the_same_decision_again(self):
        study = promotion()
        study.ready()
        told = study.report(0, 1, 0.5)
        assert told.verdict is Verdict.PAUSE
        before = snapshot(study.state)
        assert study.report(0, 1, 0.5) == told
        assert study.report(0, 2, 0.1) == told
        assert snapshot(study.state) == before

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.STOPPED, Outcome.LOST])
    def test_after_the_end_are_told_to_stop_though_the_last_answer_was_to_go_on(self, outcome):
        study = Driven(max_t=9)
        study.ready()
        assert study.report(0, 1, 0.5).verdict is Verdict.CONTINUE
        study.end(0, outcome)
        before = snapshot(study.state)
        assert study.report(0, 2, 0.4).verdict is Verdict.STOP
        assert snapshot(study.state) == before

    def test_of_a_trial_that_is_complete_change_nothing(self):
        study = Driven(algorithm="random", max_t=2)
        study.ready()
        study.tell(0, 1, 0.5)
        told = study.report(0, 2, 0.4)
        assert told.completed
        before = snapshot(study.state)
        assert study.report(0, 2, 0.1) == study.report(0, 3, 0.1) == told
        assert snapshot(study.state) == before

    def test_of_an_earlier_attempt_are_fenced_off(self):
        study = promotion()
        study.ready()
        study.lose(0)
        assert study.job() == "0->1" and study[0].attempt == 2
        before = snapshot(study.state)
        assert study.report(0, 1, 0.01, attempt=1).verdict is Verdict.STOP
        old = Checkpoint(1, "0/1.ckpt", "0" * 64, 10)
        assert study.handle(CheckpointSaved(0.0, 0, 1, old)) == []
        study.handle(AttemptStarted(5.0, 0, 1))
        study.handle(AttemptEnded(5.0, 0, 1, Outcome.COMPLETED))
        assert snapshot(study.state) == before

    def test_that_are_refused_change_nothing(self):
        study = Driven(type="cost_promotion", max_t=9)
        study.ready()
        before = snapshot(study.state)
        with pytest.raises(ReportError, match="no cost"):
            study.report(0, 1, 0.5)
        assert snapshot(study.state) == before
        assert study.report(0, 1, 0.5, cost=2.0).verdict is Verdict.PAUSE

    def test_that_jump_over_a_milestone_may_be_refused_and_change_nothing(self):
        study = promotion(late_reports="lost")
        study.ready()
        before = snapshot(study.state)
        with pytest.raises(ReportError, match="without a report at its milestone 1"):
            study.report(0, 2, 0.5)
        assert snapshot(study.state) == before

    def test_a_cost_that_is_not_finite_or_falls_does_not_count(self):
        study = Driven(algorithm="random", max_t=9)
        study.ready()
        for resource, cost in enumerate((2.0, math.nan, 1.0, math.inf, 5.0), 1):
            study.tell(0, resource, 0.5, cost=cost)
        assert study.state.progress.cost == study[0].cost == 5.0


class TestPauseAndResume:
    def paused(self):
        """Three trials reported at rung 1; the best, 1, was told to pause, and its process still writes."""
        study = promotion()
        for _ in range(3):
            study.ready()
        study.train(0, 0.5)
        study.train(2, 0.4)
        study.report(1, 1, 0.3)
        return study

    def test_a_trial_is_not_resumed_before_its_process_has_ended(self):
        study = self.paused()
        assert study[1].status is TrialStatus.PAUSING
        assert study.job() == "n3"
        study.save(1, 1)
        assert study.job() == "n4"
        study.end(1, Outcome.PAUSED)
        assert study.job() == "1->3"

    def test_a_resumed_trial_gets_its_checkpoint_and_a_new_attempt(self):
        study = self.paused()
        study.save(1, 1)
        study.end(1, Outcome.PAUSED)
        resume = study.ready()
        assert isinstance(resume, Resume)
        assert (resume.from_resource, resume.milestone, resume.attempt) == (1, 3, 2)
        assert resume.checkpoint == study[1].checkpoint

    def test_a_trial_whose_checkpoint_was_never_written_starts_again_and_repeats_what_is_known(self):
        study = self.paused()
        study.lose(1)  # killed while it wrote
        resume = study.ready()
        assert (resume.trial_id, resume.from_resource, resume.checkpoint, resume.milestone) == (1, 0, None, 3)
        assert study.train(1, 0.2) is Verdict.CONTINUE  # at 2
        assert study.report(1, 1, 0.9).verdict is Verdict.CONTINUE
        assert study[1].curve == {1: 0.3, 2: 0.2}
        assert study[1].failures == 0

    def test_a_newer_checkpoint_replaces_the_older(self):
        study = self.paused()
        study.save(1, 1)
        study.end(1, Outcome.PAUSED)
        study.ready()
        old = study[1].checkpoint
        (drop,) = study.save(1, 3)
        assert drop == DropCheckpoint(1, old, "a newer checkpoint is saved")

    def test_a_checkpoint_that_is_gone_means_training_from_scratch(self):
        study = self.paused()
        study.save(1, 1)
        study.end(1, Outcome.PAUSED)
        study.handle(CheckpointRemoved(0.0, 1, "it is damaged"))
        assert study.ready().from_resource == 0

    def test_checkpoints_of_final_trials_are_dropped_but_the_best_ones(self):
        study = Driven(algorithm="random", max_t=2)
        dropped = []
        for trial, value in enumerate((0.3, 0.5, 0.1)):
            study.ready()
            study.save(trial, 1)
            decisions = study.handle(Reported(0.0, trial, 1, 2, value)) + study.end(trial, Outcome.COMPLETED)
            dropped.append([d.trial_id for d in decisions if isinstance(d, DropCheckpoint)])
        assert dropped == [[], [1], [0]]

    def test_a_checkpoint_that_the_last_launcher_did_not_delete_is_dropped_again(self):
        study = Driven(max_t=9, min_rung_entries="two")
        study.ready()
        study.train(0, 0.3)
        study.ready()
        study.save(1, 1)
        assert study.train(1, 0.5) is Verdict.STOP  # it was decided to delete the checkpoint, and the launcher died
        assert study.handle(StudyContinued(0.0)) == []
        assert study.ready().trial_id == 0
        decisions = study.handle(AttemptStarted(0.0, 0, 2))
        assert [d.trial_id for d in decisions if isinstance(d, DropCheckpoint)] == [1]

    def test_a_requested_pause_comes_at_the_next_report_and_the_trial_waits_for_a_worker(self):
        study = Driven(algorithm="random", max_t=9)
        study.ready()
        study.handle(PauseRequested(0.0, 0, "Ctrl-C"))
        assert study.report(0, 1, 0.5) == Told(0, Verdict.PAUSE, "Ctrl-C")
        study.save(0, 1)
        study.end(0, Outcome.PAUSED)
        assert study[0].status is TrialStatus.WAITING and study[0].failures == 0
        assert study.ready().from_resource == 1
        assert study.train(0, 0.4) is Verdict.CONTINUE

    def test_a_requested_pause_at_a_milestone_is_the_schedulers(self):
        study = promotion()
        study.ready()
        study.handle(PauseRequested(0.0, 0, "Ctrl-C"))
        study.train(0, 0.5)
        assert study[0].status is TrialStatus.PAUSED


class TestFailures:
    def test_a_lost_trial_is_tried_again_before_anything_else_starts(self):
        study = promotion()
        study.ready()
        study.ready()
        study.save(0, 1)
        study.lose(0)
        resume = study.ready()
        assert (resume.trial_id, resume.attempt, resume.from_resource) == (0, 2, 1)

    @pytest.mark.parametrize("retries", [0, 1, 2])
    def test_a_lost_trial_is_tried_again_max_retries_times(self, retries):
        study = promotion(max_retries=retries)
        study.ready()
        for _ in range(retries):
            study.lose(0)
            assert study.job() == "0->1"
        study.lose(0)
        assert study[0].status is TrialStatus.FAILED
        assert study[0].error == "killed by SIGKILL"
        assert study.job() == "n1"

    def test_an_interrupted_attempt_is_no_failure(self):
        study = promotion(max_retries=0)
        study.ready()
        for _ in range(5):
            study.end(0, Outcome.INTERRUPTED)
            assert study.job() == "0->1"
        assert study[0].failures == 0

    def test_a_failed_trial_is_not_tried_again_nor_its_configuration(self):
        study = promotion()
        study.ready()
        study.fail(0)
        assert study[0].status is TrialStatus.FAILED
        assert study.state.data.pending() == []
        view = study.state.view()
        assert view.failed == {0}
        assert set(view.taken_by_failed) == {study.state.space.match_key({"x": 0.0001})}
        assert study.job() == "n1"

    def test_earlier_values_of_a_failed_trial_stay(self):
        study = Driven(max_t=9)
        study.ready()
        study.train(0, 0.5, 0.4)
        study.fail(0)
        assert study.state.data.observations() == [(0, 1, 0.5)]
        assert study.state.scheduler.rungs()[1].entries() == [(0, 0.5, False)]

    def test_a_script_that_ends_without_a_report_failed(self):
        study = promotion()
        study.ready()
        study.end(0, Outcome.COMPLETED)
        assert study[0].status is TrialStatus.FAILED and "without a single report" in study[0].error

    @pytest.mark.parametrize("blank", ["", " ", "\n", "\x1c\u2028\t"])
    def test_an_error_without_a_word_is_an_unknown_one(self, blank):
        study = promotion()
        for _ in range(3):
            study.fail(study.ready().trial_id, blank)
        assert study[0].status is TrialStatus.FAILED and study[0].error is None
        assert study.state.repeated_error == (0, "unknown error")

    def test_the_same_error_in_the_first_three_trials_ends_the_study(self):
        study = promotion()
        for trial in range(3):
            assert study.job() == f"n{trial}"
            study.fail(trial, f"Traceback: line {trial}\nImportError: no module named timm")
        assert study.state.repeated_error == (0, "ImportError: no module named timm")
        (decision,) = study.handle(WorkerReady(0.0))
        assert isinstance(decision, Finish) and "first 3 trials failed" in decision.reason

    def test_also_after_other_errors_and_the_first_of_the_three_is_named(self):
        study = promotion()
        for trial, error in enumerate(("A: once", "B: again", "B: again", "B: again")):
            assert study.job() == f"n{trial}"
            study.fail(trial, error)
        assert study.state.repeated_error == (1, "B: again")
        (decision,) = study.handle(WorkerReady(0.0))
        assert (
            isinstance(decision, Finish) and decision.reason == "the last 3 trials failed with the same error: B: again"
        )

    @pytest.mark.parametrize("folder", ["{0}", "runs/lr=0.{0}"])
    def test_errors_that_differ_by_the_name_of_the_trials_folder_are_the_same(self, folder):
        study = promotion()
        for trial in range(3):
            study.ready()
            study.handle(AttemptStarted(0.0, trial, 1, folder=folder.format(trial)))
            study.fail(trial, f"FileNotFoundError: '/study/{folder.format(trial)}/data.csv'")
        assert study.state.repeated_error == (0, f"FileNotFoundError: '/study/{folder.format(0)}/data.csv'")

    def test_nor_does_the_address_of_an_object_make_them_differ(self):
        study = promotion()
        for trial in range(3):
            study.ready()
            study.fail(trial, f"TypeError: <Net object at 0x7f{trial}a31c> is not callable")
        assert study.state.repeated_error == (0, "TypeError: <Net object at 0x7f0a31c> is not callable")

    def test_twenty_in_a_row_that_differ_in_numbers_are(self):
        """Fewer are not: the numbers may be those of the configurations, as of a size that does not fit."""
        study = promotion()
        for trial in range(20):
            assert study.state.repeated_error is None and study.job() == f"n{trial}"
            study.fail(trial, f"OutOfMemoryError: {100 + trial}.31 MiB are free, process {4000 + trial} has 77 GiB")
        assert study.state.repeated_error == (0, "OutOfMemoryError: 100.31 MiB are free, process 4000 has 77 GiB")
        (decision,) = study.handle(WorkerReady(0.0))
        assert isinstance(decision, Finish) and decision.reason.startswith("the first 20 trials failed with the same")

    def test_errors_that_differ_in_more_than_that_are_not(self):
        study = promotion()
        for trial in range(3):
            study.ready()
            study.handle(AttemptStarted(0.0, trial, 1, folder=str(trial)))
            study.fail(trial, f"FileNotFoundError: '/data/{trial}.csv'")
        assert study.state.repeated_error is None

    def test_different_errors_do_not(self):
        study = promotion()
        for trial in range(6):
            study.ready()
            study.fail(trial, f"ValueError: {trial}")
        assert study.job() == "n6"

    def test_nor_the_same_error_after_some_trial_has_reported(self):
        study = promotion()
        study.ready()
        study.train(0, 0.5)
        for trial in range(1, 6):
            study.ready()
            study.fail(trial)
        assert study.state.repeated_error is None and study.job() == "n6"

    def test_but_twenty_in_a_row_without_a_report_in_between_do(self):
        """What was there for the first trials is gone: the GPU, the data."""
        study = promotion(max_t=3)
        study.ready()
        study.train(0, 0.5)
        for trial in range(1, 20):
            study.ready()
            study.fail(trial, "OSError: no such mount")
        study.ready()
        study.train(20, 0.4)
        for trial in range(21, 40):
            study.ready()
            study.fail(trial, "OSError: no such mount")
        assert study.state.repeated_error is None, "a report came in between"
        study.ready()
        study.fail(40, "OSError: no such mount")
        assert study.state.repeated_error == (21, "OSError: no such mount")
        (decision,) = study.handle(WorkerReady(0.0))
        assert isinstance(decision, Finish) and decision.reason.startswith("the last 20 trials failed")


class TestAttempts:
    def test_an_attempt_to_come_is_refused_as_what_it_reports_would_be_lost(self):
        study = promotion()
        study.ready()
        for event in (Reported(0.0, 0, 2, 1, 0.5), AttemptEnded(0.0, 0, 2, Outcome.COMPLETED)):
            with pytest.raises(
                ReportError, match=r"has had 1 attempts, .* Open it with the version that recorded it\.$"
            ):
                study.state.handle(event)
        assert study[0].curve == {} and study[0].status is TrialStatus.RUNNING


class TestContinuing:
    def test_running_trials_wait_for_a_worker_and_paused_ones_for_promotion(self):
        study = promotion()
        for _ in range(4):
            study.ready()
        for trial, value in enumerate((0.5, 0.3, 0.4)):
            study.train(trial, value)
        study.handle(StudyContinued(100.0))
        assert study[3].status is TrialStatus.WAITING
        assert [study.job() for _ in range(3)] == ["3->1", "1->3", "n4"]
        assert study[3].failures == 0

    def test_a_suggestion_that_was_under_way_is_wanted_again(self):
        study = promotion()
        (before,) = study.handle(WorkerReady(0.0))
        study.handle(StudyContinued(0.0))
        (after,) = study.handle(WorkerReady(0.0))
        assert after == before

    def test_a_larger_total_starts_more_trials(self):
        study = Driven(algorithm="random", max_t=1, n_trials=2)
        assert study.run(lambda i, r: 0.5) == "n0 n1"
        study.handle(StudyContinued(0.0, {"n_trials": 4}))
        assert study.state.options.n_trials == 4
        assert study.run(lambda i, r: 0.5) == "n2 n3"

    def test_a_smaller_total_starts_no_more(self):
        study = promotion(n_trials=100)
        for _ in range(4):
            study.ready()
        study.handle(StudyContinued(0.0, {"n_trials": 3}))
        for _ in range(4):
            study.ready()
        for trial in range(4):
            study.train(trial, 0.1 * trial)
        assert study.run(lambda i, r: 0.1 * i) == "0->3 1->3"  # n = 4: two are among the best third

    def test_a_new_stop_criterion_holds_from_then_on(self):
        study = Driven(algorithm="random", max_t=1, stop={"max_num_evaluations": 1})
        assert study.run(lambda i, r: 0.5) == "n0 n1"
        study.handle(StudyContinued(0.0, {"stop": {"max_num_evaluations": 3}}))
        assert study.run(lambda i, r: 0.5) == "n2 n3"

    def test_what_happened_under_other_limits_is_replayed_as_it_was(self):
        """Synchronous Hyperband does not wait for trials that will not come: the total decides on promotions."""
        study = Driven(algorithm="sync_hyperband", max_t=3, n_trials=2)
        assert study.run(lambda i, r: 0.1 * i) == "n0 n1 0->3"
        study.handle(StudyContinued(0.0, {"n_trials": 30}))
        assert study.job() == "n2"
        assert snapshot(study.replayed()) == snapshot(study.state)

    def test_time_passes_by_what_is_kept_only(self):
        """Else a study that is read would be another one than that which was run."""
        study = Driven(algorithm="random", max_t=1, n_trials=1)
        study.run(lambda i, r: 0.5)
        ended = study.time
        study.state.closing_reason(ended + 1.0)
        assert isinstance(study.state.handle(WorkerReady(ended + 2.0))[0], Finish)
        assert study.state.progress.time == study.replayed().progress.time <= ended

    def test_time_goes_on_where_it_ended(self):
        study = Driven(algorithm="random", max_t=9, stop={"max_wallclock_time": 100.0})
        study.time = 99.0
        study.ready()
        study.handle(StudyContinued(99.0))
        assert study.state.closing_reason(99.5) is None
        assert study.state.closing_reason(100.5) == "100.5 seconds have passed, max_wallclock_time is 100"


@settings(max_examples=20)
@pytest.mark.parametrize("name", SETTINGS)
@given(story=stories())
def test_a_study_is_its_events(name, story):
    """And it does not contradict itself after any of them: ``Driven`` looks."""
    study = Driven(**SETTINGS[name])
    play(study, story)
    replayed = study.replayed()
    assert snapshot(replayed) == snapshot(study.state)
    again = Driven(**SETTINGS[name])
    again.state, again.time = replayed, study.time
    assert [again.job() for _ in range(5)] == [study.job() for _ in range(5)]


@settings(max_examples=15)
@pytest.mark.parametrize("name", SETTINGS)
@given(story=stories(st.floats(-10, 10, allow_subnormal=False)))
def test_mode_max_is_the_mirror_of_min(name, story):
    # PASHA orders trials with equal values by their ids, and which comes first depends on the mode.
    story = [step._replace(value=step.value + 1e-6 * i) for i, step in enumerate(story)]
    smaller = Driven(**SETTINGS[name])
    larger = Driven(**{**SETTINGS[name], "mode": "max"})
    told = play(smaller, story)
    mirrored = play(larger, [step._replace(value=-step.value) for step in story])
    assert told == mirrored
    assert smaller.state.data.observations() == larger.state.data.observations()
    assert smaller.state.data.pending() == larger.state.data.pending()


@settings(max_examples=30)
@pytest.mark.parametrize("name", ["promotion", "pasha", "sync_hyperband", "dehb"])
@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), min_size=30, max_size=30))
def test_no_trial_is_promoted_twice_from_the_same_rung(name, values):
    study = Driven(**SETTINGS[name], n_trials=12)
    jobs = study.run(lambda i, r: values[(7 * i + r) % 30]).split()
    assert len(jobs) == len(set(jobs))


def test_a_training_that_ends_by_itself_where_it_was_to_pause_is_complete():
    study = promotion()
    study.ready()
    (told,) = study.handle(Reported(0.0, 0, 1, 1, 0.5))
    assert told.verdict is Verdict.PAUSE
    study.handle(AttemptEnded(0.0, 0, 1, Outcome.COMPLETED))
    assert study[0].status is TrialStatus.COMPLETED
    assert study.state.best_full == (0, 1, 0.5)
