"""A simple recurrent network that repeats what it heard a few steps ago, SGD with momentum and clipping (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_units": {"type": "int_log", "lower": 8, "upper": 48},
    "batch_size": {"type": "int_log", "lower": 16, "upper": 128},
    "learning_rate": {"type": "float_log", "lower": 1e-2, "upper": 10.0},
    "momentum": {"type": "float", "lower": 0.0, "upper": 0.95},
    "clip_norm": {"type": "float_log", "lower": 0.1, "upper": 100.0},
    "recurrent_gain": {"type": "float", "lower": 0.2, "upper": 1.6},
    "l2": {"type": "float_log", "lower": 1e-6, "upper": 1e-1},
    "drop_epoch": {"type": "int", "lower": 3, "upper": 40},
    "activation": {"type": "choice", "categories": ["tanh", "relu"]},
}
EPOCHS = 27
DIVERGED = 1e4
"""Highest cross-entropy that is reported, and that of a model which is no longer finite."""
_SYMBOLS, _STEPS, _LAG = 4, 10, 4
_TRAIN, _VAL, _TEST = 320, 160, 160
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (sequences, steps, symbols) and labels of the steps from the lag on, a tenth of which is random."""
    rng = np.random.default_rng(20240602)
    symbols = rng.integers(0, _SYMBOLS, (_TRAIN + _VAL + _TEST, _STEPS))
    labels = symbols[:, : _STEPS - _LAG].copy()
    wrong = rng.random(labels.shape) < 0.1
    labels[wrong] = rng.integers(0, _SYMBOLS, wrong.sum())
    return np.eye(_SYMBOLS, dtype=_SINGLE)[symbols], labels


class Recurrent:
    """Weights of a simple recurrent network; everything is (steps, sequences, ...) inside."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        units = config["n_units"]
        self.is_relu = config["activation"] == "relu"
        gain = config["recurrent_gain"] / np.sqrt(units)
        self.parameters = [
            rng.normal(0.0, 0.5, (_SYMBOLS, units)).astype(_SINGLE),
            rng.normal(0.0, gain, (units, units)).astype(_SINGLE),
            np.zeros(units, _SINGLE),
            rng.normal(0.0, np.sqrt(1 / units), (units, _SYMBOLS)).astype(_SINGLE),
            np.zeros(_SYMBOLS, _SINGLE),
        ]

    def states(self, x: np.ndarray) -> np.ndarray:
        """(1 + steps, sequences, units): zeros, then the state after each step."""
        w_in, w, bias, _, _ = self.parameters
        driven = x.transpose(1, 0, 2) @ w_in + bias
        h = np.zeros((len(driven) + 1, *driven.shape[1:]), _SINGLE)
        for t, d in enumerate(driven):
            a = d + h[t] @ w
            h[t + 1] = np.maximum(a, 0) if self.is_relu else np.tanh(a)
        return h

    def log_probabilities(self, h: np.ndarray) -> np.ndarray:
        """(steps from the lag on, sequences, symbols)"""
        z = h[1 + _LAG :] @ self.parameters[3] + self.parameters[4]
        z = z - z.max(-1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """Of the mean cross-entropy of a batch, through all steps."""
        _, w, _, w_out, _ = self.parameters
        h = self.states(x)
        delta = np.exp(self.log_probabilities(h)) - np.eye(_SYMBOLS, dtype=_SINGLE)[labels.T]
        delta /= _SINGLE(labels.size)
        slope = (h[1:] > 0).astype(_SINGLE) if self.is_relu else 1 - h[1:] ** 2
        back = np.zeros_like(slope)
        back[_LAG:] = delta @ w_out.T
        back[-1] *= slope[-1]
        for t in range(len(back) - 2, -1, -1):
            back[t] = (back[t] + back[t + 1] @ w.T) * slope[t]
        flat, units = back.reshape(-1, back.shape[2]), back.shape[2]
        return [
            x.transpose(1, 0, 2).reshape(-1, _SYMBOLS).T @ flat,
            h[:-1].reshape(-1, units).T @ flat,
            flat.sum(0),
            h[1 + _LAG :].reshape(-1, units).T @ delta.reshape(-1, _SYMBOLS),
            delta.sum((0, 1)),
        ]

    def cross_entropy(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of each sequence, per symbol."""
        chosen = np.take_along_axis(self.log_probabilities(self.states(x)), labels.T[:, :, None], 2)
        return np.asarray(-chosen[:, :, 0].mean(0, dtype=np.float64))


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test cross-entropy; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    x, labels = data()
    model = Recurrent(config, rng)
    speeds = [np.zeros_like(p) for p in model.parameters]
    momentum, l2 = _SINGLE(config["momentum"]), _SINGLE(config["l2"])
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = _SINGLE(config["learning_rate"] * (1.0 if epoch < config["drop_epoch"] else 0.05))
        order = rng.permutation(_TRAIN)
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            gradients = model.gradients(x[batch], labels[batch])
            norm = np.sqrt(sum(float((g * g).sum()) for g in gradients))
            scale = _SINGLE(min(1.0, config["clip_norm"] / max(norm, 1e-12)))
            for p, speed, g in zip(model.parameters, speeds, gradients, strict=True):
                speed *= momentum
                speed += scale * g + l2 * p
                p -= rate * speed
        losses = model.cross_entropy(x[_TRAIN:], labels[_TRAIN:])
        values = np.array([losses[:_VAL].mean(), losses[_VAL:].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
