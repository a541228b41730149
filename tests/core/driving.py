"""Drive a study state by hand, or at random with hypothesis."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Decision,
    Event,
    Finish,
    Idle,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    Start,
    StudyContinued,
    Suggested,
    SuggestionWanted,
    Told,
    Verdict,
    WorkerReady,
    from_json,
    to_json,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, TrialStatus

SPACE = SearchSpace({"x": uniform(0.0, 1.0)})


class Driven:
    """A study whose searcher proposes x = 0.0001, 0.0002, ...; keeps its events as a journal would.

    Options are those of a study; ``metric`` is ``loss`` and there are no initial configurations unless given.
    """

    def __init__(self, **options: Any) -> None:
        options = {"metric": "loss", "algorithm": "asha", "points_to_evaluate": [], **options}
        self.options = StudyOptions.from_mapping(options)
        self.state = StudyState(SPACE, self.options)
        self.events: list[Event] = []
        self.time = 0.0

    def __getitem__(self, trial_id: int) -> Any:
        return self.state.trials[trial_id]

    def handle(self, event: Event) -> list[Decision]:
        decisions = self.state.handle(event)
        if not (isinstance(event, WorkerReady) and isinstance(decisions[0], (Idle, Finish))):
            self.events.append(event)
        self.state.check_invariants()
        return decisions

    def ready(self) -> Decision:
        """A worker is free; the searcher answers at once."""
        (decision,) = self.handle(WorkerReady(self.time))
        if isinstance(decision, SuggestionWanted):
            decision = self.suggest(decision.trial_id)[0]
        return decision

    def suggest(self, trial_id: int, **fields: Any) -> list[Decision]:
        config = {"x": (1 + trial_id) / 10_000}
        return self.handle(Suggested(self.time, trial_id, config, "random", "", **fields))

    def job(self) -> str:
        """The next job: ``n3`` starts trial 3, ``3->9`` resumes it towards level 9, ``idle``, ``finish``."""
        decision = self.ready()
        if isinstance(decision, Start):
            return f"n{decision.trial_id}"
        if isinstance(decision, Resume):
            return f"{decision.trial_id}->{decision.milestone}"
        return type(decision).__name__.lower()

    def report(self, trial_id: int, resource: int, value: float, attempt: int | None = None, **fields: Any) -> Told:
        attempt = self[trial_id].attempt if attempt is None else attempt
        told = self.handle(Reported(self.time, trial_id, attempt, resource, value, **fields))[0]
        assert isinstance(told, Told)
        return told

    def tell(self, trial_id: int, resource: int, value: float, **fields: Any) -> Verdict:
        """Report, and let the attempt end as it was told: with a checkpoint if it pauses."""
        told = self.report(trial_id, resource, value, **fields)
        if told.verdict is Verdict.PAUSE:
            self.save(trial_id, resource)
            self.end(trial_id, Outcome.PAUSED)
        elif told.verdict is Verdict.STOP or told.completed:
            self.end(trial_id, Outcome.COMPLETED if told.completed else Outcome.STOPPED)
        return told.verdict

    def train(self, trial_id: int, *values: float) -> Verdict:
        """Report values one after the other, from the resource after the last one on."""
        verdict = Verdict.CONTINUE
        for value in values:
            verdict = self.tell(trial_id, self[trial_id].resource + 1, value)
        return verdict

    def save(self, trial_id: int, resource: int) -> list[Decision]:
        checkpoint = Checkpoint(resource, f"{trial_id}/{resource}.ckpt", "0" * 64, 10)
        return self.handle(CheckpointSaved(self.time, trial_id, self[trial_id].attempt, checkpoint))

    def end(self, trial_id: int, outcome: Outcome, error: str | None = None) -> list[Decision]:
        return self.handle(AttemptEnded(self.time, trial_id, self[trial_id].attempt, outcome, error))

    def lose(self, trial_id: int) -> None:
        self.end(trial_id, Outcome.LOST, "killed by SIGKILL")

    def fail(self, trial_id: int, error: str = "ValueError") -> None:
        self.end(trial_id, Outcome.FAILED, error)

    def run(self, values: Any) -> str:
        """One worker trains until nothing is left; ``values(trial_id, resource)`` are the reports. Returns the jobs."""
        jobs = []
        while (job := self.job()) not in ("finish", "idle"):
            jobs.append(job)
            (trial_id,) = self.state.live
            while trial_id in self.state.live:
                resource = self[trial_id].resource + 1
                self.tell(trial_id, resource, values(trial_id, resource))
        return " ".join(jobs)

    def replayed(self) -> StudyState:
        """The study that its events, written as JSON and read again, lead to."""
        state = StudyState(SPACE, self.options)
        for event in self.events:
            state.handle(from_json(json.loads(json.dumps(to_json(event), allow_nan=False))))
        return state


def snapshot(state: StudyState) -> dict[str, Any]:
    """Everything that future decisions can depend on, in a form that compares NaN as equal."""
    probe = state.next_request()
    return {
        "trials": {i: repr(dataclasses.asdict(t)) for i, t in state.trials.items()},
        "observations": list(state.data.observations()),
        "pending": list(state.data.pending()),
        # A worker that finds nothing to do is not an event, though time has passed.
        "progress": repr(dataclasses.replace(state.progress, time=0.0)),
        "taken": dict(state.taken),
        "best": (repr(state.best_any), repr(state.best_full)),
        "searcher_state": state.searcher_state,
        "options": state.options,
        "next": probe,
        "live": set(state.live),
        "failed": set(state.view().failed),
        "taken_by_failed": set(state.view().taken_by_failed),
    }


class Step(NamedTuple):
    """Something that happens to a study in a random story; ``pick`` chooses among the trials it can happen to."""

    kind: str
    pick: int
    value: float


KINDS = (
    "ready", "ready", "ready", "report", "report", "report", "report", "end", "end", "save",
    "repeat", "skip", "late", "early", "lose", "fail", "interrupt", "pause", "continue", "remove", "started",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([0.1, 0.2, 0.3, 0.5, math.nan, math.inf, -math.inf]),
    st.floats(-10, 10, allow_subnormal=False),
)


def stories(values: st.SearchStrategy[float] = VALUES, size: int = 50) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.builds(Step, st.sampled_from(KINDS), st.integers(0, 30), values), max_size=size)


def play(study: Driven, story: Iterable[Step]) -> list[list[Decision]]:
    """Let the story happen; returns every step's decisions. Steps that cannot happen are passed over."""
    return [_step(study, step) for step in story]


