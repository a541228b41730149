from __future__ import annotations

import io
import os
import pty
import re
from pathlib import Path

import pytest
from rich.console import ConsoleDimensions

from lightning_hpo.core.events import (
    AttemptEnded,
    Checkpoint,
    CheckpointSaved,
    Outcome,
    Reported,
    StudyContinued,
    Suggested,
    SuggestionWanted,
)
from lightning_hpo.core.study import StudyState
from lightning_hpo.report.decisions import DecisionLines
from lightning_hpo.report.header import header_text
from lightning_hpo.report.live import LineObserver, LiveObserver, make_observer
from lightning_hpo.report.live_table import MAX_LINES, live_table, shown_trials
from lightning_hpo.report.tally import Tally
from tests.report.studies import Driver, new_state

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run(Driver):
    """Events, watched by an observer."""

    def __init__(self, state: StudyState, live: bool = False, folder: Path = Path("runs")) -> None:
        super().__init__(state)
        self.stream = io.StringIO()
        self.clock = Clock()
        kind = LiveObserver if live else LineObserver
        self.observer = kind(folder, "epoch", self.stream, self.clock)

    def feed(self, event: object) -> list:
        decisions = super().feed(event)  # type: ignore[arg-type]
        self.observer.event(event, decisions, self.state)  # type: ignore[arg-type]
        return decisions

    def report(self, trial_id: int, resource: int, value: float) -> None:
        self.time += 1.0
        attempt = self.state.trials[trial_id].attempt
        self.feed(Reported(self.time, trial_id, attempt, resource, value))

    def end(self, trial_id: int, outcome: Outcome, error: str | None = None) -> None:
        self.time += 1.0
        self.feed(AttemptEnded(self.time, trial_id, self.state.trials[trial_id].attempt, outcome, error))

    def written(self) -> list[str]:
        self.observer.tick(self.state)
        return self.stream.getvalue().splitlines()


def without_spaces(lines: list[str]) -> list[str]:
    return [re.sub(r" {2,}", "  ", line.strip()) for line in lines]


def test_every_decision_is_one_line():
    run = Run(new_state())
    for value in (0.9, 0.5, 0.7):
        run.ready()
        trial = len(run.state.trials) - 1
        run.report(trial, 1, value)
        run.end(trial, Outcome.PAUSED)
    run.ready()  # promotes trial 1
    run.report(1, 2, 0.4)
    run.report(1, 3, 0.45)
    run.end(1, Outcome.COMPLETED)
    run.ready()
    run.end(3, Outcome.FAILED, "Traceback (most recent call last):\n  x\nRuntimeError: no")
    first = "one of the first configurations to evaluate"
    assert without_spaces(run.written()) == [
        f"0:00:01  trial 0  start  lr=0.1 act=relu  ({first})",
        "0:00:02  trial 0  pause  epoch 1  val_loss=0.9  (rank 1 of 1 at rung 1)",
        f"0:00:04  trial 1  start  lr=0.01 act=gelu  ({first})",
        "0:00:05  trial 1  pause  epoch 1  val_loss=0.5  (rank 1 of 2 at rung 1)",
        f"0:00:07  trial 2  start  lr=0.001 act=relu  ({first})",
        "0:00:08  trial 2  pause  epoch 1  val_loss=0.7  (rank 2 of 3 at rung 1)",
        "0:00:10  trial 1  resume  from the beginning to 3  (rank 1 of 3 at rung 1)",
        "0:00:12  trial 1  complete  epoch 3  val_loss=0.45  (trained to max_t=3)",
        f"0:00:14  trial 3  start  lr=0.5 act=gelu  ({first})",
        "0:00:15  trial 3  fail  RuntimeError: no",
    ]


def test_a_promotion_says_from_which_checkpoint():
    run = Run(new_state())
    for value in (0.5, 0.9, 0.7):
        run.ready()
        trial = len(run.state.trials) - 1
        run.report(trial, 1, value)
        run.feed(CheckpointSaved(run.time, trial, 1, Checkpoint(1, f"{trial}/checkpoints/resource-1.ckpt", "", 10)))
        run.end(trial, Outcome.PAUSED)
    run.ready()
    assert "resume    from epoch 1 to 3" in run.written()[-1]


def test_a_stopped_trial_and_one_that_passed_its_rung():
    run = Run(new_state(type="stopping"))
    for trial in range(3):
        run.ready()
        run.report(trial, 1, [0.5, 0.6, 0.9][trial])
    lines = without_spaces(run.written())
    assert (
        lines[1]
        == "0:00:02  trial 0  continue  epoch 1  val_loss=0.5  (rank 1 of 1 at rung 1: too few trials to judge)"
    )
    assert lines[5].startswith(
        "0:00:06  trial 2  stop  epoch 1  val_loss=0.9  (rank 3 of 3 at rung 1: worse than the 33% quantile"
    )


