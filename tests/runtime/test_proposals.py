"""When the searcher is asked, which of its answers are used, and what happens if it fails."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_hpo.core.events import Event, SuggestionWanted, WorkerReady
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Suggestion, SuggestRequest, suggested
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import OptionError, SearcherFailed
from lightning_hpo.runtime.proposals import Proposals
from lightning_hpo.runtime.suggesting import Answered


class Host:
    """A searcher in another process, which answers when the test lets it."""

    has_begun = True

    def __init__(self, name: str, inline: bool = False) -> None:
        self.name, self.inline = name, inline
        self.asked: list[SuggestRequest] = []
        self.answered: list[SuggestRequest] = []
        self.followed: list[Event] = []
        self.failure: Exception | None = None
        self.closed = False
        self._answer: Answered | None = None

    @property
    def is_busy(self) -> bool:
        return len(self.asked) > len(self.answered)

    def follow(self, events: Any) -> None:
        self.followed += events

    def ask(self, request: SuggestRequest) -> None:
        self.asked.append(request)
        if self.inline:
            self.answer()

    def answer(self) -> None:
        request = self.asked[-1]
        self.answered.append(request)
        self._answer = Answered(request, Suggestion({"x": 0.25}, self.name), seconds=1.0)

    def waitables(self) -> list[Any]:
        return [] if self.inline else [self]

    def poll(self) -> Answered | None:
        if self.failure is not None:
            raise self.failure
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        self.closed = True


class Asked:
    """A study whose workers are busy or free as the test says."""

    def __init__(self) -> None:
        self.state = StudyState(
            SearchSpace({"x": uniform(0, 1)}),
            StudyOptions(metric="m", algorithm="random", max_t=9, points_to_evaluate=[]),
        )
        self.host, self.spare = Host("the searcher"), Host("the fallback", inline=True)
        self.uncommitted: list[Event] = [WorkerReady(0.0)]
        self.warnings: list[str] = []
        self.now = 0.0
        self.proposals = Proposals(
            self.state, self.host, lambda: self.spare, self._flush, self.warnings.append, lambda: self.now
        )

    def _flush(self) -> list[Event]:
        flushed, self.uncommitted = self.uncommitted, []
        return flushed

    def want(self) -> Answered | None:
        (decision,) = self.state.handle(WorkerReady(self.now))
        assert isinstance(decision, SuggestionWanted)
        return self.proposals.want(decision)

    def use(self, answer: Answered) -> None:
        self.state.handle(suggested(self.now, answer.request.trial_id, answer.suggestion))


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_the_searcher_is_asked_when_a_worker_is_free_and_has_seen_what_happened(asked: Asked) -> None:
    assert asked.want() is None and asked.proposals.is_wanted
    assert asked.host.followed == [WorkerReady(0.0)], "it must not be asked before it knows this turn's events"
    assert asked.proposals.take() is None, "it has not answered yet"
    asked.host.answer()
    answer = asked.proposals.take()
    assert answer is not None and answer.request.trial_id == 0
    assert not asked.proposals.is_wanted


def test_an_answer_computed_ahead_is_there_at_once(asked: Asked) -> None:
    asked.proposals.think_ahead()
    asked.host.answer()
    assert asked.proposals.take() is None, "nobody waits for it yet"
    answer = asked.want()
    assert answer is not None and len(asked.host.asked) == 1


def test_an_answer_for_a_trial_that_is_taken_by_now_is_asked_for_again(asked: Asked) -> None:
    asked.proposals.think_ahead()
    asked.host.answer()
    asked.proposals.take()
    asked.state.handle(suggested(0.0, 0, Suggestion({"x": 0.5}, "attached")))  # trial 0 came from elsewhere
    assert asked.want() is None
    assert [request.trial_id for request in asked.host.asked] == [0, 1]


def test_a_fresh_answer_is_not_computed_again_while_nothing_is_new(asked: Asked) -> None:
    for _ in range(3):
        asked.proposals.think_ahead()
        if asked.host.is_busy:
            asked.host.answer()
        asked.proposals.take()
        asked.now += 1000.0
    assert len(asked.host.asked) == 1


def test_if_the_searcher_fails_the_fallback_answers_the_same_request(asked: Asked) -> None:
    asked.want()
    asked.host.failure = SearcherFailed("It died. Look at search.log.")
    answer = asked.proposals.take()
    assert answer is not None and answer.suggestion is not None
    assert answer.suggestion.reason == "the fallback" and answer.request == asked.host.asked[0]
    assert asked.host.closed
    assert asked.warnings == ["The searcher failed; the study goes on with random search. It died. Look at search.log."]
    asked.use(answer)
    again = asked.want()
    assert again is not None and again.request.trial_id == 1


def test_a_question_that_was_lost_with_a_process_is_put_to_the_next_if_somebody_waits(asked: Asked) -> None:
    asked.proposals.think_ahead()
    asked.host.answered.append(asked.host.asked[-1])  # busy no more, and no answer
    assert asked.proposals.take() is None and len(asked.host.asked) == 1, "nobody waits for it"
    assert asked.want() is None and asked.host.is_busy
    asked.host.answered.append(asked.host.asked[-1])
    assert asked.proposals.take() is None and len(asked.host.asked) == 3
    asked.host.answer()
    answer = asked.proposals.take()
    assert answer is not None and answer.request == asked.host.asked[-1]


def test_a_fallback_that_fails_too_ends_the_run(asked: Asked) -> None:
    asked.want()
    asked.host.failure = asked.spare.failure = SearcherFailed("It died.")
    with pytest.raises(SearcherFailed):
        asked.proposals.take()


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
def test_an_option_that_the_searcher_cannot_use_is_no_reason_for_random_search(asked: Asked, inline: bool) -> None:
    wrong = OptionError("searcher.device=cuda: no GPU. Set searcher.device to cpu.")
    asked.host.inline = inline
    asked.host.failure = wrong
    assert asked.want() is None and asked.proposals.take() is None
    assert asked.proposals.problem is wrong
    asked.host.failure = SearcherFailed("Its process has ended.")
    assert asked.proposals.take() is None
    assert asked.proposals.problem is wrong
    assert not asked.warnings and not asked.spare.asked


def test_a_searcher_that_died_before_it_began_holds_nothing_up(asked: Asked) -> None:
    asked.host.has_begun = False
    assert not asked.proposals.has_begun
    asked.host.failure = SearcherFailed("It died before it began.")
    assert asked.proposals.take() is None
    assert asked.proposals.has_begun, "nothing would ever be started"
