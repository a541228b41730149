"""What is saved can be loaded without executing anything, and nothing else is loaded unasked."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf

from lightning_hpo.errors import CheckpointError
from lightning_hpo.integrations.lightning_internals import FORCE_WEIGHTS_ONLY, load_at_start
from lightning_hpo.integrations.saving import check_unpicklable, without_odd_hyperparameters, write_checkpoint
from tests.integrations.conftest import Trials


class Odd:
    """An object that only pickle can load; it leaves a mark when that happens."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Connector:
    """Loads as Lightning does, from 2.6 on."""

    def __init__(self) -> None:
        self.loaded: Any = None

    def resume_start(self, path: str, weights_only: bool | None = None) -> None:
        self.loaded = torch.load(path, weights_only=weights_only)


class OldConnector(Connector):
    """Before 2.6 nobody could choose."""

    def resume_start(self, path: str) -> None:  # type: ignore[override]
        self.loaded = torch.load(path, weights_only=False)


def loaded(connector: Connector, path: Path, refuse: Any = lambda path: None) -> Any:
    strategy = SingleDeviceStrategy()
    parts = {"_checkpoint_connector": connector, "strategy": strategy, "precision_plugin": strategy.precision_plugin}
    trainer: Any = SimpleNamespace(**parts, lightning_module=torch.nn.Linear(1, 1))
    assert load_at_start(trainer, path, refuse)
    connector.resume_start("the user's own checkpoint")
    return connector.loaded


def refuse(path: Path) -> None:
    raise CheckpointError(f"{path} is refused. Test.")


@pytest.mark.parametrize("kind", [Connector, OldConnector])
def test_plain_state_is_loaded_without_asking(tmp_path: Path, kind: type[Connector]) -> None:
    state = {"weights": torch.ones(2), "epoch": 3, "names": ["a"]}
    write_checkpoint(tmp_path / "x.ckpt", state)
    found = loaded(kind(), tmp_path / "x.ckpt", refuse)
    assert torch.equal(found["weights"], torch.ones(2)) and found["epoch"] == 3
    assert FORCE_WEIGHTS_ONLY not in os.environ


@pytest.mark.parametrize("kind", [Connector, OldConnector])
def test_what_needs_pickle_is_not_loaded_if_that_is_refused(tmp_path: Path, kind: type[Connector]) -> None:
    write_checkpoint(tmp_path / "x.ckpt", {"callback": Odd(tmp_path / "executed")})
    with pytest.raises(CheckpointError):
        loaded(kind(), tmp_path / "x.ckpt", refuse)
    assert not (tmp_path / "executed").exists()
    loaded(kind(), tmp_path / "x.ckpt")
    assert (tmp_path / "executed").exists(), "the test would not notice an execution"


def test_whose_state_cannot_be_pickled_may_be_a_scheduler(tmp_path: Path) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 1)
    scheduler.warm_up = lambda epoch: 0.1 * epoch  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"such as a lambda, out of the state_dict\(\) of .* schedulers"):
        write_checkpoint(tmp_path / "x.ckpt", {"lr_schedulers": [scheduler.state_dict()]})


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_unpickled(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, {})
    check_unpicklable(path)
    path.chmod(mode)
    with pytest.raises(CheckpointError, match=r"others than you .*\.$"):
        check_unpicklable(path)


def test_neither_is_one_in_a_folder_that_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, {})
    tmp_path.chmod(0o770)
    with pytest.raises(CheckpointError, match="others than you"):
        check_unpicklable(path)


def test_neither_is_one_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, {})
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(CheckpointError, match="others than you"):
        check_unpicklable(path)


def test_torchs_switch_against_pickle_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "x.ckpt", {"callback": Odd(tmp_path / "executed")})
    monkeypatch.setenv(FORCE_WEIGHTS_ONLY, "1")
    with pytest.raises(CheckpointError, match=rf"because {FORCE_WEIGHTS_ONLY} is set\."):
        loaded(Connector(), tmp_path / "x.ckpt", check_unpicklable)
    assert not (tmp_path / "executed").exists()
    assert os.environ[FORCE_WEIGHTS_ONLY] == "1"


def test_hyperparameters_that_need_pickle_are_left_out() -> None:
    checkpoint = {
        "state_dict": {"w": torch.ones(1)},
        "hyper_parameters": OmegaConf.create({"lr": 0.1}),
        "hparams_type": DictConfig,
        "datamodule_hyper_parameters": {"batch_size": 64},
    }
    kept = without_odd_hyperparameters(checkpoint)
    assert sorted(kept) == ["datamodule_hyper_parameters", "state_dict"]
    assert len(checkpoint) == 4, "the Trainer's own is not touched"


@pytest.mark.parametrize("config", ["", "hydra", "lambda"])
def test_a_trials_checkpoint_can_be_loaded_without_pickle(trials: Trials, config: str) -> None:
    attempt = trials.pause_at(1, config=config)
    path = trials.folder / "trial" / attempt.checkpoint.path
    found = torch.load(path, weights_only=True)
    assert ("hyper_parameters" in found) == (config != "hydra")
    assert found["epoch"] == 1
