"""The live run: one loop between the study state, the journal, the trials and the searcher.

One turn of the loop takes in everything that has happened, lets the study decide, commits all events in one
transaction, and only then acts: answers reports, starts trials, deletes checkpoints. So nothing is ever done
that is not on disk, and many reports share one commit.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo import errors
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Decision,
    DropCheckpoint,
    Event,
    Finish,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    Start,
    SuggestionWanted,
    Told,
    WorkerReady,
)
from lightning_hpo.core.searcher import suggested
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.errors import (
    BackendError,
    ChannelError,
    CheckpointError,
    DiskFull,
    HpoError,
    OptionError,
    RepeatedFailure,
    StudyError,
    StudyNotFound,
)
from lightning_hpo.runtime.attempts import Attempt
from lightning_hpo.runtime.backends.base import Backend, Exit, Job, Started
from lightning_hpo.runtime.channel_server import ChannelServer, ClientConnection
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.endings import Endings
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.interrupts import Interrupts
from lightning_hpo.runtime.journal import Backups, Journal
from lightning_hpo.runtime.messages import Answer, Ended, Hello, Message, Problem, Report, Saved, Welcome
from lightning_hpo.runtime.proposals import Proposals
from lightning_hpo.runtime.retention import Retention
from lightning_hpo.runtime.room import Room
from lightning_hpo.runtime.suggesting import Answered, SearcherHost
from lightning_hpo.runtime.trial_folders import TrialFolders
from lightning_hpo.runtime.writing import GivenUp, Writer

_TICK_S = 0.5
"""Longest time between two looks at clocks and screens."""
_LONGEST_TURN_S = 2.0
"""Of a turn that took longer, only this counts against the trials: the launcher was not there to listen."""
_BACKUP_EVERY_S = 600.0
"""Between two copies of the journal."""
_REFUSED_S = 10.0
"""After the system has refused a trial its process, nothing is started for so long, unless a trial ends before."""
_MOST_DRAINS = 100
"""Looks at what a process left in its socket; each takes as much as a socket usually holds."""


class JobFactory(Protocol):
    """Turns a decision into a job of the backend."""

    def folder(self, trial: Trial) -> Path:
        """The folder below the study's that the trial would have if it were the only one; see :class:`TrialFolders`."""

    def job(self, decision: Start | Resume, folder: Path, environment: dict[str, str]) -> Job: ...