def _step(study: Driven, step: Step) -> list[Decision]:
    study.time += 1.0
    live = sorted(study.state.live)
    everyone = sorted(study.state.trials)
    if step.kind == "ready":
        return [study.ready()] if study.state.wanted is None else study.suggest(len(everyone))
    if step.kind == "continue":
        return study.handle(StudyContinued(study.time))
    if step.kind in ("late", "remove", "early") and everyone:
        trial = study[everyone[step.pick % len(everyone)]]
        if step.kind == "remove":
            return study.handle(CheckpointRemoved(study.time, trial.id, "no room"))
        attempt = trial.attempt - 1 if step.kind == "late" else trial.attempt
        resource = max(1, trial.resource - step.pick % 3)
        return study.handle(Reported(study.time, trial.id, attempt, resource, step.value, cost=float(step.pick)))
    if not live:
        return []
    trial = study[live[step.pick % len(live)]]
    if step.kind in ("report", "repeat", "skip"):
        resource = max(1, trial.resource + {"report": 1, "repeat": 0, "skip": 2}[step.kind])
        cost = trial.cost + 1.0 + step.pick % 3
        return study.handle(Reported(study.time, trial.id, trial.attempt, resource, step.value, {"acc": 0.5}, cost))
    if step.kind == "started":
        return study.handle(AttemptStarted(study.time, trial.id, trial.attempt, 4711, "cpu:0"))
    if step.kind == "save":
        return study.save(trial.id, max(1, trial.resource))
    if step.kind == "pause":
        return study.handle(PauseRequested(study.time, trial.id, "interrupted"))
    if step.kind == "end":
        told = {TrialStatus.PAUSING: Outcome.PAUSED, TrialStatus.STOPPING: Outcome.STOPPED}
        return study.end(trial.id, told.get(trial.status, Outcome.COMPLETED))
    outcome = {"lose": Outcome.LOST, "fail": Outcome.FAILED, "interrupt": Outcome.INTERRUPTED}.get(step.kind)
    return [] if outcome is None else study.end(trial.id, outcome, f"error {step.pick}")


SETTINGS: dict[str, dict[str, Any]] = {
    "random": {"algorithm": "random", "max_t": 5},
    "random without end": {"algorithm": "random"},
    "median": {"algorithm": "median", "max_t": 5},
    "stopping": {"max_t": 9, "brackets": 3},
    "stopping, all data": {"max_t": 9, "searcher_data": "all"},
    "promotion": {"type": "promotion", "max_t": 9, "searcher_data": "rungs_and_last"},
    "promotion per bracket": {"type": "promotion", "max_t": 9, "brackets": 2, "rung_system_per_bracket": True},
    "promotion by prospect": {"type": "promotion", "max_t": 9, "improvement_probability": 0.4},
    "delayed stopping": {"max_t": 9, "brackets": 2, "delayed_promotion": True},
    "stopping by prospect": {"max_t": 9, "improvement_probability": 0.4},
    "delayed promotion": {"type": "promotion", "max_t": 9, "brackets": 2, "delayed_promotion": True},
    "cost promotion": {"type": "cost_promotion", "max_t": 9, "searcher_data": "all", "register_pending_myopic": True},
    "pasha": {"algorithm": "pasha", "max_t": 9},
    "sync_hyperband": {"algorithm": "sync_hyperband", "max_t": 9},
    "dehb": {"algorithm": "dehb", "max_t": 4, "reduction_factor": 2},
    "batches": {"type": "promotion", "max_t": 4, "reduction_factor": 2, "asynchronous": False, "n_workers": 3},
    "few trials": {"algorithm": "sync_hyperband", "max_t": 4, "reduction_factor": 2, "n_trials": 5},
    "few evaluations": {"max_t": 9, "stop": {"max_num_evaluations": 10}},
}
"""Options of studies that differ in how they work, by name."""


def promotion(**options: Any) -> Driven:
    """Successive halving by promotion, rungs at 1 and 3, ``max_t=9``."""
    return Driven(**{"type": "promotion", "max_t": 9, **options})
