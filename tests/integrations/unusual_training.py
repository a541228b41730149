"""Small training scripts in which state lies where one does not look for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Sampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from lightning_hpo.integrations.callback import HPOCallback
from tests.integrations.training import FEATURES, Model, Points, outcome


class SizedData(LightningDataModule):
    """Has a batch size, draws its validation data when it is asked for them, and grows with the epochs."""

    def __init__(self, grows: bool) -> None:
        super().__init__()
        self.batch_size, self.grows = 4, grows

    def train_dataloader(self) -> Any:
        points = Points(24, seed=1)
        assert self.trainer is not None
        n = 12 + 4 * self.trainer.current_epoch if self.grows else 24
        return DataLoader(Subset(points, range(n)), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(random_split(Points(12, seed=2), [8, 4])[0], 4)


class OwnOrder(Sampler[int]):
    """Keeps a generator of numpy for itself."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[int]:
        yield from map(int, self.rng.permutation(24))


class Noise:
    """A transform, or a function that collates, with a generator for itself."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, x: Any) -> Any:
        return x + 0.1 * self.rng.standard_normal()

    def collate(self, batch: Any) -> Any:
        x, y = default_collate(batch)
        return self(x), y


class Augmented(Points):
    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self.transforms = [Noise(seed), Noise(seed + 1)]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().__getitem__(i)
        for transform in self.transforms:
            x = transform(x)
        return x, y


class Jitter(Callback):
    """As its module, it draws from its own generator in each step."""

    def __init__(self) -> None:
        self.noise = Noise(3)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        batch[0].copy_(self.noise(pl_module.noise(batch[0])))


class CountedOrder(Sampler[int]):
    """A new order in each epoch, by its number."""

    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[int]:
        self.epochs += 1
        return iter(np.random.default_rng(self.epochs).permutation(24).tolist())


class CountingData(LightningDataModule):
    """Remembers how many loaders it has made, and how many epochs they have begun.

    Args:
        late: it can only say so when there is a loader.
    """

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.made, self.order, self.late = 0, CountedOrder(), late
        self.loader: Any = None

    def train_dataloader(self) -> Any:
        self.made += 1
        self.loader = DataLoader(Points(24, seed=self.made), 4, sampler=self.order)
        return self.loader

    def val_dataloader(self) -> Any:
        return DataLoader(Points(8, seed=2), 4)

    def state_dict(self) -> dict[str, Any]:
        assert self.loader is not None or not self.late
        return {"made": self.made, "epochs": self.order.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made, self.order.epochs = state["made"], state["epochs"]


class Endless:
    """A loader that never starts over, and knows where it is."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        points = Points(24, seed=1)
        while True:
            chosen = torch.randint(24, (4,), generator=torch.Generator().manual_seed(self.position))
            self.position += 1
            yield points.x[chosen], points.y[chosen]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Both(Model):
    """Trains with the batches of two loaders at a time."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step([torch.cat(parts) for parts in zip(*batch, strict=True)], batch_idx)


class Remembering(Model):
    """Draws at the start of an epoch, and shifts its inputs by what is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def on_train_epoch_start(self) -> None:
        torch.rand(1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.shift += 0.01
        return super().training_step((batch[0] + self.shift, batch[1]), batch_idx)


class Filling(Model):
    """Has buffers that are set when the training begins, or in its midst, and one that grows."""

    mean: torch.Tensor
    first: torch.Tensor | None
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("first", None, persistent=False)
        self.register_buffer("seen", torch.zeros(0, FEATURES))

    def on_train_start(self) -> None:
        self.mean = torch.full((FEATURES,), 0.1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        self.first = x[0] if self.first is None else self.first
        self.seen = torch.cat([self.seen, x[:1]])
        return super().training_step((x - self.mean + 0.1 * self.first + 0.1 * self.seen.mean(0), y), batch_idx)


class Graph(Model):
    """Has layers that find their shapes by themselves, and sparse buffers, one of which changes in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(0.3), nn.LazyLinear(2))
        self.register_buffer("edges", torch.eye(FEATURES).to_sparse(), persistent=False)
        self.register_buffer("mixed", torch.eye(FEATURES).to_sparse())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.edges = self.edges * 0.9
        return super().training_step(((self.mixed @ (self.edges @ batch[0].T)).T, batch[1]), batch_idx)


class SavesElsewhere(Model):
    """Saves its weights under a name of its own."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = checkpoint.pop("state_dict")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = checkpoint.pop("mine")


class Noisy(Model):
    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise(4)


class Counting(Model):
    """Counts the validations when it is told of their end, draws then, and trains with the number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("validations", torch.zeros(1))

    def on_validation_end(self) -> None:
        torch.rand(1)
        if not self.trainer.sanity_checking:
            self.validations += 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step((batch[0] + 0.05 * self.validations, batch[1]), batch_idx)


class Starting(Model):
    """Sets its first weights, a codebook and its learning rate when the fit begins, and changes all of them then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("book", torch.zeros(6))

    def on_fit_start(self) -> None:
        with torch.no_grad():
            self.net[0].weight.mul_(0.5)

    def on_train_start(self) -> None:
        self.book.copy_(self.net[0].weight.sum(0).detach())
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.05

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.book.mul_(0.9).add_(0.1 * batch[0].mean(0))
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.9
        return super().training_step((batch[0] + self.book, batch[1]), batch_idx)


class Looking(Model):
    """Trains with what was logged last, also by this rank alone, wherever Lightning keeps it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        kept = (self.trainer.callback_metrics, self.trainer.logged_metrics, self.trainer.progress_bar_metrics)
        seen = sum(float(metrics.get("own", -1.0)) for metrics in kept)
        return super().training_step((batch[0] + 0.01 * seen, batch[1]), batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("own", float(self.current_epoch + self.global_rank), prog_bar=True, rank_zero_only=False)


class Fetching(Model):
    """Fetches its batches itself."""

    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        batch, _, _ = next(dataloader_iter)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=4)
        return loss


class Accumulating(Model):
    """Steps at every fourth batch of six."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        if (batch_idx + 1) % 4 == 0:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
        self.log("train_loss", loss, on_step=False, on_epoch=True)


class FindsAtMilestones(LearningRateFinder):
    """As Lightning's documentation has it: it searches in the middle of the training, not at its start."""

    def on_fit_start(self, *_: Any, **__: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch in (0, 2):
            self.lr_find(trainer, pl_module)


class Resets(Callback):
    """Makes Lightning forget what it has loaded, as a tuner does that searches in every attempt."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer._checkpoint_connector._loaded_checkpoint = {}


class Averages(Callback):
    """Saves the mean of the weights in their place, and gives the training its own again when it begins."""

    def __init__(self) -> None:
        self.trained: dict[str, torch.Tensor] = {}
        self.mean: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trained:
            pl_module.load_state_dict(self.trained)
        else:
            self.mean = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = pl_module.state_dict()
        self.mean = {
            name: torch.lerp(value, now[name], 0.1) if value.is_floating_point() else now[name].clone()
            for name, value in self.mean.items()
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained"], checkpoint["state_dict"] = checkpoint["state_dict"], self.mean

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.trained, self.mean = checkpoint["trained"], checkpoint["state_dict"]


class LogsAtTheEnd(Callback):
    """Trusts in the logger that the script has made."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.logger is not None
        trainer.logger.log_metrics({"final": 1.0}, step=trainer.global_step)


class ChangesOnce(Callback):
    """Changes what the Trainer was told, in one epoch for all later ones."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.accumulate_grad_batches, trainer.gradient_clip_val = 2, 1e-3


MODELS = {
    "both": Both,
    "counting": Counting,
    "looking": Looking,
    "starting": Starting,
    "remembering": Remembering,
    "filling": Filling,
    "graph": Graph,
    "noisy": Noisy,
    "saves elsewhere": SavesElsewhere,
    "fetching": Fetching,
    "accumulating": Accumulating,
}


def train_unusually(
    folder: str,
    *,
    model: str = "",
    callback: str = "",
    sized_data: bool = False,
    grows: bool = False,
    counts: str = "",
    sampler: str = "",
    augmented: bool = False,
    endless: bool = False,
    persistent: bool = False,
    broadcast: bool = True,
    rows: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """As ``train`` of the usual scripts."""
    seed_everything(7, workers=True)
    made: Model = MODELS.get(model, Model)()
    callbacks: dict[str, Any] = {
        "batch size": lambda: BatchSizeFinder(steps_per_trial=2, init_val=2, max_trials=1),
        "learning rate": lambda: LearningRateFinder(num_training_steps=30),
        "milestones": lambda: FindsAtMilestones(num_training_steps=4, mode="linear"),
        "pruning": lambda: ModelPruning("l1_unstructured", amount=0.3, apply_pruning=lambda epoch: epoch == 0),
        "lottery tickets": lambda: ModelPruning("l1_unstructured", amount=0.3),
        "accumulation": lambda: GradientAccumulationScheduler({0: 1, 1: 4, 3: 2}),
        "swa": lambda: StochasticWeightAveraging(5e-3),
        "averages": Averages,
        "resets": Resets,
        "jitter": Jitter,
        "changes once": ChangesOnce,
        "logs at the end": LogsAtTheEnd,
    }
    if not broadcast:
        from lightning.pytorch.strategies import DDPStrategy

        options["strategy"] = DDPStrategy(broadcast_buffers=False)
    checkpoint = ModelCheckpoint(Path(folder) / "best", monitor="val_loss")
    logger = CSVLogger(folder) if rows else False
    trainer = Trainer(
        callbacks=[HPOCallback(), *([callbacks[callback]()] if callback else []), checkpoint],
        default_root_dir=folder,
        log_every_n_steps=1,
        **{"max_epochs": 4, "accelerator": "cpu", "devices": 1, "logger": logger} | options,
    )
    train_loader: Any = DataLoader(Points(24, seed=1), 4, shuffle=True)
    if sampler:
        weighted = WeightedRandomSampler([0.7] * 12 + [2.5] * 12, 24, generator=torch.Generator().manual_seed(1))
        samplers = {"own order": OwnOrder(), "weighted": weighted}
        train_loader = DataLoader(Points(24, seed=1), 4, sampler=samplers[sampler])
    if augmented:
        points = ConcatDataset([Augmented(12, seed=1), Augmented(12, seed=5)])
        train_loader = DataLoader(points, 4, shuffle=True, collate_fn=Noise(7).collate)
    if endless:
        train_loader = [Endless(), train_loader] if model == "both" else Endless()
    val_loader = DataLoader(Points(8, seed=2), 4, num_workers=int(persistent), persistent_workers=persistent)
    if sized_data:
        data = SizedData(grows)
        trainer.fit(made, datamodule=data)
        return outcome(trainer, made, checkpoint) | {"batch_size": data.batch_size}
    if counts:
        counting = CountingData(late=counts == "late")
        trainer.fit(made, datamodule=counting)
        return outcome(trainer, made, checkpoint) | counting.state_dict()
    trainer.fit(made, train_loader, val_loader)
    return outcome(trainer, made, checkpoint) | {
        "lr": made.lr,
        "shift": [float(b) for b in made.buffers() if b.numel() == 1],
    }


class AskedData(CountingData):
    """Counts how often it is asked for its state, which may be large."""

    asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return super().state_dict()


def asks_for_state(folder: str, epochs: int) -> dict[str, int]:
    """A whole fit in which nobody else saves anything."""
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    data = AskedData(late=False)
    trainer = Trainer(max_epochs=epochs, callbacks=[HPOCallback()], default_root_dir=folder, **settings)
    trainer.fit(Model(), datamodule=data)
    return {"asked": data.asked}
