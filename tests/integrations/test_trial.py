"""What a trial's process does around the user's script."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_hpo.core.events import Outcome
from lightning_hpo.integrations import trial
from lightning_hpo.integrations.job import JobResult
from lightning_hpo.integrations.root_folder import ROOT_VARIABLE
from lightning_hpo.integrations.trial import TrialEntry
from lightning_hpo.runtime.backends.base import Job


@pytest.fixture
def root_of_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a script that makes a Trainer as a trial in ``tmp_path/7``; returns where the Trainer writes."""
    # Set and deleted, so that what the trial sets does not outlive the test.
    monkeypatch.setenv(ROOT_VARIABLE, "")
    monkeypatch.delenv(ROOT_VARIABLE)
    channel = SimpleNamespace(interrupted_as=None, callback_seen=True, fit_error=None, ended=lambda *_: None)
    monkeypatch.setattr(trial, "trial_channel", lambda: channel)
    folder = tmp_path / "7"

    def run(trainer_class: type[Trainer] = Trainer, **options: Any) -> str:
        found = []

        def script(job: Job) -> JobResult:
            trainer = trainer_class(accelerator="cpu", enable_progress_bar=False, **options)
            found.append(trainer.logger.save_dir if trainer.logger else trainer.default_root_dir)
            return JobResult(Outcome.COMPLETED)

        TrialEntry(script)(Job(7, 1, folder, folder / "trial.log", {}, {}))
        return str(found[0])

    return run


def test_a_trainer_without_a_folder_writes_into_the_trials(root_of_trainer: Any, tmp_path: Path) -> None:
    assert root_of_trainer(logger=False) == str(tmp_path / "7")
    assert root_of_trainer(logger=True) == str(tmp_path / "7")


class OwnTrainer(Trainer):
    """What Lightning reads from the environment for a Trainer it does not read for classes of other names."""


def test_no_folder_may_be_written_as_none_and_to_a_class_of_the_scripts_own(
    root_of_trainer: Any, tmp_path: Path
) -> None:
    """LightningCLI passes every argument, a configuration may say null."""
    assert root_of_trainer(logger=False, default_root_dir=None) == str(tmp_path / "7")
    assert root_of_trainer(OwnTrainer, logger=False) == str(tmp_path / "7")


def test_after_the_trial_a_trainer_is_as_before(root_of_trainer: Any, tmp_path: Path) -> None:
    before = Trainer.__init__
    root_of_trainer(logger=False)
    assert Trainer.__init__ is before


def test_the_scripts_own_folders_are_kept(root_of_trainer: Any, tmp_path: Path) -> None:
    assert root_of_trainer(logger=False, default_root_dir=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert root_of_trainer(logger=CSVLogger(str(tmp_path / "logs"))) == str(tmp_path / "logs")


def test_the_users_own_setting_of_lightning_is_kept(
    root_of_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "everything"))
    assert root_of_trainer(logger=False) == str(tmp_path / "everything")
    assert os.environ[ROOT_VARIABLE] == str(tmp_path / "everything")


def test_a_training_whose_error_the_script_has_caught_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    error = (Outcome.FAILED, "RuntimeError: no memory for this batch")
    channel = SimpleNamespace(
        interrupted_as=None, callback_seen=True, fit_error=error, ended=lambda *all_of_it: told.append(all_of_it)
    )
    monkeypatch.setattr(trial, "trial_channel", lambda: channel)
    TrialEntry(lambda _: JobResult(Outcome.COMPLETED, 0.5))(Job(7, 1, tmp_path, tmp_path / "trial.log", {}, {}))
    assert told[0][:2] == error
