"""A multilayer perceptron with two hidden layers, dropout and AdamW on a few noisy digits (numpy)."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from scores import error_rate

SPACE = {
    "n_units_1": {"type": "int_log", "lower": 4, "upper": 128},
    "n_units_2": {"type": "int_log", "lower": 4, "upper": 128},
    "batch_size": {"type": "int_log", "lower": 8, "upper": 128},
    "dropout_1": {"type": "float", "lower": 0.0, "upper": 0.8},
    "dropout_2": {"type": "float", "lower": 0.0, "upper": 0.8},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "weight_decay": {"type": "float_log", "lower": 1e-5, "upper": 1.0},
    "warmup_epochs": {"type": "int", "lower": 0, "upper": 9},
    "activation": {"type": "choice", "categories": ["relu", "tanh"]},
}
EPOCHS = 27
_BETAS, _EPSILON = (0.9, 0.999), np.float32(1e-8)
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """500 training, 650 validation and 647 test images with pixel noise; a tenth of the training labels is random."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(20240501)
    order = rng.permutation(len(labels))
    x, y = images[order].astype(np.float32), labels[order]
    x = (x + rng.normal(0.0, 3.0, x.shape)).astype(np.float32)
    x = (x - x[:500].mean(0)) / 6.0
    train_labels = y[:500].copy()
    wrong = rng.random(500) < 0.10
    train_labels[wrong] = rng.integers(0, 10, wrong.sum())
    return x[:500], train_labels, x[500:1150], y[500:1150], x[1150:], y[1150:]


class Perceptron:
    """Weights, and AdamW's moments of them."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        self.is_relu = config["activation"] == "relu"
        self.keep = [_SINGLE(1 - config["dropout_1"]), _SINGLE(1 - config["dropout_2"])]
        self.decay, self.rng, self.step = config["weight_decay"], rng, 0
        gain = _SINGLE(2.0 if self.is_relu else 1.0)
        widths = (64, config["n_units_1"], config["n_units_2"], 10)
        gains = (gain, gain, 1)
        weights = [
            rng.normal(0.0, np.sqrt(g / a), (a, b)).astype(_SINGLE)
            for g, a, b in zip(gains, widths[:-1], widths[1:], strict=True)
        ]
        self.parameters = [p for w in weights for p in (w, np.zeros(w.shape[1], _SINGLE))]
        self.first = [np.zeros_like(p) for p in self.parameters]
        self.second = [np.zeros_like(p) for p in self.parameters]

    def activate(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0) if self.is_relu else np.tanh(x)

    def logits(self, x: np.ndarray) -> np.ndarray:
        w1, b1, w2, b2, w3, b3 = self.parameters
        hidden: np.ndarray = self.activate(self.activate(x @ w1 + b1) @ w2 + b2) @ w3 + b3
        return hidden

    def gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of the mean cross-entropy of a batch, with dropout."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        a1 = x @ w1 + b1
        h1 = self.activate(a1)
        d1 = (self.rng.random(h1.shape, dtype=_SINGLE) < self.keep[0]) / self.keep[0]
        g1 = h1 * d1
        a2 = g1 @ w2 + b2
        h2 = self.activate(a2)
        d2 = (self.rng.random(h2.shape, dtype=_SINGLE) < self.keep[1]) / self.keep[1]
        g2 = h2 * d2
        z = g2 @ w3 + b3
        e = np.exp(z - z.max(1, keepdims=True))
        delta = e / e.sum(1, keepdims=True)
        delta[np.arange(len(y)), y] -= 1
        delta /= _SINGLE(len(y))
        back2 = (delta @ w3.T) * d2
        back2 = back2 * (a2 > 0) if self.is_relu else back2 * (1 - h2 * h2)
        back1 = (back2 @ w2.T) * d1
        back1 = back1 * (a1 > 0) if self.is_relu else back1 * (1 - h1 * h1)
        return x.T @ back1, back1.sum(0), g1.T @ back2, back2.sum(0), g2.T @ delta, delta.sum(0)

    def update(self, gradients: tuple[np.ndarray, ...], rate: float) -> None:
        """A step of AdamW; biases do not decay."""
        self.step += 1
        b1, b2 = _BETAS
        scale = _SINGLE(rate * np.sqrt(1 - b2**self.step) / (1 - b1**self.step))
        for j, g in enumerate(gradients):
            self.first[j] += _SINGLE(1 - b1) * (g - self.first[j])
            self.second[j] += _SINGLE(1 - b2) * (g * g - self.second[j])
            if j % 2 == 0:
                self.parameters[j] *= _SINGLE(1 - rate * self.decay)
            self.parameters[j] -= scale * self.first[j] / (np.sqrt(self.second[j]) + _EPSILON)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    x, y, x_val, y_val, x_test, y_test = data()
    model = Perceptron(config, rng)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = config["learning_rate"] * min(1.0, (epoch + 1) / (config["warmup_epochs"] + 1))
        order = rng.permutation(len(y))
        for start in range(0, len(y), config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            model.update(model.gradients(x[batch], y[batch]), rate)
        curve[epoch] = error_rate(model.logits(x_val), y_val), error_rate(model.logits(x_test), y_test)
    return curve
