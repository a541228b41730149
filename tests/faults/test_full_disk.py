"""Who wants to stop a study can, though its disk is full: what is there stays, what is missing is told."""

from __future__ import annotations

import signal

import pytest

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import Reported
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Suggestion, suggested
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import StudyError
from lightning_hpo.integrations import run
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.runtime.coordinator import RunResult
from lightning_hpo.runtime.failpoints import VARIABLE
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.trial_folders import TrialFolders
from tests.integrations.programs import PROGRAM


def test_a_full_disk_does_not_keep_who_wants_to_stop(programs, tmp_path):
    (tmp_path / "script.py").write_text(PROGRAM)
    launcher = [f"hydra.launcher.{o}" for o in ("metric=val_loss", "algorithm=random", "n_trials=2", "n_workers=2")]
    arguments = ["-m", "hydra/launcher=hpo", *launcher, "hydra.sweep.dir=study", "model.lr=interval(1e-4,1e-1)"]
    full = "journal.before_commit=raise:ENOSPC"
    running = programs.start(tmp_path / "script.py", *arguments, folder=tmp_path, **{VARIABLE: full})
    for told in ("The study waits: ", "Interrupted, but the study cannot be written."):
        running.wait_for(lambda output, told=told: told in output)
        running.signal(signal.SIGINT)
    ended = running.end()
    assert ended.code == 128 + signal.SIGINT
    assert "The study ends without what could not be written." in ended.output
    assert "Traceback" not in ended.output
    with Journal.read(tmp_path / "study") as journal:
        assert len(journal) == 0 and not list(journal.events())
    ended = programs.run(tmp_path / "script.py", *arguments, folder=tmp_path)
    assert ended.code == 0 and "all 2 trials are done" in ended.output


def test_results_without_room_are_told_of_and_change_no_exit_status(monkeypatch, capsys, tmp_path):
    def refuse(*_, **__):
        raise StudyError("trials.csv cannot be written: No space left on device. Make room on the disk.")

    monkeypatch.setattr(run, "write_results", refuse)
    options = StudyOptions.from_mapping({"metric": "m", "algorithm": "random", "max_t": 3, "points_to_evaluate": []})
    state = StudyState(SearchSpace({"x": uniform(0.0, 1.0)}), options)
    state.handle(suggested(1.0, 0, Suggestion({"x": 0.5}, "random")))
    state.handle(Reported(2.0, 0, 1, 1, 0.25, {}, None))
    setup = run.StudySetup(state.space, LauncherOptions(metric="m"), 3, tmp_path, entry=None, jobs=None)
    folders = TrialFolders(tmp_path, state, lambda trial: tmp_path / str(trial.id))
    run._conclude(setup, state, folders, {}, RunResult("interrupted", signal.SIGTERM), None)
    printed = capsys.readouterr().out
    assert "The results are not written. trials.csv cannot be written" in printed and "m=0.25" in printed
    with pytest.raises(StudyError):
        run._conclude(setup, state, folders, {}, RunResult("all is done"), None)
