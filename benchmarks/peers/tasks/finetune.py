"""A network that knows the digits 0 to 4 is fine-tuned on a few images of 5 to 9 (numpy)."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "frozen_layers": {"type": "int", "lower": 0, "upper": 3},
    "unfreeze_epoch": {"type": "int", "lower": 0, "upper": 81},
    "head_rate": {"type": "float_log", "lower": 1e-4, "upper": 3.0},
    "body_rate": {"type": "float_log", "lower": 1e-5, "upper": 1.0},
    "weight_decay": {"type": "float_log", "lower": 1e-6, "upper": 1e-1},
    "batch_size": {"type": "int_log", "lower": 8, "upper": 128},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.8},
    "schedule": {"type": "choice", "categories": ["constant", "linear", "cosine", "step"]},
}
"""The lowest ``frozen_layers`` stay as they are; the others of the body are trained from ``unfreeze_epoch`` on."""
EPOCHS = 81
_WIDTHS = (64, 64, 48, 32)
_TRAIN, _VAL = 100, 380
_MOMENTUM = np.float32(0.9)
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """Images and labels of the old and of the new classes, with pixel noise."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(20240706)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    y = labels[order]
    x = ((images[order] + rng.normal(0.0, 3.0, images.shape) - images.mean(0)) / 6.0).astype(_SINGLE)
    return x[y < 5], y[y < 5], x[y >= 5], y[y >= 5] - 5


class Network:
    """A body of three layers and a linear head; and the velocities."""

    def __init__(self, body: list[np.ndarray], rng: np.random.Generator, dropout: float, decay: float) -> None:
        head = [rng.normal(0.0, np.sqrt(1 / _WIDTHS[-1]), (_WIDTHS[-1], 5)).astype(_SINGLE), np.zeros(5, _SINGLE)]
        self.parameters = [p.copy() for p in body] + head
        self.velocities = [np.zeros_like(p) for p in self.parameters]
        self.rng, self.keep, self.decay = rng, _SINGLE(1 - dropout), _SINGLE(decay)

    def body(self, x: np.ndarray, first: int = 0) -> list[np.ndarray]:
        """Input and outputs of the layers from ``first`` on."""
        outputs = [x]
        for layer in range(first, 3):
            outputs.append(np.maximum(outputs[-1] @ self.parameters[2 * layer] + self.parameters[2 * layer + 1], 0))
        return outputs

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.body(x)[-1] @ self.parameters[6] + self.parameters[7])

    def update(self, x: np.ndarray, y: np.ndarray, first: int, head_rate: float, body_rate: float) -> None:
        """A step of the head and the layers from ``first`` on, given what goes into layer ``first``."""
        outputs = self.body(x, first)
        mask = (self.rng.random(outputs[-1].shape, dtype=_SINGLE) < self.keep) / self.keep
        h = outputs[-1] * mask
        z = h @ self.parameters[6] + self.parameters[7]
        e = np.exp(z - z.max(1, keepdims=True))
        delta = e / e.sum(1, keepdims=True)
        delta[np.arange(len(y)), y] -= 1
        delta /= _SINGLE(len(y))
        steps = [(3, h.T @ delta, delta.sum(0), head_rate)]
        back, weights = delta, self.parameters[6]
        for layer in reversed(range(first, 3)):
            back = (back @ weights.T) * (outputs[layer - first + 1] > 0)
            if layer == 2:
                back *= mask
            steps.append((layer, outputs[layer - first].T @ back, back.sum(0), body_rate))
            weights = self.parameters[2 * layer]
        for layer, g, g_bias, rate in steps:
            g += self.decay * self.parameters[2 * layer]
            for j, gradient in ((2 * layer, g), (2 * layer + 1, g_bias)):
                self.velocities[j] *= _MOMENTUM
                self.velocities[j] += gradient
                self.parameters[j] -= _SINGLE(rate) * self.velocities[j]


@cache
def pretrained() -> list[np.ndarray]:
    """Body after 30 epochs on the old classes."""
    rng = np.random.default_rng(20240707)
    x, y, _, _ = data()
    body: list[np.ndarray] = []
    for a, b in itertools.pairwise(_WIDTHS):
        body += [rng.normal(0.0, np.sqrt(2 / a), (a, b)).astype(_SINGLE), np.zeros(b, _SINGLE)]
    model = Network(body, rng, 0.2, 1e-4)
    for epoch in range(30):
        order = rng.permutation(len(y))
        for start in range(0, len(y), 32):
            batch = order[start : start + 32]
            model.update(x[batch], y[batch], 0, 0.03 * (1 - epoch / 30), 0.03 * (1 - epoch / 30))
    return model.parameters[:6]


def rate_factor(schedule: str, epoch: int) -> float:
    """Share of the learning rates in an epoch."""
    done = epoch / EPOCHS
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return float(0.5 + 0.5 * np.cos(np.pi * done))
    return 0.1 ** int(3 * done) if schedule == "step" else 1.0


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    _, _, x, y = data()
    model = Network(pretrained(), rng, config["dropout"], config["weight_decay"])
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        factor = rate_factor(config["schedule"], epoch)
        first = config["frozen_layers"] if epoch >= config["unfreeze_epoch"] else 3
        fixed = x[:_TRAIN]
        for layer in range(first):
            fixed = np.maximum(fixed @ model.parameters[2 * layer] + model.parameters[2 * layer + 1], 0)
        order = rng.permutation(_TRAIN)
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            rates = config["head_rate"] * factor, config["body_rate"] * factor
            model.update(fixed[batch], y[batch], first, *rates)
        logits = model.logits(x[_TRAIN:])
        wrong = logits.argmax(1) != y[_TRAIN:]
        curve[epoch] = wrong[:_VAL].mean(), wrong[_VAL:].mean()
        if not np.isfinite(logits).all():
            curve[epoch] = 0.8
    return curve
