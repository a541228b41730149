"""The coordinator, step by step on the virtual cluster of ``tests/faults``; random faults are in ``tests/faults``."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from typing import Any

import pytest

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Outcome,
    Reported,
    Resume,
    Start,
    StudyContinued,
    Suggested,
    SuggestionWanted,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import SuggestRequest
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import (
    BackendError,
    ChannelError,
    HpoError,
    MetricMissing,
    OptionError,
    RepeatedFailure,
    StudyError,
    StudyNotFound,
)
from lightning_hpo.runtime.backends.base import Exit
from lightning_hpo.runtime.coordinator import RunResult
from lightning_hpo.runtime.messages import Answer, Ended, Hello, Problem, Report, Saved, Welcome
from lightning_hpo.runtime.suggesting import Answered
from tests.faults import virtual
from tests.faults.virtual import NO_FAULTS, Faults, Host, Process, VirtualCluster, true_value

SPACE = SearchSpace({"x": uniform(0.0, 1.0)})


class Recorded(VirtualCluster):
    """Keeps what was said and done, in order."""

    def __init__(self, faults: Faults = NO_FAULTS, n_workers: int = 1, max_disk: int | None = None, **options: Any):
        given = {"metric": "loss", "algorithm": "asha", "type": "promotion", "max_t": 9, "n_trials": 3, **options}
        super().__init__(StudyOptions.from_mapping(given), SPACE, faults, n_workers=n_workers, max_disk=max_disk)
        self.said: list[str] = []
        self.replies: list[tuple[int, Welcome | Answer]] = []
        self.commits: list[list[str]] = []

    def say(self, message: str, warning: bool = False) -> None:
        super().say(message, warning)
        self.said.append(message)

    def reply(self, client: Any, reply: Welcome | Answer) -> None:
        self.replies.append((client.process.trial_id, reply))
        super().reply(client, reply)

    def after_commit(self, events: Any) -> None:
        self.commits.append([type(event).__name__ for event in events])
        super().after_commit(events)

    def answers(self, trial_id: int) -> list[str]:
        return [r.decision for i, r in self.replies if i == trial_id and isinstance(r, Answer)]

    def welcomes(self, trial_id: int) -> list[Welcome]:
        return [r for i, r in self.replies if i == trial_id and isinstance(r, Welcome)]

    def logged(self, kind: type) -> list[Any]:
        return [event for event in self.journal.events() if isinstance(event, kind)]


def test_a_backend_that_gives_up_ends_the_run_and_the_next_one_goes_on():
    made = Recorded(n_workers=2, n_trials=4, algorithm="random", type=None)
    poll = made.poll

    def give_up() -> Any:
        if made.now > 20.0:
            raise BackendError("The process that starts trials died again and again. Look for what kills it.")
        return poll()

    made.poll = give_up  # type: ignore[method-assign]
    result = made._launch()
    assert isinstance(result.problem, BackendError) and result.reason == "no trial can be run, BackendError"
    reported = {(e.trial_id, e.resource) for e in made.logged(Reported)}
    assert reported and made.acknowledged.keys() <= reported
    made.poll = poll  # type: ignore[method-assign]
    made._forget_processes()
    assert made.run().reason == "all 4 trials are done"


@pytest.mark.parametrize("noticed_by", ["a commit", "the channel"])
def test_a_study_that_was_deleted_ends_the_run_at_once(noticed_by: str, monkeypatch: pytest.MonkeyPatch):
    made = Recorded(n_workers=2, n_trials=4, algorithm="random", type=None)

    append = made.journal.append

    def refuse(events: Any) -> None:
        if made.now > 20.0:
            raise StudyNotFound("The study is gone. Put the folder back where it was.")
        append(events)

    def notice(server: Any) -> None:
        if made.now > 20.0:
            raise ChannelError("The socket was deleted. Let nothing delete it.")

    made.journal.append = refuse  # type: ignore[method-assign]
    if noticed_by == "the channel":
        monkeypatch.setattr(virtual.Server, "keep_listening", notice)
    with pytest.raises(StudyNotFound):
        made._launch()
    assert len(made.acknowledged) > 0 and made.now < 40.0
    assert not any("waits" in message for message in made.said)


class TestLedBySearcher:
    def test_a_trial_that_the_searcher_resumes_is_started_from_its_checkpoint(self):
        """Trials go on that no rank would send on: most of all that are paused, to any rung."""
        made = Recorded(algorithm="default", type=None, n_trials=12, n_workers=2)
        assert made.run().reason == "all 12 trials are done"
        resumed = [event for event in made.logged(Suggested) if event.resumes is not None]
        assert len(resumed) > 3
        again = [w for event in resumed for w in made.welcomes(event.resumes)[1:]]
        assert all(w.from_resource in (1, 3) and w.checkpoint_path for w in again) and len(again) >= len(resumed)

    def test_a_suggestion_that_comes_after_an_interrupt_starts_nothing(self):
        made = Recorded(algorithm="default", type=None, n_trials=12, n_workers=1)
        made.thinking_s = (5.0, 5.0)
        made.after(2.0, 2.0, lambda: made.last_coordinator.interrupt())
        result = made.run()
        launches = made.counts["launches"]
        assert launches > 1 or result.is_interrupted
        continued = next(i for i, e in enumerate(made.journal.events()) if isinstance(e, StudyContinued))
        assert not any(isinstance(e, Suggested) for e in list(made.journal.events())[:continued])


class TestConversation:
    def test_a_trial_is_welcomed_with_all_it_needs(self):
        made = Recorded(mode="max")
        made.run()
        first = made.welcomes(0)[0]
        assert first == Welcome("loss", "max", 9, "epoch", 0, None, None, None)
        resumed = next(i for i in range(3) if len(made.welcomes(i)) > 1)
        again = made.welcomes(resumed)[1]
        assert (again.from_resource, again.checkpoint_path) == (1, "hpo/epoch=1")
        assert again.checkpoint_sha256 == "0" * 64 and again.best is not None

    def test_it_is_told_to_pause_at_its_milestone_and_to_complete_at_max_t(self):
        made = Recorded(algorithm="random", type=None, max_t=3, n_trials=1)
        made.run()
        assert made.answers(0) == ["continue", "continue", "complete"]
        made = Recorded()
        made.run()
        assert all(made.answers(i)[0] == "pause" for i in range(3))

    def test_a_report_is_answered_after_its_commit_with_the_reason(self):
        """That it is committed first is asserted by the cluster."""
        made = Recorded()
        made.run()
        assert {r.reason for i, r in made.replies if isinstance(r, Answer)} >= {"rank 1 of 1 at rung 1"}

    def test_reports_that_arrive_together_share_a_commit(self):
        made = Recorded(algorithm="random", type=None, n_workers=4, n_trials=4)
        made.after = lambda least, most, action: VirtualCluster.after(made, 1.0, 1.0, action)  # type: ignore[method-assign]
        made.run()
        assert max(commit.count("Reported") for commit in made.commits) > 1

    def test_what_a_given_up_attempt_says_is_answered_with_stop(self):
        made = Recorded()
        made.run()
        ghost = Process(0, 1, {"x": 0.5})
        state, coordinator = made.durable, made.last_coordinator
        before = len(made.journal)
        for message in (Hello(0, 7, 1, None), Report(0, 7, 1, 0.1), Problem(0, 7, "MetricMissing", "x")):
            ghost.client.inbox.append(message)
            coordinator._receive([ghost.client])
            coordinator._commit()
            assert made.replies[-1] == (0, Answer("stop", "this attempt was given up"))
        assert len(made.journal) == before and state.trials[0].attempt != 7


class TestEnds:
    def outcome(self, *messages: Any, exit_code: int | None = 0, signal: int | None = None) -> AttemptEnded:
        """How an attempt is judged that says this and ends so, instead of training."""
        made = Recorded(n_trials=1, max_retries=0)

        def train(process: Process) -> None:
            for message in messages:
                made._say(process, message)
            made.after(0.1, 0.1, lambda: made._die(process, signal=signal, exit_code=exit_code))

        made._train = train  # type: ignore[method-assign]
        made.run()
        return made.logged(AttemptEnded)[0]

    def test_a_script_that_ended_by_itself_completed(self):
        ended = self.outcome(Report(0, 1, 1, true_value(0.5, 1)), Ended(0, 1, Outcome.COMPLETED))
        assert ended.outcome is Outcome.COMPLETED

    def test_a_script_that_raised_failed_with_its_error(self):
        ended = self.outcome(Ended(0, 1, Outcome.FAILED, "ValueError: nonsense"), exit_code=1)
        assert (ended.outcome, ended.error) == (Outcome.FAILED, "ValueError: nonsense")

    def test_a_process_that_ended_with_an_error_without_a_word_failed(self):
        ended = self.outcome(exit_code=3)
        assert (ended.outcome, ended.error) == (Outcome.FAILED, "ended with exit code 3")

    def test_a_killed_process_is_lost(self):
        ended = self.outcome(exit_code=None, signal=9)
        assert ended.outcome is Outcome.LOST
        assert ended.error == "killed by SIGKILL (out of memory?), peak memory 0.0 GiB"

    def test_so_is_one_that_vanished_without_a_word(self):
        assert self.outcome(exit_code=0).outcome is Outcome.LOST

    @pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.PAUSED])
    def test_a_process_that_does_not_leave_after_its_last_word_is_sent_away_and_that_word_counts(self, outcome):
        """A thread of the script's own goes on, or a logger waits for a server."""
        made = Recorded(algorithm="random", type=None, n_trials=1)
        made._epoch_timeout = None
        die = made._die
        made._die = lambda process, signal, exit_code=None, requested=False: (  # type: ignore[method-assign]
            die(process, signal, exit_code, requested) if requested or signal else None
        )
        if outcome is Outcome.PAUSED:
            made.options = dataclasses.replace(made.options, stop=StopCriterion(max_wallclock_time=12.0))
        made.run()
        (ended,) = made.logged(AttemptEnded)
        assert ended.outcome is outcome and 300.0 < made.now < 360.0

    def test_what_it_said_before_its_end_comes_before_its_end(self):
        made = Recorded(n_trials=1, algorithm="random", type=None, max_t=1)
        made.run()
        names = [type(event).__name__ for event in made.journal.events()]
        assert names.index("Reported") < names.index("AttemptEnded")


