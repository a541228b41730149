"""A convolutional network with two layers, SGD with momentum, warm-up and cosine, on a few noisy digits (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "channels": {"type": "int_log", "lower": 3, "upper": 16},
    "batch_size": {"type": "int_log", "lower": 8, "upper": 128},
    "learning_rate": {"type": "float_log", "lower": 3e-3, "upper": 1.0},
    "momentum": {"type": "float", "lower": 0.5, "upper": 0.99},
    "warmup_epochs": {"type": "int", "lower": 0, "upper": 9},
    "final_rate": {"type": "float_log", "lower": 1e-3, "upper": 1.0},
    "label_smoothing": {"type": "float", "lower": 0.0, "upper": 0.5},
    "max_shift": {"type": "int", "lower": 0, "upper": 3},
    "weight_decay": {"type": "float_log", "lower": 1e-6, "upper": 1e-1},
}
EPOCHS = 27
_TRAIN, _VAL, _TEST, _MARGIN = 150, 300, 300, 3
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """Noisy training images with a margin, their labels, and columns and labels of validation and test images."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(20240701)
    order = rng.permutation(len(labels))[: _TRAIN + _VAL + _TEST]
    x = (images[order] + rng.normal(0.0, 3.0, (len(order), 64))).reshape(-1, 8, 8, 1) / 8.0 - 0.6
    x, y = x.astype(_SINGLE), labels[order]
    margin = (0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)
    padded = np.pad(x[:_TRAIN], margin, constant_values=_SINGLE(-0.6))
    return padded, y[:_TRAIN], columns(x[_TRAIN:]), y[_TRAIN:]


def columns(x: np.ndarray) -> np.ndarray:
    """Of every second pixel in both directions its 3 x 3 surroundings as a row, zeros beyond the border."""
    n, height, width, c = x.shape
    padded = np.zeros((n, height + 2, width + 2, c), _SINGLE)
    padded[:, 1:-1, 1:-1] = x
    parts = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return np.concatenate(parts, 3).reshape(-1, 9 * c)


class Network:
    """Two convolutions with stride two and a linear layer; and the velocities of the weights."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        c = config["channels"]
        self.parameters: list[np.ndarray] = []
        for a, b, gain in ((9, c, 2), (9 * c, 2 * c, 2), (8 * c, 10, 1)):
            self.parameters += [rng.normal(0.0, np.sqrt(gain / a), (a, b)).astype(_SINGLE), np.zeros(b, _SINGLE)]
        self.velocities = [np.zeros_like(p) for p in self.parameters]
        self.momentum, self.decay = _SINGLE(config["momentum"]), _SINGLE(config["weight_decay"])
        self.smoothing = _SINGLE(config["label_smoothing"])

    def forward(self, columns_1: np.ndarray) -> tuple[Any, ...]:
        """All that the gradients need, the logits last."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        h1 = np.maximum(columns_1 @ w1 + b1, 0).reshape(-1, 4, 4, len(b1))
        columns_2 = columns(h1)
        h2 = np.maximum(columns_2 @ w2 + b2, 0).reshape(len(h1), -1)
        return h1, columns_2, h2, h2 @ w3 + b3

    def update(self, images: np.ndarray, y: np.ndarray, rate: float) -> None:
        """A step on the smoothed cross-entropy; biases do not decay."""
        columns_1 = columns(images)
        h1, columns_2, h2, z = self.forward(columns_1)
        e = np.exp(z - z.max(1, keepdims=True))
        delta = e / e.sum(1, keepdims=True) - self.smoothing / _SINGLE(10)
        delta[np.arange(len(y)), y] -= 1 - self.smoothing
        delta /= _SINGLE(len(y))
        _, _, w2, _, w3, _ = self.parameters
        d2 = ((delta @ w3.T) * (h2 > 0)).reshape(4 * len(y), -1)
        back = (d2 @ w2.T).reshape(len(y), 2, 2, 9, -1)
        d1 = np.zeros((len(y), 6, 6, back.shape[-1]), _SINGLE)
        for k in range(9):
            d1[:, k // 3 : k // 3 + 4 : 2, k % 3 : k % 3 + 4 : 2] += back[:, :, :, k]
        d1 = (d1[:, 1:5, 1:5] * (h1 > 0)).reshape(16 * len(y), -1)
        gradients = [columns_1.T @ d1, d1.sum(0)]
        gradients += [columns_2.T @ d2, d2.sum(0), h2.T @ delta, delta.sum(0)]
        for j, (p, v, g) in enumerate(zip(self.parameters, self.velocities, gradients, strict=True)):
            v *= self.momentum
            v += g + self.decay * p if j % 2 == 0 else g
            p -= _SINGLE(rate) * v


def rate_factor(config: dict[str, Any], epoch: int) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    warmup = config["warmup_epochs"]
    if epoch < warmup:
        return float((epoch + 1) / (warmup + 1))
    wave = 0.5 + 0.5 * np.cos(np.pi * (epoch - warmup) / (EPOCHS - 1 - warmup))
    return float(config["final_rate"] + (1 - config["final_rate"]) * wave)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    padded, y, columns_eval, y_eval = data()
    windows = np.lib.stride_tricks.sliding_window_view(padded[..., 0], (8, 8), (1, 2))
    model, shift = Network(config, rng), config["max_shift"]
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = config["learning_rate"] * rate_factor(config, epoch)
        order = rng.permutation(_TRAIN)
        at = _MARGIN + rng.integers(-shift, shift + 1, (2, _TRAIN))
        images = windows[np.arange(_TRAIN), at[0], at[1]][..., None]
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            model.update(images[batch], y[batch], rate)
        logits = model.forward(columns_eval)[-1]
        wrong = logits.argmax(1) != y_eval
        curve[epoch] = wrong[:_VAL].mean(), wrong[_VAL:].mean()
        if not np.isfinite(logits).all():
            curve[epoch] = 0.9
    return curve
