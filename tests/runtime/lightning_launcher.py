"""Like ``scripted_launcher.py``, for trials that really train.

Before the sweep the launcher has computed with several threads and with autograd, as a user's script may do.
"""

from __future__ import annotations

import json
import os
import time

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from scripted_launcher import main
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo.runtime.backends.base import Job

IMPORTED_BY = os.getpid()


class Model(L.LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        (self.job.folder / f"trains{self.job.rank}").touch()
        time.sleep(self.job.payload.get("step_s", 0))
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def entry(job: Job) -> None:
    {"compute": compute, "fit": fit}[job.payload["do"]](job)


def compute(job: Job) -> None:
    total = compute_with_threads()
    tell(job, threads=torch.get_num_threads(), total=total, random=torch.rand(1).item())


def fit(job: Job) -> None:
    early_rank = rank_zero_only.rank
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=job.ranks,
        strategy="ddp" if job.ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=job.folder,
    )
    model = Model(job)
    data = TensorDataset(torch.randn(64, 8))
    trainer.fit(model, DataLoader(data, 8, num_workers=job.payload.get("num_workers", 0)))
    tell(
        job,
        early_rank=early_rank,
        global_rank=trainer.global_rank,
        world_size=trainer.world_size,
        steps=trainer.global_step,
        weight=model.layer.weight.sum().item(),
        imported_by=IMPORTED_BY,
    )


def compute_with_threads() -> float:
    x = torch.ones(400, 400, requires_grad=True)
    y = (x @ x).sum()
    y.backward()
    return y.item() + (torch.ones(2000, 2000) + 1).sum().item()


def tell(job: Job, **facts: object) -> None:
    (job.folder / f"facts{job.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(max(2, os.cpu_count() or 1))
    compute_with_threads()
    main(entry)
