"""What the recipes' models have in common: cross entropy, accuracy, and the names under which they are logged."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Classifier(LightningModule):
    """Trains ``self.network`` by cross entropy. Abstract: subclasses set the network and the optimizer.

    Logs once an epoch: ``train_loss``, ``val_loss`` (nats), ``val_acc`` and ``val_error`` (fractions of the
    validation images, ``val_error = 1 - val_acc``).
    """

    network: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)`` for images of shape ``(batch, ...)``."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict(
            {
                "val_loss": nn.functional.cross_entropy(logits, labels),
                "val_acc": accuracy,
                "val_error": 1 - accuracy,
            },
            sync_dist=True,
        )
