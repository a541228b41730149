"""A multilayer perceptron with all the usual knobs on Friedman's second function among useless columns (numpy)."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_layers": {"type": "int", "lower": 1, "upper": 3},
    "n_units": {"type": "int_log", "lower": 4, "upper": 64},
    "activation": {"type": "choice", "categories": ["relu", "tanh", "sigmoid"]},
    "initialisation": {"type": "choice", "categories": ["he", "glorot", "orthogonal", "tiny"]},
    "normalisation": {"type": "choice", "categories": ["none", "batch", "layer"]},
    "optimizer": {"type": "choice", "categories": ["adam", "sgd", "rmsprop"]},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 1.0},
    "batch_size": {"type": "int_log", "lower": 16, "upper": 128},
    "momentum": {"type": "float", "lower": 0.5, "upper": 0.99},
    "one_minus_beta2": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "epsilon": {"type": "float_log", "lower": 1e-10, "upper": 1e-3},
    "weight_decay": {"type": "float_log", "lower": 1e-6, "upper": 1.0},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.5},
    "gradient_clip": {"type": "float_log", "lower": 0.1, "upper": 100.0},
}
EPOCHS = 27
DIVERGED = 10.0
"""Highest RMSE that is reported, and that of a model which is no longer finite."""
_TRAIN, _VAL, _TEST, _USELESS = 250, 400, 400, 6
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns and targets, training, validation and test rows in this order."""
    from sklearn.datasets import make_friedman2

    rng = np.random.default_rng(20240703)
    x, y = make_friedman2(_TRAIN + _VAL + _TEST, noise=80.0, random_state=20240703)
    x = np.concatenate([x, rng.normal(0.0, 1.0, (len(x), _USELESS))], 1)
    x = (x - x[:_TRAIN].mean(0)) / x[:_TRAIN].std(0)
    y = (y - y[:_TRAIN].mean()) / y[:_TRAIN].std()
    return x.astype(_SINGLE), y.astype(_SINGLE)[:, None]


