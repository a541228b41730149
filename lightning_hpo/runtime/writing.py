"""Commits that wait: while the journal cannot be written, the trials that have reported wait, so no result is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Protocol

from lightning_hpo.core.events import Event
from lightning_hpo.errors import StudyError, StudyNotFound
from lightning_hpo.runtime.interrupts import Interrupts

_RETRY_S = 2.0


class Log(Protocol):
    """The journal, as far as it is needed here."""

    def append(self, events: Sequence[Event]) -> None: ...


class GivenUp(Exception):
    """The run was interrupted and the journal cannot be written: events are lost, as if the launcher had been killed.

    No error of the package: nobody but the run itself may catch it.
    """


class Writer:
    """Appends events to the journal, and waits if that cannot be done, until an interrupted run has no time any more.

    Args:
        journal: where to.
        interrupts: of the run.
        say: tells people; the second argument says whether it is a warning.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self,
        journal: Log,
        interrupts: Interrupts,
        say: Callable[[str, bool], None],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._interrupts = interrupts
        self._say = say
        self._clock = clock

    def append(self, events: Sequence[Event]) -> None:
        """When this returns, the events are on disk.

        Raises:
            GivenUp: if they are not, and nobody is to wait for it any more.
            StudyNotFound: if the study was deleted, which waiting does not mend.
        """
        since: float | None = None
        has_answered = False
        while True:
            try:
                self._journal.append(events)
            except StudyNotFound:
                raise
            except StudyError as problem:
                if since is None:
                    since = self._clock()
                    self._say(f"The study waits: {problem}", True)
                left = self._interrupts.left(since)
                if left <= 0.0:
                    raise GivenUp(str(problem)) from problem
                if left < math.inf and not has_answered:
                    has_answered = True
                    self._say(
                        f"Interrupted, but the study cannot be written. It tries for {left:.0f} s more, and then ends "
                        "without what its trials have reported since. Press Ctrl-C again to end it now.",
                        False,
                    )
                wait([self._interrupts.waitable], min(_RETRY_S, left))
                self._interrupts.drain()
            else:
                if since is not None:
                    self._say("The study can be written again and goes on.", False)
                return
