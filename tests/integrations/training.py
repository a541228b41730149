"""Small training scripts. Everything that a pause could disturb can be switched on."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import logging
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO
from lightning.pytorch.tuner import Tuner
from omegaconf import OmegaConf
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanAbsoluteError,
    MeanMetric,
    MeanSquaredError,
    MetricCollection,
    MetricTracker,
    MinMaxMetric,
    RunningMean,
)
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall

from lightning_hpo.integrations.callback import HPOCallback
from lightning_hpo.integrations.failures import judge
from lightning_hpo.runtime.channel import trial_channel

warnings.filterwarnings("ignore")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
torch.set_num_threads(1)

FEATURES = 6


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, n: int, seed: int, noise: str = "") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, FEATURES, generator=generator)
        self.y = (self.x[:, :3].sum(1) > 0).long()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[i]
        if "torch" in self.noise:
            x = x + 0.1 * torch.randn(FEATURES)
        if "numpy" in self.noise:
            x = x + 0.1 * torch.from_numpy(np.random.randn(FEATURES)).float()
        if "python" in self.noise:
            x = x + 0.1 * random.random()
        return x, self.y[i]


class Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Has no length."""

    def __iter__(self) -> Any:
        points = Points(24, seed=1)
        yield from (points[int(i)] for i in torch.randperm(24))


class Model(LightningModule):
    def __init__(self, scheduler: str = "", metric_from: str = "validation", config: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.lr = 1e-2

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(output, batch[1]), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        if self.hparams.metric_from == "epoch_end":
            self.log("val_loss", 10.0 + self.current_epoch)
        if self.hparams.metric_from == "every_other_epoch" and self.current_epoch % 2 == 0:
            self.log("val_loss", float(self.current_epoch))
        values = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
        if self.hparams.metric_from in values:
            self.log("val_loss", values[self.hparams.metric_from])
        odd = {"text": "0.5", "pair": torch.ones(2), "complex": 1j, "bool": torch.tensor(True), "none": [1]}
        if self.hparams.metric_from in odd:
            self.trainer.callback_metrics["val_loss"] = odd[self.hparams.metric_from]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr)
        kind = self.hparams.scheduler
        if kind == "cosine":
            made = lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)
            return {"optimizer": optimizer, "lr_scheduler": made}
        if kind == "one_cycle":
            steps = int(self.trainer.estimated_stepping_batches)
            made = lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"}}
        if kind.startswith("plateau"):
            made = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7, threshold=0.1)
            config = {"scheduler": made, "monitor": "train_loss" if kind == "plateau_train" else "val_loss"}
            if kind == "plateau_lenient":
                config |= {"strict": False}
            if kind == "plateau_step":
                config |= {"interval": "step", "frequency": 3}
            return {"optimizer": optimizer, "lr_scheduler": config}
        return optimizer


class Scored(Model):
    """Logs the number of each epoch as its score."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("score", float(self.current_epoch))


class WithoutValidation(Model):
    validation_step = LightningModule.validation_step


class WithBackbone(Model):
    """A backbone that is frozen at first and trained from the second epoch on.

    Args:
        frozen_by: ``callback``: a callback does both. ``module``: the module itself; before, the backbone is in
            evaluation mode too. ``module, reversed``: it is frozen in the second epoch.
    """

    def __init__(self, frozen_by: str, **options: Any) -> None:
        super().__init__(**options)
        self.backbone = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES))
        self.head, self.net = self.net, nn.Sequential(self.backbone, self.net)
        self.frozen_by = frozen_by
        self.frozen = frozen_by == "module"
        if self.frozen:
            self.backbone.requires_grad_(False).eval()

    def on_train_epoch_start(self) -> None:
        if "module" in self.frozen_by and self.current_epoch == 1:
            self.backbone.requires_grad_(self.frozen).train(self.frozen)

    def configure_optimizers(self) -> Any:
        # A callback adds the backbone's parameters by itself.
        trained = self.head if self.frozen_by == "callback" else self.net
        return torch.optim.AdamW(trained.parameters(), lr=self.lr)


class LateBackbone(BaseFinetuning):
    """Until the backbone is trained, its batch normalisation does without running statistics."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=1e-3)


