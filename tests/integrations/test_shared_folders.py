"""Trials that write to one folder are told so, others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_hpo.integrations.trainer_files import places_outside
from tests.integrations.conftest import Trials
from tests.integrations.programs import PROGRAM, Ended, ProgramServer

WARNING = "both write to"


class Service(Logger):
    """Names its runs by itself."""

    name, version, save_dir = "project", "run-4711", "runs"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a Trainer writes outside of the trial's folder, ``7``, seen from the working folder, which is beside it."""
    (tmp_path / "7").mkdir()
    monkeypatch.chdir(tmp_path)

    def found(*loggers: Logger, **saving: Any) -> dict[str, str]:
        callbacks = [ModelCheckpoint(**saving)] if saving else []
        options = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": "7"}
        trainer = Trainer(logger=list(loggers) or False, callbacks=callbacks, **options)
        places = places_outside(trainer, tmp_path / "7")
        return {str(Path(place).relative_to(tmp_path)): writer for place, writer in places.items()}

    return found


def test_a_logger_that_numbers_its_versions_shares_the_folder_above_them(outside: Any) -> None:
    assert outside(CSVLogger("logs")) == {"logs/lightning_logs": "CSVLogger"}
    assert outside(CSVLogger("logs", name="", version="")) == {"logs": "CSVLogger"}


def test_a_version_with_a_name_is_the_place(outside: Any) -> None:
    assert outside(CSVLogger("logs", version="lr=0.1")) == {"logs/lightning_logs/lr=0.1": "CSVLogger"}


def test_the_trials_own_folder_is_no_news(outside: Any, tmp_path: Path) -> None:
    assert outside(CSVLogger("7/logs"), dirpath="7") == {}
    (tmp_path / "link").symlink_to("7")
    assert outside(CSVLogger("link/logs")) == {}
    assert outside() == {}


def test_a_link_in_the_trials_folder_may_lead_out_of_it(outside: Any, tmp_path: Path) -> None:
    (tmp_path / "7" / "logs").symlink_to("../all")
    assert outside(CSVLogger("7/logs")) == {"all/lightning_logs": "CSVLogger"}


def test_checkpoints_are_named_unless_they_lie_with_the_logs(outside: Any) -> None:
    assert outside(dirpath="best") == {"best": "ModelCheckpoint"}
    logs = {"logs/lightning_logs": "CSVLogger"}
    assert outside(CSVLogger("logs"), dirpath="logs/lightning_logs/version_0/checkpoints") == logs
    assert outside(CSVLogger("logs"), dirpath="best") == logs | {"best": "ModelCheckpoint"}


def test_a_logger_of_a_service_names_its_runs_by_itself(outside: Any) -> None:
    assert outside(Service()) == {}


def test_a_trial_says_in_its_log_what_lies_outside(trials: Trials) -> None:
    beside = trials.anew("beside").run("relative_logger", working="..", worsens=True)
    assert f"outside of this trial's folder: {trials.folder}/beside/logs/lightning_logs (CSVLogger)\n" in beside.log
    within = trials.anew("within").run("relative_logger", working=".", worsens=True)
    assert within.returned["score"] == 0.0
    assert "outside of this trial's folder" not in within.log


@pytest.fixture
def tune(programs: ProgramServer, tmp_path: Path) -> Any:
    """Runs a script with a logger below ``logs``."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("logger=False, enable_checkpointing=False,\n", 'logger=CSVLogger("logs"),\n', 1))
    assert "CSVLogger" in program.read_text()
    program.write_text("from lightning.pytorch.loggers import CSVLogger\n" + program.read_text())

    def run(*overrides: str) -> Ended:
        options = ["metric=val_loss", "algorithm=random", "n_trials=3", "n_workers=1", "random_seed=1"]
        study = ["-m", "hydra/launcher=hpo", *(f"hydra.launcher.{option}" for option in options)]
        ended = programs.run(program, *study, "model.lr=interval(0.001,0.1)", *overrides, folder=tmp_path)
        assert ended.code == 0, ended.output
        return ended

    return run


def test_a_study_of_trials_with_one_folder_says_so_and_how_to_give_each_its_own(tune: Any, tmp_path: Path) -> None:
    ended = tune()
    (line,) = (line for line in ended.output.splitlines() if WARNING in line)
    assert f"Warning: Trials 0 and 1 {WARNING} {tmp_path}/logs/lightning_logs (CSVLogger)" in line
    assert WARNING not in tune("hydra.job.chdir=true").output
    assert len(list(tmp_path.glob("multirun/*/*/*/logs/lightning_logs/version_0"))) == 3
