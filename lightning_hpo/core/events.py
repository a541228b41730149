"""What can happen to a study, and what the study answers.

An **event** is a fact that came from outside: a worker is free, a trial reported, a searcher answered.
A **decision** is what the study wants done about it. ``StudyState.handle(event)`` is the only door
through which a study changes, so the list of its events *is* the study: fed again, they give the same
decisions. Both unions are closed, frozen, and JSON both ways (:func:`to_json`, :func:`from_json`).

Times are seconds since the study began, without the time it lay interrupted.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from lightning_hpo.core.trial import Checkpoint, Config
from lightning_hpo.errors import StudyCorrupt


class Verdict(str, enum.Enum):
    """What a trial does after a report."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"

    def __str__(self) -> str:
        return self.value


class Limit(NamedTuple):
    """The highest value with which a trial goes on past a rung (``type=stopping``, led by the searcher)."""

    trial_id: int
    level: int
    value: float
    """Minimised, and finite; of what :func:`~lightning_hpo.core.observations.settled_value` gives there."""


class Outcome(str, enum.Enum):
    """How an attempt ended."""

    COMPLETED = "completed"
    """The script ended by itself."""
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    """The script raised."""
    LOST = "lost"
    """The process vanished: killed, out of memory, hung, node gone."""
    INTERRUPTED = "interrupted"
    """The user interrupted the study."""

    def __str__(self) -> str:
        return self.value


# ----------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is free."""

    time: float


@dataclass(frozen=True, slots=True)
class Suggested:
    """A configuration was chosen for a new trial, as :class:`SuggestionWanted` asked for, or from outside; or a paused
    trial that is to go on in its place."""

    time: float
    trial_id: int
    """The new trial."""
    config: Config | None
    """Values of the searched hyperparameters; None: the searcher has nothing left to propose."""
    origin: str
    reason: str
    bracket_weights: tuple[float, ...] | None = None
    """New probabilities of the brackets (Hyper-Tune); None leaves them."""
    searcher_state: dict[str, Any] | None = None
    """JSON data which the searcher gets back with the next request; None leaves it."""
    resumes: int | None = None
    """The paused trial that goes on instead of a new one."""
    milestone: int | None = None
    """Where the trial is judged next, if the searcher decides on that; None: at its first milestone."""
    limits: tuple[Limit, ...] | None = None
    """Of the new trial and those that run, for the rungs before them; None leaves what was said of them before."""


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A process for the trial exists."""

    time: float
    trial_id: int
    attempt: int
    pid: int | None = None
    worker: str = ""
    folder: str | None = None
    """Where the trial writes, relative to the study folder; told once, by the first attempt that knows."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A trial reported the metric after ``resource`` units."""

    time: float
    trial_id: int
    attempt: int
    resource: int
    value: float
    """In the user's sign; may be NaN or infinite."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint was written and verified."""

    time: float
    trial_id: int
    attempt: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class CheckpointRemoved:
    """The trial's checkpoint is gone (deleted to save space, or found damaged)."""

    time: float
    trial_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The process of an attempt is gone."""

    time: float
    trial_id: int
    attempt: int
    outcome: Outcome
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """Pause this running trial at its next report (Ctrl-C, no disk space, preemption)."""

    time: float
    trial_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class StudyContinued:
    """The study was opened again: attempts that were running are gone."""

    time: float
    limits: dict[str, Any] | None = None
    """Options that say how long and how wide from now on (``StudyOptions.limits``); None leaves them."""


Event: TypeAlias = (
    WorkerReady
    | Suggested
    | AttemptStarted
    | Reported
    | CheckpointSaved
    | CheckpointRemoved
    | AttemptEnded
    | PauseRequested
    | StudyContinued
)

# -------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Start:
    """Train a new trial."""

    trial_id: int
    config: Config
    """Searched values and constants."""
    milestone: int
    """First resource level at which it will be judged."""
    attempt: int = 1
    replicate: int = 0
    """Which training of the configuration: each has another seed; 0 is the search's own."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with a paused or lost trial."""

    trial_id: int
    config: Config
    from_resource: int
    """Resource of the checkpoint to load, 0 to train from scratch."""
    milestone: int
    attempt: int = 1
    checkpoint: Checkpoint | None = None
    replicate: int = 0
    """As that of its :class:`Start`."""


