"""When a study stops starting trials.

All comparisons are strict: ``max_num_trials_started=10`` stops the study once 11 trials were started. For an exact
number of trials there is the study's option ``n_trials``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.errors import OptionError, did_you_mean


@dataclass(slots=True)
class Progress:
    """What a study has done so far, counted as it happens."""

    metric: str = ""
    """The study's metric: a threshold without a metric's name is meant for it."""
    time: float = 0.0
    """Seconds since the study began, without interruptions."""
    evaluations: int = 0
    """Reports."""
    started: int = 0
    """Trials ever started."""
    completed: int = 0
    """Trials that trained to their end."""
    failed: int = 0
    finished: int = 0
    """Trials that completed, were stopped or failed; paused ones are not among them."""
    cost: float = 0.0
    """Sum over trials of the largest reported cost."""
    lowest: dict[str, float] = field(default_factory=dict)
    """Smallest finite value ever reported, by metric."""
    highest: dict[str, float] = field(default_factory=dict)
    """Largest finite value ever reported, by metric."""

    def add_report(self, metrics: Mapping[str, float]) -> None:
        """Count a report. Values that are not finite tell of a diverged trial, and reach no threshold."""
        self.evaluations += 1
        for name, value in metrics.items():
            if math.isfinite(value):
                self.lowest[name] = min(self.lowest.get(name, value), value)
                self.highest[name] = max(self.highest.get(name, value), value)


@dataclass(frozen=True)
class StopCriterion:
    """The study stops starting trials as soon as one of these holds; None never does.

    Raises:
        OptionError: if a limit is negative or not a number, or a count not an integer.
    """

    max_wallclock_time: float | None = None
    """Seconds the study may take; more than that stops it."""
    max_num_evaluations: int | None = None
    """Reports; more than that stop the study."""
    max_num_trials_started: int | None = None
    """Trials ever started; more than that stop the study."""
    max_num_trials_completed: int | None = None
    """Trials trained to their end; more than that stop the study."""
    max_num_trials_finished: int | None = None
    """Trials completed, stopped or failed; more than that stop the study."""
    max_cost: float | None = None
    """Sum over trials of the largest reported cost; more than that stops the study."""
    max_metric_value: dict[str, float] | float | None = None
    """A report above this stops the study: a number for the study's metric, or metric -> number."""
    min_metric_value: dict[str, float] | float | None = None
    """A report below this stops the study: a number for the study's metric, or metric -> number."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if f.name in ("max_metric_value", "min_metric_value"):
                checked: Any = _thresholds(f.name, value)
            elif f.name.startswith("max_num_"):
                checked = _count(f.name, value)
            else:
                checked = _limit(f.name, value)
            object.__setattr__(self, f.name, checked)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> StopCriterion:
        """The criterion that plain data describes, e.g. ``{"max_wallclock_time": 120}``.

        Raises:
            OptionError: for an unknown name, a wrong type or a value out of range.
        """
        if not isinstance(given, Mapping):
            raise OptionError(
                f"stop={given!r} is no mapping. Write a limit by its name, e.g. stop.max_wallclock_time=3600."
            )
        names = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in names:
                hint = did_you_mean(str(name), names)
                raise OptionError(f"stop.{name} is not an option.{hint} Use one of: {', '.join(names)}.")
        return cls(**given)

    def reason(self, progress: Progress) -> str | None:
        """Why the study should stop now, for people to read; None if it should go on."""
        return self.limit_reason(progress) or self.threshold_reason(progress)

    def limit_reason(self, progress: Progress) -> str | None:
        """The same, for what the study may take alone."""
        return next(self._exceeded(progress), None)

    def threshold_reason(self, progress: Progress) -> str | None:
        """The same, for what a metric was to reach alone."""
        return next(self._reached(progress), None)

    def metrics(self) -> list[tuple[str, str]]:
        """``(option, metric)`` for every metric that a threshold names."""
        thresholds = {"max_metric_value": self.max_metric_value, "min_metric_value": self.min_metric_value}
        return [(option, metric) for option, given in thresholds.items() if isinstance(given, dict) for metric in given]

    def _exceeded(self, progress: Progress) -> Iterator[str]:
        counted = (
            ("max_wallclock_time", progress.time, "seconds have passed"),
            ("max_num_evaluations", progress.evaluations, "evaluations were reported"),
            ("max_num_trials_started", progress.started, "trials were started"),
            ("max_num_trials_completed", progress.completed, "trials were completed"),
            ("max_num_trials_finished", progress.finished, "trials were finished"),
            ("max_cost", progress.cost, "were spent"),
        )
        for name, number, what in counted:
            limit = getattr(self, name)
            if limit is not None and number > limit:
                yield f"{number:.6g} {what}, {name} is {limit:.6g}"

    def _reached(self, progress: Progress) -> Iterator[str]:
        for metric, threshold in _by_metric(self.max_metric_value, progress.metric):
            if progress.highest.get(metric, -math.inf) > threshold:
                yield f"{metric} reached {progress.highest[metric]:.6g}, max_metric_value is {threshold:.6g}"
        for metric, threshold in _by_metric(self.min_metric_value, progress.metric):
            if progress.lowest.get(metric, math.inf) < threshold:
                yield f"{metric} reached {progress.lowest[metric]:.6g}, min_metric_value is {threshold:.6g}"


def _by_metric(thresholds: dict[str, float] | float | None, metric: str) -> Iterator[tuple[str, float]]:
    if isinstance(thresholds, dict):
        yield from thresholds.items()
    elif thresholds is not None:
        yield metric, thresholds


def _number(name: str, value: Any) -> float:
    # Thresholds arrive from YAML and command lines, hence integers count as floats, and booleans do not.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise OptionError(f"stop.{name}={value!r} is not a finite number. Set stop.{name} to one, or leave it out.")
    return value


def _limit(name: str, value: Any) -> float:
    if _number(name, value) < 0:
        raise OptionError(f"stop.{name}={value!r} is negative. Set stop.{name} to a number of at least 0.")
    return float(value)


def _count(name: str, value: Any) -> int:
    number = _limit(name, value)
    if number != int(number):
        raise OptionError(f"stop.{name}={value!r} is not an integer. Set stop.{name} to an integer of at least 0.")
    return int(number)


def _thresholds(name: str, value: Any) -> dict[str, float] | float:
    if not isinstance(value, Mapping):
        return float(_number(name, value))
    for metric in value:
        if not isinstance(metric, str):
            raise OptionError(
                f"stop.{name}: {metric!r} names no metric. Set stop.{name} to a mapping from metric to number."
            )
    return {metric: float(_number(f"{name}.{metric}", threshold)) for metric, threshold in value.items()}
