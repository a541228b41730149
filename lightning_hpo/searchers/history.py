"""What a model is fitted to: observations and pending evaluations of a view, as arrays."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_hpo.core.observations import settled_value
from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.searchers.base import number_of_configurations

FAR = 10.0
"""Spreads above the median from which on a value is an outlier."""


@dataclass(frozen=True)
class Points:
    """Encoded configurations at resource levels, one row per observation or pending evaluation."""

    trial_ids: tuple[int, ...]
    resources: tuple[int, ...]
    inputs: np.ndarray
    """(n, width)"""

    @classmethod
    def of(cls, view: SearchView, places: Sequence[tuple[int, int]]) -> Points:
        """The points of ``(trial, resource)`` pairs."""
        trials = tuple(trial for trial, _ in places)
        distinct = {trial: i for i, trial in enumerate(dict.fromkeys(trials))}
        encoded = view.space.encode_many([view.configs[trial] for trial in distinct])
        rows = encoded[[distinct[trial] for trial in trials]] if trials else encoded
        return cls(trials, tuple(resource for _, resource in places), rows)

    def __len__(self) -> int:
        return len(self.trial_ids)


@dataclass(frozen=True)
class History:
    """Everything a model may learn from."""

    observed: Points
    values: np.ndarray
    """(n,) values to be minimised."""
    pending: Points

    def __len__(self) -> int:
        return len(self.values)

    def counts(self) -> Counter[int]:
        """Number of observations by resource."""
        return Counter(self.observed.resources)


def promotion_cuts(view: SearchView, history: History, resource: int, first: int) -> dict[int, float]:
    """Rung below ``resource`` -> the largest of the best values there, as many as go on to the next level.

    From a rung at ``r`` a share ``r / r'`` of the trials goes on to the next level ``r'``. A rung with fewer than
    ``r' / r`` observations lets everything pass and is left out, as are rungs below ``first``, where a trial of a
    higher bracket is not judged.
    """
    levels = (*view.rung_levels, view.max_t)
    resources = np.array(history.observed.resources)
    cuts = {}
    for level, following in itertools.pairwise(levels):
        values = np.sort(history.values[resources == level])
        promoted = len(values) * level // following
        if first <= level < resource and promoted:
            cuts[level] = float(values[promoted - 1])
    return cuts


def single_fidelity(view: SearchView) -> History:
    """One observation per trial, whatever its resource: every resource is set to 1."""
    values = {o.trial_id: o.value for o in view.observations}
    pending = dict.fromkeys(p.trial_id for p in view.pending if p.trial_id not in values)
    return _history(view, {(trial, 1): value for trial, value in values.items()}, [(trial, 1) for trial in pending])


def multi_fidelity(view: SearchView, at_levels_only: bool) -> History:
    """Observations and pending evaluations at their resources, or those at rung levels and ``max_t`` only."""
    levels = {*view.rung_levels, view.max_t}
    values = {
        (o.trial_id, o.resource): o.value for o in view.observations if not at_levels_only or o.resource in levels
    }
    places = ((p.trial_id, p.resource) for p in view.pending if not at_levels_only or p.resource in levels)
    return _history(view, values, [place for place in places if place not in values])


def rung_medians(view: SearchView, tells_diverged: bool = False) -> History:
    """Per trial and rung its settled value (:func:`~lightning_hpo.core.observations.settled_value`).

    Args:
        view: of the study.
        tells_diverged: a trial that diverged before or at the first rung has the worst value of the others there.
    """
    history = multi_fidelity(view, at_levels_only=True)
    curves = {trial: view.curve(trial) for trial in dict.fromkeys(history.observed.trial_ids)}
    values = history.values.copy()
    for i, (trial, level) in enumerate(zip(history.observed.trial_ids, history.observed.resources, strict=True)):
        settled = settled_value(curves[trial], level)
        if settled is not None:
            values[i] = settled
    history = dataclasses.replace(history, values=values)
    return _with_diverged(view, history) if tells_diverged else history


def _with_diverged(view: SearchView, history: History) -> History:
    first = (*view.rung_levels, view.max_t)[0]
    at_first = history.values[np.array(history.observed.resources) == first]
    known = set(history.observed.trial_ids)
    # What failed with an error may have done so by chance.
    diverged = [
        trial
        for trial, resource in view.infeasible.items()
        if resource <= first and trial not in view.failed and trial not in known
    ]
    if not diverged or not len(at_first):
        return history
    reported = zip(history.observed.trial_ids, history.observed.resources, strict=True)
    places = [*reported, *((trial, first) for trial in diverged)]
    values = np.concatenate([history.values, np.full(len(diverged), at_first.max())])
    return dataclasses.replace(history, observed=Points.of(view, places), values=values)


def learning_curves(view: SearchView) -> History:
    """Whole curves: per trial its reports at 1, 2, .. up to the first gap, and pending ones right behind them."""
    values: dict[tuple[int, int], float] = {}
    lengths: dict[int, int] = {}
    goals: dict[int, int] = {}
    for pending in view.pending:
        goals[pending.trial_id] = max(pending.resource, goals.get(pending.trial_id, 0))
    for trial in dict.fromkeys([*(o.trial_id for o in view.observations), *goals]):
        curve = view.curve(trial)
        length = 0
        while length < view.max_t and length + 1 in curve:
            length += 1
            values[trial, length] = curve[length]
        lengths[trial] = length
    missing = [(trial, r) for trial, goal in goals.items() for r in range(lengths[trial] + 1, goal + 1)]
    return _history(view, values, missing)


def _history(view: SearchView, values: dict[tuple[int, int], float], pending: list[tuple[int, int]]) -> History:
    numbers = np.fromiter(values.values(), float, len(values))
    return History(Points.of(view, list(values)), numbers, Points.of(view, pending))


def limit_outliers(y: np.ndarray, resource: np.ndarray | None = None, far: float = FAR) -> np.ndarray:
    """Targets, the worst brought near: beside one that diverged, all others would look alike to a model.

    At every resource the limit is above the median by ``far`` times a spread: what the best is below the median, there
    or among all targets, whichever is more. Where the spread is 0 there is no limit.

    Args:
        y: ``(n,)`` targets.
        resource: ``(n,)``; None: of one resource.
        far: distance of the limit from the median, in spreads.
    """
    limited = np.array(y, dtype=np.float64)
    if not len(limited):
        return limited
    resource = np.zeros(len(limited), dtype=np.int64) if resource is None else resource
    in_all = float(np.median(limited) - limited.min())
    for level in np.unique(resource):
        here = resource == level
        middle = float(np.median(limited[here]))
        spread = max(in_all, middle - float(limited[here].min()))
        if spread > 0.0:
            limited[here] = np.minimum(limited[here], middle + far * spread)
    return limited


def too_early(view: SearchView, options: SearcherOptions) -> str | None:
    """Why the model cannot be used yet, None if it can.

    Configurations count when they are suggested, not when they are observed: failed and pending ones count too.
    """
    needed = options.num_init_random
    if needed is None:
        needed = 6 if view.rung_levels else 3
    if view.rung_levels:
        needed = max(needed, math.ceil(options.num_init_random_factor * len(view.space.domains)))
    there_are = number_of_configurations(view, options)
    needed = needed if there_are is None else min(needed, there_are)
    known = len(view.taken)
    if known < needed:
        return f"random: configuration {known + 1} of the first {needed}"
    return None if view.observations else "random: nothing is observed yet"


def needs_refit(
    state: Mapping[str, Any] | None, options: SearcherOptions, num_observations: int, num_at_max_t: int | None
) -> bool:
    """Whether the parameters are fitted anew or those of the last fit are kept.

    Args:
        state: what the last fit left: ``num_observations`` and ``num_at_max_t`` at that time; None before the first.
        options: ``opt_skip_init_length``, ``opt_skip_period``, ``opt_skip_num_max_resource``.
        num_observations: size of the data, before any reduction.
        num_at_max_t: observations at ``max_t`` among them; None without rungs, where ``opt_skip_num_max_resource`` does
            nothing.

    Unchanged data never need a fit. Changed data do, until one fit has seen ``opt_skip_init_length`` observations.
    Afterwards a fit is due when the data have grown by ``opt_skip_period``, or with ``opt_skip_num_max_resource`` when
    another trial has reached ``max_t``. The growth is counted from the last fit, so no due fit can be missed.
    """
    if state is None:
        return True
    grown = num_observations - int(state["num_observations"])
    if grown == 0:
        return False
    if int(state["num_observations"]) < options.opt_skip_init_length:
        return True
    if options.opt_skip_num_max_resource and num_at_max_t is not None:
        return num_at_max_t != int(state["num_at_max_t"])
    return not 0 < grown < options.opt_skip_period