class TestProblems:
    def with_problem(self, kind: str, at: int, **options: Any) -> tuple[Recorded, Any]:
        """The trial ``at`` says what is wrong instead of training."""
        made = Recorded(**{"n_trials": 3, **options})
        train = made._train

        def training(process: Process) -> None:
            if process.trial_id != at:
                train(process)
                return
            made._say(process, Problem(process.trial_id, process.attempt, kind, "val_los was not logged. Log it."))
            made.after(1.0, 1.0, lambda: made._die(process, signal=None, exit_code=1))

        made._train = training  # type: ignore[method-assign]
        return made, made.run()

    def test_a_script_that_cannot_be_tuned_ends_the_study_with_its_error(self):
        made, result = self.with_problem("MetricMissing", at=0)
        assert isinstance(result.problem, MetricMissing)
        assert str(result.problem) == "val_los was not logged. Log it."
        assert result.reason == "the script cannot be tuned, MetricMissing"
        assert made.answers(0) == ["stop"] and len(made.durable.trials) == 1

    @pytest.mark.parametrize("kind", ["did_you_mean", "difflib", "TrialPaused", "no such name", "__doc__"])
    def test_a_problem_of_a_kind_that_is_no_error_of_ours_ends_it_too(self, kind: str):
        _, result = self.with_problem(kind, at=0)
        assert type(result.problem) is HpoError
        assert str(result.problem) == "val_los was not logged. Log it."

    def test_once_a_trial_has_reported_it_fails_its_own_trial_only(self):
        made, result = self.with_problem("MetricMissing", at=2)
        assert result.problem is None
        assert made.durable.trials[2].status is TrialStatus.FAILED
        assert made.durable.trials[2].error == "MetricMissing: val_los was not logged. Log it."

    def test_a_checkpoint_that_cannot_be_read_means_training_from_scratch(self):
        made = Recorded(Faults(checkpoint_damaged=1.0), n_trials=3)
        result = made.run()
        assert result.problem is None and made.counts["damaged checkpoints found"] == 1
        assert made.logged(CheckpointRemoved)[0].reason.endswith("is damaged. Train again.")
        trial = next(t for t in made.durable.trials.values() if t.attempt == 3)
        assert trial.failures == 1 and list(trial.curve) == [1, 2, 3]

    def test_the_same_error_three_times_ends_the_study_with_the_log_to_look_at(self):
        made = Recorded(n_trials=50)
        made._train = lambda p: (  # type: ignore[method-assign]
            made._say(p, Ended(p.trial_id, p.attempt, Outcome.FAILED, "ImportError: no module named timm")),
            made._die(p, signal=None, exit_code=1),
        )
        result = made.run()
        assert isinstance(result.problem, RepeatedFailure)
        assert "no module named timm" in str(result.problem) and "0/trial.log" in str(result.problem)
        assert len(made.durable.trials) == 3


