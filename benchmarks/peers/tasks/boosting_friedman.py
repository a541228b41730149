"""Gradient boosting of small regression trees with histogram splits on Friedman's first function (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "learning_rate": {"type": "float_log", "lower": 0.01, "upper": 1.0},
    "depth": {"type": "int", "lower": 1, "upper": 6},
    "subsample": {"type": "float", "lower": 0.2, "upper": 1.0},
    "column_fraction": {"type": "float", "lower": 0.2, "upper": 1.0},
    "l2": {"type": "float_log", "lower": 1e-2, "upper": 1e2},
    "min_leaf": {"type": "int_log", "lower": 1, "upper": 50},
}
EPOCHS = 27
_TREES, _BINS, _FEATURES = 10, 16, 10
_TRAIN, _VAL, _TEST = 250, 400, 400


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Bins and targets: training, validation and test rows in this order; five of the ten features matter."""
    rng = np.random.default_rng(20240601)
    x = rng.random((_TRAIN + _VAL + _TEST, _FEATURES))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y += rng.normal(0.0, 1.0, len(y))
    edges = np.quantile(x[:_TRAIN], np.arange(1, _BINS) / _BINS, axis=0)
    bins = np.stack([np.searchsorted(edges[:, j], x[:, j]) for j in range(_FEATURES)], 1)
    return bins, y


def splits(histogram: np.ndarray, counts: np.ndarray, l2: float, min_leaf: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each node, column and last bin on the left; the last bin of all where no split is allowed or pays.

    ``histogram`` and ``counts`` are (nodes, columns, bins): sums and numbers of the residuals.
    """
    left, n_left = histogram.cumsum(2), counts.cumsum(2)
    total, n = left[:, :, -1:], n_left[:, :, -1:]
    right, n_right = total - left, n - n_left
    gain = left**2 / (n_left + l2) + right**2 / (n_right + l2) - total**2 / (n + l2)
    gain[(n_left < min_leaf) | (n_right < min_leaf)] = 0.0
    gain = gain.reshape(len(gain), -1)
    best = gain.argmax(1)
    column, last = np.divmod(best, _BINS)
    last[gain[np.arange(len(best)), best] <= 1e-9] = _BINS - 1
    return column, last


def tree(
    bins: np.ndarray, residuals: np.ndarray, rows: np.ndarray, columns: np.ndarray, config: dict[str, Any]
) -> np.ndarray:
    """Predictions for all rows of a tree that is grown, a level at a time, on some rows and columns."""
    width = len(columns) * _BINS
    codes = bins[np.ix_(rows, columns)] + np.arange(len(columns)) * _BINS
    weights = np.repeat(residuals, len(columns))
    node = np.zeros(len(bins), np.int64)
    for level in range(config["depth"]):
        keys = (codes + node[rows, None] * width).ravel()
        shape = (2**level, len(columns), _BINS)
        counts = np.bincount(keys, minlength=2**level * width).reshape(shape)
        histogram = np.bincount(keys, weights, 2**level * width).reshape(shape)
        column, last = splits(histogram, counts, config["l2"], config["min_leaf"])
        goes_right = bins[np.arange(len(bins)), columns[column[node]]] > last[node]
        node = 2 * node + goes_right
    leaves = 2 ** config["depth"]
    sums = np.bincount(node[rows], residuals, leaves)
    return np.asarray((sums / (np.bincount(node[rows], minlength=leaves) + config["l2"]))[node])


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test RMSE; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    bins, y = data()
    n_rows = max(2, round(config["subsample"] * _TRAIN))
    n_columns = max(1, round(config["column_fraction"] * _FEATURES))
    prediction = np.full(len(y), y[:_TRAIN].mean())
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        for _ in range(_TREES):
            rows = rng.permutation(_TRAIN)[:n_rows]
            columns = rng.permutation(_FEATURES)[:n_columns]
            residuals = y[rows] - prediction[rows]
            prediction += config["learning_rate"] * tree(bins, residuals, rows, columns, config)
        squares = (y - prediction)[_TRAIN:] ** 2
        curve[epoch] = np.sqrt(squares[:_VAL].mean()), np.sqrt(squares[_VAL:].mean())
    return curve
