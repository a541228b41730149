"""What trials note in their logs is told once, however many trials note it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo.core.events import AttemptEnded, Outcome, Reported
from lightning_hpo.report.log_notes import LogNotes, note_for_the_log
from tests.report.studies import Driver, new_state

NOTE = "this could be better. Do it."


class Watched(Driver):
    """A study of trials whose logs say what the test wants."""

    def __init__(self, folder: Path) -> None:
        points = [{"model.lr": 0.01 * number, "act": "relu"} for number in range(1, 60)]
        super().__init__(new_state(algorithm="random", type=None, points_to_evaluate=points, n_trials=None))
        self.folder = folder
        self.told: list[str] = []
        self.notes = LogNotes(lambda trial: folder / str(trial.id))

    def trial(self, *notes: str, after: str = "", outcome: Outcome = Outcome.FAILED) -> None:
        """The next trial begins, reports, writes its log and ends."""
        self.ready()
        number = len(self.state.trials) - 1
        for event in (Reported(self.time, number, 1, 1, 0.5), AttemptEnded(self.time, number, 1, outcome, "x")):
            self.feed(event)
            self.told += self.notes.warnings(event, self.state)
            if isinstance(event, Reported):
                assert not self.told or self.told[-1].startswith("Trial"), "nothing is told before the script has ended"
                (self.folder / str(number)).write_text("".join(map(note_for_the_log, notes)) + after)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_note_of_many_trials_is_told_once_with_the_first_of_them(watched: Watched):
    watched.trial()
    for _ in range(3):
        watched.trial(NOTE, NOTE)
    assert watched.told == [f"Trial 1: {NOTE}"]


def test_different_notes_are_all_told_but_not_without_end(watched: Watched):
    watched.trial("a.", "b.")
    watched.trial("c.", "d.", "e.")
    assert watched.told == ["Trial 0: a.", "Trial 0: b.", "Trial 1: c."]


def test_trials_that_end_early_do_not_use_up_the_attention(watched: Watched):
    for _ in range(30):
        watched.trial(outcome=Outcome.FAILED)
    watched.trial(NOTE, outcome=Outcome.COMPLETED)
    assert watched.told == [f"Trial 30: {NOTE}"]


def test_only_the_first_logs_are_read(watched: Watched):
    for _ in range(20):
        watched.trial()
    watched.trial(NOTE)
    assert watched.told == []


def test_long_logs_and_long_notes_are_cut(watched: Watched):
    watched.trial("too far from the end.", after="x" * (1 << 20))
    watched.trial("x" * 1000, after="\xff\x00\n")
    assert watched.told == ["Trial 1: " + "x" * 500]


def test_a_log_that_is_not_there_is_no_harm(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.notes = LogNotes(lambda trial: None if trial.id else tmp_path / "nowhere")
    watched.trial(NOTE)
    watched.trial(NOTE)
    assert watched.told == []
