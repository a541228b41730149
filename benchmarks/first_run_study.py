"""The study that ``first_run.py`` gives to every tuner: the recipe's model, data and Trainer, and its search space."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from data_modules import DigitsData
from lightning.pytorch import Callback, Trainer
from mlp import MLP

N_TRIALS = 20
MAX_EPOCHS = 27
ETA = 3
WORKERS = 2
METRIC = "val_acc"
LR = (1e-5, 1e-1)
UNITS = (8, 256)
DROPOUT = (0.0, 0.7)


def fit(
    config: dict[str, Any], *callbacks: Callback, epochs: int = MAX_EPOCHS, checkpoint: Path | None = None
) -> float:
    """Train as ``recipes/train.py`` does, to ``epochs``, maybe from a checkpoint; returns the validation accuracy."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    model = MLP(units=config["units"], dropout=config["dropout"], lr=config["lr"])
    trainer.fit(model, datamodule=DigitsData(), ckpt_path=checkpoint)
    return float(trainer.callback_metrics[METRIC])
