"""Lets the process from which trials are forked do once what every trial would do first."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path


def warm_up() -> None:
    """Train a tiny model for one step on the CPU, write a checkpoint and go on from it.

    What Python, torch and Lightning prepare at first use (caches of type checks, tables of operators, libraries
    loaded late) is then there in every fork: about a third of the time to the first training step. Nothing is
    written that stays, nothing is printed.
    """
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    class Tiny(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.log("loss", loss, on_epoch=True)
            return loss

        def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
            self.log("val_loss", torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    data = DataLoader(TensorDataset(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)), 2, shuffle=True)
    threads = torch.get_num_threads()
    with _silence(), tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)  # no pool of threads in a process that is to be forked
        try:
            checkpoint = None
            for epochs in (1, 2):
                trainer = Trainer(
                    max_epochs=epochs,
                    accelerator="cpu",
                    devices=1,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    default_root_dir=folder,
                )
                trainer.fit(Tiny(), data, data, ckpt_path=checkpoint)
                checkpoint = str(Path(folder, "tiny.ckpt"))
                trainer.save_checkpoint(checkpoint)
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
