"""A denoising autoencoder with one hidden layer on each side of the code, Adam, on digits (numpy)."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_units": {"type": "int_log", "lower": 16, "upper": 128},
    "n_code": {"type": "int_log", "lower": 4, "upper": 48},
    "batch_size": {"type": "int_log", "lower": 16, "upper": 256},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "momentum": {"type": "float", "lower": 0.5, "upper": 0.99},
    "noise": {"type": "float", "lower": 0.0, "upper": 0.6},
    "l2": {"type": "float_log", "lower": 1e-7, "upper": 1e-2},
    "halving_epochs": {"type": "int", "lower": 4, "upper": 81},
    "activation": {"type": "choice", "categories": ["relu", "tanh", "sigmoid"]},
}
EPOCHS = 81
DIVERGED = 1e4
"""Highest mean squared error that is reported, and that of a model which is no longer finite."""
_TRAIN, _VAL = 500, 400
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Clean images in [0, 1], and what the network sees of validation (400) and test (the next 400) images."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(20240603)
    images = load_digits().data.astype(_SINGLE)
    clean = images[rng.permutation(len(images))][: _TRAIN + 2 * _VAL] / _SINGLE(16)
    noisy = clean[_TRAIN:] + rng.normal(0.0, 0.05, (2 * _VAL, 64)).astype(_SINGLE)
    return clean, noisy


def activate(a: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative."""
    if kind == "relu":
        return np.maximum(a, 0), (a > 0).astype(_SINGLE)
    if kind == "tanh":
        h = np.tanh(a)
        return h, 1 - h * h
    h = _SINGLE(0.5) * (1 + np.tanh(_SINGLE(0.5) * a))
    return h, h * (1 - h)


class Autoencoder:
    """Pixels, hidden layer, linear code, hidden layer, linear pixels; and Adam's moments of the weights."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        self.kind, self.l2, self.step = config["activation"], _SINGLE(config["l2"]), 0
        self.betas = config["momentum"], 0.999
        widths = (64, config["n_units"], config["n_code"], config["n_units"], 64)
        self.parameters: list[np.ndarray] = []
        for a, b in itertools.pairwise(widths):
            self.parameters += [rng.normal(0.0, np.sqrt(1 / a), (a, b)).astype(_SINGLE), np.zeros(b, _SINGLE)]
        self.first = [np.zeros_like(p) for p in self.parameters]
        self.second = [np.zeros_like(p) for p in self.parameters]

    def forward(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Inputs of all layers, slopes of the two hidden ones, and the pixels."""
        w1, b1, w2, b2, w3, b3, w4, b4 = self.parameters
        h1, slope1 = activate(x @ w1 + b1, self.kind)
        code = h1 @ w2 + b2
        h2, slope2 = activate(code @ w3 + b3, self.kind)
        return [x, h1, code, h2], [slope1, slope2], h2 @ w4 + b4

    def update(self, x: np.ndarray, target: np.ndarray, rate: float) -> None:
        """A step of Adam on the mean squared error and the penalty of the weights."""
        inputs, slopes, pixels = self.forward(x)
        deltas = [(pixels - target) * _SINGLE(2 / target.size)]
        deltas.insert(0, (deltas[0] @ self.parameters[6].T) * slopes[1])
        deltas.insert(0, deltas[0] @ self.parameters[4].T)
        deltas.insert(0, (deltas[0] @ self.parameters[2].T) * slopes[0])
        gradients: list[np.ndarray] = []
        for layer, (value, delta) in enumerate(zip(inputs, deltas, strict=True)):
            gradients += [value.T @ delta + self.l2 * self.parameters[2 * layer], delta.sum(0)]
        self.step += 1
        b1, b2 = self.betas
        scale = _SINGLE(rate * np.sqrt(1 - b2**self.step) / (1 - b1**self.step))
        for p, m, v, g in zip(self.parameters, self.first, self.second, gradients, strict=True):
            m += _SINGLE(1 - b1) * (g - m)
            v += _SINGLE(1 - b2) * (g * g - v)
            p -= scale * m / (np.sqrt(v) + _SINGLE(1e-8))


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test mean squared errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    clean, noisy = data()
    model = Autoencoder(config, rng)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = config["learning_rate"] * 0.5 ** (epoch / config["halving_epochs"])
        order = rng.permutation(_TRAIN)
        seen = clean[:_TRAIN] + _SINGLE(config["noise"]) * rng.standard_normal((_TRAIN, 64), dtype=_SINGLE)
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            model.update(seen[batch], clean[batch], rate)
        squares = ((model.forward(noisy)[2] - clean[_TRAIN:]) ** 2).mean(1, dtype=np.float64)
        values = np.array([squares[:_VAL].mean(), squares[_VAL:].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
