from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    StudyContinued,
    Suggested,
)
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ReportError
from lightning_hpo.report.story import tell_story
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Study
from tests.report.studies import SPACE, Driver, new_state, small_study


def story(folder: Path, trial_id: int) -> list[str]:
    return [re.sub(r" {2,}", "  ", line.strip()) for line in tell_story(folder, trial_id).splitlines()]


def test_the_story_of_the_best_trial(tmp_path: Path):
    small_study(tmp_path).close()
    assert story(tmp_path, 1) == [
        "Trial 1 is complete after 3 epochs",
        "proposed  initial: one of the first configurations to evaluate",
        "model.lr  0.01",
        "act  gelu",
        "",
        "0:00:00  started, to be judged at 1",
        "0:00:00  epoch 1: val_loss=0.5  → pause: rank 1 of 2 at rung 1",
        "0:00:00  attempt 1 ended: paused",
        "0:00:00  resumed from 1, to be judged at 3  → rank 1 of 3 at rung 1",
        "0:00:00  epoch 2: val_loss=0.4",
        "0:00:00  epoch 3: val_loss=0.45  → complete: trained to max_t=3",
        "0:00:00  attempt 2 ended: the script ended",
    ]


@pytest.mark.parametrize(
    ("origin", "reason", "proposed"),
    [
        ("random", "random: configuration 2 of the first 6", "random: configuration 2 of the first 6"),
        ("random", "random search", "random search"),
        ("model", "EI 0.031 at rung 9", "model: EI 0.031 at rung 9"),
    ],
)
def test_who_proposed_a_trial_is_told_once(tmp_path: Path, origin: str, reason: str, proposed: str):
    state = new_state(points_to_evaluate=[])
    with Journal.create(tmp_path, study_header(state.space, state.options)) as journal:
        journal.append([Suggested(0.0, 0, {"model.lr": 0.1, "act": "relu"}, origin, reason)])
    assert story(tmp_path, 0)[1] == f"proposed  {proposed}"


def test_a_paused_trial_is_told_how_many_are_better_by_now(tmp_path: Path):
    small_study(tmp_path).close()
    assert story(tmp_path, 0)[0] == "Trial 0 is paused after 1 epoch; of 3 trials that reported there, 2 are better now"


def test_in_mode_max_better_is_larger(tmp_path: Path):
    small_study(tmp_path, mode="max").close()
    assert story(tmp_path, 2)[0] == "Trial 2 is paused after 1 epoch; of 3 trials that reported there, 1 are better now"


def test_a_failed_trial_names_its_error(tmp_path: Path):
    small_study(tmp_path).close()
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "trial.log").touch()
    lines = story(tmp_path, 3)
    assert lines[0] == "Trial 3 failed"
    assert f"log  {tmp_path}/3/trial.log" in lines
    assert lines[-1] == "0:00:00  attempt 1 ended: the script failed  → RuntimeError: out of memory"


def test_a_script_that_failed_after_the_training_is_told_apart(tmp_path: Path):
    state = new_state()
    driver = Driver(state)
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, 0.5))
    driver.feed(AttemptEnded(3.0, 0, 1, Outcome.FAILED, "KeyError: 'test'"))
    with Journal.create(tmp_path, study_header(state.space, state.options)) as journal:
        journal.append([event for event, _ in driver.seen])
    lines = story(tmp_path, 0)
    assert lines[0].startswith("Trial 0 is paused after 1 epoch")
    assert lines[-1] == "0:00:03  attempt 1 ended: the script failed after the training  → KeyError: 'test'"


def test_results_between_decisions_share_a_line(tmp_path: Path):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="random", max_t=9)
    study.ask()
    for epoch in range(1, 10):
        study.tell(0, epoch, 1 / epoch)
    study.close()
    lines = story(tmp_path, 0)
    assert "0:00:00  epochs 1 to 8: m=1 … 0.125" in lines
    assert "0:00:00  epoch 9: m=0.11111  → complete: trained to max_t=9" in lines


