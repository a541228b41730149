"""Learning curves that are known already: what a simulated trial replays instead of training.

A **benchmark** is any function ``config -> Curve``; the two here look a configuration up among recorded ones.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lightning_hpo.core.domains import Array, Choice, choice, lograndint, loguniform, randint, uniform
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Config
from lightning_hpo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Curve:
    """What training a configuration gives.

    Raises:
        ConfigError: if there is no value, or a time is not positive and finite.
    """

    values: Sequence[float]
    """The metric after 1, 2, ... units of resource, in the user's sign; may be NaN or infinite."""
    seconds: float | Sequence[float]
    """What a unit of resource takes: one number for all, or one per unit; an array becomes a list."""

    def __post_init__(self) -> None:
        if isinstance(self.seconds, np.ndarray):
            object.__setattr__(self, "seconds", self.seconds.tolist())
        times = self.seconds if isinstance(self.seconds, Sequence) else (self.seconds,)
        if not len(self.values):
            raise ConfigError("A curve has no values. Give the metric after 1, 2, ... units of resource.")
        if (isinstance(self.seconds, Sequence) and len(times) != len(self.values)) or not all(
            0 < s < math.inf for s in times
        ):
            raise ConfigError(
                f"A curve of {len(self.values)} units has the times {times!r:.80}. "
                "Give one positive number of seconds, or one for each unit."
            )

    def __len__(self) -> int:
        return len(self.values)

    def elapsed(self, first: int, last: int) -> float:
        """Seconds that the units ``first + 1`` to ``last`` take."""
        if isinstance(self.seconds, Sequence):
            return float(sum(itertools.islice(self.seconds, first, last)))
        return self.seconds * (last - first)


Benchmark: TypeAlias = Callable[[Config], Curve]


class NearestCurves:
    """The curve of the nearest recorded configuration.

    Distance: Euclidean over the numeric hyperparameters, encoded to [0, 1] in their own scale; every choice that
    differs adds the number of numeric hyperparameters to its square, so that a record with the same choices always
    wins. Ties go to the earlier record.

    Args:
        space: of the configurations; constants do not matter.
        configs: recorded configurations.
        curve_of: position of a record -> its curve.

    Raises:
        ConfigError: if there are no records.
    """

    def __init__(self, space: SearchSpace, configs: Sequence[Config], curve_of: Callable[[int], Curve]) -> None:
        if not configs:
            raise ConfigError("There are no recorded curves to look up. Give at least one.")
        self.space = space
        self._curve_of = curve_of
        self._choices = [name for name, domain in space.domains.items() if isinstance(domain, Choice)]
        columns = [range(space.width)[space.columns(n)] for n in space.domains if n not in self._choices]
        self._columns = [column for group in columns for column in group]
        self._numbers, self._categories = self._split([space.searched(config) for config in configs])

    def _split(self, configs: Sequence[Config]) -> tuple[Array, Array]:
        """Encoded numbers ``[n, numeric]`` and positions of categories ``[n, choices]``."""
        positions = [
            [float(self.space.domains[name].members.index(config[name])) for name in self._choices]  # type: ignore[union-attr]
            for config in configs
        ]
        numbers = self.space.encode_many(configs)[:, self._columns]
        return numbers, np.asarray(positions, dtype=np.float64).reshape(len(configs), len(self._choices))

    def nearest(self, config: Mapping[str, Any]) -> int:
        """Position of the nearest record."""
        numbers, categories = self._split([self.space.searched(dict(config))])
        distance = ((self._numbers - numbers) ** 2).sum(axis=1)
        differing = (self._categories != categories).sum(axis=1)
        return int(np.argmin(distance + differing * max(len(self._columns), 1)))

    def __call__(self, config: Config) -> Curve:
        return self._curve_of(self.nearest(config))


_MAKE = {"float": uniform, "float_log": loguniform, "int": randint, "int_log": lograndint}


class CurveTable(NearestCurves):
    """A table of learning curves in a ``.npz`` file.

    Arrays: ``meta`` (JSON text with ``name``, ``max_epochs`` and ``space``: hyperparameter -> ``type`` with ``lower``
    and ``upper``, or ``categories``), ``hp_<name>`` ``[n]`` (values; for a choice the position of the category), the
    metric ``[n, max_epochs]``, and ``epoch_seconds`` ``[n]`` or ``[n, max_epochs]``. Nothing in it is executed.

    Args:
        path: the file.
        metric: name of the array that is the metric.

    Raises:
        ConfigError: if the file is no such table.
    """

    def __init__(self, path: str | os.PathLike[str], metric: str = "val_error") -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                spec: dict[str, dict[str, Any]] = meta["space"]
                columns = {name: arrays[f"hp_{name}"].tolist() for name in spec}
                self.values = np.asarray(arrays[metric], dtype=np.float64)
                seconds = np.asarray(arrays["epoch_seconds"], dtype=np.float64)
            self.name = str(meta["name"])
            self.max_t = int(meta["max_epochs"])
            space = SearchSpace({name: _domain(one) for name, one in spec.items()})
        except (OSError, KeyError, ValueError, TypeError) as problem:
            raise ConfigError(
                f"{path} is not a table of learning curves with {metric!r}: {problem}. "
                "Give an .npz file with the arrays meta, hp_<name>, epoch_seconds and the metric."
            ) from problem
        configs = [dict(zip(spec, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for config in configs:
            for name, one in spec.items():
                if one["type"] == "choice":
                    config[name] = one["categories"][config[name]]
        self.configs = configs
        self._seconds = seconds
        super().__init__(space, configs, self._row)

    def _row(self, row: int) -> Curve:
        seconds = self._seconds[row]
        return Curve(self.values[row].tolist(), float(seconds) if seconds.ndim == 0 else seconds.tolist())


def _domain(spec: Mapping[str, Any]) -> Any:
    if spec["type"] == "choice":
        return choice(spec["categories"])
    return _MAKE[spec["type"]](spec["lower"], spec["upper"])
