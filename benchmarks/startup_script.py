"""A small Lightning script, as a user would write it, that notes when it trains its first batch.

``python startup_script.py`` trains once. ``python startup_script.py --study DIR`` tunes the same function with our
runtime. Moments are ``time.monotonic()``, one clock for all processes of a machine, appended to ``$STARTUP_MOMENTS``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import HPOCallback, Tuner, loguniform
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.backends.local import LocalBackend

MAX_T = 4


def note(what: str, **fields: Any) -> None:
    with open(os.environ["STARTUP_MOMENTS"], "a") as file:
        file.write(json.dumps({"what": what, "at": time.monotonic(), **fields}) + "\n")


class FirstStep(L.Callback):
    """Notes the end of the first training step of this process."""

    noted = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.noted:
            self.noted = True
            trial, attempt = (os.environ.get(f"LIGHTNING_HPO_{name}") for name in ("TRIAL", "ATTEMPT"))
            note("step", trial=trial, attempt=attempt, epoch=trainer.current_epoch)


class Model(L.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


def train(config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(1024, 64, generator=generator), torch.randint(0, 10, (1024,), generator=generator)
    trainer = L.Trainer(
        max_epochs=MAX_T,
        accelerator="cpu",
        callbacks=[HPOCallback(), FirstStep()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(config["lr"]), DataLoader(TensorDataset(inputs, labels), 64, shuffle=True))


def tune(folder: Path, trials: int, start_method: str) -> None:
    start = LocalBackend.start

    def noted_start(self: LocalBackend, job: Job) -> None:
        note("start", trial=str(job.trial_id), attempt=str(job.attempt))
        start(self, job)

    LocalBackend.start = noted_start  # type: ignore[method-assign]
    Tuner(
        train,
        {"lr": loguniform(1e-4, 1e-1)},
        metric="loss_epoch",
        algorithm="asha",
        type="promotion",
        max_t=MAX_T,
        grace_period=1,
        reduction_factor=2,
        n_workers=1,
        random_seed=0,
        stop={"max_num_trials_started": trials},
        path=folder,
        start_method=start_method,
    ).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--study", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--start-method", default="auto")
    arguments = parser.parse_args()
    if arguments.study is None:
        train({"lr": 1e-3})
    else:
        tune(arguments.study, arguments.trials, arguments.start_method)
