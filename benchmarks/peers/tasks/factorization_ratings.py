"""Matrix factorisation with biases by stochastic gradient descent on made-up sparse ratings (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_factors": {"type": "int_log", "lower": 1, "upper": 32},
    "batch_size": {"type": "int_log", "lower": 32, "upper": 512},
    "learning_rate": {"type": "float_log", "lower": 1e-3, "upper": 0.5},
    "bias_rate": {"type": "float_log", "lower": 1e-4, "upper": 0.5},
    "l2": {"type": "float_log", "lower": 1e-4, "upper": 1.0},
    "init_scale": {"type": "float_log", "lower": 1e-3, "upper": 1.0},
    "rate_power": {"type": "float", "lower": 0.0, "upper": 1.0},
}
EPOCHS = 81
DIVERGED = 10.0
"""Highest RMSE that is reported, and that of a model which is no longer finite."""
_USERS, _ITEMS, _RANK = 120, 80, 4
_TRAIN, _VAL, _TEST = 2000, 700, 700


@cache
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and ratings of one to five stars; some users and items are rated far more often than others."""
    rng = np.random.default_rng(20240702)
    often_user = rng.pareto(2.0, _USERS) + 0.5
    often_item = rng.pareto(1.5, _ITEMS) + 0.3
    chances = (often_user[:, None] * often_item).ravel()
    cells = rng.choice(_USERS * _ITEMS, _TRAIN + _VAL + _TEST, False, chances / chances.sum())
    users, items = np.divmod(cells, _ITEMS)
    taste = rng.normal(0.0, 1.0, (_USERS, _RANK)) * np.sqrt([0.6, 0.3, 0.2, 0.1])
    kind = rng.normal(0.0, 1.0, (_ITEMS, _RANK))
    liking = 3.4 + rng.normal(0.0, 0.35, _USERS)[users] + rng.normal(0.0, 0.45, _ITEMS)[items]
    liking += (taste[users] * kind[items]).sum(1) + rng.normal(0.0, 0.5, len(users))
    return users, items, np.clip(np.rint(liking), 1, 5)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test RMSE; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    users, items, ratings = data()
    k, l2 = config["n_factors"], config["l2"]
    p, q = (rng.normal(0.0, config["init_scale"], (n, k)) for n in (_USERS, _ITEMS))
    b, c, mean = np.zeros(_USERS), np.zeros(_ITEMS), ratings[:_TRAIN].mean()
    at = np.arange(k)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        factor = (1.0 + epoch) ** -config["rate_power"]
        rate, bias_rate = config["learning_rate"] * factor, config["bias_rate"] * factor
        order = rng.permutation(_TRAIN)
        for start in range(0, _TRAIN, config["batch_size"]):
            batch = order[start : start + config["batch_size"]]
            u, i = users[batch], items[batch]
            pu, qi = p[u], q[i]
            e = ratings[batch] - mean - b[u] - c[i] - (pu * qi).sum(1)
            np.add.at(b, u, bias_rate * (e - l2 * b[u]))
            np.add.at(c, i, bias_rate * (e - l2 * c[i]))
            np.add.at(p.reshape(-1), (u[:, None] * k + at).ravel(), (rate * (e[:, None] * qi - l2 * pu)).ravel())
            np.add.at(q.reshape(-1), (i[:, None] * k + at).ravel(), (rate * (e[:, None] * pu - l2 * qi)).ravel())
        u, i = users[_TRAIN:], items[_TRAIN:]
        squares = (ratings[_TRAIN:] - mean - b[u] - c[i] - (p[u] * q[i]).sum(1)) ** 2
        values = np.sqrt([squares[:_VAL].mean(), squares[_VAL:].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
