"""Recorded learning curves, and the encoding of configurations which look-up and cost model share. Needs numpy only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Config = dict[str, Any]
Space = Mapping[str, Mapping[str, Any]]
"""Name -> ``{"type": float | float_log | int | int_log, "lower", "upper"}`` or ``{"type": "choice", "categories"}``."""

DATA = Path(__file__).parent / "data"


def to_unit(spec: Mapping[str, Any], value: float) -> float:
    """The value of a numeric hyperparameter as a coordinate in [0, 1]; integers lie in the middle of their bins."""
    low, high = spec["lower"], spec["upper"]
    match spec["type"]:
        case "float":
            return (value - low) / (high - low)
        case "float_log":
            return math.log(value / low) / math.log(high / low)
        case "int":
            return (value - low + 0.5) / (high - low + 1)
        case "int_log":
            return math.log(value / (low - 0.5)) / math.log((high + 0.5) / (low - 0.5))
    raise ValueError(f"{spec['type']!r} is no numeric type. Use float, float_log, int or int_log.")


def from_unit(spec: Mapping[str, Any], u: float) -> float | int:
    """The inverse of :func:`to_unit`, for ``u`` in [0, 1)."""
    low, high = spec["lower"], spec["upper"]
    match spec["type"]:
        case "float":
            return float(low + u * (high - low))
        case "float_log":
            return float(low * (high / low) ** u)
        case "int":
            return int(min(high, low + math.floor(u * (high - low + 1))))
        case "int_log":
            return int(min(high, max(low, round((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** u))))
    raise ValueError(f"{spec['type']!r} is no numeric type. Use float, float_log, int or int_log.")


def random_config(space: Space, rng: np.random.Generator) -> Config:
    """A configuration drawn from the space."""
    return {
        name: spec["categories"][int(rng.integers(len(spec["categories"])))]
        if spec["type"] == "choice"
        else from_unit(spec, float(rng.random()))
        for name, spec in space.items()
    }


class Table:
    """A table of trainings: one learning curve and one cost of an epoch per recorded configuration.

    It is a *task* for :func:`driver.simulate`: a configuration gets a number, the number a curve.
    """

    def __init__(self, name: str) -> None:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            self.space: Space = meta["space"]
            columns = {key: arrays[f"hp_{key}"] for key in self.space}
            self.val_error: np.ndarray = arrays["val_error"]
            """(configurations, epochs) validation error after each epoch."""
            self.test_error: np.ndarray = arrays["test_error"]
            self.epoch_seconds: np.ndarray = arrays["epoch_seconds"].astype(np.float64)
        self._columns = columns
        self.name = name
        self.max_epochs = self.val_error.shape[1]
        self.mean_epoch_seconds = float(self.epoch_seconds.mean())
        self.best_error = float(self.val_error.min())
        self._numeric = [key for key, spec in self.space.items() if spec["type"] != "choice"]
        self._choices = [key for key, spec in self.space.items() if spec["type"] == "choice"]
        self._units = np.array([[to_unit(self.space[k], v.item()) for v in columns[k]] for k in self._numeric]).T
        self._categories = {key: columns[key] for key in self._choices}

    def config(self, number: int) -> Config:
        """The recorded configuration with this number."""
        values = {name: self._columns[name][number].item() for name in self.space}
        return {name: self.space[name]["categories"][v] if name in self._choices else v for name, v in values.items()}

    def number(self, config: Config) -> int:
        """The nearest recorded configuration: Euclidean in the encoded numbers, equal choices first."""
        at = np.array([to_unit(self.space[key], config[key]) for key in self._numeric])
        distance = ((self._units - at) ** 2).sum(1)
        for key in self._choices:
            wanted = self.space[key]["categories"].index(config[key])
            distance = distance + len(self._numeric) * (self._categories[key] != wanted)
        return int(np.argmin(distance))

    def error(self, number: int, epoch: int) -> float:
        """Validation error after this many epochs."""
        return float(self.val_error[number, epoch - 1])

    def seconds(self, number: int) -> float:
        """Simulated seconds of one epoch."""
        return float(self.epoch_seconds[number])

    def outcome(self, number: int, epoch: int) -> dict[str, Any]:
        """What the configuration is worth: its errors as recorded (a table has no second training)."""
        return {"val": self.error(number, epoch), "test": float(self.test_error[number, epoch - 1])}