class Measured(Model):
    """Keeps metrics of several kinds over all epochs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accuracy, self.mean_of_epoch = MeanMetric(), MeanMetric()  # Lightning resets what is logged
        self.best = MaxMetric()
        self.range = MinMaxMetric(MeanMetric())
        self.last_two = RunningMean(window=2)
        self.every_value = CatMetric()
        self.tracker = MetricTracker(MeanSquaredError())
        self.group = MetricCollection([MulticlassPrecision(2), MulticlassRecall(2)])
        self.errors = MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})

    def on_train_start(self) -> None:
        # As lightning-hydra-template does, so that the sanity check does not count.
        self.best.reset()

    def on_validation_epoch_start(self) -> None:
        self.tracker.increment()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.last_two(loss)
        self.mean_of_epoch(loss)
        self.log("train_mean", self.mean_of_epoch, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        output, target = self.net(batch[0]).softmax(1), batch[1]
        self.accuracy((output.argmax(1) == target).float())
        self.log("accuracy", self.accuracy)
        self.range(output[:, 0])
        self.group(output, target)
        self.errors(output[:, 1], target.float())
        self.tracker.update(output[:, 1], target.float())

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            value = torch.tensor([0.5, 0.9, 0.1, 0.3][self.current_epoch])
            self.best(value)
            self.every_value(value + self.global_step)
            self.range.compute()

    def across_epochs(self) -> dict[str, Any]:
        """All that the metrics know at the end."""
        names = ("best", "range", "last_two", "every_value", "group", "errors")
        known = {name: getattr(self, name).compute() for name in names}
        known |= {"tracker": self.tracker.compute_all(), "logged": self.trainer.callback_metrics["train_mean"]}
        return {name: str(value) for name, value in known.items()}


class DrawingCallback(Callback):
    """Draws random numbers where they are easily lost."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(1), np.random.rand(), random.random()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(1)


class StopsOnce(Callback):
    """Asks for the end of the training in its first epoch, and never again."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.should_stop = True


class Data(LightningDataModule):
    """Loaders are made anew at every call, and random numbers are drawn then."""

    def train_dataloader(self) -> Any:
        points = torch.utils.data.random_split(Points(30, seed=1), [24, 6])[0]
        return DataLoader(points, 4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Points(8, seed=2), 4)


def averaging() -> Callback:
    """The mean of the weights after every second step."""
    # Not at the top: it came with Lightning 2.6.
    from lightning.pytorch.callbacks import WeightAveraging

    class EverySecondStep(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None and step_idx % 2 == 0

    return EverySecondStep()


def digest(value: Any) -> str:
    """The same text for the same tensors, bit by bit."""
    found = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            found.update(item.detach().cpu().to_dense().numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(str(key).encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            for inner in item:
                add(inner)
        elif not callable(item):
            found.update(repr(item).encode())

    add(value)
    return found.hexdigest()[:12]


def outcome(trainer: Trainer, model: LightningModule, checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """Everything that must be the same with and without a pause."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return {
        "weights": digest(model.state_dict()),
        "optimizer": digest([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": digest([scheduler.state_dict() for scheduler in schedulers]),
        "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "logged_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
        "best_score": float(checkpoint.best_model_score) if checkpoint.best_model_score is not None else None,
        "interrupted_as": str(channel.interrupted_as)
        if (channel := trial_channel()) and channel.interrupted_as
        else None,
        "best_path": Path(checkpoint.best_model_path).name,
        "random": [torch.rand(1).item(), float(np.random.rand()), random.random()],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "in_evaluation_mode": [name for name, inner in model.named_modules() if not inner.training],
        "across_epochs": model.across_epochs() if isinstance(model, Measured) else None,
    }


def train(
    folder: str,
    *,
    scheduler: str = "",
    workers: int = 0,
    persistent: bool = False,
    noise: str = "",
    validation: bool = True,
    metric_from: str = "validation",
    metric: str | None = None,
    callbacks: tuple[str, ...] = (),
    config: str = "",
    own_generators: bool = False,
    stream: bool = False,
    data_module: bool = False,
    frozen_by: str = "",
    measured: bool = False,
    saving: dict[str, Any] | None = None,
    seed: int = 7,
    **options: Any,
) -> dict[str, Any]:
    """Train a tiny classifier for 4 epochs of 6 batches and say where it ended."""
    seed_everything(seed, workers=True)
    generators = [torch.Generator().manual_seed(i) for i in range(2)] if own_generators else [None, None]
    train_set: Any = Stream() if stream else Points(24, seed=1, noise=noise)
    train_loader = DataLoader(
        train_set,
        4,
        shuffle=None if stream else True,
        num_workers=workers,
        persistent_workers=persistent,
        generator=generators[0],
    )
    val_loader = DataLoader(Points(8, seed=2), 4, shuffle=own_generators, generator=generators[1])
    monitor = "val_loss" if validation else "train_loss"
    checkpoint = ModelCheckpoint(Path(folder) / "best", monitor=monitor, **(saving or {}))
    made: dict[str, Any] = {
        "early": lambda: EarlyStopping("val_loss", patience=2, min_delta=0.5),
        "averaging": averaging,
        "swa": lambda: StochasticWeightAveraging(5e-3, swa_epoch_start=2, annealing_epochs=1),
        "drawing": DrawingCallback,
        "stops": StopsOnce,
        "lr_finder": lambda: LearningRateFinder(num_training_steps=5, mode="linear"),
        "backbone_finetuning": lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1),
        "base_finetuning": LateBackbone,
    }
    made_model: Any = Measured if measured else Model if validation else WithoutValidation
    if frozen_by:
        made_model = functools.partial(WithBackbone, frozen_by)
    model = made_model(
        scheduler=scheduler,
        metric_from=metric_from,
        config={"hydra": OmegaConf.create({"a": {"b": [1, 2]}}), "lambda": lambda: 0}.get(config),
    )
    options = {"max_epochs": 4, "accelerator": "cpu", "devices": 1, "logger": False} | options
    if options["logger"] == "csv":
        options["logger"] = CSVLogger(folder, version="")
    hpo = HPOCallback(metric) if metric is not None else HPOCallback()
    trainer = Trainer(
        callbacks=[hpo, *(made[name]() for name in callbacks), checkpoint],
        default_root_dir=folder,
        log_every_n_steps=1,
        use_distributed_sampler=True,
        **options,
    )
    if data_module:
        trainer.fit(model, datamodule=Data())
    else:
        trainer.fit(model, train_loader, val_loader if validation else None)
    return outcome(trainer, model, checkpoint)


