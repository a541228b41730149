from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import StudyNotFound
from lightning_hpo.report.folder import (
    continuing,
    find_study,
    naming_study,
    read_reports,
    read_study,
    trial_folder,
    trial_log,
)
from lightning_hpo.runtime.journal import FILE_NAME, Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Study
from tests.report.studies import SPACE, small_study, state_of


def test_a_study_is_read_as_it_was_left(tmp_path: Path):
    study = small_study(tmp_path)
    study.close()
    read = read_study(tmp_path)
    assert {i: t.curve for i, t in read.state.trials.items()} == {
        0: {1: 0.9},
        1: {1: 0.5, 2: 0.4, 3: 0.45},
        2: {1: 0.7},
        3: {},
    }
    assert read.state.best_full == state_of(study).best_full
    assert (read.unit, read.holder, read.is_running) == ("epoch", None, False)
    assert read.why_ended() == "all 4 trials are done"


def test_a_study_that_runs_is_read_and_not_disturbed(tmp_path: Path):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="random", max_t=9)
    job = study.ask()
    assert job is not None
    for epoch in range(1, 6):
        study.tell(job.trial_id, epoch, 1 / epoch)
        read = read_study(tmp_path)
        assert read.state.trials[0].resource == epoch
        assert read.is_running
        assert f"process {os.getpid()}" in str(read.holder)
        assert read.why_ended() is None
    study.close()
    assert not read_study(tmp_path).is_running


def test_looking_writes_nothing(tmp_path: Path):
    small_study(tmp_path).close()
    before = (tmp_path / FILE_NAME).read_bytes()
    read_study(tmp_path).why_ended()
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_study_with_something_left_to_do_can_be_continued(tmp_path: Path):
    small_study(tmp_path, n_trials=5, points_to_evaluate=None).close()
    assert read_study(tmp_path).why_ended() is None


def test_a_study_whose_launcher_was_killed_can_be_continued(tmp_path: Path):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="random", max_t=9, n_trials=1)
    study.ask()
    study.close()  # its trial has not ended
    assert read_study(tmp_path).why_ended() is None


def test_reports_come_in_the_order_of_arrival_without_repetitions(tmp_path: Path):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="random", max_t=9)
    study.ask()
    study.tell(0, 1, 0.5, metrics={"train": 1.5}, cost=2.0)
    study.tell(0, 1, 0.7)
    study.tell(0, 2, float("nan"))
    study.close()
    _, reports = read_reports(tmp_path)
    assert [(r.trial_id, r.attempt, r.resource, r.metrics, r.cost) for r in reports] == [
        (0, 1, 1, {"train": 1.5}, 2.0),
        (0, 1, 2, {}, None),
    ]
    assert reports[0].value == 0.5
    assert reports[0].time <= reports[1].time


def test_the_study_of_the_current_folder_comes_first(tmp_path: Path):
    make(tmp_path)
    make(tmp_path / "multirun" / "a")
    assert find_study(tmp_path) == tmp_path


def test_else_the_one_that_was_written_last_below_multirun(tmp_path: Path):
    old, new = (make(tmp_path / "multirun" / "2026-11-05" / name) for name in ("12-00-00", "11-00-00"))
    os.utime(old / FILE_NAME, (1, 1))
    os.utime(new / FILE_NAME, (2, 2))
    assert find_study(tmp_path) == new
    # The launcher of the other one has written to SQLite's log, and not yet to the file itself.
    (old / f"{FILE_NAME}-wal").touch()
    assert find_study(tmp_path) == old


def test_without_any_study_the_message_says_what_to_do(tmp_path: Path):
    with pytest.raises(StudyNotFound, match=r"Name the folder of a study after the command\.$"):
        find_study(tmp_path)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).touch()
    return folder


def test_the_folder_of_a_trial_is_where_its_checkpoint_lies(tmp_path: Path):
    trial = state_of(small_study()).trials[0]
    assert trial_folder(tmp_path, trial) is None
    (tmp_path / "0").mkdir()
    assert trial_folder(tmp_path, trial) == tmp_path / "0"
    assert trial_log(tmp_path, trial) is None
    trial.checkpoint = Checkpoint(1, "lr=0.1/checkpoints/resource-1.ckpt", "", 1)
    assert trial_folder(tmp_path, trial) == tmp_path / "lr=0.1"
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "lr=0.1" / "trial.log").touch()
    assert trial_log(tmp_path, trial) == tmp_path / "lr=0.1" / "trial.log"


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("python /x/train.py -m 'a b=1,2' hydra.launcher.study={old}", "python /x/train.py -m 'a b=1,2' {study}"),
        ("python {old}/train.py hydra.launcher.study={old}", "python {old}/train.py {study}"),
        ("Tuner(..., path={old!r}).run()", "Tuner(..., path={new!r}).run()"),
        ("python it's", "python it's"),
    ],
)
@pytest.mark.parametrize("name", ["new", "lr=0.1,wd=(a) it's"])
def test_the_command_that_continues_a_study_follows_it_to_another_folder(tmp_path: Path, kept, told, name):
    old, new = str(tmp_path / "old"), tmp_path / name
    state = state_of(small_study())
    header = study_header(state.space, state.options) | continuing(kept.format(old=old), Path(old))
    Journal.create(old, header).close()
    os.rename(old, new)
    study = shlex.quote(naming_study(str(new)))
    assert read_study(new).continue_command == told.format(old=old, new=str(new), study=study)


def test_only_a_command_of_the_shell_begins_with_a_change_of_folder(tmp_path: Path, monkeypatch):
    state = state_of(small_study())
    shell = f"python train.py -m hydra.launcher.study={tmp_path / 'shell'}"
    for name, command in (("shell", shell), ("python", f"Tuner(..., path='{tmp_path / 'python'}').run()")):
        folder = tmp_path / name
        Journal.create(folder, study_header(state.space, state.options) | continuing(command, folder)).close()
    here = os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert read_study(tmp_path / "shell").continue_command == f"cd {here} && {shell}"
    assert read_study(tmp_path / "python").continue_command == f"Tuner(..., path='{tmp_path / 'python'}').run()"


def test_a_command_of_an_older_version_is_made_valid(tmp_path: Path):
    study = tmp_path / "lr=0.1"
    state = state_of(small_study())
    raw = f"python train.py hydra.launcher.study={study}"
    Journal.create(study, study_header(state.space, state.options) | continuing(raw, study)).close()
    command = read_study(study).continue_command
    assert command is not None
    assert shlex.split(command)[-1] == f"hydra.launcher.study='{study}'"


def test_reading_needs_neither_torch_nor_lightning(tmp_path: Path):
    small_study(tmp_path).close()
    program = (
        "import sys, json; from lightning_hpo.cli import main; "
        f"codes = [main([command, {str(tmp_path)!r}]) for command in ('status', 'trials', 'best', 'report')]; "
        "print(json.dumps([codes, [m for m in ('torch', 'lightning', 'hydra') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0, 0, 0], []]
