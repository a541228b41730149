"""How running attempts end from outside: what is overdue, and everything when the study ends or is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import HpoError
from lightning_hpo.runtime.attempts import Attempt
from lightning_hpo.runtime.interrupts import TERM_LIMIT_S, Interrupts

_GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL for a trial."""
_SHORT_GRACE_S = 1.0
"""The same when the study ends."""
_PATIENCE = 2.0
"""When the study ends by itself, a trial has so many times the longest silence of any trial to report once more."""

_MOST_PATIENCE_S = 300.0
"""No more than this: a limit in time is often set just below that of a batch system. Who owes no report any more, but
is writing a large checkpoint or tests what it has trained, has no less."""
_LEAVING_S = 300.0
"""After its last word a process has this time to end: loggers may still have to send what they have."""


class Stops(Protocol):
    """What ends a process."""

    def stop(self, trial_id: int, attempt: int, grace_s: float) -> None: ...


class Endings:
    """Lets running trials pause at their next reports when nothing more is to be started, and ends what does not.

    Args:
        state: the study.
        attempts: what runs.
        backend: ends it.
        interrupts: of the run.
        without_room: trials that wait for room on the disk, and since when.
        request: hands in that a trial is to pause: its number and why.
        say: tells people.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self,
        state: StudyState,
        attempts: Mapping[int, Attempt],
        backend: Stops,
        interrupts: Interrupts,
        without_room: Mapping[int, float],
        request: Callable[[int, str], object],
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._attempts = attempts
        self._backend = backend
        self._interrupts = interrupts
        self._request = request
        self._say = say
        self._clock = clock
        self._without_room = without_room
        self._longest_silence = 0.0
        self._is_interrupted = False
        self._ended_at: float | None = None
        """When the study ended by itself, on the clock; likewise on the clock of the attempts."""
        self._asked_at = 0.0

    def heard(self, attempt: Attempt, now: float) -> None:
        """It has said something, at this time on the clock of the attempts."""
        self._longest_silence = max(self._longest_silence, now - attempt.heard_at)
        attempt.heard_at = now

    def check_timeouts(self, now: float, epoch_timeout: float | None, trial_timeout: float | None) -> None:
        """End what has been silent or has run for too long, or does not leave although it has said that it is over."""
        for attempt in self._attempts.values():
            if attempt.is_sent_away:
                continue
            limit = epoch_timeout
            if limit is not None and not self._owes_a_report(attempt):
                limit = max(limit, _MOST_PATIENCE_S)
            overdue = attempt.overdue(now, limit, trial_timeout)
            if overdue is None and attempt.ended is not None and now - attempt.heard_at > _LEAVING_S:
                overdue = attempt.ended.outcome, "it did not leave after its last word"
            if overdue is not None:
                self._end(attempt, *overdue, _GRACE_S)

    def obey(self, now: float, finish: str | None, problem: HpoError | None) -> None:
        """Do what is to be done in this turn.

        Args:
            now: time on the clock of the attempts.
            finish: why the study has ended by itself.
            problem: the error that has ended it: nothing that runs can be of use.
        """
        if self._interrupts.count and not self._is_interrupted:
            self._is_interrupted = True
            stuck = f" {len(self._without_room)} wait for room on the disk, for {TERM_LIMIT_S:.0f} s at most."
            self._say(f"{self._told_to_pause()}{stuck if self._without_room else ''} Press Ctrl-C again to stop now.")
            self._ask_to_pause("the study was interrupted")
        if finish is not None and problem is None and self._ended_at is None:
            self._ended_at, self._asked_at = self._clock(), now
            if self._running() and not self._is_interrupted:
                self._say(f"The study ends: {finish}. {self._told_to_pause()} Press Ctrl-C twice to stop now.")
                self._ask_to_pause(f"the study ended: {finish}")
        for attempt in self._attempts.values():
            why = None if attempt.is_sent_away else self._reason_to_end(attempt, now, finish, problem)
            if why is not None:
                self._end(attempt, Outcome.INTERRUPTED, why, _SHORT_GRACE_S)

    def _reason_to_end(self, attempt: Attempt, now: float, finish: str | None, problem: HpoError | None) -> str | None:
        if self._interrupts.is_urgent:
            return "the study was interrupted"
        since = self._without_room.get(attempt.trial_id)
        if since is not None and self._left(since) <= 0.0:
            return "the disk had no room for its checkpoint"
        is_leaving = self._status(attempt) in (TrialStatus.PAUSING, TrialStatus.STOPPING)
        if problem is not None:
            return None if is_leaving else f"the study ended: {problem}"
        # Large checkpoints take their time.
        patience = _MOST_PATIENCE_S
        if not is_leaving:
            patience = max(TERM_LIMIT_S, min(_PATIENCE * self._longest_silence, _MOST_PATIENCE_S))
        is_over = self._ended_at is not None and now - max(attempt.heard_at, self._asked_at) > patience
        return f"the study ended: {finish}" if is_over else None

    def _left(self, since: float) -> float:
        """Seconds for which a trial that waits for room since then may go on waiting."""
        left = self._interrupts.left(since)
        if self._ended_at is None:
            return left
        return min(left, max(since, self._ended_at) + TERM_LIMIT_S - self._clock())

    def _status(self, attempt: Attempt) -> TrialStatus:
        return self._state.trials[attempt.trial_id].status

    def _owes_a_report(self, attempt: Attempt) -> bool:
        trial = self._state.trials[attempt.trial_id]
        return trial.status is TrialStatus.RUNNING and not self._state.is_trained_to_the_end(trial)

    def _running(self) -> list[Attempt]:
        return [a for a in self._attempts.values() if self._status(a) is TrialStatus.RUNNING]

    def _told_to_pause(self) -> str:
        number = len(self._running())
        if number == 1:
            return "Pausing the running trial at its next report."
        return f"Pausing {number} running trials at their next report." if number else "No trial is in training."

    def _ask_to_pause(self, why: str) -> None:
        for attempt in self._running():
            self._request(attempt.trial_id, why)

    def _end(self, attempt: Attempt, outcome: Outcome, why: str, grace_s: float) -> None:
        attempt.is_sent_away = True
        if attempt.ended is None:  # else it is known how it ended
            attempt.fate = attempt.fate or (outcome, why)
        self._backend.stop(attempt.trial_id, attempt.attempt, grace_s)
