"""How an attempt has ended, by what is known of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo.core.events import Outcome
from lightning_hpo.runtime.attempts import Attempt, last_words
from lightning_hpo.runtime.backends.base import Exit
from lightning_hpo.runtime.messages import Ended
from lightning_hpo.runtime.processes import EXIT_UNHEARD

KILLED = Exit(0, 1, 4711, None, signal=9)
RAISED = Exit(0, 1, 4711, 1)
CLEAN = Exit(0, 1, 4711, 0)
UNHEARD = Exit(0, 1, 4711, EXIT_UNHEARD)
UNORDERED = "the script raised KeyboardInterrupt, though nobody had interrupted the study"


def attempt(outcome: Outcome | None = None, error: str | None = None, traceback: str | None = None) -> Attempt:
    ended = None if outcome is None else Ended(0, 1, outcome, error, traceback, None)
    return Attempt(0, 1, started_at=0.0, heard_at=0.0, ended=ended)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "trial.log"
    path.write_text("epoch 1\nTraceback ...\nValueError: no such data set\n\n")
    return path


@pytest.mark.parametrize(
    ("known", "end", "was_interrupted", "judged"),
    [
        # What the trial said counts, also if its process was killed afterwards.
        (attempt(Outcome.COMPLETED), CLEAN, False, (Outcome.COMPLETED, None)),
        (attempt(Outcome.PAUSED), KILLED, False, (Outcome.PAUSED, None)),
        (attempt(Outcome.FAILED, "OSError: disk"), RAISED, False, (Outcome.FAILED, "OSError: disk")),
        (attempt(Outcome.FAILED, None, "Traceback"), RAISED, False, (Outcome.FAILED, "Traceback")),
        (attempt(Outcome.FAILED), RAISED, False, (Outcome.FAILED, RAISED.description)),
        (attempt(Outcome.FAILED, "\n", "Traceback"), RAISED, False, (Outcome.FAILED, "Traceback")),
        (attempt(Outcome.FAILED, "", " \n"), RAISED, False, (Outcome.FAILED, RAISED.description)),
        # Without a word: an exit code is the script's doing, a signal somebody else's.
        (attempt(), RAISED, False, (Outcome.FAILED, "ValueError: no such data set")),
        (attempt(), KILLED, False, (Outcome.LOST, KILLED.description)),
        # It had something to say, and nobody heard it.
        (attempt(), UNHEARD, False, (Outcome.LOST, "ValueError: no such data set")),
        (attempt(Outcome.COMPLETED), UNHEARD, False, (Outcome.COMPLETED, None)),
        (attempt(), CLEAN, False, (Outcome.LOST, CLEAN.description)),
        # An interruption that nobody ordered must not repeat itself without end.
        (attempt(Outcome.INTERRUPTED), CLEAN, False, (Outcome.LOST, UNORDERED)),
        (attempt(Outcome.INTERRUPTED), CLEAN, True, (Outcome.INTERRUPTED, None)),
        # Whoever interrupts the study may have signalled its trials too.
        (attempt(), KILLED, True, (Outcome.INTERRUPTED, KILLED.description)),
        (attempt(Outcome.PAUSED), KILLED, True, (Outcome.PAUSED, None)),
    ],
)
def test_an_end_is_judged_by_the_last_word_then_by_the_process(
    log: Path, known: Attempt, end: Exit, was_interrupted: bool, judged: tuple[Outcome, str | None]
) -> None:
    assert known.judge(end, log, was_interrupted) == judged


def test_an_attempt_that_was_ended_from_outside_has_that_as_its_fate(log: Path) -> None:
    known = attempt(Outcome.COMPLETED)
    known.fate = (Outcome.FAILED, "it ran longer than 9 s (trial_timeout)")
    assert known.judge(KILLED, log, True) == known.fate


def test_silence_and_length_are_told_apart() -> None:
    known = Attempt(0, 1, started_at=10.0, heard_at=40.0)
    assert known.overdue(50.0, 10.0, 40.0) is None, "neither limit is exceeded yet"
    assert known.overdue(50.1, 10.0, 40.0) == (Outcome.LOST, "no report for 10 s (epoch_timeout)")
    assert known.overdue(50.1, None, 40.0) == (Outcome.FAILED, "it ran longer than 40 s (trial_timeout)")
    assert known.overdue(1e9, None, None) is None


def test_the_last_words_are_the_last_line_that_is_not_empty(log: Path, tmp_path: Path) -> None:
    assert last_words(log) == "ValueError: no such data set"
    assert last_words(tmp_path / "missing.log") is None
    (tmp_path / "empty.log").write_text("")
    assert last_words(tmp_path / "empty.log") is None
