"""Logistic regression by SGD with momentum on a few breast cancer cases, some labelled wrongly (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 10.0},
    "momentum": {"type": "float", "lower": 0.0, "upper": 0.98},
    "l2": {"type": "float_log", "lower": 1e-5, "upper": 1.0},
    "batch_size": {"type": "int_log", "lower": 2, "upper": 32},
}
EPOCHS = 27
_TRAIN, _VAL = 150, 120


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """150 training, 120 validation and 299 test rows in this order; a tenth of the training labels is wrong."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(20240604)
    order = rng.permutation(len(y))
    x, y = x[order], y[order].astype(np.float64)
    x = (x - x[:_TRAIN].mean(0)) / x[:_TRAIN].std(0)
    wrong = np.flatnonzero(rng.random(_TRAIN) < 0.1)
    y[wrong] = 1 - y[wrong]
    return x, y


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test error rates; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    x, y = data()
    weights, bias = rng.normal(0.0, 1 / np.sqrt(x.shape[1]), x.shape[1]), 0.0
    speed, bias_speed = np.zeros_like(weights), 0.0
    rate, momentum, l2 = config["learning_rate"], config["momentum"], config["l2"]
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        order = rng.permutation(_TRAIN)
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            inputs = x[batch]
            error = 0.5 + 0.5 * np.tanh(0.5 * (inputs @ weights + bias)) - y[batch]
            speed = momentum * speed + inputs.T @ error / len(batch) + l2 * weights
            bias_speed = momentum * bias_speed + error.mean()
            weights = weights - rate * speed
            bias -= rate * bias_speed
        scores = x[_TRAIN:] @ weights + bias
        wrong = (scores > 0) != y[_TRAIN:]
        if not np.isfinite(scores).all():
            wrong = np.full(len(wrong), 0.5)
        curve[epoch] = wrong[:_VAL].mean(), wrong[_VAL:].mean()
    return curve
