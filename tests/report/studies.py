"""Studies small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_hpo.core.events import Decision, Event, WorkerReady
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace, choice, loguniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.study import Study

SPACE = {"model.lr": loguniform(1e-4, 1.0), "act": choice(["relu", "gelu"]), "batch_size": 64}
CONFIGS = [
    {"model.lr": 0.1, "act": "relu"},
    {"model.lr": 0.01, "act": "gelu"},
    {"model.lr": 0.001, "act": "relu"},
    {"model.lr": 0.5, "act": "gelu"},
]
ERROR = (
    'Traceback (most recent call last):\n  File "train.py", line 3, in main\nRuntimeError: out of memory\ntried 5 GB'
)

OPTIONS: Mapping[str, Any] = {
    "metric": "val_loss",
    "algorithm": "asha",
    "type": "promotion",
    "max_t": 3,
    "points_to_evaluate": CONFIGS,
    "n_trials": 4,
}


def small_study(path: Path | None = None, mode: str = "min", **options: Any) -> Study:
    """Four trials, one rung at 1, ``max_t=3``, open.

    Trials 0, 1, 2 report 0.9, 0.5, 0.7 at 1 and pause there. Trial 1 is promoted: 0.4 at 2 and 0.45 at 3, complete.
    Trial 3 fails before its first report. In mode ``max`` a value v is 1 - v.
    """
    study = Study.create(SPACE, path=path, mode=mode, **{**OPTIONS, **options})

    def tell(trial_id: int, resource: int, value: float) -> None:
        study.tell(trial_id, resource, value if mode == "min" else 1 - value)

    for trial_id, value in enumerate([0.9, 0.5, 0.7]):
        study.ask()
        tell(trial_id, 1, value)
    study.ask()  # promotes trial 1
    tell(1, 2, 0.4)
    tell(1, 3, 0.45)
    study.ask()
    study.fail(3, ERROR)
    return study


def state_of(study: Study) -> StudyState:
    return study._state


def new_state(space: Mapping[str, Any] = SPACE, **options: Any) -> StudyState:
    return StudyState(SearchSpace.parse(space), StudyOptions.from_mapping({**OPTIONS, **options}))


class Driver:
    """Feeds events to a state, one second apart, and keeps what came of them."""

    def __init__(self, state: StudyState) -> None:
        self.state = state
        self.time = 0.0
        self.seen: list[tuple[Event, list[Decision]]] = []

    def feed(self, event: Event) -> list[Decision]:
        decisions = self.state.handle(event)
        self.seen.append((event, decisions))
        return decisions

    def ready(self) -> Decision:
        self.time += 1.0
        (decision,) = self.feed(WorkerReady(self.time))
        return decision