class Observer(Protocol):
    """Shows a run to people. Must not raise."""

    def event(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        """An event was handled."""

    def say(self, message: str, warning: bool = False) -> None:
        """Something worth a line."""

    def tick(self, state: StudyState) -> None:
        """A moment has passed."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    reason: str
    interrupted_by: signal.Signals | None = None
    """What interrupted the run, if it did not end by itself."""
    problem: HpoError | None = None
    """The error that ended it, to be raised when everything is closed."""
    is_urgent: bool = False
    """Nothing is to be waited for any more: it was interrupted twice, or its time is over."""

    @property
    def is_interrupted(self) -> bool:
        return self.interrupted_by is not None


@dataclass(slots=True)
class _Batch:
    """What one turn has to commit and then to do."""

    events: list[Event] = field(default_factory=list)
    effects: list[Callable[[], None]] = field(default_factory=list)


class Coordinator:
    """Runs a study to its end.

    Args:
        state: the study, with the journal's events folded in.
        journal: gets every event that changes the study.
        backend: where attempts run.
        server: the launcher's end of the channel.
        host: where the searcher lives.
        fallback: makes the searcher that takes over if the host fails.
        store: the checkpoints.
        jobs: turns decisions into jobs.
        folders: where the trials write.
        observer: shows the run.
        resource: unit of resource, ``epoch`` or ``validation``.
        epoch_timeout: seconds without a word after which an attempt counts as hung.
        trial_timeout: seconds an attempt may run.
        shortage: why there is no room for another trial's files; None: there is.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self,
        *,
        state: StudyState,
        journal: Journal,
        backend: Backend,
        server: ChannelServer,
        host: SearcherHost,
        fallback: Callable[[], SearcherHost],
        store: CheckpointStore,
        jobs: JobFactory,
        folders: TrialFolders,
        observer: Observer,
        resource: str = "epoch",
        epoch_timeout: float | None = None,
        trial_timeout: float | None = None,
        shortage: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._journal = journal
        self._backend = backend
        self._server = server
        self._store = store
        self._jobs = jobs
        self._folders = folders
        self._observer = observer
        self._resource = resource
        self._epoch_timeout = epoch_timeout
        self._trial_timeout = trial_timeout
        self._clock = clock
        self._zero = clock() - state.progress.time
        self._looked_at = clock()
        self._listened = 0.0
        """A clock that stands still while the launcher cannot listen: frozen, suspended, or waiting for the disk."""
        self._batch = _Batch()
        self._attempts: dict[int, Attempt] = {}
        self._start_again_at = -math.inf
        """When a trial may be started again, on the clock."""
        self._starting = 0
        """Jobs decided on in this turn; the backend does not count them yet."""
        self._finish: str | None = None
        self._problem: HpoError | None = None
        self._backups = Backups(journal, _BACKUP_EVERY_S, clock)
        self._interrupts = Interrupts(clock)
        self._writer = Writer(journal, self._interrupts, observer.say, clock)
        self._room = Room(shortage, observer.say, self._warn, clock)
        self._endings = Endings(
            state,
            self._attempts,
            backend,
            self._interrupts,
            self._room.waiting,
            self._request_pause,
            observer.say,
            clock,
        )
        self._proposals = Proposals(state, host, fallback, self._flushed, self._warn, clock)
        self._retention = Retention(state, store, folders.of, self._checkpoint_removed, self._after_commit, self._warn)

    # --------------------------------------------------------------------------------------- running

    def run(self) -> RunResult:
        """Work until the study ends, is interrupted, or cannot go on; no attempt is waited for any more then.

        Raises:
            StudyNotFound: if the study was deleted: nothing is left to be concluded.
        """
        try:
            with self._interrupts.listening():
                try:
                    self._fill_workers()
                    self._commit()
                    while not self._is_done():
                        self._turn()
                except StudyNotFound:
                    raise
                except GivenUp as problem:
                    self._warn(f"The study ends without what could not be written. {problem}")
                    self._give_up()
                except HpoError as problem:
                    self._problem = self._problem or problem
                    with contextlib.suppress(GivenUp):
                        self._flushed()
                    self._give_up()
            self._report_backup(self._backups.finish())
        finally:
            self._interrupts.close()
        if self._interrupts.count:
            return RunResult("interrupted", self._interrupts.by, self._problem, self._interrupts.is_urgent)
        reason = self._finish or self._state.ended or f"{self._hindrance()}, {type(self._problem).__name__}"
        return RunResult(reason, problem=self._problem)

    def _hindrance(self) -> str:
        if isinstance(self._problem, BackendError):
            return "no trial can be run"
        is_option = self._proposals.problem is not None or isinstance(self._problem, OptionError)
        return "an option cannot be used" if is_option else "the script cannot be tuned"

    def interrupt(self, limit_s: float = math.inf, by: signal.Signals = signal.SIGINT) -> None:
        """Once: pause running trials at their next report and stop. Twice: stop now. Safe in a signal handler.

        Args:
            limit_s: trials that have not paused after this time are killed; they go on from their last checkpoint
                later.
            by: what the run's result will name.
        """
        self._interrupts.interrupt(limit_s, by)

    def _warn(self, message: str) -> None:
        self._observer.say(message, warning=True)

    def _report_backup(self, problem: StudyError | None) -> None:
        if problem is not None:
            self._warn(str(problem))

    @property
    def _is_ending(self) -> bool:
        """Nothing is to be started any more."""
        return bool(self._interrupts.count) or self._problem is not None or self._finish is not None

    def _give_up(self) -> None:
        """End like a launcher that is killed: the next one goes on from what is in the journal."""
        for attempt in self._attempts.values():
            why = "the study was interrupted"
            self._state.handle(AttemptEnded(self._now, attempt.trial_id, attempt.attempt, Outcome.INTERRUPTED, why))
            with contextlib.suppress(HpoError):  # the backend is closed in any case
                self._backend.stop(attempt.trial_id, attempt.attempt, grace_s=1.0)

    def _is_done(self) -> bool:
        return self._is_ending and not self._attempts and not self._batch.events

    def _turn(self) -> None:
        failpoint("coordinator.turn")
        waitables = [*self._server.waitables(), *self._backend.waitables(), *self._proposals.waitables()]
        ready = wait([*waitables, self._interrupts.waitable], _TICK_S)
        now = self._clock()
        self._listened += min(now - self._looked_at, _LONGEST_TURN_S)
        self._looked_at = now
        if self._interrupts.waitable in ready:
            self._interrupts.drain()
        self._receive([r for r in ready if self._server.owns(r)])
        self._server.keep_listening()
        self._follow_backend()
        answer = self._proposals.take()
        self._problem = self._problem or self._proposals.problem
        if answer is not None and not self._is_ending:
            self._use(answer)
        if self._finish is None:
            # Also while all workers are busy.
            self._finish = self._state.closing_reason(self._now)
        self._endings.obey(self._listened, self._finish, self._problem)
        self._endings.check_timeouts(self._listened, self._epoch_timeout, self._trial_timeout)
        self._fill_workers()
        self._commit()
        self._report_backup(self._backups.tick())
        self._observer.tick(self._state)

    @property
    def _now(self) -> float:
        return self._clock() - self._zero

    def _handle(self, event: Event) -> list[Decision]:
        decisions = self._state.handle(event)
        self._batch.events.append(event)
        self._observer.event(event, decisions, self._state)
        for decision in decisions:
            if isinstance(decision, DropCheckpoint):
                self._retention.drop(decision)
        return decisions

    def _request_pause(self, trial_id: int, why: str) -> None:
        self._handle(PauseRequested(self._now, trial_id, why))

    def _checkpoint_removed(self, trial_id: int, reason: str) -> None:
        self._handle(CheckpointRemoved(self._now, trial_id, reason))

    def _after_commit(self, effect: Callable[[], None]) -> None:
        self._batch.effects.append(effect)

    def _commit(self) -> None:
        """Make the turn's events durable, then do what was decided."""
        while self._batch.events or self._batch.effects:
            batch, self._batch = self._batch, _Batch()
            self._starting = 0
            self._writer.append(batch.events)
            self._proposals.follow(batch.events)
            failpoint("coordinator.before_effects")
            for effect in batch.effects:
                effect()

    # -------------------------------------------------------------------------------------- messages

    def _receive(self, ready: Sequence[Any]) -> None:
        for client in ready:
            try:
                messages = self._server.receive(client)
            except ChannelError as problem:
                self._warn(f"A client was dropped: {problem}")
                continue
            for message in messages:
                try:
                    self._take(message, client)
                except HpoError as problem:
                    self._warn(f"Trial {message.trial_id}: {problem}")
                    self._reply(client, Answer("stop", str(problem)))

    def _take(self, message: Message, client: ClientConnection) -> None:
        attempt = self._attempts.get(message.trial_id)
        if attempt is None or attempt.attempt != message.attempt:
            # The attempt was given up: whatever it says is too late.
            if not isinstance(message, (Saved, Ended)):
                self._reply(client, Answer("stop", "this attempt was given up"))
            return
        self._endings.heard(attempt, self._listened)
        if isinstance(message, Report):
            self._take_report(message, client)
        elif isinstance(message, Hello):
            attempt.has_greeted = True
            self._reply(client, self._welcome(self._state.trial(message.trial_id)))
        elif isinstance(message, Saved):
            folder = self._folders.of(self._state.trial(message.trial_id))
            checkpoint = self._store.relative(folder, message.checkpoint)
            self._handle(CheckpointSaved(self._now, message.trial_id, message.attempt, checkpoint))
            self._room.not_wanted(message.trial_id)
        elif isinstance(message, Ended):
            attempt.ended = message
        else:
            self._take_problem(message, client, attempt)

    def _take_report(self, message: Report, client: ClientConnection) -> None:
        event = Reported(
            self._now, message.trial_id, message.attempt, message.resource, message.value, message.metrics, message.cost
        )
        told = next(d for d in self._handle(event) if isinstance(d, Told))
        decision = "complete" if told.completed else told.verdict.value
        self._reply(client, Answer(decision, told.reason))

    def _take_problem(self, message: Problem, client: ClientConnection, attempt: Attempt) -> None:
        """A script that cannot be tuned: no other trial will fare better, unless some already did."""
        if message.kind == DiskFull.__name__:
            self._wait_for_room(message, client, attempt)
            return
        self._reply(client, Answer("stop", message.message))
        if message.kind == CheckpointError.__name__:
            if self._state.trials[message.trial_id].status is not TrialStatus.PAUSING:
                # It could not be read; what cannot be written leaves the last one as it is.
                self._checkpoint_removed(message.trial_id, message.message)
            attempt.fate = (Outcome.LOST, message.message)
            self._warn(f"Trial {message.trial_id}: {message.message}")
            return
        attempt.fate = (Outcome.FAILED, f"{message.kind}: {message.message}")
        if not any(trial.curve for trial in self._state.trials.values()):
            named: Any = getattr(errors, message.kind, None)
            kind = named if isinstance(named, type) and issubclass(named, HpoError) else HpoError
            self._problem = kind(message.message)

    def _wait_for_room(self, message: Problem, client: ClientConnection, attempt: Attempt) -> None:
        """A trial holds its state in memory until the disk has room for it; meanwhile nothing is started."""
        if self._problem is not None:
            attempt.fate = (Outcome.INTERRUPTED, message.message)
            self._reply(client, Answer("stop", "the study has ended"))
            return
        self._room.wanted(message.trial_id, message.message)
        self._reply(client, Answer("continue", "the study waits for room on the disk"))

    def _welcome(self, trial: Trial) -> Welcome:
        checkpoint = trial.checkpoint if trial.resume_from else None  # it may have been found damaged since
        best = self._state.best_any
        folder = self._folders.of(trial)
        return Welcome(
            metric=self._state.options.metric,
            mode=self._state.options.mode,
            max_t=self._state.scheduler.max_t,
            resource=self._resource,
            from_resource=0 if checkpoint is None else trial.resume_from,
            checkpoint_path=None
            if checkpoint is None
            else os.path.relpath(self._store.path(checkpoint), folder.resolve()),
            checkpoint_sha256=None if checkpoint is None else checkpoint.sha256,
            best=None if best is None else best[2],
        )

    def _reply(self, client: ClientConnection, reply: Welcome | Answer) -> None:
        def send() -> None:
            failpoint("coordinator.before_reply")
            # A client that does not take its answer is dropped; its process will be found dead or hung.
            with contextlib.suppress(ChannelError):
                self._server.reply(client, reply)

        self._after_commit(send)

    # --------------------------------------------------------------------------------------- attempts

    def _follow_backend(self) -> None:
        happened = self._backend.poll()
        gone = {(h.trial_id, h.attempt) for h in happened if isinstance(h, Exit)}
        if gone:
            self._drain_messages(gone)
        for event in happened:
            if isinstance(event, Started):
                self._take_start(event)
            else:
                self._take_exit(event)

    def _take_start(self, start: Started) -> None:
        trial = self._state.trials[start.trial_id]
        folder = self._folders.name(trial) if trial.folder is None else None
        self._handle(AttemptStarted(self._now, trial.id, start.attempt, start.pid, start.worker, folder))

    def _drain_messages(self, gone: Set[tuple[int, int]]) -> None:
        """What a process sent before it ended comes before its end. Others, who may never stop talking, wait."""
        for _ in range(_MOST_DRAINS):
            ready = wait(self._server.waitables(), 0)
            last_words = [r for r in ready if getattr(r, "identity", None) in (None, *gone)]
            if not last_words:
                return
            self._receive(last_words)

    def _take_exit(self, end: Exit) -> None:
        attempt = self._attempts.get(end.trial_id)
        if attempt is None or attempt.attempt != end.attempt:
            return
        del self._attempts[end.trial_id]
        self._room.not_wanted(end.trial_id)
        log = self._folders.of(self._state.trials[end.trial_id]) / "trial.log"
        outcome, error = attempt.judge(end, log, self._interrupts.count > 0)
        self._start_again_at = self._clock() + _REFUSED_S if end.refused else -math.inf
        if end.refused and outcome is Outcome.LOST and self._attempts:
            # Those that run have what there is. This one is not to blame, and is tried again as often as need be.
            outcome = Outcome.INTERRUPTED
            self._warn(f"{error} The study goes on with what runs.")
        self._handle(AttemptEnded(self._now, end.trial_id, end.attempt, outcome, error))
        if outcome is not Outcome.COMPLETED:
            self._retention.sweep_after(end.trial_id)
        self._retention.keep_within_budget()
        if self._state.repeated_error is not None and self._problem is None:
            first, error = self._state.repeated_error
            log = self._folders.of(self._state.trials[first]) / "trial.log"
            self._problem = RepeatedFailure(
                "One trial after the other failed with the same error, and none reported in between: "
                f"{error.rstrip('. ')}. The whole traceback is in {log}. Correct its cause and start again."
            )

    # ----------------------------------------------------------------------------------------- work

    def _fill_workers(self) -> None:
        if self._is_ending or self._room.waiting or not self._proposals.has_begun:
            return
        if self._clock() < self._start_again_at:
            return
        # The slot for which a suggestion is being computed is taken; others may resume trials meanwhile.
        if self._backend.free_slots > self._starting + self._proposals.is_wanted and self._room.is_lacking():
            return
        while self._backend.free_slots > self._starting + self._proposals.is_wanted:
            ready = WorkerReady(self._now)
            (decision,) = self._state.handle(ready)
            if isinstance(decision, Finish):
                self._finish = decision.reason
                return
            if not isinstance(decision, (Start, Resume, SuggestionWanted)):
                break
            self._batch.events.append(ready)
            self._observer.event(ready, (decision,), self._state)
            if isinstance(decision, SuggestionWanted):
                if answer := self._proposals.want(decision):
                    self._use(answer)
            else:
                self._launch(decision)
        self._proposals.think_ahead()

    def _flushed(self) -> list[Event]:
        """Commit the turn's events so far."""
        events, self._batch.events = self._batch.events, []
        self._writer.append(events)
        return events

    def _use(self, answer: Answered) -> None:
        for decision in self._handle(suggested(self._now, answer.request.trial_id, answer.suggestion)):
            if isinstance(decision, (Start, Resume)):
                self._launch(decision)

    def _launch(self, decision: Start | Resume) -> None:
        self._starting += 1
        now = self._listened
        self._attempts[decision.trial_id] = Attempt(decision.trial_id, decision.attempt, now, now)

        def start() -> None:
            failpoint("coordinator.before_start")
            folder = self._folders.of(self._state.trials[decision.trial_id])
            environment = self._server.environment(decision.trial_id, decision.attempt, folder)
            self._backend.start(self._jobs.job(decision, folder, environment))
            failpoint("coordinator.started")

        self._after_commit(start)