@dataclass(frozen=True, slots=True)
class SuggestionWanted:
    """Ask the searcher for the configuration of a new trial, or which trial goes on, then feed :class:`Suggested`."""

    trial_id: int
    bracket: int
    milestone: int


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to a report."""

    trial_id: int
    verdict: Verdict
    reason: str
    completed: bool = False
    """The trial has reached ``max_t``; it may end by itself."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to start now: ask again after the next event."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing will be started any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class DropCheckpoint:
    """The trial's checkpoint will not be needed again."""

    trial_id: int
    checkpoint: Checkpoint
    reason: str


Decision: TypeAlias = Start | Resume | SuggestionWanted | Told | Idle | Finish | DropCheckpoint

_EVENTS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        WorkerReady, Suggested, AttemptStarted, Reported, CheckpointSaved, CheckpointRemoved,
        AttemptEnded, PauseRequested, StudyContinued,
    )
}  # fmt: skip


_DEFAULTS: dict[str, tuple[tuple[str, Any], ...]] = {
    name: tuple((f.name, f.default) for f in dataclasses.fields(cls)) for name, cls in _EVENTS.items()
}
"""Fields of every event with their defaults; looked up once per event of a journal."""


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON data. Non-finite floats become the strings ``nan``, ``inf``, ``-inf``."""
    kind = type(event).__name__
    data: dict[str, Any] = {"event": kind}
    for name, default in _DEFAULTS[kind]:
        value = getattr(event, name)
        if value is None or value == default:
            continue
        if isinstance(value, enum.Enum):
            value = value.value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        data[name] = portable(value)
    return data


def from_json(data: dict[str, Any]) -> Event:
    """The event that :func:`to_json` wrote.

    Raises:
        StudyCorrupt: if the data is not an event of this version.
    """
    try:
        cls = _EVENTS[data["event"]]
        values = {name: data[name] for name, _ in _DEFAULTS[cls.__name__] if name in data}
        values["time"] = float(values["time"])
        if type(values.get("trial_id", 0)) is not int:
            raise ValueError("trial_id is no integer")
        if cls is Reported:
            values["value"] = float(values["value"])
            values["metrics"] = {k: float(v) for k, v in values.get("metrics", {}).items()}
            if values.get("cost") is not None:
                values["cost"] = float(values["cost"])
        elif cls is AttemptStarted:
            if type(values.get("folder", "")) is not str:
                raise ValueError("folder is no text")
        elif cls is CheckpointSaved:
            values["checkpoint"] = Checkpoint(**values["checkpoint"])
        elif cls is AttemptEnded:
            values["outcome"] = Outcome(values["outcome"])
            if type(values.get("error", "")) is not str:
                raise ValueError("error is no text")
        elif cls is Suggested:
            values.setdefault("config", None)
            if values.get("bracket_weights") is not None:
                values["bracket_weights"] = tuple(map(float, values["bracket_weights"]))
            if values.get("limits") is not None:
                values["limits"] = limits_of(values["limits"])
        event: Event = cls(**values)
        return event
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise StudyCorrupt(
            f"This is not an event of a study: {str(data)[:200]} ({problem}). "
            "Open the study with the version that wrote it, or restore its backup."
        ) from problem


def limits_of(data: Iterable[Any]) -> tuple[Limit, ...]:
    """Limits as JSON holds them.

    Raises:
        TypeError, ValueError: if they are none.
    """
    return tuple(Limit(int(trial_id), int(level), float(value)) for trial_id, level, value in data)


def portable(value: Any) -> Any:
    """The value as JSON data: what JSON cannot hold (NaN, infinities) as text, tuples as lists, keys as text."""
    if isinstance(value, float):
        return value if value - value == 0.0 else str(value)
    if isinstance(value, dict):
        return {str(k): portable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(v) for v in value]
    return value