def test_a_report_that_is_no_decision_is_no_line():
    run = Run(new_state(max_t=27))
    run.ready()
    before = len(run.written())
    run.state.trials[0].milestone = 9
    run.state.scheduler._jobs[0].milestone = 9
    run.report(0, 2, 0.5)
    run.report(0, 2, 0.5)
    assert len(run.written()) == before


def test_a_repeated_report_is_not_told_again():
    run = Run(new_state(type="stopping"))
    run.ready()
    run.report(0, 1, 0.5)
    run.end(0, Outcome.LOST, "killed by signal 9")
    run.ready()
    run.report(0, 1, 0.5)
    lines = without_spaces(run.written())
    assert lines[-2:] == [
        "0:00:03  trial 0  lost  killed by signal 9; will be tried again",
        "0:00:04  trial 0  retry  from the beginning, attempt 2",
    ]


def test_a_sentence_goes_on_without_a_full_stop():
    run = Run(new_state(type="stopping"))
    run.ready()
    run.end(0, Outcome.LOST, "It was killed. Give it memory.")
    assert run.written()[-1].endswith("lost      It was killed. Give it memory; will be tried again")


def test_what_a_warning_has_just_said_is_not_said_again():
    run = Run(new_state(type="stopping"))
    for trial in range(2):
        run.ready()
        gone = f"The checkpoint of trial {trial} is gone."
        run.observer.say(f"Trial {trial}: {gone}", warning=True)
        run.end(trial, Outcome.LOST, gone)
        run.ready()  # the retry
    text = "\n".join(without_spaces(run.written()))
    assert text.count("The checkpoint of trial 0 is gone") == 1
    assert "trial 0  lost  see the warning above; will be tried again" in text
    # The second warning is of the first one's kind, and was not shown.
    assert "trial 1  lost  The checkpoint of trial 1 is gone; will be tried again" in text


def test_what_was_interrupted_is_tried_again_and_not_promoted_when_the_study_is_continued():
    state = new_state()
    driver = Driver(state)
    driver.ready()
    driver.feed(StudyContinued(5.0))
    run = Run(state)
    run.observer.header(state, workers=1)
    run.time = 5.0
    run.ready()
    assert "retry     from the beginning, attempt 2" in run.written()[-1]


def test_a_script_that_ended_by_itself():
    run = Run(new_state(algorithm="random", type=None, max_t=10))
    run.ready()
    run.report(0, 1, 0.5)
    run.end(0, Outcome.COMPLETED)
    assert (
        without_spaces(run.written())[-1] == "0:00:03  trial 0  complete  epoch 1  val_loss=0.5  (it ended by itself)"
    )


def test_a_suggested_configuration_is_shown_with_the_searchers_reason():
    run = Run(new_state(points_to_evaluate=[]))
    decision = run.ready()
    assert isinstance(decision, SuggestionWanted)
    run.feed(Suggested(2.0, 0, {"model.lr": 0.02, "act": "relu"}, "model", "EI 0.031 at rung 9, from 41 observations"))
    assert run.written()[-1].endswith("start     lr=0.02 act=relu  (EI 0.031 at rung 9, from 41 observations)")


# --------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("live", [False, True])
def test_warnings_of_one_kind_are_shown_once_and_counted(live: bool):
    run = Run(new_state(), live)
    for trial in range(3):
        run.observer.say(f"Trial {trial}: the disk is full", warning=True)
    run.observer.say("Another kind", warning=True)
    run.observer.close()
    text = run.stream.getvalue()
    assert text.count("Warning: Trial 0: the disk is full") == 1
    assert "Trial 1" not in text
    assert text.count("Another kind") == 1
    assert "2 more like: Trial 0: the disk is full" in text


@pytest.mark.parametrize("live", [False, True])
def test_a_script_that_fails_after_its_training_is_told_once_per_error(live: bool, tmp_path: Path):
    run = Run(new_state(algorithm="random", type=None, max_t=1), live, tmp_path)
    for trial, error in enumerate(["ValueError: no 7", "ValueError: no 8", "KeyError: 'x'"]):
        (tmp_path / str(trial)).mkdir()
        (tmp_path / str(trial) / "trial.log").touch()
        run.ready()
        run.report(trial, 1, 0.5)
        run.end(trial, Outcome.FAILED, error)
    run.observer.close()
    text = run.stream.getvalue()
    assert text.count("Warning: Trial 0 failed after the training, still completed: ValueError: no 7") == 1
    assert f"({tmp_path}/0/trial.log)" in text
    assert "Warning: Trial 1" not in text
    assert text.count("Warning: Trial 2 failed after the training, still completed: KeyError: 'x'") == 1