def initial(kind: str, a: int, b: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of a layer."""
    normal = rng.normal(0.0, 1.0, (a, b))
    if kind == "orthogonal":
        q, _ = np.linalg.qr(normal if a >= b else normal.T)
        return np.asarray(q if a >= b else q.T, _SINGLE)
    scale = {"he": np.sqrt(2 / a), "glorot": np.sqrt(2 / (a + b)), "tiny": 0.01}[kind]
    return (normal * scale).astype(_SINGLE)


def activate(a: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative."""
    if kind == "relu":
        return np.maximum(a, 0), (a > 0).astype(_SINGLE)
    if kind == "tanh":
        h = np.tanh(a)
        return h, 1 - h * h
    h = _SINGLE(0.5) * (1 + np.tanh(_SINGLE(0.5) * a))
    return h, h * (1 - h)


class Perceptron:
    """Weights, running statistics of the layers, and the optimizer's moments."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        self.config, self.rng, self.step = config, rng, 0
        self.axis = {"none": None, "batch": 0, "layer": 1}[config["normalisation"]]
        widths = [4 + _USELESS] + [config["n_units"]] * config["n_layers"] + [1]
        self.weights = [initial(config["initialisation"], a, b, rng) for a, b in itertools.pairwise(widths)]
        self.biases = [np.zeros(b, _SINGLE) for b in widths[1:]]
        self.running = [[np.zeros(w, _SINGLE), np.ones(w, _SINGLE)] for w in widths[1:-1]]
        self.parameters = self.weights + self.biases
        self.first = [np.zeros_like(p) for p in self.parameters]
        self.second = [np.zeros_like(p) for p in self.parameters]

    def normalised(self, a: np.ndarray, layer: int, training: bool) -> tuple[np.ndarray, Any]:
        """Without learnt scale and shift; also the standard deviations."""
        if self.axis == 0 and not training:
            mean, variance = self.running[layer]
        else:
            mean, variance = a.mean(self.axis, keepdims=True), a.var(self.axis, keepdims=True)
            if self.axis == 0:
                for old, new in zip(self.running[layer], (mean[0], variance[0]), strict=True):
                    old += _SINGLE(0.1) * (new - old)
        deviation = np.sqrt(variance + _SINGLE(1e-3))
        return (a - mean) / deviation, deviation

    def predict(self, x: np.ndarray) -> np.ndarray:
        for layer, (w, b) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            x = x @ w + b
            if self.axis is not None:
                x, _ = self.normalised(x, layer, False)
            x, _ = activate(x, self.config["activation"])
        return np.asarray(x @ self.weights[-1] + self.biases[-1])

    def gradients(self, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Of half the mean squared error of a batch, with dropout: those of the weights, then of the biases."""
        keep = _SINGLE(1 - self.config["dropout"])
        inputs, tape = [x], []
        for layer, (w, b) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            a, deviation = inputs[-1] @ w + b, None
            if self.axis is not None:
                a, deviation = self.normalised(a, layer, True)
            h, slope = activate(a, self.config["activation"])
            mask = (self.rng.random(h.shape, dtype=_SINGLE) < keep) / keep
            tape.append((a, deviation, slope * mask))
            inputs.append(h * mask)
        delta = (inputs[-1] @ self.weights[-1] + self.biases[-1] - y) / _SINGLE(len(y))
        of_weights, of_biases = [inputs[-1].T @ delta], [delta.sum(0)]
        for layer in reversed(range(len(tape))):
            a, deviation, slope = tape[layer]
            delta = (delta @ self.weights[layer + 1].T) * slope
            if self.axis is not None:
                mean, along = delta.mean(self.axis, keepdims=True), (delta * a).mean(self.axis, keepdims=True)
                delta = (delta - mean - a * along) / deviation
            of_weights.insert(0, inputs[layer].T @ delta)
            of_biases.insert(0, delta.sum(0))
        return of_weights + of_biases

    def update(self, gradients: list[np.ndarray]) -> None:
        """A step; the decay of the weights is decoupled, biases do not decay."""
        config = self.config
        self.step += 1
        norm = float(np.sqrt(sum(float((g * g).sum()) for g in gradients)))
        clip = _SINGLE(min(1.0, config["gradient_clip"] / (norm + 1e-12)))
        rate, b1, b2 = config["learning_rate"], config["momentum"], 1 - config["one_minus_beta2"]
        kind, epsilon = config["optimizer"], _SINGLE(config["epsilon"])
        unbias1, unbias2 = _SINGLE(1 / (1 - b1**self.step)), _SINGLE(1 / (1 - b2**self.step))
        for j, (p, m, v, g) in enumerate(zip(self.parameters, self.first, self.second, gradients, strict=True)):
            g = g * clip
            if j < len(self.weights):
                p *= _SINGLE(1 - rate * config["weight_decay"])
            if kind == "sgd":
                m *= _SINGLE(b1)
                m += g
                p -= _SINGLE(rate) * m
                continue
            v += _SINGLE(1 - b2) * (g * g - v)
            if kind == "adam":
                m += _SINGLE(1 - b1) * (g - m)
                p -= _SINGLE(rate) * unbias1 * m / (np.sqrt(v * unbias2) + epsilon)
            else:
                m *= _SINGLE(b1)
                m += g / (np.sqrt(v) + epsilon)
                p -= _SINGLE(rate) * m


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test RMSE, in standard deviations of the target; prefixes do not depend on epochs."""
    rng = np.random.default_rng(seed)
    x, y = data()
    model = Perceptron(config, rng)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        order = rng.permutation(_TRAIN)
        for start in range(0, _TRAIN - 1, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            model.update(model.gradients(x[batch], y[batch]))
        squares = (model.predict(x[_TRAIN:]) - y[_TRAIN:])[:, 0].astype(np.float64) ** 2
        values = np.sqrt([squares[:_VAL].mean(), squares[_VAL:].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
