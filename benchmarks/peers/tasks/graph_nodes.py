"""Nodes of a graph are classified from few labels by a network whose outputs spread along the edges (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_hidden": {"type": "int_log", "lower": 4, "upper": 64},
    "n_hops": {"type": "int", "lower": 0, "upper": 8},
    "restart": {"type": "float_log", "lower": 0.02, "upper": 0.9},
    "self_loop": {"type": "float_log", "lower": 0.05, "upper": 10.0},
    "normalisation": {"type": "choice", "categories": ["symmetric", "rows", "columns"]},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.8},
    "edge_dropout": {"type": "float", "lower": 0.0, "upper": 0.8},
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 0.3},
    "weight_decay": {"type": "float_log", "lower": 1e-5, "upper": 1.0},
}
"""At every hop this share starts again from the node's own output; a node is its own neighbour with this weight."""
EPOCHS = 81
_CLASSES, _NODES, _WORDS = 5, 500, 60
_TRAIN, _VAL = 60, 200
_UPDATES = 2
"""An epoch, each on all training nodes."""
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, ...]:
    """Words of the nodes, ends of the edges, and classes, those of the training nodes first.

    Some nodes have many more edges than others, two of the classes cite each other often, and a tenth of the training
    labels is random.
    """
    rng = np.random.default_rng(20240804)
    y = rng.integers(0, _CLASSES, _NODES)
    affinity = np.full((_CLASSES, _CLASSES), 0.25) + 2.6 * np.eye(_CLASSES)
    affinity[0, 1] = affinity[1, 0] = 1.2
    busy = rng.pareto(2.5, _NODES) + 0.4
    rates = 5.0 * busy[:, None] * busy * affinity[y[:, None], y] / (busy.sum() * busy.mean())
    i, j = np.nonzero(np.triu(rng.random((_NODES, _NODES)) < rates, 1))
    topics = rng.gamma(0.4, 1.0, (_CLASSES, _WORDS)) * 0.2 + 0.08
    words = (rng.random((_NODES, _WORDS)) < topics[y]).astype(_SINGLE)
    words /= np.maximum(words.sum(1, keepdims=True), 1)
    seen = y.copy()
    noisy = np.flatnonzero(rng.random(_TRAIN) < 0.1)
    seen[noisy] = rng.integers(0, _CLASSES, len(noisy))
    return words * _SINGLE(np.sqrt(_WORDS)), i, j, seen


def propagation(i: np.ndarray, j: np.ndarray, self_loop: float, normalisation: str) -> np.ndarray:
    """The matrix of a hop."""
    a = np.zeros((_NODES, _NODES), _SINGLE)
    a[i, j] = a[j, i] = 1
    np.fill_diagonal(a, self_loop)
    degree = a.sum(1)
    if normalisation == "symmetric":
        root = 1 / np.sqrt(degree)
        a *= root
        a *= root[:, None]
    elif normalisation == "rows":
        a /= degree[:, None]
    else:
        a /= degree
    return a


def spread(a: np.ndarray, z: np.ndarray, n_hops: int, restart: float) -> np.ndarray:
    """Outputs after the hops; with the transposed matrix, the gradients by what was spread."""
    out = z
    for _ in range(n_hops):
        out = _SINGLE(1 - restart) * (a @ out) + _SINGLE(restart) * z
    return out


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    x, i, j, y = data()
    n, hops = config["n_hidden"], (config["n_hops"], config["restart"])
    kind = config["self_loop"], config["normalisation"]
    whole = propagation(i, j, *kind)
    keep, rate, decay = _SINGLE(1 - config["dropout"]), _SINGLE(config["learning_rate"]), config["weight_decay"]
    w1 = rng.normal(0.0, np.sqrt(2 / _WORDS), (_WORDS, n)).astype(_SINGLE)
    w2 = rng.normal(0.0, np.sqrt(1 / n), (n, _CLASSES)).astype(_SINGLE)
    parameters = [w1, w2, np.zeros(n, _SINGLE), np.zeros(_CLASSES, _SINGLE)]
    first, second = [[np.zeros_like(p) for p in parameters] for _ in range(2)]
    w1, w2, b1, b2 = parameters
    curve, step = np.empty((epochs, 2), np.float32), 0
    for epoch in range(epochs):
        for _ in range(_UPDATES):
            kept = rng.random(len(i)) >= config["edge_dropout"]
            a = propagation(i[kept], j[kept], *kind)
            h = np.maximum(x @ w1 + b1, 0)
            mask = (rng.random(h.shape, dtype=_SINGLE) < keep) / keep
            dropped = h * mask
            z = spread(a, dropped @ w2 + b2, *hops)[:_TRAIN]
            e = np.exp(z - z.max(1, keepdims=True))
            delta = np.zeros((_NODES, _CLASSES), _SINGLE)
            delta[:_TRAIN] = e / e.sum(1, keepdims=True)
            delta[np.arange(_TRAIN), y[:_TRAIN]] -= 1
            delta = spread(a.T, delta / _SINGLE(_TRAIN), *hops)
            dh = (delta @ w2.T) * mask * (h > 0)
            step += 1
            scale = _SINGLE(np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
            gradients = (x.T @ dh, dropped.T @ delta, dh.sum(0), delta.sum(0))
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                if p.ndim == 2:
                    p *= _SINGLE(1 - min(1.0, rate * decay))
                m += _SINGLE(0.1) * (g - m)
                v += _SINGLE(0.001) * (g * g - v)
                p -= rate * scale * m / (np.sqrt(v) + _SINGLE(1e-8))
        z = spread(whole, np.maximum(x @ w1 + b1, 0) @ w2 + b2, *hops)[_TRAIN:]
        wrong = z.argmax(1) != y[_TRAIN:]
        curve[epoch] = wrong[:_VAL].mean(), wrong[_VAL:].mean()
        if not np.isfinite(z).all():
            curve[epoch] = 1 - 1 / _CLASSES
    return curve
