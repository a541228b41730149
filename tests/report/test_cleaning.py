from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo import uniform
from lightning_hpo.core.events import AttemptEnded, CheckpointSaved, Outcome, Reported, Resume
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import CheckpointError, StudyLocked
from lightning_hpo.report.cleaning import Cleaned, clean, doomed_checkpoints
from lightning_hpo.report.folder import read_study
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Study
from tests.report.studies import Driver, new_state


def checkpoint(trial: int, resource: int) -> Checkpoint:
    return Checkpoint(resource, f"{trial}/checkpoints/resource-{resource}.ckpt", "", 1000)


def make_file(folder: Path, path: str) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 1000)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Trials 0 (best seen), 1 (best at full resource) and 2 are complete, 3 is paused; all have checkpoints."""
    state = new_state(max_t=3, points_to_evaluate=None, algorithm="random", type=None)
    driver = Driver(state)
    for trial, values in enumerate([(0.1, 0.2, 0.9), (0.5, 0.5, 0.3), (0.6, 0.6, 0.8)]):
        study_trial(driver, trial, values)
        driver.feed(AttemptEnded(driver.time, trial, 1, Outcome.COMPLETED))
    study_trial(driver, 3, (0.7,))
    driver.feed(AttemptEnded(driver.time, 3, 1, Outcome.LOST, "killed"))
    with Journal.create(tmp_path, study_header(state.space, state.options)) as journal:
        journal.append([event for event, _ in driver.seen])
    for trial in range(4):
        make_file(tmp_path, checkpoint(trial, len(state.trials[trial].curve)).path)
    return tmp_path


def study_trial(driver: Driver, trial: int, values: tuple[float, ...]) -> None:
    decision = driver.ready()
    if trial:
        from lightning_hpo.core.events import Suggested

        assert decision.trial_id == trial  # type: ignore[union-attr]
        driver.feed(Suggested(driver.time, trial, {"model.lr": 0.1 / (trial + 1), "act": "relu"}, "random", "r"))
    for resource, value in enumerate(values, 1):
        driver.feed(Reported(driver.time, trial, 1, resource, value))
        driver.feed(CheckpointSaved(driver.time, trial, 1, checkpoint(trial, len(values))))


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.ckpt"))


def test_only_what_is_neither_best_nor_can_go_on_is_deleted(folder: Path):
    cleaned = clean(folder)
    assert cleaned is not None
    assert (cleaned.trials, cleaned.size, cleaned.strays) == ((2,), 1000, ())
    assert left(folder) == [checkpoint(0, 3).path, checkpoint(1, 3).path, checkpoint(3, 1).path]


def test_the_study_knows_what_is_gone(folder: Path):
    clean(folder)
    state = read_study(folder).state
    assert [i for i, trial in state.trials.items() if trial.checkpoint is None] == [2]
    assert clean(folder) is not None  # a second time there is nothing to do
    assert doomed_checkpoints(state) == {}


def test_all_means_all_and_the_trial_that_goes_on_begins_anew(folder: Path):
    cleaned = clean(folder, everything=True)
    assert cleaned is not None
    assert cleaned.trials == (0, 1, 2, 3)
    assert left(folder) == []
    study = Study.load(folder)
    job = study.ask()
    assert isinstance(job, Resume)
    assert (job.trial_id, job.from_resource) == (3, 0)
    study.close()


def test_what_a_crash_left_behind_goes_too(folder: Path):
    make_file(folder, "2/checkpoints/resource-1.ckpt")
    make_file(folder, "3/checkpoints/.resource-7.ckpt.0123456789ab.partial")
    mine = make_file(folder, "2/checkpoints/my-own.ckpt")
    cleaned = clean(folder)
    assert cleaned is not None
    assert cleaned.strays == (
        "2/checkpoints/resource-1.ckpt",
        "3/checkpoints/.resource-7.ckpt.0123456789ab.partial",
    )
    assert cleaned.size == 3000
    assert mine.exists()


@pytest.mark.parametrize("below", ["inner", "2/inner", "2"])
def test_checkpoints_of_a_study_that_lies_below_stay(folder: Path, below: str):
    """Also in the folder of a trial of this one."""
    Study.create({"x": uniform(0, 1)}, metric="m", algorithm="asha", max_t=9, path=folder / below).close()
    theirs = [make_file(folder / below, path) for path in ("checkpoints/resource-1.ckpt", checkpoint(0, 1).path)]
    cleaned = clean(folder)
    assert cleaned is not None
    assert (cleaned.trials, cleaned.strays) == ((2,), ())
    assert all(file.exists() for file in theirs)


def test_what_lies_in_no_trials_folder_stays(folder: Path):
    """The study folder may be one in which all studies are, as ``multirun``."""
    other = make_file(folder, "2026-01-01/10-00-00/0/checkpoints/resource-1.ckpt")
    clean(folder, everything=True)
    assert left(folder) == [other.relative_to(folder).as_posix()]


def test_what_a_crash_left_behind_is_asked_for_too(folder: Path):
    clean(folder)
    stray = make_file(folder, "3/checkpoints/resource-9.ckpt/shard")
    asked: list[Cleaned] = []

    def refuse(doomed: Cleaned) -> bool:
        asked.append(doomed)
        return False

    assert clean(folder, confirm=refuse) is None
    assert asked == [Cleaned((), ("3/checkpoints/resource-9.ckpt",), 1000)]
    assert stray.exists()


def test_who_says_no_keeps_everything(folder: Path):
    asked: list[Cleaned] = []

    def refuse(doomed: Cleaned) -> bool:
        asked.append(doomed)
        return False

    assert clean(folder, confirm=refuse) is None
    assert [doomed.trials for doomed in asked] == [(2,)]
    assert len(left(folder)) == 4
    assert read_study(folder).state.trials[2].checkpoint is not None


def test_a_study_that_runs_is_not_touched(folder: Path):
    study = Study.load(folder)
    with pytest.raises(StudyLocked):
        clean(folder)
    study.close()
    assert len(left(folder)) == 4


def test_nothing_behind_a_link_is_deleted(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "2" / "checkpoints").rename(elsewhere / "checkpoints")
    (folder / "2" / "checkpoints").symlink_to(elsewhere / "checkpoints")
    with pytest.raises(CheckpointError, match="is not deleted"):
        clean(folder)
    assert (elsewhere / "checkpoints" / "resource-3.ckpt").exists()
