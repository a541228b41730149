"""Scripts that failed when their training had ended.

The trial stays what it is, completed or paused, for its reports and its checkpoint are good. The user must know all the
same: what the script was to do after the training has not been done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lightning_hpo.core.events import AttemptEnded, Decision, Event, Outcome
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import HpoError
from lightning_hpo.report import formats
from lightning_hpo.report.folder import read_study, trial_log


def failed_afterwards(event: Event, state: StudyState) -> bool:
    """Whether a script has failed whose trial has not: ``state`` has handled the event."""
    if not isinstance(event, AttemptEnded) or event.outcome is not Outcome.FAILED:
        return False
    trial = state.trials[event.trial_id]
    return event.attempt == trial.attempt and trial.status is not TrialStatus.FAILED


def how_it_failed(status: TrialStatus) -> str:
    """What happened to a trial that has this status all the same."""
    return f"failed after the training, still {status}"


def warning_of_failure_afterwards(event: Event, state: StudyState, folder: Path) -> str | None:
    """One line, if the event is such a failure. ``folder``: of the study, as the user named it."""
    if not isinstance(event, AttemptEnded) or not failed_afterwards(event, state):
        return None
    trial = state.trials[event.trial_id]
    log = trial_log(folder, trial)
    where = f"  ({formats.path(log)})" if log is not None else ""
    error = formats.error_line(event.error) or "no error was told"
    return f"Trial {trial.id} {how_it_failed(trial.status)}: {error}{where}"


def all_failed_afterwards(state: StudyState, folder: Path) -> dict[TrialStatus, dict[int, str | None]]:
    """Status -> trial -> error of every script whose last run failed so, by the study in the folder, if there is one.

    A trial's error may also be that of a process that was lost before another one trained to the end. Only the journal
    knows, which is read if there is an error to be looked up.
    """
    last: dict[int, str | None] = {}

    def watch(event: Event, decisions: Sequence[Decision], then: StudyState) -> None:
        if isinstance(event, AttemptEnded):
            last.pop(event.trial_id, None)
            if failed_afterwards(event, then):
                last[event.trial_id] = event.error

    if any(trial.error and trial.status is not TrialStatus.FAILED for trial in state.trials.values()):
        with contextlib.suppress(HpoError):
            read_study(folder, watch)
    found: dict[TrialStatus, dict[int, str | None]] = {}
    for trial in state.trials.values():
        if trial.id in last:
            found.setdefault(trial.status, {})[trial.id] = last[trial.id]
    return found