class TestInterrupts:
    def test_once_pauses_running_trials_at_their_next_report(self):
        made = Recorded(Faults(interrupts_at=(4.0,)), algorithm="random", type=None, n_workers=2, n_trials=4)
        made.run()
        assert made.said[0].startswith("Pausing 2 running trials at their next report. Press Ctrl-C again")
        paused = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.PAUSED]
        assert len(paused) == 2
        assert {trial_id for trial_id, r in made.replies if isinstance(r, Answer) and r.decision == "pause"} == {0, 1}
        assert len(made.welcomes(0)) == 2 and made.welcomes(0)[1].from_resource >= 1

    def test_twice_stops_now_and_loses_only_the_epochs_since_the_last_report(self):
        made = Recorded(Faults(interrupts_at=(4.0, 4.0)), algorithm="random", type=None, n_workers=2, n_trials=4)
        made.run()
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert len(ended) == 2 and ended[0].time < 6.0
        assert all(t.failures == 0 and t.status is TrialStatus.COMPLETED for t in made.durable.trials.values())

    def test_a_time_limit_kills_what_has_not_paused(self):
        made = Recorded(algorithm="random", type=None, n_workers=2, n_trials=2)
        made.after(4.0, 4.0, lambda: made.last_coordinator.interrupt(limit_s=0.1, by=signal.SIGTERM))
        made.run()
        assert [e.outcome for e in made.logged(AttemptEnded)[:2]] == [Outcome.INTERRUPTED] * 2

    @pytest.mark.parametrize("presses", [1, 2])
    def test_a_disk_that_stays_full_does_not_keep_the_launcher(self, presses: int):
        """The end is that of a killed launcher: what is in the journal stands, and the study goes on from there."""
        made = Recorded(algorithm="random", type=None, n_workers=2, n_trials=4, max_retries=0)
        before_commit, ended_at, results = made.before_commit, [], []
        made.after(10.0, 10.0, lambda: setattr(made, "_is_full", True))

        def fail() -> None:
            if made._is_full:
                raise StudyError("The study cannot be written: disk full.")
            before_commit()

        def sleep(seconds: float) -> None:
            made.now += seconds
            if made.now >= 60.0 and made.last_coordinator._interrupts.count < presses:
                made.last_coordinator.interrupt(by=signal.SIGTERM, limit_s=30.0)

        launch = made._launch

        def launching() -> RunResult:
            results.append(launch())
            ended_at.append(made.now)
            if results[-1].is_interrupted:
                made._forget_processes()
            made._is_full = False
            return results[-1]

        made.before_commit, made.sleep, made._launch = fail, sleep, launching  # type: ignore[method-assign]
        made.run()
        assert (results[0].reason, results[0].interrupted_by) == ("interrupted", signal.SIGTERM) and len(results) == 2
        assert results[0].is_urgent or presses == 1
        assert ended_at[0] < (95.0 if presses == 1 else 70.0)
        assert "The study ends without what could not be written. " in made.said[2]
        assert all(t.status is TrialStatus.COMPLETED and t.failures == 0 for t in made.durable.trials.values())

    def test_nor_do_trials_whose_checkpoints_have_no_room(self):
        made = Recorded(Faults(interrupts_at=(30.0,)), n_workers=2, n_trials=4)
        launch, ended_at = made._launch, []
        made.faults = dataclasses.replace(made.faults, no_room=1.0)

        def launching() -> RunResult:
            result = launch()
            ended_at.append(made.now)
            made.faults = NO_FAULTS
            return result

        made._launch = launching  # type: ignore[method-assign]
        made.run()
        assert "2 wait for room on the disk, for 30 s at most. Press Ctrl-C again to stop now." in made.said[1]
        assert 60.0 < ended_at[0] < 65.0
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert [e.error for e in ended] == ["the disk had no room for its checkpoint"] * 2
        assert all(t.failures == 0 for t in made.durable.trials.values()) and len(made.durable.trials) == 4

    def test_the_result_names_the_signal(self):
        interrupted = RunResult("interrupted", signal.SIGTERM)
        assert interrupted.is_interrupted and not RunResult("all 4 trials are done").is_interrupted


