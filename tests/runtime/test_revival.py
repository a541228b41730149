"""When a searcher's process dies, another one takes over; until it can, and if none can, others answer at once."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_hpo.core.events import Event, WorkerReady
from lightning_hpo.core.searcher import Suggestion, SuggestRequest
from lightning_hpo.errors import HpoError, OptionError, SearcherFailed
from lightning_hpo.runtime.revival import MOST_FAILURES, RevivedHost
from lightning_hpo.runtime.suggesting import Answered

REQUEST = SuggestRequest(0, 0, 1, None)
DEATH = SearcherFailed("The searcher process died.")
NO_GPU = OptionError("searcher.device=cuda: no GPU. Set searcher.device to cpu.")


class Process:
    """A searcher's process, which begins, answers and fails when the test says so."""

    def __init__(self, name: str = "the model", begun: bool = False) -> None:
        self.name, self.begins, self.has_begun = name, begun, False
        self.asked: list[SuggestRequest] = []
        self.followed: list[Event] = []
        self.failure: HpoError | None = None
        self.closed = False
        self._answer: Answered | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self.asked)

    def follow(self, events: Any) -> None:
        self.followed += events

    def ask(self, request: SuggestRequest) -> None:
        self.asked.append(request)

    def answer(self) -> None:
        self._answer = Answered(self.asked.pop(), Suggestion({"x": 0.25}, self.name), seconds=1.0)

    def fail(self, failure: HpoError) -> None:
        self.failure = failure

    def waitables(self) -> list[Any]:
        return [] if self.failure is not None else [self]

    def poll(self) -> Answered | None:
        if self.failure is not None:
            raise self.failure
        self.has_begun = self.begins
        answer, self._answer = self._answer, None
        return answer

    def recommend(self, seconds_left: Any) -> Any:
        return None if self.closed else (7, {"x": 0.25}, 0.5, 0.1, 0)

    def close(self) -> None:
        self.closed = True


class Spare(Process):
    """Answers at once."""

    def ask(self, request: SuggestRequest) -> None:
        super().ask(request)
        self.answer()


class Revived:
    """The host, and every process it has had."""

    def __init__(self, begun: bool = True) -> None:
        self.processes = [Process(begun=begun)]
        self.said: list[tuple[str, bool]] = []
        self.refusal: OSError | None = None
        self.host = RevivedHost(
            self.processes[0],  # type: ignore[arg-type]
            self._again,  # type: ignore[arg-type]
            Spare("random", begun=True),
            lambda message, warning: self.said.append((message, warning)),
        )
        assert self.host.poll() is None

    def _again(self) -> Process:
        if self.refusal is not None:
            raise self.refusal
        self.processes.append(Process())
        return self.processes[-1]

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def die(self) -> None:
        self.process.fail(DEATH)
        assert self.host.poll() is None

    def begin(self) -> None:
        self.process.begins = True
        assert self.host.poll() is None

    def who_answers(self) -> str:
        self.host.ask(REQUEST)
        if self.process.asked:
            self.process.answer()
        answer = self.host.poll()
        assert answer is not None and answer.suggestion is not None
        return answer.suggestion.reason


@pytest.fixture
def revived() -> Revived:
    return Revived()


def test_while_the_next_process_begins_random_search_answers_and_nobody_waits(revived: Revived) -> None:
    assert revived.who_answers() == "the model"
    revived.die()
    assert len(revived.processes) == 2 and revived.processes[0].closed
    assert revived.host.has_begun and not revived.host.is_busy and not revived.host.waitables()
    assert [revived.who_answers() for _ in range(3)] == ["random"] * 3
    assert [warning for _, warning in revived.said] == [True]
    revived.begin()
    assert revived.host.waitables()
    assert revived.who_answers() == "the model"
    assert revived.said[1:] == [("The searcher is there again: suggestions come from its model.", False)]


def test_the_next_process_follows_the_study_before_it_is_asked(revived: Revived) -> None:
    revived.die()
    revived.host.follow([WorkerReady(1.0)])
    assert revived.process.followed == [WorkerReady(1.0)] and not revived.processes[0].followed


def test_a_question_dies_with_its_process(revived: Revived) -> None:
    revived.host.ask(REQUEST)
    assert revived.host.is_busy
    revived.die()
    assert not revived.host.is_busy, "nobody would ever ask again"


def test_three_deaths_without_a_suggestion_in_between_are_enough(revived: Revived) -> None:
    for _ in range(MOST_FAILURES - 1):
        revived.die()
        revived.begin()
    revived.die()
    assert len(revived.processes) == MOST_FAILURES and revived.process.closed
    assert "failed 3 times without a suggestion in between" in revived.said[-1][0] and revived.said[-1][1]
    assert revived.who_answers() == "random" and not revived.host.waitables()
    assert revived.host.recommend(lambda: 1.0) is None


def test_a_suggestion_in_between_makes_up_for_the_deaths_before(revived: Revived) -> None:
    for _ in range(3 * MOST_FAILURES):
        revived.die()
        revived.begin()
        assert revived.who_answers() == "the model"


def test_the_recommendation_is_that_of_the_process_that_took_over(revived: Revived) -> None:
    revived.die()
    assert revived.host.recommend(lambda: 1.0) == (7, {"x": 0.25}, 0.5, 0.1, 0)


def test_an_exception_that_the_process_tells_of_counts_like_its_death(revived: Revived) -> None:
    """A GPU that is full is not for the next process; an exception that comes back three times is for all."""
    for failure in range(1, MOST_FAILURES + 1):
        assert len(revived.processes) == failure
        revived.begin()
        revived.process.fail(SearcherFailed("The searcher raised: OutOfMemoryError: CUDA out of memory."))
        assert revived.host.poll() is None
        assert "CUDA out of memory" in revived.said[-1][0]
    assert revived.who_answers() == "random" and len(revived.processes) == MOST_FAILURES


def test_an_option_that_could_be_used_before_does_not_end_the_study(revived: Revived) -> None:
    revived.die()
    revived.process.fail(NO_GPU)
    assert revived.host.poll() is None
    assert "no GPU" in revived.said[-1][0] and revived.who_answers() == "random"


def test_one_of_which_nothing_was_known_does() -> None:
    revived = Revived(begun=False)
    revived.die()
    revived.process.fail(NO_GPU)
    with pytest.raises(OptionError):
        revived.host.poll()


def test_a_system_that_gives_no_other_process_is_no_end_either(revived: Revived) -> None:
    revived.refusal = OSError("Cannot allocate memory")
    revived.die()
    assert revived.said[-1] == (
        "No new process could be started; the study goes on with random search. Cannot allocate memory",
        True,
    )
    assert revived.who_answers() == "random"
