"""One driver for all tuners: asynchronous workers in simulated time. Needs numpy only.

A library is adapted by a subclass of :class:`Tuner`. Training costs simulated time, decisions do not: their cost is
measured apart, in CPU seconds of the calling thread.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from tables import Config, Space

REPORTED_DIGITS = 6


class Tuner:
    """A tuner behind the same few calls for all libraries; one object is one experiment. The error is minimised."""

    def __init__(self, space: Space, max_epochs: int, n_workers: int, seed: int) -> None:
        self.space, self.max_epochs, self.n_workers, self.seed = space, max_epochs, n_workers, seed

    def suggest(self, trial: int) -> tuple[str, Any] | None:
        """A worker is free: ``("start", config)`` for a new trial, ``("resume", old trial)``, or None to wait."""
        raise NotImplementedError

    def report(self, trial: int, epoch: int, error: float) -> str:
        """After every epoch, from 1: ``continue``, ``pause`` or ``stop``."""
        return "continue"

    def complete(self, trial: int, epoch: int, error: float) -> None:
        """After the report of the last epoch, unless that said ``stop``."""

    def recommend(self) -> Config | None:
        """The configuration to use in the end; None: the one with the lowest report."""
        return None


class Task(Protocol):
    """What is tuned: a :class:`tables.Table` or a :class:`live.Live`."""

    name: str
    space: Space
    max_epochs: int
    mean_epoch_seconds: float

    def number(self, config: Config) -> int: ...
    def error(self, number: int, epoch: int) -> float: ...
    def seconds(self, number: int) -> float: ...
    def outcome(self, number: int, epoch: int) -> dict[str, Any]: ...


def budget(task: Task, n_workers: int, full_runs: float) -> float:
    """Simulated seconds in which ``n_workers`` can train ``full_runs`` average configurations to the last epoch."""
    return full_runs * task.mean_epoch_seconds * task.max_epochs / n_workers


@dataclass
class Run:
    """What happened until the end of the budget."""

    trace: list[tuple[float, float, int, int]] = field(default_factory=list)
    """(simulated time, lowest error so far, number of its configuration, epoch), whenever it fell."""
    suggest_seconds: list[float] = field(default_factory=list)
    """CPU seconds of each ``suggest``."""
    report_seconds: list[float] = field(default_factory=list)
    trials: int = 0
    resumed: int = 0
    epochs: int = 0
    completed: int = 0

    @property
    def best(self) -> float:
        return self.trace[-1][1] if self.trace else float("inf")


class _Simulation:
    def __init__(self, task: Task, tuner: Tuner) -> None:
        self.task, self.tuner, self.run = task, tuner, Run()
        self.numbers: list[int] = []
        """Of the configuration of each trial."""
        self.epochs: list[int] = []
        self.paused: set[int] = set()
        self.agenda: list[tuple[float, int, int, int]] = []
        """(end of the epoch, tie breaker, worker, trial)"""
        self.scheduled = 0

    def schedule(self, now: float, worker: int, trial: int) -> None:
        self.scheduled += 1
        ready = now + self.task.seconds(self.numbers[trial])
        heapq.heappush(self.agenda, (ready, self.scheduled, worker, trial))

    def occupy(self, now: float, worker: int) -> bool:
        """Ask what the worker is to do; False if nothing."""
        began = time.thread_time()
        answer = self.tuner.suggest(len(self.numbers))
        self.run.suggest_seconds.append(time.thread_time() - began)
        if answer is None:
            return False
        kind, what = answer
        if kind == "resume":
            trial = int(what)
            if trial not in self.paused:
                raise RuntimeError(f"Trial {trial} is not paused. Resume paused trials only.")
            self.paused.remove(trial)
            self.run.resumed += 1
        else:
            trial = len(self.numbers)
            self.numbers.append(self.task.number(what))
            self.epochs.append(0)
            self.run.trials += 1
        self.schedule(now, worker, trial)
        return True

    def epoch_ends(self, now: float, worker: int, trial: int) -> bool:
        """Report the epoch; True if the worker is free then."""
        number = self.numbers[trial]
        self.epochs[trial] += 1
        epoch = self.epochs[trial]
        error = self.task.error(number, epoch)
        self.run.epochs += 1
        if error < self.run.best:
            self.run.trace.append((now, error, number, epoch))
        last = epoch == self.task.max_epochs
        began = time.thread_time()
        verdict = self.tuner.report(trial, epoch, error)
        if last and verdict != "stop":
            self.tuner.complete(trial, epoch, error)
        self.run.report_seconds.append(time.thread_time() - began)
        if last:
            self.run.completed += 1
        elif verdict == "continue":
            self.schedule(now, worker, trial)
            return False
        elif verdict == "pause":
            self.paused.add(trial)
        return True


def simulate(task: Task, tuner: Tuner, n_workers: int, end: float) -> Run:
    """Tune until the simulated time ``end``. A resumed trial goes on from its checkpoint, at no cost.

    Raises:
        RuntimeError: if the tuner resumes a trial that is not paused.
    """
    simulation = _Simulation(task, tuner)
    idle = [worker for worker in range(n_workers) if not simulation.occupy(0.0, worker)]
    while simulation.agenda:
        now, _, worker, trial = heapq.heappop(simulation.agenda)
        if now > end:
            break
        if simulation.epoch_ends(now, worker, trial):
            # Whoever waits is asked again: what has just ended may allow a promotion.
            idle = [free for free in [worker, *idle] if not simulation.occupy(now, free)]
    return simulation.run
