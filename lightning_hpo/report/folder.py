"""A study folder, opened to look at: nothing is locked and nothing is changed, so the study may be running."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_hpo.core.events import Decision, Event, Finish, Reported, StudyContinued, WorkerReady
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial
from lightning_hpo.errors import StudyNotFound
from lightning_hpo.report import formats
from lightning_hpo.runtime.journal import FILE_NAME, Journal
from lightning_hpo.runtime.stored import state_from_header
from lightning_hpo.runtime.trial_folders import recorded_folder

LOG_NAME = "trial.log"
"""What a trial printed, in the trial's folder."""

SWEEPS = "multirun"
"""Where Hydra puts sweeps by default, relative to the current folder."""

STUDY_OPTION = "hydra.launcher.study="
"""Begin of the argument that tells a program which study to continue."""

Watcher = Callable[[Event, Sequence[Decision], StudyState], None]


@dataclass(frozen=True, slots=True)
class Report:
    """One accepted report, with what only the journal keeps."""

    trial_id: int
    attempt: int
    resource: int
    value: float
    time: float
    """Seconds since the study began."""
    metrics: dict[str, float]
    cost: float | None


@dataclass(slots=True)
class StudyFolder:
    """What a study folder says at one moment."""

    path: Path
    state: StudyState
    unit: str
    """Unit of resource: ``epoch`` or ``validation``."""
    holder: str | None
    """Who works on the study, None if nobody does."""
    cut_off: tuple[int, ...] = ()
    """Trials that ran when the last launcher went without a word: killed, or the machine was."""
    continue_command: str | None = None
    """Command line that continues the study, if its launcher has left one."""

    @property
    def is_running(self) -> bool:
        return self.holder is not None

    def why_ended(self) -> str | None:
        """Why nothing more would be started; None if the study can go on, or does.

        Asks the state for a job that nobody will do: the state is used up afterwards.
        """
        if self.is_running:
            return None
        (decision,) = self.state.handle(WorkerReady(self.state.progress.time))
        return decision.reason if isinstance(decision, Finish) else None


def read_study(folder: str | os.PathLike[str], watch: Watcher | None = None) -> StudyFolder:
    """The study in the folder as it is now.

    Args:
        watch: sees every event with the decisions it led to and the state after it, in order.

    Raises:
        StudyNotFound, StudyCorrupt: if there is none, or it cannot be read.
    """
    path = Path(folder)
    holder = Journal.holder(path)  # first: a launcher that ends meanwhile must not look like one that was killed
    with Journal.read(path) as journal:
        state = replay(journal, watch)
        header = journal.header
    cut_off = tuple(sorted(state.live)) if holder is None else ()
    if cut_off:
        # Nobody trains them: they stand where a launcher that continues the study will find them.
        state.handle(StudyContinued(state.progress.time))
    return StudyFolder(path, state, header.get("resource", "epoch"), holder, cut_off, _continue_command(path, header))


def continuing(command: str | None, folder: Path) -> dict[str, Any]:
    """What a journal's header keeps, so that people who look at the study can be told how to continue it.

    Args:
        command: command line that continues the study, None if there is none.
        folder: the study folder, as the command names it.
    """
    return {} if command is None else {"continue": {"command": command, "folder": str(folder), "in": os.getcwd()}}


def naming_study(folder: str) -> str:
    """The argument that tells a program to continue the study in a folder; for a shell it is still to be quoted."""
    return f"{STUDY_OPTION}{formats.override_value(folder)}"


def _continue_command(folder: Path, header: Mapping[str, Any]) -> str | None:
    kept = header.get("continue")
    if kept is None:
        return None
    command = _with_folder(str(kept["command"]), str(kept["folder"]), str(folder.absolute()))
    is_shell = STUDY_OPTION in command  # a Tuner's is Python
    return command if not is_shell or kept["in"] == os.getcwd() else f"cd {formats.quoted(kept['in'])} && {command}"


def _with_folder(command: str, before: str, now: str) -> str:
    """The command for a study that may have been moved since it was written."""
    if STUDY_OPTION not in command:  # that of a Tuner, which is Python
        return command.replace(repr(before), repr(now))
    try:
        arguments = shlex.split(command)
    except ValueError:  # no shell would take it
        return command
    return shlex.join(naming_study(now) if a.startswith(STUDY_OPTION) else a for a in arguments)


def replay(journal: Journal, watch: Watcher | None = None) -> StudyState:
    """The state that the journal's events lead to; ``watch`` as for :func:`read_study`."""
    state = state_from_header(journal.header)
    for event in journal.events():
        decisions = state.handle(event)
        if watch is not None:
            watch(event, decisions, state)
    return state


def read_reports(folder: str | os.PathLike[str]) -> tuple[StudyFolder, list[Report]]:
    """The study, and every report it accepted, in the order of arrival.

    Raises:
        StudyNotFound, StudyCorrupt: as :func:`read_study`.
    """
    reports: list[Report] = []
    known: dict[int, int] = {}

    def watch(event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        if not isinstance(event, Reported):
            return
        trial = event.trial_id
        size = len(state.trials[trial].curve)
        if size > known.get(trial, 0):
            known[trial] = size
            told = (event.attempt, event.resource, event.value, event.time, event.metrics, event.cost)
            reports.append(Report(trial, *told))

    return read_study(folder, watch), reports


def find_study(start: Path) -> Path:
    """The study a command means that names none: the one in ``start``, else the newest below ``start/multirun``.

    Raises:
        StudyNotFound: if there is none.
    """
    if Journal.exists(start):
        return start
    found = list(_studies_below(start / SWEEPS))
    if not found:
        raise StudyNotFound(
            f"There is no study in this folder and none below {SWEEPS}. Name the folder of a study after the command."
        )
    return max(found, key=_last_written)


def _last_written(folder: Path) -> float:
    # What was written last may still lie in SQLite's write-ahead log.
    files = (folder / FILE_NAME, folder / f"{FILE_NAME}-wal")
    return max(file.stat().st_mtime for file in files if file.exists())


def _studies_below(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        if FILE_NAME in files:
            names.clear()  # what is inside are trials
            yield Path(folder)


def trial_folder(study: Path, trial: Trial) -> Path | None:
    """The trial's folder, if it can be told: the one that is recorded, else the one named by its number."""
    recorded = recorded_folder(study, trial)
    if recorded is not None:
        return recorded
    usual = study / str(trial.id)
    return usual if usual.is_dir() else None


def trial_log(study: Path, trial: Trial) -> Path | None:
    """What the trial printed, if there is such a file."""
    folder = trial_folder(study, trial)
    return folder / LOG_NAME if folder is not None and (folder / LOG_NAME).is_file() else None


def params(state: StudyState, trial_id: int) -> dict[str, Any]:
    """Values of the searched hyperparameters, in the order of the space."""
    return state.space.searched(state.trials[trial_id].config)
