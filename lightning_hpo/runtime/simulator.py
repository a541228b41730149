"""A study on a virtual clock: hours of tuning in seconds.

The same state machine as in a live run, driven by known learning curves instead of processes. The clock jumps from
event to event, so nothing is rounded to polling intervals; everything random comes from seeds, so a simulation repeats
exactly unless it counts the time the searcher takes.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    Event,
    Finish,
    Outcome,
    Reported,
    Resume,
    Start,
    SuggestionWanted,
    Told,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Searcher, suggested
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ConfigError, OptionError
from lightning_hpo.runtime.curves import Benchmark, Curve
from lightning_hpo.runtime.journal import Journal


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds that pass around a trial's training; none is negative.

    Raises:
        OptionError: if one is negative, or a report would arrive after the end of its trial.
    """

    start: float = 0.05
    """From the decision to start or resume until training begins."""
    on_trial_result: float = 0.05
    """From the end of a unit of resource until its report arrives."""
    complete_after_final_report: float = 0.05
    """From the end of the last unit until the worker is free."""
    stop: float = 0.05
    """From a decision to stop or pause until the trial obeys."""
    complete_after_stop: float = 0.05
    """From then until the worker is free."""

    def __post_init__(self) -> None:
        given = (
            self.start,
            self.on_trial_result,
            self.complete_after_final_report,
            self.stop,
            self.complete_after_stop,
        )
        if not all(delay >= 0 for delay in given):
            raise OptionError(f"The delays {given} are not all at least 0. Give seconds, 0 for none.")
        if self.on_trial_result > self.complete_after_final_report:
            raise OptionError(
                f"The last report would arrive after its trial's end: on_trial_result={self.on_trial_result}, "
                f"complete_after_final_report={self.complete_after_final_report}. Make the latter at least as large."
            )


