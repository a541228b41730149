"""What another algorithm would have done with the curves of a study.

A configuration that the study has not tried gets the curve of the nearest trial
(:class:`~lightning_hpo.runtime.curves.NearestCurves`). Beyond a trial's last report its curve goes on as those of the
trials that trained further did (:func:`_typical_steps`), within the values that the study has seen. So this compares
algorithms on these curves, it does not forecast the next study's best value.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from rich.text import Text

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.confirmation import ConfirmOptions
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Searcher
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial
from lightning_hpo.errors import OptionError, ReportError
from lightning_hpo.report import formats
from lightning_hpo.runtime.curves import Curve, NearestCurves
from lightning_hpo.runtime.simulator import SimulationResult, simulate

_PAIRS = 200
"""Trials that a line goes through, about; of more, some from everywhere will do (the slopes are their square)."""

MakeSearcher = Callable[[StudyOptions], Searcher]
Step = tuple[float, float]
"""Slope and offset of the line from a value to the next."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an algorithm is expected to reach, averaged over seeds."""

    algorithm: str
    n_workers: int
    seeds: int
    best: float | None
    """Mean over seeds of the best value at any resource; None if no report was finite."""
    best_std: float
    seconds_to_recorded_best: float | None
    """Mean time until the recorded study's best value was reached, over the seeds that reached it."""
    reached: int
    """Seeds that reached it."""
    trials: float
    units: float
    """Units of resource trained."""
    worker_seconds: float
    """Time workers trained, summed over workers: what the study costs."""
    seconds: float
    """Time on the clock."""


def recorded_curves(state: StudyState) -> NearestCurves:
    """The study's trials as a benchmark.

    Raises:
        ReportError: if no trial has reported.
    """
    trials = [trial for trial in state.trials.values() if trial.curve]
    if not trials:
        raise ReportError("No trial of the study has reported yet. Simulate when some have.")
    length = state.scheduler.max_t or max(trial.resource for trial in trials)
    steps = _typical_steps(trials, length)
    known = {trial.id: seconds for trial in trials if (seconds := state.busy_seconds(trial.id) / trial.resource) > 0}
    usual = median(known.values()) if known else 1.0
    seen = [value for trial in trials for value in trial.curve.values() if math.isfinite(value)]
    bounds = (min(seen, default=-math.inf), max(seen, default=math.inf))
    curves = [Curve(_extended(trial.curve, steps, bounds), known.get(trial.id, usual)) for trial in trials]
    return NearestCurves(state.space, [trial.config for trial in trials], curves.__getitem__)


def _typical_steps(trials: Sequence[Trial], length: int) -> list[Step]:
    """What follows a value at resource ``r`` at ``r + 1``, at position ``r``; position 0 is not used.

    A straight line through the trials that reported at both: how much a curve goes on falling depends on where it is,
    and the best ones, which are near their end, do so least. The line is that of Theil and Sen (the median slope
    of all pairs of trials), which a trial that diverged does not turn, and its slope is kept between 0 and 1: who is
    ahead stays ahead, by no more than before.
    """
    steps: list[Step] = [(1.0, 0.0)]
    for resource in range(1, length):
        pairs = [
            (before, after)
            for trial in trials
            if math.isfinite(before := trial.curve.get(resource, math.nan))
            and math.isfinite(after := trial.curve.get(resource + 1, math.nan))
        ]
        pairs = sorted(pairs)[:: 1 + len(pairs) // _PAIRS]
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(pairs, 2) if a[0] != b[0]]
        slope = min(max(median(slopes), 0.0), 1.0) if len(pairs) > 2 and slopes else 1.0
        steps.append((slope, median(after - slope * before for before, after in pairs) if pairs else 0.0))
    return steps


def _extended(curve: Mapping[int, float], steps: Sequence[Step], bounds: tuple[float, float]) -> list[float]:
    """A value for every resource: gaps have the value before them, the first ones the first."""
    last = max(curve)
    values = [next(iter(curve.values()))]
    for resource in range(1, len(steps) + 1):
        if resource in curve:
            values.append(curve[resource])
        elif resource <= last or resource == 1 or not math.isfinite(values[-1]):
            values.append(values[-1])
        else:
            slope, offset = steps[resource - 1]
            values.append(min(max(slope * values[-1] + offset, bounds[0]), bounds[1]))
    return values[1:]


