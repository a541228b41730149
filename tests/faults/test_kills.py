"""Ten real SIGKILLs, and the signals that are notices: a study ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import uuid

import pytest

from lightning_hpo.core.events import AttemptEnded, AttemptStarted, Outcome
from lightning_hpo.runtime.failpoints import FOLDER_VARIABLE, VARIABLE
from tests.faults.killing import ENVIRONMENT, MARK, ORPHANS_S, KilledStudy, end_at_once
from tests.integrations.programs import Gate, ProgramServer, Running

PROGRAM = """
import json, os, signal, threading, time
import hydra
import lightning as L
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from lightning_hpo import HPOCallback

ConfigStore.instance().store(
    name="config", node={
        "x": 0.5, "trainer": {"max_epochs": 9}, "sleep": 0.05, "acknowledged": "", "hang": "", "gate": "",
    }
)


class Model(L.LightningModule):
    def __init__(self, x):
        super().__init__()
        self.x = x
        self.layer = torch.nn.Linear(4, 1)
        self.drop = torch.nn.Dropout(0.5)

    def training_step(self, batch, index):
        loss = self.layer(self.drop(batch[0])).sub(self.x).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


class Acknowledged(L.Callback):
    "Once the next epoch begins, the last one was answered."
    def __init__(self, config):
        self.config = config

    def on_train_epoch_start(self, trainer, module):
        time.sleep(self.config.sleep)
        hung = f"{self.config.hang}.{HydraConfig.get().job.num}"
        if self.config.hang and trainer.current_epoch == 2 and not os.path.exists(hung):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stuck_in_a_deadlock(hung)
        if trainer.current_epoch and self.config.acknowledged:
            line = json.dumps([HydraConfig.get().job.num, trainer.current_epoch]) + chr(10)
            with open(self.config.acknowledged, "a") as file:
                file.write(line)
        if trainer.current_epoch == 3 and self.config.gate:
            open(f"{self.config.gate}.{HydraConfig.get().job.num}", "w").close()
            while not os.path.exists(self.config.gate):
                time.sleep(0.01)


def stuck_in_a_deadlock(told_by):
    lock = threading.Lock()
    lock.acquire()
    open(told_by, "w").close()
    lock.acquire()


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(config):
    data = torch.utils.data.TensorDataset(torch.arange(64.0).reshape(16, 4) / 64)
    trainer = L.Trainer(
        max_epochs=config.trainer.max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        callbacks=[Acknowledged(config), HPOCallback()],
    )
    trainer.fit(Model(config.x), torch.utils.data.DataLoader(data, 4, shuffle=True, num_workers=1))


if __name__ == "__main__":
    main()
"""
TUNE = [
    "-m", "hydra/launcher=hpo", "hydra.launcher.metric=loss", "hydra.launcher.n_workers=2",
    "hydra.launcher.random_seed=3", "hydra.launcher.max_retries=20", "x=interval(0,1)",
]  # fmt: skip
PROMOTION = ["hydra.launcher.algorithm=asha", "hydra.launcher.type=promotion"]
TO_THE_END = ["hydra.launcher.algorithm=random"]


class Program:
    """A program that may be asked whether it still runs."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._code: int | None = None
        self.pid = running.pid

    @property
    def output(self) -> str:
        return self._running.output

    def poll(self) -> int | None:
        if self._code is None and not os.path.exists(f"/proc/{self.pid}"):
            self._code = self._running.end().code
        return self._code


@pytest.fixture(scope="module")
def mark():
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def server(mark):
    """Its programs have a temporary folder to themselves, in which nothing must be left."""
    with tempfile.TemporaryDirectory() as temporary:
        server = ProgramServer(**{MARK: mark, "TMPDIR": temporary})
        yield server
        server.close()
        # Torch's compiler keeps its cache there for the next program.
        assert [name for name in os.listdir(temporary) if not name.startswith("torchinductor_")] == []


@pytest.fixture
def killed_study(tmp_path, mark, server):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "study"

    def launch(more: list[str]) -> Program:
        overrides = [*TUNE, f"acknowledged={tmp_path}/acknowledged", f"hydra.sweep.dir={folder}", *study.options, *more]
        return Program(server.start(program, *overrides, folder=tmp_path, **study.environment))

    study = KilledStudy(folder, launch, mark, bystanders=(server.pid,))
    study.acknowledged = tmp_path / "acknowledged"
    study.options, study.environment = [], ENVIRONMENT
    yield study
    for pid in study.processes():
        end_at_once(pid)


@pytest.fixture
def gate(killed_study, tmp_path):
    """Trials wait at it for the test when they have been answered to three reports."""
    gate = Gate(tmp_path / "gate")
    killed_study.options = [*TO_THE_END, "hydra.launcher.n_trials=2", f"gate={gate.path}"]
    return gate


