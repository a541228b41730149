"""Runs users' programs in tests: see ``program_server.py``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PROGRAM = '''
import os
import hydra
import lightning as L
import torch
from hydra.core.config_store import ConfigStore
from lightning_hpo import HPOCallback

ConfigStore.instance().store(name="config", node={
    "model": {"lr": 0.01, "units": 8, "act": "relu"}, "trainer": {"max_epochs": 3},
    "log": "val_loss", "do": "", "sleep": 0.0, "gate": "",
})


class Model(L.LightningModule):
    """val_loss falls from epoch to epoch, and is lowest for lr = 0.01: 1 / epoch + |log10(lr) + 2|."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, index):
        value = 1 / (self.current_epoch + 1) + abs(torch.log10(torch.tensor(self.config.model.lr)) + 2)
        if self.config.do == "nan" and self.config.model.lr > 0.01:
            value = torch.tensor(float("nan"))
        self.log(self.config.log, value)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.config.model.lr)

    def on_train_epoch_end(self):
        import time
        time.sleep(self.config.sleep)
        if self.config.gate:
            wait_at(self.config.gate)


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(config):
    if config.do == "raise" or (config.do == "raise once" and HydraNum() == 1):
        raise ValueError("no such data set")
    if config.do == "exit":
        raise SystemExit(3)
    if config.do == "nothing":
        return
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(8, 4)), 4)
    if config.do == "prepare":
        L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False).fit(Model(config), loader)
    trainer = L.Trainer(
        max_epochs=config.trainer.max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        callbacks=[] if config.do == "forget" else [HPOCallback()],
    )
    trainer.fit(Model(config), loader, loader)
    trainer.validate(Model(config), loader)
    print("the script's last line", flush=True)
    return float(trainer.callback_metrics[config.log])


def wait_at(gate):
    """Leave word that this trial has come, and wait until the gate is open."""
    import time
    open(f"{gate}.{HydraNum()}", "w").close()
    deadline = time.monotonic() + 250
    while not os.path.exists(gate):
        assert time.monotonic() < deadline, "whoever opens the gate is gone"
        time.sleep(0.01)


def HydraNum():
    from hydra.core.hydra_config import HydraConfig
    return HydraConfig.get().job.num


if __name__ == "__main__":
    main()
'''


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    code: int
    output: str
    seconds: float
    folder: Path
    """Where it ran."""

    @property
    def study(self) -> Path:
        """The study folder, which the closing words name."""
        found = re.search(r"lightning-hpo status '?([^\s']+)", self.output)
        assert found, self.output
        return self.folder / found[1]


class Running:
    """A program that runs."""

    def __init__(self, server: ProgramServer, pid: int, output: Path) -> None:
        self._server = server
        self.pid = pid
        self._output = output
        self._begun = time.monotonic()

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def wait_for(self, condition: Callable[[str], bool], timeout_s: float = 60) -> None:
        """Wait until what was printed fulfils a condition."""
        deadline = time.monotonic() + timeout_s
        while not condition(self.output):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for its end."""
        code = self._server.answer()["code"]
        return Ended(code, self.output, time.monotonic() - self._begun, self._output.parent)


class Gate:
    """At which trials wait at the end of an epoch, until it is opened or left: with ``gate=PATH`` in ``PROGRAM``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        """For good."""
        self.path.touch()

    def waiting(self) -> set[int]:
        """Numbers of the trials that have come to it."""
        return {int(path.suffix[1:]) for path in self.path.parent.glob(f"{self.path.name}.*")}

    def wait_for(self, count: int, running: Running) -> None:
        """Wait until so many trials of a program have come."""
        running.wait_for(lambda _: len(self.waiting()) == count, timeout_s=120)


class ProgramServer:
    """Runs one program at a time, with this environment beside its own."""

    def __init__(self, **more: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_HPO_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.program_server"],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"} | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._count = 0
        self.answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, program: Path, *arguments: str, folder: Path, **environment: str) -> Running:
        assert self._process.stdin is not None
        self._count += 1
        output = folder / f"output-{self._count}.txt"
        request = {
            "program": str(program),
            "arguments": list(arguments),
            "folder": str(folder),
            "output": str(output),
            "environment": environment,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        return Running(self, self.answer()["pid"], output)

    def run(self, program: Path, *arguments: str, folder: Path, **environment: str) -> Ended:
        return self.start(program, *arguments, folder=folder, **environment).end()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server died"
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
