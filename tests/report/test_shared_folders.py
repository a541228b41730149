from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo.core.events import AttemptEnded, Outcome, Reported
from lightning_hpo.report.shared_folders import SharedFolders, lines_for_the_log
from tests.report.studies import Driver, new_state


class Watched(Driver):
    """A study of trials whose logs say what the test wants."""

    def __init__(self, folder: Path) -> None:
        points = [{"model.lr": 0.01 * number, "act": "relu"} for number in range(1, 30)]
        super().__init__(new_state(algorithm="random", type=None, points_to_evaluate=points, n_trials=None))
        self.folder = folder
        self.told: list[str] = []
        self.shared = SharedFolders(lambda trial: folder / str(trial.id))

    def trial(self, *places: str, before: str = "", attempt: int = 1, ends: bool = False) -> None:
        """The next trial begins, writes its log and reports, or ends without a report."""
        self.ready()
        number = len(self.state.trials) - 1
        for lost in range(1, attempt):
            self.feed(AttemptEnded(self.time, number, lost, Outcome.LOST, "its process was lost"))
            self.ready()
        assert self.state.trials[number].attempt == attempt
        text = before + lines_for_the_log(dict.fromkeys(places, "CSVLogger"))
        (self.folder / str(number)).write_text(text)
        report = Reported(self.time, number, attempt, 1, 0.5)
        end = AttemptEnded(self.time, number, attempt, Outcome.FAILED, "x")
        for event in [end] if ends else [report, report]:
            self.feed(event)
            message = self.shared.warning(event, self.state)
            self.told += [] if message is None else [message]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_second_trial_in_a_folder_is_told_once_with_what_to_do(watched: Watched):
    for _ in range(4):
        watched.trial("/data/logs")
    (message,) = watched.told
    assert message.startswith("Trials 0 and 1 both write to /data/logs (CSVLogger) and may mix")
    assert message.endswith("Set hydra.job.chdir=true, or let the path begin with ${hydra:runtime.output_dir}.")


def test_trials_with_folders_of_their_own_are_left_alone(watched: Watched):
    watched.trial()
    watched.trial("/data/a")
    watched.trial("/data/b", "/data/c")
    watched.trial()
    assert watched.told == []


def test_every_folder_of_a_trial_is_compared(watched: Watched):
    watched.trial("/data/a", "/data/b")
    watched.trial("/data/c", "/data/b")
    assert "write to /data/b" in watched.told[0]


def test_a_trial_that_dies_before_it_reports_counts(watched: Watched):
    watched.trial("/data/a", ends=True)
    watched.trial("/data/a", ends=True)
    assert len(watched.told) == 1


def test_the_rest_of_a_log_does_not_hide_it(watched: Watched):
    watched.trial("/data/a", before="Epoch 0:  10%")
    watched.trial("/data/a", before="\xff\x00\n" + "x" * 100_000 + "\n")
    assert len(watched.told) == 1


def test_what_was_set_before_the_study_was_continued_is_over(watched: Watched):
    watched.trial("/data/a", attempt=2)
    watched.trial("/data/a", attempt=2)
    assert watched.told == []


def test_a_log_that_is_not_there_is_no_harm(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.shared = SharedFolders(lambda trial: None if trial.id else tmp_path / "nowhere")
    watched.trial("/data/a")
    watched.trial("/data/a")
    assert watched.told == []


def test_only_the_first_logs_are_read(watched: Watched):
    for _ in range(20):
        watched.trial()
    watched.trial("/data/a")
    watched.trial("/data/a")
    assert watched.told == []