class TestAStudyThatEndsByItself:
    """What runs pauses, so that whoever raises the limit later loses nothing."""

    def limited(self, faults: Faults = NO_FAULTS, **stop: Any) -> Recorded:
        return Recorded(faults, algorithm="random", type=None, n_workers=2, n_trials=4, stop=stop)

    def go_on(self, made: Recorded) -> None:
        """With larger limits, to the end."""
        made.options = dataclasses.replace(made.options, stop=StopCriterion())
        assert made.run().reason == "all 4 trials are done"
        reported = [(e.trial_id, e.resource) for e in made.logged(Reported)]
        assert sorted(reported) == [(trial, epoch) for trial in range(4) for epoch in range(1, 10)], "trained again"
        assert all(t.failures == 0 for t in made.durable.trials.values())

    @pytest.mark.parametrize(
        "stop", [{"max_wallclock_time": 12.0}, {"max_num_evaluations": 6}, {"min_metric_value": 0.75}], ids=str
    )
    def test_whatever_ended_it(self, stop: dict[str, Any]):
        made = self.limited(**stop)
        (name,) = stop
        assert name in made.run().reason
        ends = made.logged(AttemptEnded)
        paused = [e.trial_id for e in ends if e.outcome is Outcome.PAUSED]
        assert len(paused) == 2 and not any(e.outcome is Outcome.INTERRUPTED for e in ends)
        assert [e.trial_id for e in made.logged(CheckpointSaved)] == paused
        assert made.said[0].startswith("The study ends: ") and "Pausing 2 running trials at their next" in made.said[0]
        told = [r.reason for _, r in made.replies if isinstance(r, Answer) and r.decision == "pause"]
        assert len(told) == 2 and all(name in reason for reason in told)
        self.go_on(made)

    def test_the_criterion_is_as_strict_as_ever(self):
        made = self.limited(max_num_evaluations=6)
        assert made.run().reason == "7 evaluations were reported, max_num_evaluations is 6"
        reports = made.logged(Reported)
        assert len(reports) in (8, 9), "one more of each trial that runs: the seventh was followed by a pause or not"
        assert len(made.durable.trials) == 2

    def test_epochs_that_take_long_are_waited_for(self):
        made = self.limited(max_wallclock_time=1000.0)
        made._epoch_timeout = None
        made._train = lambda process: made.after(290.0, 310.0, lambda: made._trained(process))  # type: ignore[method-assign]
        made.run()
        assert 1000.0 < made.now < 1320.0
        assert sum(e.outcome is Outcome.PAUSED for e in made.logged(AttemptEnded)) == 2
        self.go_on(made)

    @pytest.mark.parametrize(
        ("epoch_s", "limit", "least", "most"), [(3.0, 20.0, 30.0, 33.0), (40.0, 100.0, 80.0, 90.0)]
    )
    def test_a_trial_that_says_nothing_more_is_not(self, epoch_s: float, limit: float, least: float, most: float):
        made = self.limited(max_wallclock_time=limit)
        made._epoch_timeout = None

        def train(process: Process) -> None:
            if process.trial_id == 0 or made.now < limit / 2:
                made.after(epoch_s, epoch_s, lambda: made._trained(process))

        made._train = train  # type: ignore[method-assign]
        result = made.run()
        assert "max_wallclock_time" in result.reason
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert [e.error for e in ended] == [f"the study ended: {result.reason}"]
        assert least <= made.now - limit <= most
        assert made.durable.trials[ended[0].trial_id].failures == 0

    def test_nor_is_one_that_has_been_writing_its_checkpoint_for_minutes(self):
        made = self.limited(max_wallclock_time=12.0)
        made._epoch_timeout = None
        made._save = lambda process: None  # type: ignore[method-assign]
        made.run()
        assert 312.0 < made.now < 330.0
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert len(ended) == 2 and all("max_wallclock_time" in e.error for e in ended)

    def test_nor_is_one_whose_checkpoint_has_no_room(self):
        made = self.limited(Faults(no_room=1.0), max_wallclock_time=12.0)
        made.run()
        assert 42.0 < made.now < 60.0
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert [e.error for e in ended] == ["the disk had no room for its checkpoint"] * 2

    def test_ctrl_c_twice_ends_it_now(self):
        made = self.limited(Faults(interrupts_at=(110.0, 111.0)), max_wallclock_time=100.0)
        made._epoch_timeout = None
        made._train = lambda process: made.after(90.0, 90.0, lambda: made._trained(process))  # type: ignore[method-assign]
        launched = made._launch()
        assert launched.is_interrupted and launched.is_urgent and made.now < 114.0
        assert [e.outcome for e in made.logged(AttemptEnded)] == [Outcome.INTERRUPTED] * 2


