"""A residual network for 32 x 32 images."""

from __future__ import annotations

from typing import Any

import torch
from classifier import Classifier
from torch import nn
from torchvision.models import resnet18


def cifar_resnet18(n_classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) with a first layer for small images.

    The 7 x 7 convolution of stride 2 and the max-pooling that follows would leave 8 x 8 of 32 x 32 pixels;
    a 3 x 3 convolution of stride 1 and no pooling keep them all, as in the paper's networks for CIFAR-10.
    """
    network = resnet18(num_classes=n_classes)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


class ResNet18(Classifier):
    """ResNet-18 trained by SGD; the learning rate falls to a tenth at each of ``milestones``.

    Args:
        n_classes: classes to tell apart.
        lr: learning rate of the first epochs.
        momentum: SGD's momentum, in [0, 1).
        weight_decay: SGD's L2 penalty.
        milestones: epochs after which the learning rate falls.
    """

    def __init__(
        self,
        n_classes: int = 10,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        milestones: tuple[int, ...] = (25, 40),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = cifar_resnet18(n_classes)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.hparams["lr"],
            momentum=self.hparams["momentum"],
            weight_decay=self.hparams["weight_decay"],
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(self.hparams["milestones"]), gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
