"""Softmax regression on random features by SGD with momentum, on digits turned by quarter turns (numpy)."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from scores import error_rate

SPACE = {
    "n_features": {"type": "int_log", "lower": 16, "upper": 512},
    "gamma": {"type": "float_log", "lower": 1e-3, "upper": 1.0},
    "features": {"type": "choice", "categories": ["cos", "relu", "tanh"]},
    "learning_rate": {"type": "float_log", "lower": 1e-3, "upper": 10.0},
    "momentum": {"type": "float", "lower": 0.0, "upper": 0.99},
    "l2": {"type": "float_log", "lower": 1e-7, "upper": 1e-1},
    "batch_size": {"type": "int_log", "lower": 8, "upper": 256},
    "halving_epochs": {"type": "int", "lower": 4, "upper": 81},
    "input_noise": {"type": "float", "lower": 0.0, "upper": 1.0},
}
EPOCHS = 81
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """700 training, 550 validation and 547 test images, each turned by 0, 90, 180 or 270 degrees."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(20240502)
    order = rng.permutation(len(digits.target))
    images, y = digits.images[order].astype(np.float32), digits.target[order]
    turns = rng.integers(0, 4, len(y))
    x = np.stack([np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)]).reshape(len(y), 64)
    x = ((x - x[:700].mean(0)) / 6.0).astype(np.float32)
    return x[:700], y[:700], x[700:1250], y[700:1250], x[1250:], y[1250:]


class RandomFeatures:
    """A fixed random layer: Fourier features of a Gaussian kernel, or units at random thresholds."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        width = config["n_features"]
        self.kind = config["features"]
        self.projection = (rng.normal(0, 1, (64, width)) * np.sqrt(2 * config["gamma"])).astype(_SINGLE)
        self.phase = rng.uniform(0, 2 * np.pi, width).astype(_SINGLE)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        a = x @ self.projection
        if self.kind == "cos":
            return np.asarray(np.cos(a + self.phase) * _SINGLE(np.sqrt(2)))
        a = a + (self.phase - _SINGLE(np.pi)) / _SINGLE(np.pi)
        return np.maximum(a, 0) if self.kind == "relu" else np.tanh(a)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    x, y, x_val, y_val, x_test, y_test = data()
    features = RandomFeatures(config, rng)
    fixed_val, fixed_test = features(x_val), features(x_test)
    width = config["n_features"]
    scale = _SINGLE(1 / np.sqrt(width))
    weights, bias = np.zeros((width, 10), _SINGLE), np.zeros(10, _SINGLE)
    speed, bias_speed = np.zeros_like(weights), np.zeros_like(bias)
    momentum, l2, noise = _SINGLE(config["momentum"]), _SINGLE(config["l2"]), _SINGLE(config["input_noise"])
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = _SINGLE(config["learning_rate"] * 0.5 ** (epoch / config["halving_epochs"]))
        order = rng.permutation(len(y))
        noisy = features(x + noise * rng.standard_normal(x.shape, dtype=_SINGLE)) * scale
        for start in range(0, len(y), config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            inputs = noisy[batch]
            z = inputs @ weights + bias
            e = np.exp(z - z.max(1, keepdims=True))
            delta = e / e.sum(1, keepdims=True)
            delta[np.arange(len(batch)), y[batch]] -= 1
            delta /= _SINGLE(len(batch))
            speed *= momentum
            speed += inputs.T @ delta + l2 * weights
            bias_speed *= momentum
            bias_speed += delta.sum(0)
            weights -= rate * speed
            bias -= rate * bias_speed
        curve[epoch] = (
            error_rate(fixed_val @ weights * scale + bias, y_val),
            error_rate(fixed_test @ weights * scale + bias, y_test),
        )
    return curve