class TestTimeouts:
    def test_a_trial_that_runs_too_long_fails(self):
        made = Recorded(algorithm="random", type=None, max_t=9, n_trials=2)
        made.trial_timeout = 10.0
        made.run()
        assert all(t.status is TrialStatus.FAILED and "trial_timeout" in t.error for t in made.durable.trials.values())

    def test_trials_that_wait_for_the_disk_are_not_taken_for_hung(self):
        made = Recorded(Faults(journal_full=0.5), algorithm="random", type=None, n_trials=2)
        made.sleep = lambda seconds: VirtualCluster.sleep(made, 500.0)  # type: ignore[method-assign]
        made.run()
        assert made.counts["disk full"] > 0
        assert all(t.failures == 0 for t in made.durable.trials.values())
        assert "The study can be written again and goes on." in made.said


class TestRoom:
    def test_nothing_is_started_where_a_trial_would_find_no_room_for_its_files(self):
        made = Recorded(algorithm="random", type=None, n_trials=3)
        made.shortage = lambda: "the disk is full" if 10.0 < made.now < 100.0 else None
        made.run()
        started = [e.time for e in made.logged(AttemptStarted)]
        assert len(started) == 3 and not any(15.0 < time < 100.0 for time in started)
        assert made.now > 100.0 and all(t.failures == 0 for t in made.durable.trials.values())
        told = [message for message in made.said if "room" in message]
        assert told == [
            "Nothing is started while there is no room for a trial's files: the disk is full. Make room on it.",
            "There is room for trials again; the study goes on.",
        ]

    def test_ctrl_c_ends_the_wait(self):
        made = Recorded(Faults(interrupts_at=(50.0,)), algorithm="random", type=None, n_trials=3)
        made.shortage = lambda: "the disk is full" if made.now > 10.0 else None
        assert made._launch().is_interrupted and 50.0 <= made.now < 60.0