def test_everything_that_happened_to_a_trial_is_told(tmp_path: Path):
    state = new_state(max_t=27)
    driver = Driver(state)
    driver.ready()
    driver.feed(AttemptStarted(2.0, 0, 1, pid=4711, worker="gpu 0"))
    driver.feed(Reported(3.0, 0, 1, 1, 0.5))
    driver.feed(CheckpointSaved(4.0, 0, 1, Checkpoint(1, "0/checkpoints/resource-1.ckpt", "ab", 12_000)))
    driver.feed(AttemptEnded(5.0, 0, 1, Outcome.PAUSED))
    for trial in (1, 2):
        driver.ready()
        driver.feed(Reported(6.0, trial, 1, 1, 0.6 + trial))
        driver.feed(AttemptEnded(6.0, trial, 1, Outcome.PAUSED))
    driver.time = 6.0
    assert isinstance(driver.ready(), Resume)
    driver.feed(AttemptEnded(8.0, 0, 2, Outcome.LOST, "killed by signal 9"))
    driver.time = 8.0
    driver.ready()
    driver.feed(PauseRequested(10.0, 0, "the study was interrupted"))
    driver.feed(Reported(11.0, 0, 3, 2, 0.4))
    driver.feed(AttemptEnded(12.0, 0, 3, Outcome.PAUSED))
    driver.feed(StudyContinued(13.0))
    driver.feed(CheckpointRemoved(14.0, 0, "found damaged"))
    with Journal.create(tmp_path, study_header(state.space, state.options)) as journal:
        journal.append([event for event, _ in driver.seen])
    lines = story(tmp_path, 0)
    assert lines[0] == "Trial 0 waits to be tried again after 2 epochs"
    assert lines[lines.index("") + 1 :] == [
        "0:00:01  started, to be judged at 1",
        "0:00:02  attempt 1 runs  → gpu 0, process 4711",
        "0:00:03  epoch 1: val_loss=0.5  → pause: rank 1 of 1 at rung 1",
        "0:00:04  checkpoint of 1 saved  → 12.0 kB",
        "0:00:05  attempt 1 ended: paused",
        "0:00:07  resumed from 1, to be judged at 3  → rank 1 of 3 at rung 1",
        "0:00:08  attempt 2 ended: the process was lost  → killed by signal 9",
        "0:00:09  resumed from 1, to be judged at 3  → another try",
        "0:00:10  asked to pause  → the study was interrupted",
        "0:00:11  epoch 2: val_loss=0.4  → pause: the study was interrupted",
        "0:00:12  attempt 3 ended: paused",
        "0:00:13  the study was continued",
        "0:00:14  checkpoint removed  → found damaged",
    ]


def test_a_trial_of_a_higher_bracket_says_so(tmp_path: Path):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="asha", max_t=27, brackets=3)
    study.ask()
    study.close()
    assert re.search(r"evaluate; bracket [012]$", story(tmp_path, 0)[1])


def test_a_trial_that_does_not_exist(tmp_path: Path):
    small_study(tmp_path).close()
    with pytest.raises(
        ReportError, match=r"no trial 4 .* it has 4, numbered from 0\. List them with: lightning-hpo trials"
    ):
        tell_story(tmp_path, 4)


def test_a_trial_that_is_held_back_says_why(tmp_path: Path):
    """The first trial falls to 0.2; the others are near 0.9 and fall by 0.1, as three of them have shown."""
    options = {"algorithm": "asha", "type": "promotion", "max_t": 3, "improvement_probability": 0.4}
    with closing(Study.create(SPACE, metric="val_loss", path=tmp_path, points_to_evaluate=[], **options)) as study:
        while len(study.trials) < 12:
            job = study.ask()
            if isinstance(job, Resume):
                first = 0.3 if job.trial_id == 0 else 0.9
                study.tell(job.trial_id, 2, first)
                study.tell(job.trial_id, 3, first - 0.1)
            else:
                study.tell(job.trial_id, 1, 0.3 if job.trial_id == 0 else 0.9 + 0.001 * job.trial_id)
    assert story(tmp_path, 3)[0].endswith("; it would improve on the best value with 0%, and needs 40%")
    assert "needs" not in story(tmp_path, 1)[0]
    assert "needs" not in story(tmp_path, 10)[0]  # its rank would not do either
