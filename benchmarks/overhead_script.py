"""A tiny Lightning fit, timed epoch by epoch, alone and as a trial of a study. Run by ``overhead.py``.

Every trial fits twice in its process, first without the callback, then with it: the difference is what a study costs
an epoch, with the report, its durable commit and the answer. The first lines of the output come from fits outside a
study, where the callback does nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import HPOCallback, Tuner, uniform


class EpochClock(L.Callback):
    """Notes the beginning of every epoch."""

    def __init__(self) -> None:
        self.begun: dict[str, list[float]] = {"wall": [], "processor": []}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun["wall"].append(time.perf_counter())
        self.begun["processor"].append(time.process_time())


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def epoch_seconds(epochs: int, *callbacks: L.Callback) -> dict[str, list[float]]:
    """Seconds from the beginning of an epoch to that of the next, by the wall's clock and the process's."""
    clock = EpochClock()
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(data, 64))
    return {name: [after - before for before, after in itertools.pairwise(at)] for name, at in clock.begun.items()}


def compare(output: Path, where: str, epochs: int) -> None:
    torch.set_num_threads(1)  # idle threads that wait busily would count as the callback's processor time
    plain = epoch_seconds(epochs)
    called = epoch_seconds(epochs, HPOCallback())
    with open(output, "a") as file:
        file.write(json.dumps({"where": where, "plain": plain, "callback": called}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    output, epochs = arguments.output.absolute(), arguments.epochs
    for _ in range(arguments.repeats):
        compare(output, "outside a study", epochs)

    def train(config: dict[str, Any]) -> None:
        compare(output, "in a trial", epochs)

    Tuner(
        train,
        {"x": uniform(0.0, 1.0)},
        metric="loss_epoch",
        algorithm="random",
        max_t=epochs,
        n_workers=1,
        random_seed=0,
        n_trials=arguments.repeats,
        path=output.parent / "callback",
    ).run()
