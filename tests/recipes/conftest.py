from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def recipes_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python recipes/train.py`` puts its folder first on the path; so do these tests."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


def write_fashion_mnist(root: Path, brightness: np.ndarray, labels: np.ndarray) -> Path:
    """FashionMNIST's files below ``root``; image i has the same brightness everywhere. Both arrays are bytes."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", len(labels)), ("t10k", 3)):
        images = np.repeat(brightness[:n], 28 * 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels[:n].tobytes())
    return root


@pytest.fixture
def fashion_mnist(tmp_path: Path) -> Path:
    """FashionMNIST's folder with 50 training images: every pixel of image i is i, its label is i modulo 10."""
    return write_fashion_mnist(tmp_path, np.arange(50, dtype=np.uint8), np.arange(50, dtype=np.uint8) % 10)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's folder with five batches of 8 images: every pixel of image i is i, its label is i modulo 10."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(numbers: range) -> dict[str, object]:
        pixels = np.array(numbers, dtype=np.uint8)[:, None].repeat(3 * 32 * 32, axis=1)
        return {"data": pixels, "labels": [i % 10 for i in numbers]}

    train = [write(f"data_batch_{k + 1}", batch(range(8 * k, 8 * k + 8))) for k in range(5)]
    test = [write("test_batch", batch(range(4)))]
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path
