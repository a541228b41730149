"""The story of one trial: who proposed it and why, what it reported, what was decided and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Decision,
    Event,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    Start,
    StudyContinued,
    Told,
    Verdict,
)
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.errors import ReportError
from lightning_hpo.report import formats
from lightning_hpo.report.afterwards import failed_afterwards
from lightning_hpo.report.folder import StudyFolder, params, read_study, trial_log
from lightning_hpo.report.results import table
from lightning_hpo.report.tally import is_rung

_OUTCOMES = {
    Outcome.COMPLETED: "the script ended",
    Outcome.PAUSED: "paused",
    Outcome.STOPPED: "stopped",
    Outcome.FAILED: "the script failed",
    Outcome.LOST: "the process was lost",
    Outcome.INTERRUPTED: "interrupted",
}


def tell_story(folder: Path, trial_id: int) -> str:
    """Everything the journal knows about a trial, in order.

    Raises:
        StudyNotFound, StudyCorrupt: if the study cannot be read.
        ReportError: if there is no such trial.
    """
    recorder = _Recorder(trial_id)
    study = read_study(folder, recorder.watch)
    state = study.state
    trial = state.trials.get(trial_id)
    if trial is None:
        raise ReportError(
            f"There is no trial {trial_id} in {folder}; it has {len(state.trials)}, numbered from 0. "
            f"List them with: lightning-hpo trials {formats.quoted(folder)}"
        )
    proposed = recorder.proposal or trial.origin
    if not proposed.startswith(trial.origin):
        proposed = f"{trial.origin}: {proposed}"
    if len(state.bracket_weights) > 1:
        proposed += f"; bracket {trial.bracket}"
    about = [("proposed", proposed)]
    values = params(state, trial_id)
    about += [(formats.plain(name), formats.plain(formats.exact(item))) for name, item in values.items()]
    log = trial_log(folder, trial)
    if log is not None:
        about.append(("log", str(log)))
    happened = "\n".join(recorder.lines(study))
    return f"Trial {trial_id} {_standing(state, trial, study.unit)}\n{table(about)}\n\n{happened}"


_STANDING = {
    TrialStatus.RUNNING: "runs",
    TrialStatus.PAUSING: "is about to pause",
    TrialStatus.PAUSED: "is paused",
    TrialStatus.STOPPING: "is about to stop",
    TrialStatus.STOPPED: "was stopped",
    TrialStatus.WAITING: "waits to be tried again",
    TrialStatus.COMPLETED: "is complete",
    TrialStatus.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    time: float
    what: str
    why: str = ""
    resource: int | None = None
    """Of a report."""


@dataclass(frozen=True, slots=True)
class _Result:
    """A report that led to no decision."""

    time: float
    resource: int
    value: float


class _Recorder:
    """Collects what concerns one trial while the journal is read."""

    def __init__(self, trial_id: int) -> None:
        self.proposal = ""
        """Why the configuration was proposed; later decisions have their own reasons."""
        self._trial_id = trial_id
        self._entries: list[_Entry | _Result] = []
        self._known = 0
        self._metric = ""
        self._is_to_retry = False

    def watch(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        trial = state.trials.get(self._trial_id)
        if trial is None:
            return
        self._metric = formats.plain(state.options.metric)
        for decision in decisions:
            if isinstance(decision, Start) and decision.trial_id == trial.id:
                self.proposal = formats.plain(trial.reason)
                self._add(event, f"started{_goal(decision.milestone, state)}")
            elif isinstance(decision, Resume) and decision.trial_id == trial.id:
                begin = f"from {decision.from_resource}" if decision.from_resource else "from the beginning"
                why = "another try" if self._is_to_retry else formats.plain(trial.reason)
                self._add(event, f"resumed {begin}{_goal(decision.milestone, state)}", why)
        self._is_to_retry = trial.status is TrialStatus.WAITING
        if isinstance(event, StudyContinued):
            self._add(event, "the study was continued")
        elif isinstance(event, Reported) and event.trial_id == trial.id:
            self._reported(event, next(d for d in decisions if isinstance(d, Told)), trial, state)
        elif getattr(event, "trial_id", None) == trial.id:
            self._happened(event, state)

    def _add(self, event: Event, what: str, why: str = "") -> None:
        self._entries.append(_Entry(event.time, what, why))

    def _reported(self, event: Reported, told: Told, trial: Trial, state: StudyState) -> None:
        if len(trial.curve) == self._known:
            return
        self._known = len(trial.curve)
        is_decision = told.completed or told.verdict is not Verdict.CONTINUE or is_rung(state, trial, event.resource)
        if not is_decision:
            self._entries.append(_Result(event.time, event.resource, event.value))
            return
        verdict = "complete" if told.completed else told.verdict.value
        what = f"{self._metric}={formats.number(event.value)}"
        why = f"{verdict}: {formats.plain(told.reason)}"
        self._entries.append(_Entry(event.time, what, why, event.resource))

    def _happened(self, event: Event, state: StudyState) -> None:
        if isinstance(event, AttemptStarted):
            process = "" if event.pid is None else f"process {event.pid}"
            self._add(event, f"attempt {event.attempt} runs", ", ".join(filter(None, (event.worker, process))))
        elif isinstance(event, CheckpointSaved) and event.checkpoint.path:
            saved = f"checkpoint of {event.checkpoint.resource} saved"
            self._add(event, saved, formats.size(event.checkpoint.size))
        elif isinstance(event, CheckpointRemoved):
            self._add(event, "checkpoint removed", formats.plain(event.reason))
        elif isinstance(event, PauseRequested):
            self._add(event, "asked to pause", formats.plain(event.reason))
        elif isinstance(event, AttemptEnded):
            when = " after the training" if failed_afterwards(event, state) else ""
            what = f"attempt {event.attempt} ended: {_OUTCOMES[event.outcome]}{when}"
            self._add(event, what, formats.error_line(event.error))

    def lines(self, study: StudyFolder) -> list[str]:
        """One line per entry; results in a row without a decision share one."""
        lines = []
        results: list[_Result] = []
        for entry in [*self._entries, None]:
            if isinstance(entry, _Result):
                results.append(entry)
                continue
            if results:
                lines.append(self._result_line(results, study.unit))
                results = []
            if entry is not None:
                at = "" if entry.resource is None else f"{study.unit} {entry.resource}: "
                why = f"  → {entry.why}" if entry.why else ""
                lines.append(f"{formats.duration(entry.time):>9}  {at}{entry.what}{why}")
        return lines

    def _result_line(self, results: Sequence[_Result], unit: str) -> str:
        first, last = results[0], results[-1]
        at, values = f"{unit} {first.resource}", formats.number(first.value)
        if last is not first:
            at, values = f"{unit}s {first.resource} to {last.resource}", f"{values} … {formats.number(last.value)}"
        return f"{formats.duration(last.time):>9}  {at}: {self._metric}={values}"


def _goal(milestone: int, state: StudyState) -> str:
    return "" if state.scheduler.max_t is None else f", to be judged at {milestone}"


def _standing(state: StudyState, trial: Trial, unit: str) -> str:
    """Where the trial is now, and against whom."""
    text = _STANDING[trial.status]
    if not trial.curve:
        return text
    text += f" after {formats.amount(trial.resource, unit)}"
    value = trial.curve[trial.resource]
    is_judged = trial.status in (TrialStatus.PAUSED, TrialStatus.STOPPED) and is_rung(state, trial, trial.resource)
    if is_judged and math.isfinite(value):
        values = [t.curve[trial.resource] for t in state.trials.values() if trial.resource in t.curve]
        better = sum(state.criterion(v) < state.criterion(value) for v in values if math.isfinite(v))
        text += f"; of {len(values)} trials that reported there, {better} are better now"
    if trial.status is TrialStatus.PAUSED and (reason := state.scheduler.held_back(trial.id)) is not None:
        text += f"; {reason}"
    return text