@pytest.mark.slow
def test_ten_kills_change_nothing_that_matters(killed_study):
    killed_study.options = [*PROMOTION, "hydra.launcher.n_trials=24"]
    kinds = (
        "trial", "loading process", "trial that saves", "launcher of a trial that saves", "trial", "launcher",
        "trial that saves", "launcher that starts", "loading process", "trial server",
    )  # fmt: skip
    killed_study.kill_until_it_ends(random.Random(0), kinds, pause_s=(0.1, 0.5))
    assert sum(killed_study.kills.values()) == 10
    assert max(killed_study.orphans_s) < ORPHANS_S
    assert max(killed_study.noticed_s) < 2.0
    again, different = killed_study.repeated()
    assert again > 0 and different == 0, "what is trained again gives the same values"


def test_sigterm_to_a_trial_does_not_make_it_complete(killed_study, gate):
    """A batch system may signal every process of an allocation."""
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: 0 in gate.waiting(), "the trial is in the middle of its training")
    trial_id, pid = 0, killed_study.trials()[0]
    os.kill(pid, signal.SIGTERM)
    gate.open()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    ends = [e for e in killed_study.events() if isinstance(e, AttemptEnded) and e.trial_id == trial_id]
    assert ends[0].outcome is Outcome.LOST
    assert "SIGTERM" in (ends[0].error or "")


@pytest.mark.parametrize(
    ("number", "to_everybody"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGUSR1, True)]
)
def test_a_notice_to_the_launcher_pauses_what_runs(killed_study, gate, number, to_everybody):
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: gate.waiting() == {0, 1}, "two trials are in the middle of their training")
    for pid in killed_study.processes() if to_everybody else [killed_study.running.pid]:
        os.kill(pid, number)
    killed_study.wait_for(lambda: "Pausing 2 running trials" in killed_study.running.output, "it has noticed")
    gate.open()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the launcher ends")
    assert killed_study.running.poll() == 128 + number
    assert not killed_study.processes()
    state = killed_study.state()
    assert all(trial.checkpoint is not None and trial.failures == 0 for trial in state.trials.values())
    assert all(trial.resource == 4 for trial in state.trials.values()), "not at the next report"
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    resumed = [e for e in killed_study.events() if isinstance(e, AttemptStarted) and e.attempt == 2]
    assert len(resumed) >= 2


def test_a_study_that_ended_at_its_limit_loses_nothing_when_the_limit_is_raised(killed_study):
    options = [*TO_THE_END, "hydra.launcher.n_trials=2", "sleep=0.2", "trainer.max_epochs=12"]
    killed_study.options = [*options, "hydra.launcher.stop.max_num_evaluations=7"]
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the limit ends the study")
    assert killed_study.running.poll() == 0
    assert not killed_study.processes()
    state = killed_study.state()
    assert all(t.checkpoint is not None and t.checkpoint.resource == t.resource for t in state.trials.values())
    killed_study.options = options
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    again, _ = killed_study.repeated()
    assert again == 0 and all(len(t.curve) == 12 for t in killed_study.state().trials.values())


def test_a_trial_that_hangs_leaves_its_stacks_and_is_tried_again(killed_study, tmp_path):
    """Even if it ignores SIGTERM."""
    hang = f"hang={tmp_path / 'hung'}"
    killed_study.options = [*TO_THE_END, "hydra.launcher.n_trials=2", hang, "hydra.launcher.epoch_timeout=3"]
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    ends = [e for e in killed_study.events() if isinstance(e, AttemptEnded)]
    hung = {e.trial_id for e in ends if e.outcome is Outcome.LOST and "no report for 3 s (epoch_timeout)" in e.error}
    assert hung == {0, 1}
    assert all(len(trial.curve) == 9 for trial in killed_study.state().trials.values())
    log = (killed_study.folder / "0" / "trial.log").read_text()
    assert "in stuck_in_a_deadlock" in log


@pytest.mark.slow
def test_a_launcher_that_was_stopped_for_a_while_takes_no_trial_for_hung(killed_study, gate):
    """Ctrl-Z and ``fg``, or a machine that was frozen."""
    killed_study.options = [*killed_study.options, "hydra.launcher.epoch_timeout=10"]
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: gate.waiting() and len(killed_study.trials()) == 2, "two trials run")
    os.kill(killed_study.running.pid, signal.SIGSTOP)
    gate.open()
    time.sleep(12.0)  # longer than the timeout, which no epoch of a busy machine takes
    os.kill(killed_study.running.pid, signal.SIGCONT)
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    assert all((trial.attempt, trial.failures) == (1, 0) for trial in killed_study.state().trials.values())


def test_a_full_disk_holds_a_study_up_and_costs_nothing(killed_study, tmp_path):
    hits = tmp_path / "hits"
    hits.mkdir()
    killed_study.environment = {VARIABLE: "checkpoint.written=raise:ENOSPC@2", FOLDER_VARIABLE: str(hits)}
    killed_study.options = [*PROMOTION, "hydra.launcher.n_trials=6"]
    killed_study.ensure_launched()
    killed_study.wait_for(lambda: killed_study.running.poll() is not None, "the study ends")
    killed_study.check_end()
    output = " ".join(killed_study.running.output.split())
    waits, goes_on = output.index("The study waits: The disk is full: "), output.index("the study goes on.")
    assert waits < goes_on
    assert "resource-1.ckpt needs" in output and "Free that much room" in output
    again, _ = killed_study.repeated()
    assert again == 0 and all(trial.failures == 0 for trial in killed_study.state().trials.values())