def test_a_script_that_fails_when_it_was_paused_is_told_and_one_that_failed_earlier_only_as_such():
    run = Run(new_state())
    run.ready()
    run.report(0, 1, 0.5)
    run.end(0, Outcome.FAILED, "KeyError: 'test'")
    run.ready()
    run.end(1, Outcome.FAILED, "ValueError: bad")
    assert "Warning: Trial 0 failed after the training, still paused: KeyError: 'test'" in run.written()
    assert not any("Trial 1" in line for line in run.written())


@pytest.mark.parametrize("live", [False, True])
def test_warnings_without_end_do_not_fill_the_screen(live: bool):
    run = Run(new_state(), live)
    for number in range(1000):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        run.observer.say(f"A client was dropped: it sent {word}", warning=True)
    run.observer.close()
    text = run.stream.getvalue()
    assert text.count("Warning: A client was dropped") == 100
    assert "900 other warnings were not shown." in text


@pytest.mark.parametrize("live", [False, True])
def test_a_message_cannot_steer_the_terminal(live: bool):
    run = Run(new_state(), live)
    run.observer.say("Trial 0: \x1b]0;title\x07\x9b2J \ud83d", warning=True)
    assert "]0;title" in run.stream.getvalue()
    assert not set("\x07\x9b\ud83d") & set(run.stream.getvalue())
    assert "\x1b]" not in run.stream.getvalue()


def test_a_message_is_shown_at_once_and_as_often_as_it_is_said():
    run = Run(new_state())
    run.observer.say("The study can be written again and goes on.")
    run.observer.say("The study can be written again and goes on.")
    assert len(run.stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize("live", [False, True])
def test_an_output_that_breaks_does_not_disturb_the_run(live: bool):
    run = Run(new_state(), live)
    run.stream.close()
    run.observer.header(run.state, workers=1)
    run.ready()
    run.observer.tick(run.state)
    run.observer.say("x", warning=True)
    run.observer.close()


def test_an_output_that_knows_no_unicode_gets_question_marks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    observer = make_observer("größe", stream=stream, live=False)
    observer.say("λ is small")
    assert raw.getvalue() == b"? is small\n"


def test_a_file_gets_lines_and_a_terminal_a_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_observer("x", stream=io.StringIO()), LineObserver)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        assert isinstance(make_observer("x", stream=terminal), LiveObserver)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_observer("x", stream=terminal), LineObserver)
    os.close(leader)


# ------------------------------------------------------------------------------------------ table


def test_drawing_happens_four_times_a_second_at_most():
    run = Run(new_state(), live=True)
    run.ready()
    run.observer.tick(run.state)
    drawn = len(run.stream.getvalue())
    run.observer.tick(run.state)
    assert len(run.stream.getvalue()) == drawn
    run.clock.now += 0.26
    run.observer.tick(run.state)
    assert len(run.stream.getvalue()) > drawn


def test_the_terminal_is_restored_after_an_exception():
    run = Run(new_state(), live=True)
    with pytest.raises(RuntimeError), run.observer:
        run.ready()
        run.observer.tick(run.state)
        raise RuntimeError
    text = run.stream.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert text.endswith("\x1b[2K")  # the table is gone; the summary takes its place


def test_the_cursor_stays_visible_so_that_a_kill_leaves_a_usable_terminal():
    run = Run(new_state(), live=True)
    run.ready()
    run.observer.tick(run.state)
    text = run.stream.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    run.observer.close()


def test_a_failure_is_a_line_above_the_table():
    run = Run(new_state(), live=True)
    run.ready()
    run.end(0, Outcome.FAILED, "ValueError: bad")
    run.observer.tick(run.state)
    text = run.stream.getvalue()
    assert text.index("fail      ValueError: bad") < text.index("configuration")


def big_study(trials: int) -> StudyState:
    state = new_state(algorithm="random", type=None, points_to_evaluate=[], n_trials=None, max_t=2, n_workers=40)
    driver = Driver(state)
    for number in range(trials):
        driver.ready()
        config = {"model.lr": 0.01 + number / 1e6, "act": "relu"}
        driver.feed(Suggested(driver.time, number, config, "random", "random search"))
        driver.feed(Reported(driver.time, number, 1, 1, 1 / (number + 1)))
        if number < trials - 40:
            driver.feed(Reported(driver.time, number, 1, 2, 1 / (number + 1)))
            driver.feed(AttemptEnded(driver.time, number, 1, Outcome.COMPLETED))
    return state