class TestSuggestions:
    def test_are_computed_ahead_while_workers_are_busy(self):
        made = Recorded(algorithm="random", type=None, max_t=9, n_trials=4)
        made.run()
        ready = [e for e in made.journal.events() if type(e).__name__ in ("WorkerReady", "Suggested")]
        waits = [b.time - a.time for a, b in itertools.pairwise(ready) if type(b).__name__ == "Suggested"]
        assert waits[1:] == [0.0] * len(waits[1:])  # only the first had to be waited for

    def test_that_were_computed_for_another_bracket_are_not_used(self):
        """While the answer was computed a promotion took the draw it was made for."""
        made = Recorded(n_trials=20, brackets=3, n_workers=3)
        used: list[SuggestRequest] = []
        wanted: list[SuggestRequest] = []
        event = made.event

        def watch(happened: Any, decisions: Any, state: Any) -> None:
            wanted.extend(state.request(d) for d in decisions if isinstance(d, SuggestionWanted))
            event(happened, decisions, state)

        made.event = watch  # type: ignore[method-assign]
        made.on_answer = used.append
        made.run()
        assert len(used) == len(wanted) > 10
        assert used == wanted

    def test_a_free_worker_resumes_a_trial_while_the_searcher_thinks(self):
        made = Recorded(n_workers=3, n_trials=12)
        open_since: dict[int, float] = {}
        resumed_meanwhile = 0
        event = made.event

        def watch(happened: Any, decisions: Any, state: Any) -> None:
            nonlocal resumed_meanwhile
            for decision in decisions:
                if isinstance(decision, SuggestionWanted):
                    open_since[decision.trial_id] = made.now
                elif isinstance(decision, Start):
                    open_since.pop(decision.trial_id, None)
                elif isinstance(decision, Resume) and open_since:
                    resumed_meanwhile += 1
            event(happened, decisions, state)

        made.event = watch  # type: ignore[method-assign]
        made.thinking_s = (20.0, 30.0)
        made.run()
        assert resumed_meanwhile > 0