def _trainer(folder: str, *callbacks: Callback, **options: Any) -> Trainer:
    seed_everything(7)
    settings: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(callbacks=list(callbacks), default_root_dir=folder, **settings | options)


def _loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(Points(24, seed=1), 4, shuffle=True), DataLoader(Points(8, seed=2), 4)


class Testable(Model):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


def test_after_fit(folder: str, method: str, anew: bool = False) -> str:
    """Code after ``fit`` that swallows every Exception, as careful scripts do.

    Args:
        anew: with another Trainer, which has no callback.
    """
    trainer, model = _trainer(folder, HPOCallback()), Testable()
    trainer.fit(model, *_loaders())
    if anew:
        trainer = _trainer(folder)
    try:
        if method == "fit":
            trainer.fit(model, *_loaders())
        else:
            getattr(trainer, method)(model, _loaders()[1])
    except Exception:
        return "swallowed"
    finally:
        (Path(folder) / "finally").touch()
    return "went on"


def another_trainer(folder: str) -> str:
    """Further Trainers with the callback in the same script."""
    for epochs in (4, 2, 2):
        _trainer(folder, HPOCallback(), max_epochs=epochs).fit(Model(), *_loaders())
    return "several fits"


def two_callbacks(folder: str) -> list[str]:
    """One callback as from the configuration, one as in the script, in the same Trainer."""
    trainer = _trainer(folder, HPOCallback(), HPOCallback(), enable_checkpointing=True)
    trainer.fit(Model(), *_loaders())
    return [type(callback).__name__ for callback in trainer.callbacks]


def nothing_to_train_on(folder: str, limit: float = 1.0) -> None:
    """A loader without a whole batch, or a Trainer that is told to take none."""
    n = 3 if limit else 24
    loader = DataLoader(Points(n, seed=1), 4, drop_last=True)
    _trainer(folder, HPOCallback(), limit_train_batches=limit).fit(Model(), loader, _loaders()[1])


def same_callback_again(folder: str) -> str:
    """The same callback object in a second fit."""
    callback = HPOCallback()
    _trainer(folder, callback).fit(Model(), *_loaders())
    _trainer(folder, callback, max_epochs=2).fit(Model(), *_loaders())
    return "several fits"


