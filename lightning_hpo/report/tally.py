"""Figures of a study that are shown again and again, kept up to date event by event."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass

from lightning_hpo.core.events import Event, Reported
from lightning_hpo.core.schedulers.searcher_led import SearcherLedPromotion
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial, TrialStatus


@dataclass(slots=True)
class RungTally:
    """What has arrived at one resource level."""

    count: int = 0
    """Trials that reported there."""
    best: float | None = None
    """In the user's sign; None before the first finite value."""


class Tally:
    """Counts what a study has done. Making one looks at every report; :meth:`update` costs the same at any size.

    Args:
        state: the study so far.
    """

    def __init__(self, state: StudyState) -> None:
        self._max_t = state.scheduler.max_t
        ladder = [*state.scheduler.levels, *([] if self._max_t is None else [self._max_t])]
        self.rungs = {level: RungTally() for level in ladder}
        self.resource: dict[int, int] = {}
        """Trial -> largest resource reported."""
        self.trained = 0
        """Units of resource of all trials; what a lost attempt trained twice counts once."""
        self._reports: dict[int, int] = {}
        self._best: dict[int, tuple[float, int]] = {}
        for trial in state.trials.values():
            self._reports[trial.id] = len(trial.curve)
            for resource, value in trial.curve.items():
                self._add(state, trial, resource, value)

    def update(self, event: Event, state: StudyState) -> bool:
        """Take in an event that ``state`` has handled; returns whether it is a report of something new."""
        if not isinstance(event, Reported):
            return False
        trial = state.trials[event.trial_id]
        # Repeated and late reports leave the curve as it is.
        if len(trial.curve) == self._reports.get(trial.id, 0):
            return False
        self._reports[trial.id] = len(trial.curve)
        self._add(state, trial, event.resource, trial.curve[event.resource])
        return True

    def _add(self, state: StudyState, trial: Trial, resource: int, value: float) -> None:
        before = self.resource.get(trial.id, 0)
        if resource > before:
            self.resource[trial.id] = resource
            self.trained += resource - before
        criterion = state.criterion(value)
        is_finite = math.isfinite(criterion)
        rung = self.rungs.get(resource)
        if rung is not None and is_rung(state, trial, resource):
            rung.count += 1
            if is_finite and (rung.best is None or criterion < state.criterion(rung.best)):
                rung.best = value
        best = self._best.get(trial.id)
        if is_finite and (best is None or criterion < best[0]):
            self._best[trial.id] = (criterion, resource)

    def best_of(self, trial_id: int, state: StudyState) -> tuple[float, int] | None:
        """The trial's best value, in the user's sign, and its resource; None before its first finite report."""
        if trial_id not in self._best:
            return None
        criterion, resource = self._best[trial_id]
        return state.criterion(criterion), resource

    def leaders(self, count: int) -> list[int]:
        """Trials with the best values at any resource, best first."""
        return heapq.nsmallest(count, self._best, key=lambda i: (self._best[i][0], i))

    def ordered(self) -> list[int]:
        """Every trial with a finite value, best first."""
        return sorted(self._best, key=lambda i: (self._best[i][0], i))

    def full_training(self, state: StudyState) -> int | None:
        """Units of resource, had every stopped or paused trial been trained to ``max_t``; None without ``max_t``.

        What failed, ended by itself or still runs counts with what it took: there is nothing to be saved on it.
        """
        if self._max_t is None:
            return None
        spared = (TrialStatus.STOPPED, TrialStatus.PAUSED)
        return sum(
            max(self._max_t, self.resource.get(i, 0)) if trial.status in spared else self.resource.get(i, 0)
            for i, trial in state.trials.items()
        )


def is_rung(state: StudyState, trial: Trial, resource: int) -> bool:
    """Is the trial, which has reported there, judged at this resource? One of a higher bracket is not, at the levels
    below it, nor one that the searcher let run through."""
    if isinstance(state.scheduler, SearcherLedPromotion) and resource != state.scheduler.max_t:
        return resource in state.scheduler.levels and trial.id in state.scheduler.rungs()[resource]
    return resource in state.scheduler.levels[trial.bracket :] or resource == state.scheduler.max_t


def counts(state: StudyState) -> dict[TrialStatus, int]:
    """Number of trials by status, in the order of :class:`TrialStatus`; a status nobody has is left out."""
    found = Counter(trial.status for trial in state.trials.values())
    return {status: found[status] for status in TrialStatus if found[status]}