class TestOptionsThatOnlyTheSearcherCanRefuse:
    """A study does not go on without what was asked for, and trains nothing before that is known."""

    WRONG = OptionError("searcher.device=cuda, but there is no GPU. Set searcher.device to cpu.")

    def refused(self, monkeypatch: pytest.MonkeyPatch, at: float, begun: bool) -> tuple[Recorded, RunResult]:
        class Refusing(Host):
            has_begun = begun

            def poll(self) -> Answered | None:
                if self._cluster.now >= at:
                    raise TestOptionsThatOnlyTheSearcherCanRefuse.WRONG
                return super().poll()

        monkeypatch.setattr(virtual, "Host", Refusing)
        made = Recorded(algorithm="random", type=None, n_workers=2, n_trials=20)
        return made, made.run()

    def test_nothing_starts_before_the_searcher_has_begun(self, monkeypatch: pytest.MonkeyPatch):
        class Slow(Host):
            @property
            def has_begun(self) -> bool:  # type: ignore[override]
                return self._cluster.now >= 5.0

        monkeypatch.setattr(virtual, "Host", Slow)
        made = Recorded(n_workers=2)
        assert made.run().problem is None
        events = made.journal.events()
        assert 5.0 <= events[0].time < 6.0, "a trial whose configuration was given needs no searcher, and waits too"
        assert len(made.durable.trials) == 3

    def test_the_study_ends_before_its_first_trial(self, monkeypatch: pytest.MonkeyPatch):
        made, result = self.refused(monkeypatch, at=3.0, begun=False)
        assert result.problem is self.WRONG and not result.is_interrupted
        assert result.reason == "an option cannot be used, OptionError"
        assert not made.durable.trials and not made.journal.events() and made.counts["attempts"] == 0
        assert made.said == [] and made.now < 4.0

    def test_the_study_ends_though_trials_run_and_they_may_go_on_later(self, monkeypatch: pytest.MonkeyPatch):
        made, result = self.refused(monkeypatch, at=20.0, begun=True)
        assert result.problem is self.WRONG
        ended = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
        assert len(ended) == 2 and all(20.0 <= e.time < 25.0 for e in ended)
        assert [e.error for e in ended] == [f"the study ended: {self.WRONG}"] * 2
        assert made.said == [], "random search has taken over"
        assert sum(t.status is TrialStatus.WAITING for t in made.durable.trials.values()) == 2


