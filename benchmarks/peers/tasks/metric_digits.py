"""An embedding of badly lit digits is learned from pairs, triplets or neighbourhoods and judged by k-NN (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "loss": {"type": "choice", "categories": ["contrastive", "triplet", "neighbours"]},
    "margin": {"type": "float_log", "lower": 0.03, "upper": 10.0},
    "n_hidden": {"type": "int_log", "lower": 8, "upper": 96},
    "n_embedding": {"type": "int_log", "lower": 2, "upper": 24},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "weight_decay": {"type": "float_log", "lower": 1e-5, "upper": 1.0},
    "classes_per_batch": {"type": "int", "lower": 2, "upper": 10},
    "images_per_class": {"type": "int", "lower": 2, "upper": 10},
    "n_neighbours": {"type": "int_log", "lower": 1, "upper": 40},
}
"""``margin`` is a squared distance; it is the temperature of the neighbourhoods."""
EPOCHS = 27
_CLASSES, _PER_CLASS, _VAL, _TEST = 10, 30, 400, 500
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """Training images of each class, the other images and their labels; all with a random ramp of light and noise."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(20240801)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    x, y = images[order] / 16.0, labels[order]
    across = np.linspace(-1.0, 1.0, 8)
    light = rng.normal(0.0, 0.4, (len(y), 3))
    ramp = light[:, :1, None] * across[:, None] + light[:, 1:2, None] * across + light[:, 2:, None]
    x = x + ramp.reshape(-1, 64) + rng.normal(0.0, 0.15, x.shape)
    x = ((x - x.mean()) / x.std()).astype(_SINGLE)
    train = np.stack([np.flatnonzero(y == c)[:_PER_CLASS] for c in range(_CLASSES)])
    rest = np.setdiff1d(np.arange(len(y)), train)[: _VAL + _TEST]
    return x[train], x[rest], y[rest]


def slopes(kind: str, d: np.ndarray, same: np.ndarray, margin: float) -> np.ndarray:
    """Derivatives of the loss of a batch by the squared distances; ``same`` says which pairs are of a class."""
    n = len(d)
    own = np.eye(n, dtype=bool)
    positive = same & ~own
    if kind == "contrastive":
        pushed = ~same & (d < margin)
        return np.asarray(positive / positive.sum() - pushed / max(1, (~same).sum()))
    if kind == "triplet":
        rows = np.arange(n)
        far, near = np.where(same, d, -1.0).argmax(1), np.where(same, np.inf, d).argmin(1)
        active = (d[rows, far] + margin > d[rows, near]) / n
        g = np.zeros_like(d)
        g[rows, far] += active
        g[rows, near] -= active
        return g
    z = np.where(own, -np.inf, -d / margin)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    good = np.where(positive, p, 0)
    share = np.maximum(good.sum(1, keepdims=True), 1e-12)
    return np.asarray((good / share - p) / (margin * n))


class Network:
    """A hidden layer and a linear embedding, trained by Adam with decoupled weight decay."""

    def __init__(self, n_hidden: int, n_embedding: int, rng: np.random.Generator) -> None:
        w1 = rng.normal(0.0, np.sqrt(2 / 64), (64, n_hidden))
        w2 = rng.normal(0.0, np.sqrt(1 / n_hidden), (n_hidden, n_embedding)) / np.sqrt(n_embedding)
        self.parameters = [w1.astype(_SINGLE), np.zeros(n_hidden, _SINGLE), w2.astype(_SINGLE)]
        self.first, self.second = [[np.zeros_like(p) for p in self.parameters] for _ in range(2)]
        self.step = 0

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w1, b1, w2 = self.parameters
        h = np.maximum(x @ w1 + b1, 0)
        return h, h @ w2

    def update(self, x: np.ndarray, same: np.ndarray, config: dict[str, Any]) -> None:
        h, z = self.forward(x)
        g = slopes(config["loss"], squared_distances(z, z), same, config["margin"]).astype(_SINGLE)
        g = g + g.T
        dz = 2 * (g.sum(1)[:, None] * z - g @ z)
        dh = (dz @ self.parameters[2].T) * (h > 0)
        self.step += 1
        scale = np.sqrt(1 - 0.99**self.step) / (1 - 0.9**self.step)
        rate = _SINGLE(config["learning_rate"])
        gradients = (x.T @ dh, dh.sum(0), h.T @ dz)
        for p, m, v, gradient in zip(self.parameters, self.first, self.second, gradients, strict=True):
            m += _SINGLE(0.1) * (gradient - m)
            v += _SINGLE(0.01) * (gradient * gradient - v)
            p -= rate * (_SINGLE(scale) * m / (np.sqrt(v) + _SINGLE(1e-8)) + _SINGLE(config["weight_decay"]) * p)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


def wrong(model: Network, known: np.ndarray, x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Which images are not of the class of most of their ``k`` nearest training images; the nearest breaks ties."""
    d = squared_distances(model.forward(x)[1], model.forward(known)[1])
    if not np.isfinite(d).all():
        return np.arange(len(y)) % _CLASSES != 0
    nearest = np.argpartition(d, k - 1, 1)[:, :k] // _PER_CLASS
    rows = _CLASSES * np.arange(len(y))
    votes = 1.0 * np.bincount((rows[:, None] + nearest).ravel(), minlength=_CLASSES * len(y))
    votes[rows + d.argmin(1) // _PER_CLASS] += 0.5
    return np.asarray(votes.reshape(-1, _CLASSES).argmax(1) != y)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    images, x, y = data()
    n_classes, n_each = config["classes_per_batch"], config["images_per_class"]
    labels = np.repeat(np.arange(n_classes), n_each)
    same = labels[:, None] == labels
    model = Network(config["n_hidden"], config["n_embedding"], rng)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        for _ in range(max(1, round(_CLASSES * _PER_CLASS / len(labels)))):
            classes = rng.permutation(_CLASSES)[:n_classes]
            chosen = rng.random((n_classes, _PER_CLASS)).argsort(1)[:, :n_each]
            batch = images[classes[:, None], chosen].reshape(-1, 64)
            model.update(batch, same, config)
        errors = wrong(model, images.reshape(-1, 64), x, y, config["n_neighbours"])
        curve[epoch] = errors[:_VAL].mean(), errors[_VAL:].mean()
    return curve