class _RaisesInItsSecondEpoch(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("no memory for this batch")


def early_stopping_of_lightning(folder: str, patience: int) -> int:
    """What a script finds that asks the Trainer for its early stopping."""
    trainer = _trainer(folder, HPOCallback(), EarlyStopping("val_loss", patience=patience))
    trainer.fit(Model(), *_loaders())
    found: Any = trainer.early_stopping_callback
    return int(found.patience)


def tries_again(folder: str) -> list[str]:
    """A script that catches what its first fit raises, and trains with a new Trainer then."""
    raised = []
    for n in range(2):
        try:
            _trainer(folder, HPOCallback(), *([] if n else [_RaisesInItsSecondEpoch()])).fit(Model(), *_loaders())
            break
        except RuntimeError as error:
            raised.append(str(error))
    return raised


def find_learning_rate_first(folder: str) -> float:
    """The learning rate finder fits with the Trainer before the fit that counts."""
    trainer, model = _trainer(folder, HPOCallback()), Model()
    Tuner(trainer).lr_find(model, *_loaders(), num_training=5, mode="linear")
    trainer.fit(model, *_loaders())
    return float(trainer.current_epoch)


class _Batches(LightningDataModule):
    batch_size = 4

    def train_dataloader(self) -> Any:
        return DataLoader(Points(24, seed=1), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return _loaders()[1]


def find_settings_first(folder: str) -> dict[str, Any]:
    """As the documentation of Lightning's Tuner does: its answers are used by the fit that counts."""
    checkpoint = ModelCheckpoint(Path(folder) / "best", monitor="val_loss")
    trainer = _trainer(folder, HPOCallback(), checkpoint, enable_checkpointing=True)
    model, data = Model(scheduler="cosine"), _Batches()
    size = Tuner(trainer).scale_batch_size(model, datamodule=data, steps_per_trial=1, init_val=2, max_trials=2)
    found = Tuner(trainer).lr_find(model, datamodule=data, num_training=5, mode="linear", update_attr=False)
    assert found is not None
    model.lr = found.suggestion() or found.results["lr"][2]
    trainer.fit(model, datamodule=data)
    return outcome(trainer, model, checkpoint) | {"batch_size": size, "found": model.lr}


def own_checkpoint_path(folder: str, **options: Any) -> dict[str, Any]:
    """A user who passes ``ckpt_path`` to ``fit``: the first epoch is trained already."""
    other = Path(folder) / "other.ckpt"
    if not other.exists():
        plain = _trainer(folder, max_epochs=1)
        plain.fit(Model(), *_loaders())
        plain.save_checkpoint(other)
    checkpoint = ModelCheckpoint(Path(folder) / "best", monitor="val_loss")
    trainer, model = _trainer(folder, HPOCallback(), checkpoint, enable_checkpointing=True, **options), Model()
    trainer.fit(model, *_loaders(), ckpt_path=str(other))
    return outcome(trainer, model, checkpoint)


def checkpoints_beside_the_logs(folder: str, worsens: bool = False) -> dict[str, Any]:
    """Lightning's own checkpoints where it puts them by default: in the logger's newest version."""
    checkpoint = ModelCheckpoint(monitor="score", mode="min" if worsens else "max", save_top_k=1)
    _trainer(folder, HPOCallback(), checkpoint, enable_checkpointing=True, logger=True).fit(Scored(), *_loaders())
    files = [str(file.relative_to(folder)) for file in Path(folder).glob("lightning_logs/*/checkpoints/*.ckpt")]
    return {"files": files, "best": os.path.relpath(checkpoint.best_model_path, folder)}


def relative_logger(folder: str, working: str, worsens: bool) -> dict[str, Any]:
    """A logger with a relative path, and a ModelCheckpoint that writes where the logger does.

    Args:
        working: the working folder, seen from the trial's.
        worsens: the first epoch is the best one, else the last.
    """
    os.chdir(Path(folder, working))
    checkpoint = ModelCheckpoint(monitor="score", mode="min" if worsens else "max", save_top_k=2, save_last=True)
    options = {"enable_checkpointing": True, "logger": CSVLogger("logs")}
    _trainer(folder, HPOCallback(), checkpoint, **options).fit(Scored(), *_loaders())
    return {
        "best": checkpoint.best_model_path,
        "score": float(checkpoint.best_model_score),
        "best_two": sorted(float(score) for score in checkpoint.best_k_models.values()),
        "is_there": all(map(os.path.exists, (checkpoint.best_model_path, *checkpoint.best_k_models))),
        "files": sorted(map(str, Path("logs").glob("**/*.ckpt"))),
    }


def logs_rows(folder: str, version: int | str, early: bool = False) -> dict[str, Any]:
    """A CSVLogger whose version does not change from attempt to attempt.

    Args:
        early: the script itself logs before the fit.
    """
    os.chdir(folder)
    logger = CSVLogger("logs", name="", version=version, flush_logs_every_n_steps=4)
    if early:
        logger.log_hyperparams({"lr": 0.01})
        logger.log_metrics({"early": 1.0}, step=0)
    model = Scored()
    _trainer(folder, HPOCallback(), logger=logger, log_every_n_steps=1).fit(model, *_loaders())
    text = Path(logger.log_dir, "metrics.csv").read_text()
    return {"text": text, "weights": digest(model.state_dict())}


def saves_last(folder: str, twice: bool = False, **saving: Any) -> dict[str, Any]:
    """A ModelCheckpoint that also keeps the last one; the first epoch has the lowest score.

    Args:
        twice: another one saves in the same folder.
    """
    checkpoint = ModelCheckpoint(Path(folder, "best"), save_last=True, **saving)
    other = [ModelCheckpoint(Path(folder, "best"), monitor="score", save_top_k=-1)] if twice else []
    _trainer(folder, HPOCallback(), checkpoint, *other, enable_checkpointing=True).fit(Scored(), *_loaders())
    last = torch.load(checkpoint.last_model_path, weights_only=False)
    return {
        "files": sorted(file.name for file in Path(folder, "best").iterdir()),
        "last": Path(checkpoint.last_model_path).name,
        "step": last["global_step"],
        "weights": digest(last["state_dict"]),
    }


def noisy(folder: str, quiet: bool) -> list[str]:
    """Default Trainer with progress bar and model summary."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    trainer = _trainer(folder, HPOCallback(quiet=quiet), enable_checkpointing=True)
    trainer.fit(Model(), *_loaders())
    return [type(callback).__name__ for callback in trainer.callbacks]


def launcher_dies(folder: str) -> str:
    """Reports go nowhere."""
    trial_channel()._key = b"wrong"  # type: ignore[union-attr]
    _trainer(folder, HPOCallback()).fit(Model(), *_loaders())
    return "trained"


def without_callback(folder: str) -> bool:
    """What the launcher can see of a script that forgot the callback."""
    _trainer(folder).fit(Model(), *_loaders())
    channel = trial_channel()
    return channel is not None and channel.callback_seen


def weights(folder: str, with_callback: bool) -> str:
    """Outside a trial: the weights, with or without the callback."""
    model = Model()
    trainer = _trainer(folder, *([HPOCallback()] if with_callback else []), enable_progress_bar=False)
    trainer.fit(model, *_loaders())
    return digest(model.state_dict())


class Compressed(CheckpointIO):
    """A format of the script's own."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with gzip.open(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        with gzip.open(path, "rb") as file:
            return torch.load(file, map_location, weights_only=bool(weights_only))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink()


def writes_its_own_way(folder: str, plugin: str) -> dict[str, Any]:
    """A Trainer with a CheckpointIO plugin, which is also there after the fit."""
    made = {"compressed": Compressed, "async": AsyncCheckpointIO}[plugin]()
    trainer, model = _trainer(folder, HPOCallback(), plugins=[made]), Model()
    trainer.fit(model, *_loaders())
    assert trainer.strategy.checkpoint_io is made
    return {"weights": digest(model.state_dict()), "epoch": trainer.current_epoch}


class _SavesText:
    """In the place of jsonargparse's parser, which saves what was asked for on the command line."""

    def save(self, config: Any, path: str, *, overwrite: bool, **_: Any) -> None:
        assert overwrite or not os.path.exists(path)
        Path(path).write_text(config)


def saves_its_configuration(folder: str) -> str:
    """What LightningCLI adds to the Trainer, without a logger that makes another version for each attempt."""
    saving: Any = SaveConfigCallback(_SavesText(), "lr: 0.01")  # type: ignore[arg-type]
    _trainer(folder, HPOCallback(), saving).fit(Model(), *_loaders())
    return Path(folder, "config.yaml").read_text()


class _KillsItsLoader(Points):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def loading_worker_is_killed(folder: str) -> None:
    """The process that loads data gets SIGKILL, as from the kernel when memory runs out."""
    _trainer(folder).fit(Model(), DataLoader(_KillsItsLoader(8, seed=1), 4, num_workers=1))


class _RaisesWhenPaused(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < 4:
            raise ValueError("the callback expected four epochs")


def raises_when_paused(folder: str) -> str:
    """A user's callback that does not expect the fit to end early."""
    _trainer(folder, HPOCallback(), _RaisesWhenPaused()).fit(Model(), *_loaders())
    return "trained"


def connection_breaks_while_loading(folder: str) -> list[str]:
    """How the failure is judged. Not in the tests' own process, where torch's handler would tell of the worker's end
    later, in some other test."""

    def broken(*_: Any) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    with mock.patch("multiprocessing.resource_sharer.DupFd.detach", broken):
        try:
            list(DataLoader(Points(4, seed=1), num_workers=1))
        except ConnectionResetError as problem:
            return [judge(problem)[0].value]
    return []