def options_for(recorded: StudyOptions, algorithm: str, max_t: int | None, n_workers: int, seed: int) -> StudyOptions:
    """The study's options with another algorithm: its own presets and searcher options, no limits.

    Raises:
        OptionError: if the algorithm is unknown or cannot be used here.
    """
    if algorithm == recorded.algorithm:
        options = dataclasses.replace(recorded, stop=StopCriterion(), n_trials=None, confirm=ConfirmOptions())
    else:
        given: dict[str, Any] = recorded.to_json()
        dropped = ("algorithm", "searcher", "stop", "n_trials", "confirm", "searcher_data")
        given = {name: value for name, value in given.items() if name not in dropped}
        if algorithm in ALGORITHMS:
            other = ALGORITHMS[algorithm]
            own = ALGORITHMS[recorded.algorithm].chosen(recorded.promotion_rule).presets
            for name, off in (("improvement_probability", 0.0), ("delayed_promotion", False)):
                if given[name] == own.get(name, off) or not other.has_types:
                    del given[name]
            del given["promotion_rule"]  # of the algorithm
            if "type" in other.presets or not other.has_types:
                del given["type"]
            is_other_kind = other.scheduler != ALGORITHMS[recorded.algorithm].scheduler
            if given["brackets"] == own.get("brackets") or is_other_kind or "promotion_rule" in other.presets:
                del given["brackets"]
        options = StudyOptions.from_mapping({**given, "algorithm": algorithm})
    return dataclasses.replace(options, max_t=max_t, n_workers=n_workers, random_seed=seed)


def what_if(
    state: StudyState,
    algorithms: Sequence[str],
    make_searcher: MakeSearcher,
    *,
    n_workers: int | None = None,
    max_time: float | None = None,
    seeds: int = 5,
) -> list[Expectation]:
    """Simulate algorithms on the curves of a study.

    Args:
        state: the recorded study.
        algorithms: names; the study's own is a fair comparison for the others.
        make_searcher: the searcher for the options.
        n_workers: trials at a time; the recorded study's by default.
        max_time: seconds each simulation may take on its clock; the time of the recorded study by default.
        seeds: simulations per algorithm.

    Raises:
        ReportError: if no trial has reported.
        OptionError: if an argument or an algorithm cannot be used.
    """
    if seeds < 1:
        raise OptionError(f"seeds={seeds} is not positive. Set seeds to 1 or more.")
    workers = state.options.n_workers if n_workers is None else n_workers
    limit = state.progress.time if max_time is None else max_time
    if not 0 < limit < math.inf:
        raise OptionError(f"max_time={limit} is no duration. Give the seconds a simulated study may take.")
    curves = recorded_curves(state)
    max_t = state.scheduler.max_t or max(trial.resource for trial in state.trials.values())
    # All of them before the first simulation: what cannot be used is told at once.
    variants = {
        algorithm: [options_for(state.options, algorithm, max_t, workers, seed) for seed in range(seeds)]
        for algorithm in algorithms
    }

    def simulated(options: StudyOptions) -> SimulationResult:
        searcher = make_searcher(options)
        return simulate(state.space, options, curves, n_workers=workers, max_time=limit, searcher=searcher)

    return [
        _expectation(state, algorithm, workers, [simulated(options) for options in seeded])
        for algorithm, seeded in variants.items()
    ]


def _expectation(state: StudyState, algorithm: str, n_workers: int, results: Sequence[SimulationResult]) -> Expectation:
    best = [result.state.best_any[2] for result in results if result.state.best_any is not None]
    times = [moment for result in results if (moment := _reached_at(state, result)) is not None]
    return Expectation(
        algorithm=algorithm,
        n_workers=n_workers,
        seeds=len(results),
        best=fmean(best) if best else None,
        best_std=stdev(best) if len(best) > 1 else 0.0,
        seconds_to_recorded_best=fmean(times) if times else None,
        reached=len(times),
        trials=fmean(len(result.state.trials) for result in results),
        units=fmean(result.units for result in results),
        worker_seconds=fmean(result.busy_seconds for result in results),
        seconds=fmean(result.time for result in results),
    )


def _reached_at(state: StudyState, result: SimulationResult) -> float | None:
    """When the simulation was as good as the recorded study ever was."""
    if state.best_any is None:
        return None
    goal = state.criterion(state.best_any[2])
    return next((step.time for step in result.incumbents if state.criterion(step.value) <= goal), None)


def describe(state: StudyState, expected: Sequence[Expectation], unit: str) -> Text:
    """A table for people."""
    recorded = formats.number(None if state.best_any is None else state.best_any[2])
    head = (
        f"On the curves of {formats.amount(sum(bool(t.curve) for t in state.trials.values()), 'trial')}, mean of "
        f"{formats.amount(expected[0].seeds, 'simulation')} with {formats.amount(expected[0].n_workers, 'worker')} "
        f"(the study's best {formats.plain(state.options.metric)}: {recorded})\n"
    )
    rows = [("algorithm", "best", "±", "as good as the study after", "trials", f"{unit}s", "worker time")]
    for one in expected:
        moment = "never" if one.seconds_to_recorded_best is None else formats.duration(one.seconds_to_recorded_best)
        share = "" if one.reached in (0, one.seeds) else f" ({one.reached} of {one.seeds})"
        rows.append(
            (
                one.algorithm,
                formats.number(one.best),
                f"{one.best_std:.2g}",
                moment + share,
                f"{one.trials:.1f}",
                f"{one.units:.0f}",
                formats.duration(one.worker_seconds),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return Text(f"{head}{table}")
