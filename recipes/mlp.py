"""Multi-layer perceptrons for small images."""

from __future__ import annotations

import torch
from classifier import Classifier
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(Classifier):
    """One hidden layer, trained by Adam.

    Args:
        in_features: pixels of an image.
        n_classes: classes to tell apart.
        units: width of the hidden layer.
        act: activation of the hidden layer, a key of ``ACTIVATIONS``.
        dropout: probability to drop a hidden unit, in [0, 1).
        lr: Adam's learning rate.
    """

    def __init__(
        self,
        in_features: int = 64,
        n_classes: int = 10,
        units: int = 64,
        act: str = "relu",
        dropout: float = 0.2,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, units),
            ACTIVATIONS[act](),
            nn.Dropout(dropout),
            nn.Linear(units, n_classes),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class TwoLayerMLP(Classifier):
    """Two hidden layers with dropout before each ReLU, trained by Adam.

    Args:
        in_features: pixels of an image.
        n_classes: classes to tell apart.
        n_units_1, n_units_2: widths of the hidden layers.
        dropout_1, dropout_2: probabilities to drop a unit of that layer, in [0, 1).
        learning_rate: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
    """

    def __init__(
        self,
        in_features: int = 784,
        n_classes: int = 10,
        n_units_1: int = 64,
        n_units_2: int = 64,
        dropout_1: float = 0.495,
        dropout_2: float = 0.495,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, n_units_1),
            nn.Dropout(dropout_1),
            nn.ReLU(),
            nn.Linear(n_units_1, n_units_2),
            nn.Dropout(dropout_2),
            nn.ReLU(),
            nn.Linear(n_units_2, n_classes),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.parameters(), lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"]
        )