NO_DELAYS = Delays(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class WorkerFailures:
    """Workers that vanish while they train.

    Raises:
        OptionError: if the probability is none.
    """

    probability: float
    """That a worker vanishes during a unit of resource."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 1:
            raise OptionError(f"probability={self.probability} is out of range. Set it to at least 0 and less than 1.")

    def moment(self, trial_id: int, attempt: int, resource: int) -> float | None:
        """When in the unit that ends at ``resource`` the worker vanishes, as a fraction of it; None if it does not."""
        rng = generator(self.seed, Stream.TRAINING, trial_id, attempt, resource)
        return float(rng.random()) if rng.random() < self.probability else None


@dataclass(frozen=True, slots=True)
class Improvement:
    """A report that was better than all before it."""

    time: float
    trial_id: int
    resource: int
    value: float
    """In the user's sign."""


@dataclass(slots=True)
class SimulationResult:
    """What happened.

    Attributes:
        state: the study at the end.
        reason: why it ended.
        time: seconds on the virtual clock.
        events: the study's event log; fed to a new state, it gives this one.
        incumbents: improvements of the best report, in order.
        units: units of resource trained whole, repetitions included.
        busy_seconds: seconds that this took, and what workers had trained when they vanished, summed over workers.
        searcher_seconds: CPU seconds the searcher took.
        lost_workers: attempts whose worker vanished.
    """

    state: StudyState
    reason: str = ""
    time: float = 0.0
    events: list[Event] = field(default_factory=list)
    incumbents: list[Improvement] = field(default_factory=list)
    units: int = 0
    busy_seconds: float = 0.0
    searcher_seconds: float = 0.0
    lost_workers: int = 0

    def best_at(self, moment: float) -> float | None:
        """The best value reported up to a moment of the virtual clock, in the user's sign."""
        reached = [step.value for step in self.incumbents if step.time <= moment]
        return reached[-1] if reached else None


def simulate(
    space: SearchSpace,
    options: StudyOptions,
    benchmark: Benchmark,
    *,
    n_workers: int,
    max_time: float,
    searcher: Searcher,
    delays: Delays = NO_DELAYS,
    has_checkpoints: bool = True,
    counts_searcher_time: bool = False,
    failures: WorkerFailures | None = None,
    journal: Journal | None = None,
    watch: Callable[[Event, StudyState], None] | None = None,
) -> SimulationResult:
    """Run a study on a virtual clock.

    Args:
        space: what is searched.
        options: how; ``max_t`` must not be larger than the curves are long, or trials end by themselves before it.
        benchmark: the learning curve of a configuration, constants included; asked once per trial. Where it has a
            method ``retrained(config, replicate)``, that gives the curves of confirmations; else they repeat.
        n_workers: trials at a time, whatever ``options`` say.
        max_time: seconds on the virtual clock; what would happen later does not.
        searcher: proposes the configurations (:func:`lightning_hpo.searchers.make_searcher`).
        delays: what passes around training.
        has_checkpoints: a resumed trial goes on where it paused; False: it trains from scratch.
        counts_searcher_time: a suggestion arrives as many seconds later as the searcher took CPU time; others train on.
        failures: workers that vanish.
        journal: gets the events, too.
        watch: sees every event after it was handled.

    Raises:
        OptionError: if ``n_workers`` or ``max_time`` is not positive, the options are not complete, or the journal's
            study has another number of workers.
        ConfigError: if the benchmark answers with something else than a curve.
    """
    if n_workers < 1:
        raise OptionError(f"n_workers={n_workers} is not positive. Set n_workers to 1 or more.")
    if not max_time > 0:
        raise OptionError(f"max_time={max_time} is not positive. Set max_time to the seconds of the virtual clock.")
    recorded = n_workers if journal is None else journal.header.get("options", {}).get("n_workers", n_workers)
    if recorded != n_workers:
        raise OptionError(
            f"The journal is one of a study with {recorded} workers, not {n_workers}, and its events would read "
            f"otherwise. Give n_workers={recorded}, or make the journal with n_workers={n_workers}."
        )
    # The study counts its batches, and what a confirmation takes, by its own number of workers.
    options = dataclasses.replace(options, n_workers=n_workers)
    simulation = _Simulation(StudyState(space, options), benchmark, searcher, n_workers, delays)
    simulation.has_checkpoints = has_checkpoints
    simulation.counts_searcher_time = counts_searcher_time
    simulation.failures = failures
    simulation.journal = journal
    simulation.watch = watch
    return simulation.run(max_time)


class _Simulation:
    """One study on its way. The heap holds ``(time, number, action)``: what will happen next happens first."""

    has_checkpoints = True
    counts_searcher_time = False
    failures: WorkerFailures | None = None
    journal: Journal | None = None
    watch: Callable[[Event, StudyState], None] | None = None

    def __init__(
        self, state: StudyState, benchmark: Benchmark, searcher: Searcher, n_workers: int, delays: Delays
    ) -> None:
        self._state = state
        self._benchmark = benchmark
        self._searcher = searcher
        self._n_workers = n_workers
        self._delays = delays
        self._result = SimulationResult(state)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._now = 0.0
        self._curves: dict[int, Curve] = {}
        self._finish: str | None = None

    def run(self, max_time: float) -> SimulationResult:
        self._fill_workers()
        while self._heap and self._heap[0][0] <= max_time:
            self._now, _, action = heapq.heappop(self._heap)
            action()
            self._finish = self._state.closing_reason(self._now) or self._finish
            if self._finish is not None:
                break
            self._fill_workers()
        is_over = self._finish is not None or not self._heap
        self._result.reason = (
            (self._finish or "nothing is left to do") if is_over else f"{max_time:g} seconds have passed"
        )
        self._result.time = self._now if is_over else max_time
        return self._result

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (moment, next(self._number), action))

    def _handle(self, event: Event) -> list[object]:
        decisions = self._state.handle(event)
        self._keep(event)
        return list(decisions)

    def _keep(self, event: Event) -> None:
        self._result.events.append(event)
        if self.journal is not None:
            self.journal.append([event])
        if self.watch is not None:
            self.watch(event, self._state)

    # -- jobs

    def _fill_workers(self) -> None:
        # The worker for which a suggestion is being computed is taken; others may resume trials meanwhile.
        while len(self._state.live) + (self._state.wanted is not None) < self._n_workers:
            ready = WorkerReady(self._now)
            (decision,) = self._state.handle(ready)
            if isinstance(decision, Finish):
                self._finish = decision.reason
            if not isinstance(decision, (Start, Resume, SuggestionWanted)):
                return
            self._keep(ready)
            if isinstance(decision, SuggestionWanted):
                self._suggest(decision)
            else:
                self._begin(decision)

    def _suggest(self, wanted: SuggestionWanted) -> None:
        begun = time.process_time()
        suggestion = self._searcher.suggest(self._state.view(), self._state.request(wanted))
        seconds = time.process_time() - begun
        self._result.searcher_seconds += seconds

        def answer() -> None:
            for decision in self._handle(suggested(self._now, wanted.trial_id, suggestion)):
                if isinstance(decision, (Start, Resume)):
                    self._begin(decision)

        if self.counts_searcher_time:
            self._at(self._now + seconds, answer)
        else:
            answer()

    def _begin(self, job: Start | Resume) -> None:
        trial_id, attempt = job.trial_id, job.attempt
        if trial_id not in self._curves:
            again = getattr(self._benchmark, "retrained", None)
            if again is None or not job.replicate:
                curve = self._benchmark(job.config)
            else:
                curve = again(job.config, job.replicate)
            if not isinstance(curve, Curve):
                raise ConfigError(
                    f"The benchmark answered {curve!r:.80} for {job.config!r:.200}, which is no curve. "
                    "Return a lightning_hpo.Curve of values and seconds."
                )
            self._curves[trial_id] = curve
        done = job.from_resource if isinstance(job, Resume) else 0

        def begin() -> None:
            self._handle(AttemptStarted(self._now, trial_id, attempt))
            self._train(trial_id, attempt, done, self._now)

        self._at(self._now + self._delays.start, begin)

    # -- training

    def _train(self, trial_id: int, attempt: int, done: int, begun: float) -> None:
        """Train the unit after ``done``, which begins at ``begun``."""
        curve = self._curves[trial_id]
        if done >= len(curve):
            self._end(trial_id, attempt, Outcome.COMPLETED, begun + self._delays.complete_after_final_report)
            return
        seconds = curve.elapsed(done, done + 1)
        vanishes = None if self.failures is None else self.failures.moment(trial_id, attempt, done + 1)
        if vanishes is not None:
            self._at(begun + vanishes * seconds, lambda: self._lose(trial_id, attempt, vanishes * seconds))
            return
        ended = begun + seconds
        self._at(ended + self._delays.on_trial_result, lambda: self._report(trial_id, attempt, done + 1, ended))

    def _report(self, trial_id: int, attempt: int, resource: int, ended: float) -> None:
        best = self._state.best_any
        value = float(self._curves[trial_id].values[resource - 1])
        self._result.units += 1
        self._result.busy_seconds += self._curves[trial_id].elapsed(resource - 1, resource)
        cost = self._curves[trial_id].elapsed(0, resource)
        (told, *_) = self._handle(Reported(self._now, trial_id, attempt, resource, value, cost=cost))
        assert isinstance(told, Told)
        if self._state.best_any != best and self._state.best_any is not None:
            self._result.incumbents.append(Improvement(self._now, *self._state.best_any))
        if told.completed:
            self._end(trial_id, attempt, Outcome.COMPLETED, ended + self._delays.complete_after_final_report)
        elif told.verdict is Verdict.CONTINUE:
            self._train(trial_id, attempt, resource, ended)
        else:
            obeys = self._now + self._delays.stop
            is_paused = told.verdict is Verdict.PAUSE
            if is_paused and self.has_checkpoints:
                checkpoint = Checkpoint(resource, f"{trial_id}/{resource}", "", 0)
                self._at(obeys, lambda: self._save(trial_id, attempt, checkpoint))
            outcome = Outcome.PAUSED if is_paused else Outcome.STOPPED
            self._end(trial_id, attempt, outcome, obeys + self._delays.complete_after_stop)

    def _save(self, trial_id: int, attempt: int, checkpoint: Checkpoint) -> None:
        self._handle(CheckpointSaved(self._now, trial_id, attempt, checkpoint))

    def _lose(self, trial_id: int, attempt: int, seconds: float) -> None:
        self._result.lost_workers += 1
        self._result.busy_seconds += seconds
        self._handle(AttemptEnded(self._now, trial_id, attempt, Outcome.LOST, "its worker vanished"))

    def _end(self, trial_id: int, attempt: int, outcome: Outcome, moment: float) -> None:
        self._at(moment, lambda: self._ended(trial_id, attempt, outcome))

    def _ended(self, trial_id: int, attempt: int, outcome: Outcome) -> None:
        self._handle(AttemptEnded(self._now, trial_id, attempt, outcome))