@pytest.mark.parametrize(("width", "height"), [(200, 60), (80, 24), (40, 12), (20, 5)])
def test_the_table_fits_the_screen_and_has_25_lines_at_most(width: int, height: int):
    state = big_study(100)
    screen = ConsoleDimensions(width, height)
    messages = ["one", "two", "a long message " * 30]
    lines = live_table(state, Tally(state), Path("runs"), "epoch", messages, screen, 83.0).plain.split("\n")
    # A tiny screen shows one trial and all figures; what does not fit is cropped when it is drawn.
    assert len(lines) <= (min(MAX_LINES, height - 1) if height > 12 else 13)
    assert max(map(len, lines)) <= width


def test_the_table_shows_running_trials_and_leaves_room_for_the_best():
    state = big_study(100)
    assert shown_trials(state, Tally(state), 10) == [99, 98, 97, 96, 95, 59, 58, 57, 56, 55]


def test_with_few_running_trials_the_rest_is_for_the_best():
    driver = Driver(new_state())
    for trial, value in enumerate((0.9, 0.5, 0.7)):
        driver.ready()
        driver.feed(Reported(driver.time, trial, 1, 1, value))
        if trial < 2:
            driver.feed(AttemptEnded(driver.time, trial, 1, Outcome.PAUSED))
    assert shown_trials(driver.state, Tally(driver.state), 10) == [2, 1, 0]
    assert shown_trials(driver.state, Tally(driver.state), 2) == [2, 1]


def test_the_table_tells_what_matters():
    state = big_study(50)
    text = live_table(state, Tally(state), Path("runs"), "epoch", [], ConsoleDimensions(120, 40), 83.0).plain
    lines = [re.sub(r" {2,}", "  ", line).strip() for line in text.split("\n")]
    assert lines[0] == "0:01:23  random, min val_loss  runs"
    assert lines[1] == "trial  status  epoch  val_loss  best  at  configuration"
    assert lines[2] == "49  running  1/2  0.02  0.02  1  lr=0.01005 act=relu"
    assert "best at full resource  val_loss=0.1  epoch 2  trial 9  lr=0.01001 act=relu" in lines
    assert "best seen  val_loss=0.02  epoch 1  trial 49  lr=0.01005 act=relu" in lines
    assert "trials  50: 40 running, 10 completed" in lines
    assert "workers  40 of 40 busy" in lines


def test_markup_in_values_is_shown_as_it_is():
    from lightning_hpo.core.space import choice

    state = new_state({"x": choice(["[red]", "b"])}, points_to_evaluate=[{"x": "[red]"}])
    run = Run(state, live=True)
    run.ready()
    run.observer.tick(run.state)
    assert 'x="[red]"' in run.stream.getvalue()


def test_the_observer_begins_in_the_middle_of_a_study_that_is_continued():
    state = big_study(50)
    lines = DecisionLines(state, Path("runs"), "epoch")
    assert lines.tally.trained == 10 * 2 + 40


# ----------------------------------------------------------------------------------------- header


def test_the_header_tells_what_will_happen_and_how_to_stop_it():
    text = header_text(
        new_state(max_t=27, stop={"max_wallclock_time": 3600}),
        Path("multirun/x"),
        workers=2,
        start_method="fork (CUDA is untouched)",
        continue_command="python train.py -m hydra.launcher.study=multirun/x",
    )
    lines = [re.sub(r" {2,}", "  ", line).strip() for line in text.splitlines()]
    assert lines == [
        "Study multirun/x",
        "algorithm  asha (asynchronous successive halving, random search), type promotion, random_seed 0",
        "goal  min val_loss",
        "space  lr: loguniform(0.0001, 1), act: choice(relu, gelu)",
        "resource  up to 27 epochs, rungs at 1, 3, 9",
        "ends  4 trials, or max_wallclock_time 3600",
        "workers  2 trials at a time, fork (CUDA is untouched)",
        "results  multirun/x/optimization_results.yaml, trials.csv",
        "logs  multirun/x/0/trial.log, and one for every other trial",
        "stop  Ctrl-C pauses the running trials and stops, twice stops now",
        "continue  python train.py -m hydra.launcher.study=multirun/x",
    ]


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("run_0", "x/run_0/trial.log, and one for every other trial"),
        ("${model.lr}", "x/${model.lr}/trial.log, one for every trial"),
    ],
)
def test_the_header_says_where_the_logs_are_however_the_folders_are_called(first: str, says: str):
    assert says in header_text(new_state(), Path("x"), workers=1, first_folder=first)


def test_the_header_of_a_study_that_goes_on_says_so():
    assert header_text(big_study(50), Path("x"), workers=1).startswith("Study x goes on: 50 trials so far\n")


def test_the_header_without_rungs_without_max_t_and_without_end():
    text = header_text(new_state(algorithm="random", type=None, max_t=None, n_trials=None), Path("x"), workers=1)
    assert "every trial ends by itself" in text
    assert "when you stop it" in text
    assert "1 trial at a time" in text
