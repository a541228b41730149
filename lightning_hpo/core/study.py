"""The study as a state machine: events in, decisions out.

:meth:`StudyState.handle` is the only door through which a study changes. It has no clock, no files and
no generator state, so the events of a study, fed again, give the same study: that is how a study is
continued after a crash, simulated, and tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_hpo.core.dispatch import Dispatcher
from lightning_hpo.core.error_texts import without_names, without_numbers
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Decision,
    DropCheckpoint,
    Event,
    Finish,
    Idle,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    StudyContinued,
    Suggested,
    Told,
    Verdict,
    WorkerReady,
    portable,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.schedulers.base import Ruling
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.errors import ReportError, StudyError

_MOST_LATE_FAILURES = 20
"""In a row, alike, once trials have reported: no longer the script's fault, but the GPU or the data may be gone.

Also of errors that differ in numbers: configurations may be named in them, and the next one may be a good one, but not
when so many were not.
"""


class StudyState(Dispatcher):
    """A study: what is known of it, and how events change that.

    Args, attributes and errors are those of :class:`~lightning_hpo.core.record.StudyRecord`.
    """

    def __init__(self, space: SearchSpace, options: StudyOptions) -> None:
        super().__init__(space, options)
        self._pause_requests: dict[int, str] = {}
        self._spent_checkpoints: set[int] = set()
        """Final trials that still have a checkpoint."""
        self._errors_in_a_row: list[tuple[int, str, str]] = []
        """Of trials that failed since the last report of any trial: trial, error, and what is alike in all of them."""
        self._has_reports = False
        self._handlers: dict[type, Callable[[Any], list[Decision]]] = {
            Suggested: self._on_suggested,
            AttemptStarted: self._on_started,
            Reported: self._on_reported,
            CheckpointSaved: self._on_checkpoint_saved,
            CheckpointRemoved: self._on_checkpoint_removed,
            AttemptEnded: self._on_ended,
            PauseRequested: self._on_pause_requested,
            StudyContinued: self._on_continued,
        }

    # ------------------------------------------------------------------------------------ the door

    def handle(self, event: Event) -> list[Decision]:
        """Take in a fact; returns what is to be done about it.

        A :class:`WorkerReady` that is answered by :class:`Idle` or :class:`Finish` need not be kept: no time has passed
        by it. Every other event that does not raise must be, in this order, for the study to be the same when they are
        fed again.

        Raises:
            ReportError: if the event speaks of a trial or an attempt that does not exist, or is a report that no trial
                can have sent. The study has not changed then.
        """
        self._check_attempt(event)
        before = self.progress.time
        self.progress.time = max(before, event.time)
        if isinstance(event, WorkerReady):
            job = self._next_job(event)
            if isinstance(job, (Idle, Finish)):
                self.progress.time = before
            return [job]
        try:
            decisions = self._handlers[type(event)](event)
        except ReportError:
            self.progress.time = before
            raise
        if isinstance(event, StudyContinued):
            return decisions  # nobody is there yet to delete checkpoints: the next event brings it up
        return decisions + self._spent()

    def _check_attempt(self, event: Event) -> None:
        """Only a journal that other rules have written speaks of attempts to come: what follows would be lost."""
        if not isinstance(event, (AttemptStarted, Reported, CheckpointSaved, AttemptEnded)):
            return
        known = self.trial(event.trial_id).attempt
        if isinstance(event.attempt, int) and event.attempt > known:  # a damaged journal may say anything
            raise ReportError(
                f"Trial {event.trial_id} has had {known} attempts, and this is of attempt {event.attempt}: when the "
                "study was recorded, the rules decided otherwise. Open it with the version that recorded it."
            )

    # --------------------------------------------------------------------------------------- events

    def _on_suggested(self, event: Suggested) -> list[Decision]:
        if event.trial_id != len(self.trials):
            raise StudyError(
                f"The next trial is {len(self.trials)}, not {event.trial_id}. Answer suggestions in the order "
                f"in which they are wanted."
            )
        wanted, self._wanted = self._wanted, None
        if event.bracket_weights is not None:
            self._bracket_weights = event.bracket_weights
        if event.searcher_state is not None:
            # What the searcher gets back must not depend on whether it went through a journal.
            self.searcher_state = portable(event.searcher_state)
        if event.config is None:
            self._is_exhausted = True
            self.scheduler.close()
            return []
        if event.origin == "attached":
            self.ended = None  # that nothing was left to do holds no longer; a limit will say so again
        else:
            self.scheduler.follow(event.origin, event.limits or ())
        if event.resumes is not None:
            resumed = self._resume_suggested(event, event.resumes)
            return [] if resumed is None else [resumed]
        bracket = 0 if wanted is None else wanted.bracket
        self._batch_left = max(self._batch_left - 1, 0)
        return [self._start(dict(event.config), bracket, event.origin, event.reason, event.milestone)]

    def _resume_suggested(self, event: Suggested, trial_id: int) -> Resume | None:
        """The trial the searcher wants to go on; None if it cannot any more, and a free worker is to ask again."""
        trial = self.trials.get(trial_id)
        is_paused = trial is not None and trial.status is TrialStatus.PAUSED and trial.confirms is None
        if trial is None or not is_paused or not self.scheduler.is_searcher_led:
            return None
        promotion = self.scheduler.resume(trial_id, event.milestone or trial.milestone + 1)
        if promotion is None:
            return None
        self._batch_left = max(self._batch_left - 1, 0)
        self._clock[trial_id] = event.time
        return self._promoted(promotion, f"{promotion.reason}; {event.reason}")

    def _on_started(self, event: AttemptStarted) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt == trial.attempt:
            self._clock[trial.id] = event.time
        trial.folder = trial.folder or event.folder
        return []

    def _on_reported(self, event: Reported) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if isinstance(event.resource, bool) or not isinstance(event.resource, int) or event.resource < 1:
            raise ReportError(
                f"Trial {trial.id} reported at resource {event.resource!r}. Report after 1, 2, 3, ... units of "
                f"resource."
            )
        if event.attempt != trial.attempt or trial.status is not TrialStatus.RUNNING:
            return [self._late(trial, event.attempt)]
        if self.is_trained_to_the_end(trial):
            return [self._verdicts[trial.id]]
        if event.resource <= trial.resource:
            return [self._repeated(trial, event)]
        cost = _latest_cost(trial, event.cost)
        # First, because it may refuse the report.
        ruling = self._scheduler_of(trial).report(trial.id, event.resource, self.criterion(event.value), cost)
        self._has_reports = True
        self._errors_in_a_row.clear()
        self._account(trial, event, cost)
        told = self._rule(trial, event, ruling)
        self._verdicts[trial.id] = told
        return [told]

    def _late(self, trial: Trial, attempt: int) -> Told:
        """A report after the attempt's end, or the decision to end it: it changes nothing, the decision stands."""
        told = self._verdicts.get(trial.id)
        if attempt == trial.attempt and told is not None and told.verdict is not Verdict.CONTINUE:
            return told
        paused = trial.status in (TrialStatus.PAUSED, TrialStatus.PAUSING)
        return Told(trial.id, Verdict.PAUSE if paused else Verdict.STOP, f"the trial is {trial.status}")

    def _repeated(self, trial: Trial, event: Reported) -> Told:
        """What is known is not judged again, and what comes out of order comes too late; the first value stands."""
        known = trial.curve.get(event.resource)
        if known is not None:
            self._scheduler_of(trial).repeat(trial.id, event.resource, self.criterion(known))
        if trial.id in self._pause_requests:
            return self._pause_as_requested(trial)
        return Told(trial.id, Verdict.CONTINUE, f"repeats what is known up to {trial.resource}")

    def _rule(self, trial: Trial, event: Reported, ruling: Ruling) -> Told:
        value = self.criterion(event.value)
        continues = ruling.verdict is Verdict.CONTINUE and not ruling.completed
        if trial.confirms is None:
            self.data.report(trial.id, event.resource, value, ruling.level, ruling.milestone, continues)
        if ruling.milestone is not None:
            trial.milestone = ruling.milestone
        if ruling.completed:
            self._note_full(trial, event.resource)
            if self.scheduler.learns_at_completion and trial.confirms is None:
                self.data.complete(trial.id, event.resource, value)
            return Told(trial.id, ruling.verdict, ruling.reason, completed=True)
        if ruling.verdict is Verdict.PAUSE:
            trial.status = TrialStatus.PAUSING
        elif ruling.verdict is Verdict.STOP:
            trial.status = TrialStatus.STOPPING
        elif trial.confirms is None and (self.confirmation.chosen is not None or self._needs_rest_to_confirm()):
            self._pause_requests.setdefault(trial.id, "the search is over: its worker is to confirm the best")
        if trial.id in self._pause_requests and trial.status is TrialStatus.RUNNING:
            return self._pause_as_requested(trial)
        return Told(trial.id, ruling.verdict, ruling.reason)

    def _pause_as_requested(self, trial: Trial) -> Told:
        trial.status = TrialStatus.PAUSING
        told = Told(trial.id, Verdict.PAUSE, self._pause_requests[trial.id])
        self._verdicts[trial.id] = told
        return told

    def _on_checkpoint_saved(self, event: CheckpointSaved) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt != trial.attempt:
            return []
        old, trial.checkpoint = trial.checkpoint, event.checkpoint
        if trial.status.is_final:
            self._spent_checkpoints.add(trial.id)
        if old is None or old.path == event.checkpoint.path:
            return []
        return [DropCheckpoint(trial.id, old, "a newer checkpoint is saved")]

    def _on_checkpoint_removed(self, event: CheckpointRemoved) -> list[Decision]:
        self.trial(event.trial_id).checkpoint = None
        self._spent_checkpoints.discard(event.trial_id)
        return []

    def _on_pause_requested(self, event: PauseRequested) -> list[Decision]:
        if self.trial(event.trial_id).status is TrialStatus.RUNNING:
            self._pause_requests[event.trial_id] = event.reason
        return []

    def _on_ended(self, event: AttemptEnded) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt != trial.attempt or trial.id not in self._live:
            return []
        self._live.discard(trial.id)
        requested = self._pause_requests.pop(trial.id, None)
        if event.error and not event.error.isspace():
            trial.error = event.error
        if self.is_trained_to_the_end(trial):
            self._complete(trial)
        elif trial.status is TrialStatus.PAUSING and event.outcome is Outcome.COMPLETED:
            self._complete_early(trial)  # the training ended by itself in the epoch in which it was to pause
        elif trial.status is TrialStatus.PAUSING:
            if requested is not None and trial.resource < trial.milestone:
                self._wait(trial)
            else:
                trial.status = TrialStatus.PAUSED
        elif trial.status is TrialStatus.STOPPING:
            self._finish(trial, TrialStatus.STOPPED)
        elif event.outcome is Outcome.COMPLETED:
            self._complete_early(trial)
        elif event.outcome is Outcome.STOPPED:
            self._give_up(trial, TrialStatus.STOPPED)
        elif event.outcome is Outcome.FAILED:
            self._fail(trial)
        elif event.outcome is Outcome.LOST:
            trial.failures += 1
            if trial.failures > self.options.max_retries:
                self._fail(trial)
            else:
                self._wait(trial)
        else:
            self._wait(trial)
        return []

    def _complete(self, trial: Trial) -> None:
        self.progress.completed += 1
        self._finish(trial, TrialStatus.COMPLETED)

    def _complete_early(self, trial: Trial) -> None:
        if not trial.curve:
            trial.error = trial.error or "the script ended without a single report"
            self._fail(trial)
            return
        last = trial.resource
        if trial.confirms is None:
            self.data.complete(trial.id, last, self.criterion(trial.curve[last]))
        self._note_full(trial, last)
        self._scheduler_of(trial).fail(trial.id)
        self._complete(trial)

    def _fail(self, trial: Trial) -> None:
        self.failed.add(trial.id)
        if trial.confirms is None:
            self.taken_by_failed[self.space.match_key(trial.config)] = None
        self.progress.failed += 1
        self._give_up(trial, TrialStatus.FAILED)
        errors = self._errors_in_a_row
        error = (trial.error or "unknown error").strip().splitlines()[-1]
        errors.append((trial.id, error, without_names(error, trial.folder)))
        early = self.options.max_failures_in_a_row
        late = max(early, _MOST_LATE_FAILURES)
        same = [same for _, _, same in errors[-late:]]
        if not self._has_reports and len(same) >= early and len(set(same[-early:])) == 1:
            limit = early
        elif len(same) == late and len(set(map(without_numbers, same))) == 1:
            limit = late
        else:
            return
        first, error, _ = errors[-limit]
        self.repeated_error = first, error
        which = "last" if self._has_reports or len(errors) > limit else "first"
        self.ended = f"the {which} {limit} trials failed with the same error: {error}"

    def _give_up(self, trial: Trial, status: TrialStatus) -> None:
        self.data.drop_pending(trial.id)
        self._scheduler_of(trial).fail(trial.id)
        self._finish(trial, status)

    def _finish(self, trial: Trial, status: TrialStatus) -> None:
        trial.status = status
        trial.ended_at = self.progress.time
        self.progress.finished += 1
        if trial.checkpoint is not None:
            self._spent_checkpoints.add(trial.id)

    def _wait(self, trial: Trial) -> None:
        trial.status = TrialStatus.WAITING
        self._waiting.append(trial.id)

    def _on_continued(self, event: StudyContinued) -> list[Decision]:
        if event.limits is not None:
            self.options = self.options.with_limits(event.limits)
            self.confirmation.reopen(self.options.confirm)
        self._wanted = None
        self._batch_left = 0
        self.ended = self.repeated_error = None
        for trial_id in sorted(self._live):
            trial = self.trials[trial_id]
            self._on_ended(AttemptEnded(event.time, trial_id, trial.attempt, Outcome.INTERRUPTED))
        if self._is_full or self._is_exhausted:
            self.scheduler.close()
        else:
            self.scheduler.reopen()
        # The launcher may have gone before it deleted what it was told to.
        self._spent_checkpoints = {i for i, t in self.trials.items() if t.status.is_final and t.checkpoint is not None}
        return []

    # ------------------------------------------------------------------------------------ retention

    def _spent(self) -> list[Decision]:
        """Checkpoints of final trials that are not the best one's."""
        best = None if self._best_any is None else self._best_any[1]
        spent = [i for i in sorted(self._spent_checkpoints) if i != best]
        decisions: list[Decision] = []
        for trial_id in spent:
            self._spent_checkpoints.discard(trial_id)
            checkpoint = self.trials[trial_id].checkpoint
            if checkpoint is not None:
                decisions.append(DropCheckpoint(trial_id, checkpoint, f"the trial is {self.trials[trial_id].status}"))
        return decisions

    # ------------------------------------------------------------------------------------ invariants

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself; for tests."""
        for i, trial in self.trials.items():
            assert i == trial.id
            assert trial.status.occupies_worker == (i in self._live), (i, trial.status)
            assert (trial.status is TrialStatus.WAITING) == (i in self._waiting), (i, trial.status)
            assert (i in self.failed) == (trial.status is TrialStatus.FAILED), (i, trial.status)
        assert list(self.trials) == list(range(len(self.trials)))
        assert len(self._waiting) == len(set(self._waiting))
        running = {i for i, t in self.trials.items() if t.status is TrialStatus.RUNNING}
        waiting = set(self._waiting)
        pausing = {i for i in self._pause_requests if self.trials[i].status is TrialStatus.PAUSING}
        assert {p.trial_id for p in self.data.pending()} <= running | waiting | pausing
        observed = {(o.trial_id, o.resource) for o in self.data.observations()}
        assert not observed & set(self.data.pending())
        assert self.progress.started == len(self.trials)
        finals = [t.status for t in self.trials.values() if t.status.is_final]
        assert self.progress.finished == len(finals)
        assert self.progress.completed == sum(s is TrialStatus.COMPLETED for s in finals)


def _latest_cost(trial: Trial, reported: float | None) -> float | None:
    """The largest cost the trial ever reported, None if it reported none; what is not finite does not count."""
    if reported is None or not math.isfinite(reported):
        return trial.cost or None
    return max(trial.cost, reported)
