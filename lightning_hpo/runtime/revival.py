"""A searcher's process that is followed by another one when it dies or fails: all that it knew is in the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_hpo.core.events import Event
from lightning_hpo.core.searcher import SuggestRequest
from lightning_hpo.errors import HpoError, OptionError
from lightning_hpo.runtime.suggesting import Answered, ProcessHost, SearcherHost

MOST_FAILURES = 3
"""Without a suggestion in between: what kills every process, too little memory say, will kill the next one too."""


class RevivedHost:
    """A searcher in a process, and in the next one if that dies or raises.

    A process takes seconds to begin, and trials do not wait for one that takes over: until then ``spare`` answers.

    Args:
        first: the process, which knows the study already.
        again: begins another one in a new interpreter and tells it what is in the journal.
        spare: answers at once.
        say: tells people; the second argument says whether it is a warning.
    """

    def __init__(
        self,
        first: ProcessHost,
        again: Callable[[], ProcessHost],
        spare: SearcherHost,
        say: Callable[[str, bool], None],
    ) -> None:
        self._process: ProcessHost | None = first
        self._again = again
        self._spare = spare
        self._say = say
        self._failures = 0
        """Since the last suggestion."""
        self._is_successor = False
        self._was_usable = False
        """A process has found the options usable."""

    @property
    def has_begun(self) -> bool:
        return self._is_successor or (self._process is not None and self._process.has_begun)

    @property
    def is_busy(self) -> bool:
        return self._spare.is_busy or (self._process is not None and self._process.is_busy)

    def follow(self, events: Sequence[Event]) -> None:
        if self._process is not None:
            self._process.follow(events)

    def ask(self, request: SuggestRequest) -> None:
        process = self._asked
        (self._spare if process is None else process).ask(request)

    def waitables(self) -> Sequence[Any]:
        """None while answers come at once; a process that takes over is looked at whenever :meth:`poll` is called."""
        return () if self._asked is None else self._asked.waitables()

    def poll(self) -> Answered | None:
        answer = self._spare.poll()
        if answer is not None or self._process is None:
            return answer
        was_asked = self._asked is not None
        try:
            answer = self._process.poll()
        except HpoError as problem:
            # A wrong option is as wrong for the next process; but where one was usable, a next that finds it wrong has
            # met with something new: a GPU that is gone, say.
            if isinstance(problem, OptionError) and (self._process.has_begun or not self._was_usable):
                raise
            # An exception in a fit may be due to what that process had come to, such as a full GPU.
            self._follow_up(self._process, problem)
            return None
        self._was_usable |= self._process.has_begun
        if self._asked is not None and not was_asked:
            self._say("The searcher is there again: suggestions come from its model.", False)
        if answer is not None:
            self._failures = 0
        return answer

    def recommend(self, seconds_left: Callable[[], float]) -> tuple[int, dict[str, Any], float, float, int] | None:
        """See :meth:`ProcessHost.recommend`."""
        return None if self._process is None else self._process.recommend(seconds_left)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    @property
    def _asked(self) -> ProcessHost | None:
        """The process, if it is to answer."""
        is_asked = self._process is not None and (self._process.has_begun or not self._is_successor)
        return self._process if is_asked else None

    def _follow_up(self, dead: ProcessHost, problem: HpoError) -> None:
        dead.close()
        self._process, self._is_successor = None, True
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self._say(
                f"The searcher failed {self._failures} times without a suggestion in between; the study goes on with "
                f"random search to its end. {problem}",
                True,
            )
            return
        failed = "failed" if self._failures == 1 else "failed again"
        self._say(f"The searcher {failed}; until a new process takes over, random search goes on. {problem}", True)
        try:
            self._process = self._again()
        except (HpoError, OSError) as refused:
            self._say(f"No new process could be started; the study goes on with random search. {refused}", True)
