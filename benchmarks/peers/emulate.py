"""A task that answers at once: a smooth model of a recorded table, for screening many variants of a method.

The table's learning curves (as log odds) are reduced to five principal components, and each is predicted from the
configuration by kernel ridge regression. Every configuration gets noise of its own: one part for the whole curve, one
per epoch. It is no substitute for training: what wins here is to be confirmed live.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from live import CostModel, canonical
from tables import DATA, Config, Table, to_unit

COMPONENTS = 5
_RIDGE = 0.05
_CATEGORY = 0.7
"""Coordinate of a category: two of them are 1 apart."""


def encode(table: Table, config: Config) -> np.ndarray:
    """Numbers in [0, 1] and one coordinate per category."""
    numbers = [to_unit(spec, config[name]) for name, spec in table.space.items() if spec["type"] != "choice"]
    categories = [
        _CATEGORY * (config[name] == category)
        for name, spec in table.space.items()
        if spec["type"] == "choice"
        for category in spec["categories"]
    ]
    return np.array([*numbers, *categories])


def matern52(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of inputs already divided by their length scales."""
    squared = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T, 0.0)
    r = np.sqrt(5.0 * squared)
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r))


def length_scales(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By the strength of each coordinate in a quadratic fit: what matters more varies faster."""
    centred = x - x.mean(0)
    design = np.concatenate([centred, centred**2], 1)
    weights, *_ = np.linalg.lstsq(np.c_[np.ones(len(x)), design], y, rcond=None)
    effects = (weights[1:, None] * design.T).std(1).reshape(2, -1)
    strength = np.sqrt((effects**2).sum(0))
    return np.asarray(np.clip(2.0 * strength.max() / (strength + 1e-9), 2.0, 20.0) / 2.0)


class Emulated:
    """A task for :func:`driver.simulate`."""

    def __init__(self, name: str) -> None:
        table = Table(name)
        self.name, self.space, self.max_epochs = name, table.space, table.max_epochs
        self._table = table
        self._cost = CostModel(DATA / f"{name}.cost.json", table.space)
        self.mean_epoch_seconds = self._cost.mean_epoch_seconds
        errors = np.clip(table.val_error.astype(float), 0.02, 0.98)
        odds = np.log(errors / (1.0 - errors))
        self._centre = odds.mean(0)
        left, singular, right = np.linalg.svd(odds - self._centre, full_matrices=False)
        self._directions = right[:COMPONENTS]
        scores = left[:, :COMPONENTS] * singular[:COMPONENTS]
        x = np.stack([encode(table, table.config(row)) for row in range(len(odds))])
        self._models = []
        for score in scores.T:
            scales = length_scales(x, score)
            covariance = matern52(x / scales, x / scales) + _RIDGE * np.eye(len(x))
            mean = float(score.mean())
            self._models.append((scales, x / scales, mean, np.linalg.solve(covariance, score - mean)))
        late = errors[:, self.max_epochs // 2 :]
        best = np.argsort(errors.min(1))[: len(errors) // 10]
        # Second differences of independent errors have six times their variance.
        self.noise = float(np.median(np.abs(np.diff(late[best], 2, axis=1))) / 0.6745 / np.sqrt(6.0))
        self._configs: list[Config] = []
        self._curves: list[np.ndarray] = []
        self._numbers: dict[str, int] = {}

    def smooth(self, config: Config) -> np.ndarray:
        """(epochs,) the curve without noise."""
        at = encode(self._table, config)[None]
        scores = [mean + float((matern52(at / scales, x) @ w)[0]) for scales, x, mean, w in self._models]
        return np.asarray(1.0 / (1.0 + np.exp(-(self._centre + np.array(scores) @ self._directions))))

    def number(self, config: Config) -> int:
        """The number of this very configuration."""
        exact = canonical(self.space, config)
        key = hashlib.sha256(repr(sorted(exact.items())).encode()).hexdigest()
        if key not in self._numbers:
            rng = np.random.default_rng(int(key[:8], 16))
            noise = 0.7 * self.noise * rng.standard_normal() + self.noise * rng.standard_normal(self.max_epochs)
            self._numbers[key] = len(self._configs)
            self._configs.append(exact)
            self._curves.append(np.clip(self.smooth(exact) + noise, 0.0, 1.0))
        return self._numbers[key]

    def error(self, number: int, epoch: int) -> float:
        """Validation error after this many epochs."""
        return float(self._curves[number][epoch - 1])

    def seconds(self, number: int) -> float:
        """Simulated seconds of one epoch, by the cost model."""
        return self._cost(self._configs[number])

    def outcome(self, number: int, epoch: int) -> dict[str, Any]:
        """What was reported, and the lowest error of the curve without noise."""
        return {"val": self.error(number, epoch), "smooth": float(self.smooth(self._configs[number]).min())}
