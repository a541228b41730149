"""A trial of ``first_run_peer.py`` under Syne Tune: trains up to ``--epochs``, from its checkpoint if it has one."""

from __future__ import annotations

import argparse
from pathlib import Path

from first_run_study import METRIC, fit
from lightning.pytorch import Callback, LightningModule, Trainer
from syne_tune import Reporter


class SaveAndReport(Callback):
    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.report = Reporter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In this order: the tuner may end the process as soon as it has the report.
        trainer.save_checkpoint(self.checkpoint)
        self.report(epoch=trainer.current_epoch + 1, **{METRIC: float(trainer.callback_metrics[METRIC])})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--units", type=int)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--st_checkpoint_dir", type=Path)
    arguments, _ = parser.parse_known_args()
    arguments.st_checkpoint_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.st_checkpoint_dir / "last.ckpt"
    fit(
        vars(arguments),
        SaveAndReport(checkpoint),
        epochs=arguments.epochs,
        checkpoint=checkpoint if checkpoint.exists() else None,
    )