def test_a_checkpoint_is_announced_relative_to_the_study_folder():
    made = Recorded()
    made.run()
    paths = {e.checkpoint.path for e in made.journal.events() if type(e).__name__ == "CheckpointSaved"}
    assert "0/hpo/epoch=1" in paths


def test_an_impossible_report_stops_its_sender_and_nobody_else():
    made = Recorded(algorithm="asha", type="cost_promotion", n_trials=2)  # the cluster's trials report no cost
    made.may_refuse = True
    made.run()
    assert all("reported no cost" in line for line in made.said if "cost" in line)
    assert made.answers(0) == ["stop"] and made.answers(1) == ["stop"]
    assert not made.logged(Reported)


@pytest.mark.parametrize("message", [Saved, Ended])
def test_late_messages_without_an_answer_get_none(message):
    made = Recorded()
    made.run()
    ghost = Process(0, 1, {"x": 0.5})
    checkpoint = made.logged(CheckpointSaved)[0].checkpoint
    late = Ended(0, 9, Outcome.COMPLETED) if message is Ended else Saved(0, 9, checkpoint)
    ghost.client.inbox.append(late)
    count = len(made.replies)
    made.last_coordinator._receive([ghost.client])
    made.last_coordinator._commit()
    assert len(made.replies) == count


def with_processes_for(number: int, **options: Any) -> Recorded:
    """On a machine that has processes for so many trials, fewer than there are workers."""
    made = Recorded(n_workers=4, n_trials=6, algorithm="random", type=None, **options)
    start = made.start

    def start_or_refuse(job: Any) -> None:
        if len(made._processes) < number:
            start(job)
        else:
            why = "The system refuses a new process. Raise the limit of processes."
            made._happened.append(Exit(job.trial_id, job.attempt, None, None, problem=why, refused=True))

    made.start = start_or_refuse  # type: ignore[method-assign]
    return made


def test_trials_for_which_no_process_is_left_wait_for_those_that_run_and_lose_nothing():
    made = with_processes_for(2)
    result = made.run()
    assert result.problem is None
    trials = made.durable.trials.values()
    assert all(t.status is TrialStatus.COMPLETED and t.failures == 0 for t in trials) and len(trials) == 6
    assert "Raise the limit of processes. The study goes on with what runs." in made.said[0]
    assert len(made.logged(AttemptStarted)) == 6
    refused = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.INTERRUPTED]
    assert len(refused) < 30, "it was tried all the time"


def test_if_there_is_none_at_all_the_study_ends():
    made = with_processes_for(0)
    result = made.run()
    assert isinstance(result.problem, RepeatedFailure) and "refuses a new process" in str(result.problem)
