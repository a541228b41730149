"""One line per decision: what happened to which trial, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_hpo.core.events import AttemptEnded, Decision, Event, Outcome, Reported, Resume, Start, Told, Verdict
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.folder import trial_log
from lightning_hpo.report.tally import Tally, is_rung

_MAX_REPEATED = 60
"""Characters of an error that was told for another trial already."""


class DecisionLines:
    """Writes the lines. Reports that lead to no decision give none.

    Args:
        state: the study before the first event, or after it.
        folder: the study folder, as the user named it.
        unit: of resource.
    """

    def __init__(self, state: StudyState, folder: Path, unit: str) -> None:
        self._folder = folder
        self._unit = unit
        self._metric = formats.plain(state.options.metric)
        self._names = formats.short_names(state.space.domains)
        self._tally = Tally(state)
        self._to_retry = {trial.id for trial in state.trials.values() if trial.status is TrialStatus.WAITING}
        """Trials whose next resume is another try and no promotion."""
        self._completed: set[int] = set()
        self._first_with: dict[str, int] = {}
        """Error -> the trial for which it was told."""
        self._warned: set[str] = set()

    @property
    def tally(self) -> Tally:
        """The study's figures, up to the last event."""
        return self._tally

    def warned(self, warning: str) -> None:
        """A warning was shown: the lines need not say the same again."""
        self._warned.add(warning)

    def of(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> list[tuple[str, bool]]:
        """The lines of an event that ``state`` has handled, each with whether it tells of a failure."""
        if isinstance(event, Reported):
            return self._reported(event, decisions, state)
        if isinstance(event, AttemptEnded):
            return self._ended(event, state)
        lines = []
        for decision in decisions:
            if isinstance(decision, Start):
                lines.append(self._started(event.time, decision, state))
            elif isinstance(decision, Resume):
                lines.append(self._resumed(event.time, decision, state))
        return lines

    def _reported(self, event: Reported, decisions: Sequence[Decision], state: StudyState) -> list[tuple[str, bool]]:
        if not self._tally.update(event, state):
            return []
        told = decisions[0]
        assert isinstance(told, Told), "a report is answered first"
        if told.completed:
            what = "complete"
            self._completed.add(told.trial_id)
        elif told.verdict is not Verdict.CONTINUE:
            what = told.verdict.value
        elif is_rung(state, state.trials[told.trial_id], event.resource):
            what = "continue"
        else:
            return []
        result = self._result(event.resource, event.value)
        return [(_line(event.time, told.trial_id, what, f"{result}  ({formats.plain(told.reason)})"), False)]

    def _result(self, resource: int, value: float) -> str:
        return f"{self._unit} {resource}  {self._metric}={formats.number(value)}"

    def _started(self, time: float, start: Start, state: StudyState) -> tuple[str, bool]:
        trial = state.trials[start.trial_id]
        config = formats.configuration(trial.config, self._names)
        return _line(time, trial.id, "start", f"{config}  ({formats.plain(trial.reason) or trial.origin})"), False

    def _resumed(self, time: float, resume: Resume, state: StudyState) -> tuple[str, bool]:
        origin = f"from {self._unit} {resume.from_resource}" if resume.from_resource else "from the beginning"
        if resume.trial_id in self._to_retry:
            self._to_retry.discard(resume.trial_id)
            return _line(time, resume.trial_id, "retry", f"{origin}, attempt {resume.attempt}"), False
        reason = formats.plain(state.trials[resume.trial_id].reason)
        return _line(time, resume.trial_id, "resume", f"{origin} to {resume.milestone}  ({reason})"), False

    def _ended(self, event: AttemptEnded, state: StudyState) -> list[tuple[str, bool]]:
        trial = state.trials[event.trial_id]
        if event.attempt != trial.attempt:
            return []
        if trial.status is TrialStatus.WAITING:
            self._to_retry.add(trial.id)
        if trial.status is TrialStatus.FAILED:
            log = trial_log(self._folder, trial)
            where = f"  ({formats.path(log)})" if log is not None else ""
            text = formats.error_line(trial.error) or "no error was told"
            first = self._first_with.setdefault(text, trial.id)
            if first != trial.id and len(text) > _MAX_REPEATED:
                text = f"as trial {first}: {formats.shortened(text, _MAX_REPEATED)}"
            return [(_line(event.time, trial.id, "fail", f"{text}{where}"), True)]
        if event.outcome is Outcome.LOST:
            again = "; will be tried again" if trial.status is TrialStatus.WAITING else ""
            text = formats.error_line(event.error) or "its process is gone"
            if f"Trial {trial.id}: {text}" in self._warned:
                text = "see the warning above"
            text = text.removesuffix(".") if again else text
            return [(_line(event.time, trial.id, "lost", f"{text}{again}"), True)]
        if trial.status is TrialStatus.COMPLETED and trial.id not in self._completed:
            text = f"{self._result(trial.resource, trial.curve[trial.resource])}  (it ended by itself)"
            return [(_line(event.time, trial.id, "complete", text), False)]
        return []


def _line(time: float, trial_id: int, what: str, text: str) -> str:
    return f"{formats.duration(time):>8}  trial {trial_id:<4} {what:<8}  {text}"
