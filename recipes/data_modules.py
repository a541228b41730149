"""The recipes' data. Every class splits off its validation images the same way each time."""

from __future__ import annotations

from pathlib import Path

import torch
from filelock import FileLock
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, FashionMNIST


class DigitsData(LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels in [0, 1]; they come with scikit-learn, nothing is downloaded.

    Args:
        batch_size: images a training step.
        n_validation: images kept for validation; the others are trained on.
        num_workers: processes that load images; the images are in memory, so none is fastest.
    """

    def __init__(self, batch_size: int = 64, n_validation: int = 360, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.n_validation = n_validation
        self.num_workers = num_workers

    def setup(self, stage: str) -> None:
        pixels, labels = load_digits(return_X_y=True)
        images = torch.as_tensor(pixels, dtype=torch.float32) / 16
        classes = torch.as_tensor(labels, dtype=torch.long)
        # Neighbours in the file come from the same hand, so its end is no sample of the whole.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        validated, trained = order[: self.n_validation], order[self.n_validation :]
        self.train_set = TensorDataset(images[trained], classes[trained])
        self.val_set = TensorDataset(images[validated], classes[validated])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=self.n_validation)


class FashionMNISTData(LightningDataModule):
    """FashionMNIST's 60,000 training images, scaled to [0, 1] and nothing else; the last ones are for validation.

    Both loaders shuffle and drop the incomplete last batch.

    Args:
        root: folder of the data; it is downloaded there (30 MB) if it is not there yet.
        batch_size: images a step, in training and in validation.
        n_validation: how many of the images are for validation.
    """

    def __init__(self, root: str, batch_size: int = 68, n_validation: int = 10_000) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.n_validation = n_validation

    def prepare_data(self) -> None:
        with only_one_at_a_time(self.root):
            FashionMNIST(str(self.root), train=True, download=True)

    def setup(self, stage: str) -> None:
        source = FashionMNIST(str(self.root), train=True)
        images = source.data.unsqueeze(1).float() / 255
        n_train = len(images) - self.n_validation
        self.train_set = TensorDataset(images[:n_train], source.targets[:n_train])
        self.val_set = TensorDataset(images[n_train:], source.targets[n_train:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=self.batch_size, shuffle=True, drop_last=True)


class CIFAR10Data(LightningDataModule):
    """CIFAR-10's 50,000 training images, normalised; the last ones are for validation.

    Training images are cropped at random from a frame of 4 black pixels and mirrored at random.

    Args:
        root: folder of the data; it is downloaded there (170 MB) if it is not there yet.
        batch_size: images a step, in training and in validation.
        n_validation: how many of the images are for validation.
        num_workers: processes that load and augment images.
    """

    MEAN = (0.4914, 0.4822, 0.4465)
    STD = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str, batch_size: int = 128, n_validation: int = 10_000, num_workers: int = 0) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.n_validation = n_validation
        self.num_workers = num_workers

    def prepare_data(self) -> None:
        with only_one_at_a_time(self.root):
            CIFAR10(str(self.root), train=True, download=True)

    def setup(self, stage: str) -> None:
        normalise = [transforms.ToTensor(), transforms.Normalize(self.MEAN, self.STD)]
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        augmented = CIFAR10(str(self.root), train=True, transform=transforms.Compose(augment + normalise))
        plain = CIFAR10(str(self.root), train=True, transform=transforms.Compose(normalise))
        n_train = len(plain) - self.n_validation
        self.train_set = Subset(augmented, range(n_train))
        self.val_set = Subset(plain, range(n_train, len(plain)))

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, images: Dataset, shuffle: bool) -> DataLoader:
        return DataLoader(images, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers)


def only_one_at_a_time(root: Path) -> FileLock:
    """A lock on ``root``: several trials start at once, one of them downloads, the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".download.lock")
