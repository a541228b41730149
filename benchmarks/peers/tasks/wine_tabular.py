"""Logistic regression with crossed features, dropout and a choice of optimizers on noisy wine analyses (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_crosses": {"type": "int", "lower": 0, "upper": 78},
    "cross_scale": {"type": "float_log", "lower": 0.03, "upper": 3.0},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.8},
    "optimizer": {"type": "choice", "categories": ["sgd", "adagrad", "adam"]},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 3.0},
    "halving_epochs": {"type": "int_log", "lower": 2, "upper": 54},
    "batch_size": {"type": "int_log", "lower": 4, "upper": 64},
    "l1": {"type": "float_log", "lower": 1e-6, "upper": 1e-1},
    "l2": {"type": "float_log", "lower": 1e-6, "upper": 1.0},
}
EPOCHS = 27
DIVERGED = 100.0
"""Highest log loss that is reported, and that of a model which is no longer finite."""
_BOTTLES = (58, 60, 60)
_ANALYSES = 3
_FEATURES = 13


@cache
def data() -> tuple[np.ndarray, ...]:
    """Features, crosses and labels: of each bottle three noisy analyses; no bottle is in two of the three parts.

    An eighth of the training bottles has a random label.
    """
    from sklearn.datasets import load_wine

    rng = np.random.default_rng(20240705)
    x, y = load_wine(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    wrong = np.flatnonzero(rng.random(_BOTTLES[0]) < 0.125)
    y[wrong] = rng.integers(0, 3, len(wrong))
    x, y = np.repeat(x, _ANALYSES, 0), np.repeat(y, _ANALYSES)
    x = x + rng.normal(0.0, 0.8, x.shape)
    i, j = np.triu_indices(_FEATURES, 1)
    chosen = rng.permutation(len(i))
    return x, x[:, i[chosen]] * x[:, j[chosen]], y


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test log loss; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    plain, crosses, y = data()
    x = np.concatenate([plain, config["cross_scale"] * crosses[:, : config["n_crosses"]]], 1)
    n, n_val = _BOTTLES[0] * _ANALYSES, _BOTTLES[1] * _ANALYSES
    keep, kind, l1, l2 = 1 - config["dropout"], config["optimizer"], config["l1"], config["l2"]
    w, b = rng.normal(0.0, 0.1, (x.shape[1], 3)), np.zeros(3)
    parameters = (w, b)
    first, second = [[np.zeros_like(p) for p in parameters] for _ in range(2)]
    curve, step = np.empty((epochs, 2), np.float32), 0
    for epoch in range(epochs):
        rate = config["learning_rate"] * 0.5 ** (epoch / config["halving_epochs"])
        order = rng.permutation(n)
        seen = x[order] * ((rng.random((n, x.shape[1])) < keep) / keep)
        for start in range(0, n, config["batch_size"]):
            rows = slice(start, start + config["batch_size"])
            labels = y[order[rows]]
            z = seen[rows] @ w + b
            e = np.exp(z - z.max(1, keepdims=True))
            delta = e / e.sum(1, keepdims=True)
            delta[np.arange(len(labels)), labels] -= 1
            delta /= len(labels)
            step += 1
            gradients = (seen[rows].T @ delta + l2 * w + l1 * np.sign(w), delta.sum(0))
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                if kind == "sgd":
                    p -= rate * g
                elif kind == "adagrad":
                    v += g * g
                    p -= rate * g / (np.sqrt(v) + 1e-8)
                else:
                    m += 0.1 * (g - m)
                    v += 0.001 * (g * g - v)
                    p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        z = x[n:] @ w + b
        z = z - z.max(1, keepdims=True)
        losses = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y[n:]]
        values = np.array([losses[:n_val].mean(), losses[n_val:].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
