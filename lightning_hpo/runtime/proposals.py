"""What the searcher is asked, and when: on demand, and ahead of time while all workers are busy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_hpo.core.events import Event, SuggestionWanted
from lightning_hpo.core.searcher import SuggestRequest
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import OptionError, SearcherFailed
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.suggesting import Answered, SearcherHost

_FRESHNESS = 5.0
"""An answer computed ahead is renewed after so many times the time it took, if there is new data."""


class Proposals:
    """Asks the searcher; if it fails, the fallback takes over.

    Args:
        state: the study.
        host: where the searcher lives.
        fallback: makes the searcher that takes over if the host fails.
        flush: commits the events that are not yet in the journal and returns them: the searcher follows the journal,
            it never runs ahead of it.
        warn: tells people.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self,
        state: StudyState,
        host: SearcherHost,
        fallback: Callable[[], SearcherHost],
        flush: Callable[[], list[Event]],
        warn: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._host = host
        self._fallback = fallback
        self._flush = flush
        self._warn = warn
        self._clock = clock
        self._wanted: SuggestionWanted | None = None
        self._ahead: Answered | None = None
        """An answer computed while all workers were busy."""
        self._ahead_data = -1
        """Number of observations the last request could see."""
        self._asked_at = -math.inf
        self._has_fallen_back = False
        self.problem: OptionError | None = None
        """An option that cannot be used, as only the searcher could find out: nobody takes over, the study must end."""

    @property
    def has_begun(self) -> bool:
        """The searcher has found its options usable."""
        return self._host.has_begun

    @property
    def is_wanted(self) -> bool:
        """A worker waits for a suggestion."""
        return self._wanted is not None

    def waitables(self) -> Sequence[Any]:
        return self._host.waitables()

    def follow(self, events: Sequence[Event]) -> None:
        """The searcher learns what was committed."""
        self._host.follow(events)

    def want(self, wanted: SuggestionWanted) -> Answered | None:
        """A worker wants a suggestion; returns it if it is there already, else :meth:`take` will bring it."""
        self._wanted = wanted
        answer, self._ahead = self._ahead, None
        request = self._state.request(wanted)
        if answer is not None and answer.request == request:
            return self._given(answer)
        return None if self._host.is_busy else self._ask(request)

    def take(self) -> Answered | None:
        """The suggestion a worker waits for, if it has come."""
        if self.problem is not None:
            return None
        try:
            answer = self._host.poll()
        except OptionError as problem:
            self.problem = problem
            return None
        except SearcherFailed as problem:
            request = self._state.request(self._wanted) if self._wanted is not None else None
            return self._replace_searcher(problem, request)
        request = None if self._wanted is None else self._state.request(self._wanted)
        if answer is None:
            # A question is lost with the process it was put to.
            return None if request is None or self._host.is_busy else self._ask(request)
        if request is None:
            self._ahead = answer
            return None
        if answer.request == request:
            return self._given(answer)
        # It was computed ahead for another bracket, or before a promotion came in between.
        return self._ask(request)

    def think_ahead(self) -> None:
        """While all workers are busy, let the searcher prepare what the next free one will need."""
        if self._wanted is not None or self._host.is_busy or not self._host.waitables():
            return
        if self._ahead is not None:
            # An answer from fresher data is worth a little of the machine, not all of it.
            is_fresh = self._ahead_data == len(self._state.data)
            if is_fresh or self._clock() < self._asked_at + _FRESHNESS * self._ahead.seconds:
                return
        request = self._state.next_request()
        if request is not None:
            self._ask(request)

    def _given(self, answer: Answered) -> Answered:
        self._wanted = None
        return answer

    def _ask(self, request: SuggestRequest) -> Answered | None:
        self._ahead_data = len(self._state.data)
        self._asked_at = self._clock()
        # The searcher must have seen what this turn has brought.
        events = self._flush()
        try:
            self._host.follow(events)
            failpoint("coordinator.before_suggestion")
            self._host.ask(request)
        except OptionError as problem:
            self.problem = problem
            return None
        except Exception as problem:
            return self._replace_searcher(problem, request)
        return None if self._host.waitables() else self.take()

    def _replace_searcher(self, problem: Exception, request: SuggestRequest | None) -> Answered | None:
        if self._has_fallen_back:
            raise problem
        self._has_fallen_back = True
        self._warn(f"The searcher failed; the study goes on with random search. {problem}")
        self._host.close()
        self._host = self._fallback()
        self._ahead = None
        return None if request is None else self._ask(request)
