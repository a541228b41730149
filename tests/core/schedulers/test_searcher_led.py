"""Promotion and stopping led by the searcher: it says who goes on, and where trials are judged."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.events import (
    Idle,
    Limit,
    Resume,
    Start,
    Suggested,
    SuggestionWanted,
    Verdict,
    WorkerReady,
    from_json,
)
from lightning_hpo.core.events import to_json as event_to_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import OptionError
from tests.core.driving import SPACE, Driven


class Led(Driven):
    """A study of rungs 1, 3 and 9, max_t = 27, whose searcher answers as the test says."""

    def __init__(self, **options) -> None:
        super().__init__(**{"algorithm": "default", "max_t": 27, "n_workers": 4, **options})

    def answer(self, **fields):
        """A free worker gets what the model says."""
        (wanted,) = self.handle(WorkerReady(self.time))
        assert isinstance(wanted, SuggestionWanted), wanted
        config = {"x": (1 + wanted.trial_id) / 10_000}
        return self.handle(Suggested(self.time, wanted.trial_id, config, "model", "EI", **fields))

    def start(self, milestone=None) -> int:
        (started,) = self.answer(milestone=milestone)
        assert isinstance(started, Start)
        return started.trial_id


def test_default_is_led_by_the_searcher_at_promotion_and_at_stopping() -> None:
    def parsed(**options) -> StudyOptions:
        return StudyOptions.from_mapping({"metric": "loss", "max_t": 27, **options})

    for led in (parsed(), parsed(type="promotion"), parsed(type="stopping")):
        assert (led.promotion_rule, led.searcher_name) == ("searcher", "freeze_thaw")
    assert parsed(searcher={"model": "gp_multitask"}).searcher_name == "bayesopt"
    by_rank_at_stopping = parsed(type="stopping", promotion_rule="rank")
    for by_rank in (
        parsed(type="cost_promotion"),
        parsed(type="pasha"),
        parsed(promotion_rule="rank"),
        by_rank_at_stopping,
    ):
        assert (by_rank.promotion_rule, by_rank.searcher_name) == ("rank", "bayesopt")
        assert by_rank.delayed_promotion and by_rank.searcher.model == "gp_independent"


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"algorithm": "asha", "type": "promotion"}, "choose algorithm=default"),
        ({"algorithm": "random"}, "choose algorithm=default"),
        ({"algorithm": "default", "type": "cost_promotion"}, "Set promotion_rule=rank, or type=promotion or stopping"),
        ({"algorithm": "default", "brackets": 2}, "Leave brackets out"),
        ({"algorithm": "default", "searcher": {"model": "gp_multitask"}}, "Leave searcher.model"),
        (
            {"algorithm": "default", "searcher": {"max_size_data_for_model": None, "approximation": "inducing"}},
            "or set",
        ),
        ({"algorithm": "default", "promotion_rule": "rank", "searcher": {"model": "gp_rungs"}}, "Leave searcher.model"),
        ({"algorithm": "default", "searcher_data": "all"}, "Set searcher_data=rungs"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(options, fix) -> None:
    with pytest.raises(OptionError, match=fix):
        StudyOptions.from_mapping({"metric": "loss", "max_t": 27, "promotion_rule": "searcher", **options})


def test_a_study_of_an_earlier_version_goes_on_by_rank() -> None:
    stored = StudyOptions.from_mapping({"metric": "loss", "max_t": 27, "promotion_rule": "rank"}).to_json()
    del stored["promotion_rule"]
    options = StudyOptions.from_json(stored)
    assert (options.promotion_rule, options.searcher_name) == ("rank", "bayesopt")


def test_a_new_trial_is_judged_first_where_the_searcher_says() -> None:
    study = Led()
    trial = study.start(milestone=9)
    assert study.train(trial, *[0.5] * 8) is Verdict.CONTINUE
    assert study.train(trial, 0.5) is Verdict.PAUSE
    assert study[trial].status is TrialStatus.PAUSED
    # what was reported at the rungs it ran through can be learned from all the same
    assert [o.resource for o in study.state.view().observations] == [1, 3, 9]


@pytest.mark.parametrize(("wanted", "given"), [(None, 1), (2, 3), (27, 27), (99, 27)])
def test_milestones_are_rungs(wanted, given) -> None:
    study = Led()
    assert study[study.start(milestone=wanted)].milestone == given


def test_a_paused_trial_goes_on_where_the_searcher_says_whatever_its_rank() -> None:
    study = Led()
    good, bad = study.start(milestone=1), study.start(milestone=1)
    study.train(good, 0.1)
    study.train(bad, 0.9)
    (resumed,) = study.answer(resumes=bad, milestone=9)
    assert isinstance(resumed, Resume)
    assert (resumed.trial_id, resumed.from_resource, resumed.milestone) == (bad, 1, 9)
    assert study[bad].reason == "rank 2 of 2 at rung 1; EI"
    assert study.state.view().pending == [(bad, 9)]
    assert study.train(bad, *[0.5] * 8) is Verdict.PAUSE
    assert study[bad].resource == 9
    assert study.state.view().paused == {good: 1, bad: 9}


def test_a_diverged_trial_is_stopped_at_the_first_rung_it_was_to_run_through() -> None:
    study = Led()
    trial = study.start(milestone=27)
    assert study.train(trial, 0.5, math.nan) is Verdict.CONTINUE
    assert study.train(trial, math.nan) is Verdict.STOP
    assert study[trial].status is TrialStatus.STOPPED


def test_one_trained_to_the_end_is_complete_and_not_paused() -> None:
    study = Led()
    trial = study.start(milestone=1)
    study.train(trial, 0.1)
    study.answer(resumes=trial, milestone=27)
    study.train(trial, *[0.1] * 26)
    assert study[trial].status is TrialStatus.COMPLETED
    assert study.state.view().paused == {}


def test_rank_promotes_nothing_while_the_model_leads() -> None:
    study = Led()
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        study.train(study.start(milestone=1), value)
    assert isinstance(study.handle(WorkerReady(0.0))[0], SuggestionWanted)


def test_before_its_first_suggestion_and_after_three_that_are_not_the_models_rank_decides() -> None:
    study = Led()
    for value in (0.3, 0.2, 0.1):
        study.ready()
        study.train(len(study.state.trials) - 1, value)
    assert study.job() == "2->3"
    study.start(milestone=1)
    for _ in range(3):
        assert study.job().startswith("n")
        study.train(len(study.state.trials) - 1, 0.5)
    assert study.job() == "1->3"


def test_a_trial_that_cannot_go_on_any_more_is_no_answer_and_the_worker_asks_again() -> None:
    study = Led()
    trial = study.start(milestone=1)
    study.train(trial, 0.5)
    study.answer(resumes=trial, milestone=3)
    assert study.answer(resumes=trial, milestone=3) == []  # it runs already
    assert study.state.wanted is None
    assert isinstance(study.answer(milestone=1)[0], Start)


def test_once_no_trial_may_be_started_rank_decides_and_the_study_ends() -> None:
    study = Led(n_trials=3)
    for value in (0.3, 0.2, 0.1):
        study.train(study.start(milestone=1), value)
    assert study.job() == "2->3"
    study.train(2, 0.1, 0.1)
    assert study.job() == "2->27"
    study.train(2, *[0.1] * 24)
    assert study.job() == "finish"


def test_nothing_is_asked_ahead() -> None:
    """What the next free worker is best used for depends on the report that frees it."""
    study = Led()
    study.train(study.start(milestone=1), 0.5)
    assert study.state.next_request() is None


def test_in_synchronous_batches_a_resumed_trial_takes_a_place() -> None:
    study = Led(asynchronous=False, n_workers=2)
    trial, other = study.start(milestone=1), study.start(milestone=1)
    study.train(trial, 0.5)
    assert study.handle(WorkerReady(0.0)) == [Idle("the batch is not complete")]
    study.train(other, 0.5)
    study.answer(resumes=trial, milestone=3)
    study.start(milestone=1)
    assert study.handle(WorkerReady(0.0)) == [Idle("the batch is not complete")]


def test_confirmations_are_never_resumed_by_the_searcher() -> None:
    study = Led(n_trials=5, confirm={"top": 1, "seeds": 1})
    trial = study.start(milestone=1)
    study.train(trial, 0.5)
    assert study.state.view().paused == {trial: 1}
    study[trial].confirms = 0
    assert study.state.view().paused == {}
    assert study.answer(resumes=trial, milestone=3) == []


@given(st.data())
def test_whatever_the_searcher_answers_the_study_is_consistent_and_replays(data) -> None:
    """Invariants hold after every event (``Driven`` checks), and the events, fed again, give the same study."""
    study = Led(n_trials=data.draw(st.integers(3, 12)), type=data.draw(st.sampled_from(["promotion", "stopping"])))
    values = st.one_of(st.floats(0.0, 1.0), st.sampled_from([float("nan"), float("inf")]))
    for _ in range(data.draw(st.integers(1, 25))):
        (decision,) = study.handle(WorkerReady(study.time))
        if isinstance(decision, SuggestionWanted):
            resumes = data.draw(st.one_of(st.none(), st.integers(0, max(len(study.state.trials) - 1, 0))))
            if resumes is not None and resumes not in study.state.trials:
                resumes = None
            milestone = data.draw(st.one_of(st.none(), st.integers(1, 30)))
            origin = data.draw(st.sampled_from(["model", "model", "random"]))
            config = {"x": (1 + decision.trial_id) / 10_000}
            named = data.draw(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1, 3, 9]), st.floats(0.0, 1.0))))
            limits = tuple(Limit(*limit) for limit in named) or None
            fields = (origin, "", None, None, resumes, milestone, limits)
            study.handle(Suggested(study.time, decision.trial_id, config, *fields))
        for trial in sorted(study.state.live):
            if data.draw(st.booleans()):
                told = study.tell(trial, study[trial].resource + 1, data.draw(values))
                assert study[trial].resource <= 27
                if told is Verdict.PAUSE:
                    assert study[trial].resource in (1, 3, 9)
    again = StudyState(SPACE, study.options)
    for event in study.events:
        again.handle(from_json(event_to_json(event)))
    assert {i: (t.status, t.milestone, t.resource, t.attempt) for i, t in again.trials.items()} == {
        i: (t.status, t.milestone, t.resource, t.attempt) for i, t in study.state.trials.items()
    }


def few(n_trials: int, **options) -> Led:
    """So few trials that no rank sends one on to the end."""
    return Led(n_trials=n_trials, n_workers=1, **options)


@pytest.mark.parametrize("n_trials", [1, 3, 5, 8])
def test_a_study_of_few_trials_does_not_end_before_one_was_trained_to_the_end(n_trials) -> None:
    study = few(n_trials)
    study.run(lambda trial_id, resource: (trial_id + 1) / resource)
    assert study[0].resource == 27, "the best of all"
    assert [t.status for t in study.state.trials.values()].count(TrialStatus.COMPLETED) == 1


def test_the_next_best_follows_if_the_best_cannot_go_on() -> None:
    study = few(3)
    study.run(lambda trial_id, resource: math.nan if trial_id == 0 and resource > 1 else (trial_id + 1) / resource)
    assert study[0].status is TrialStatus.STOPPED and study[1].resource == 27


def test_where_none_can_the_study_ends() -> None:
    study = few(2)
    study.run(lambda trial_id, resource: 1.0 if resource == 1 else math.nan)
    assert study.state.ended == "all 2 trials are done" and all(t.resource < 27 for t in study.state.trials.values())


# ---------------------------------------------------------------------------------------- stopping


def stopping(**options) -> Led:
    return Led(type="stopping", **options)


def start_within(study: Led, *limits: tuple[int, float], of: int | None = None) -> int:
    """A trial starts; the model names limits ``(rung, value)`` for it, or for another trial."""
    trial_id = len(study.state.trials)
    named = tuple(Limit(trial_id if of is None else of, level, value) for level, value in limits)
    (started,) = study.answer(limits=named or None)
    assert isinstance(started, Start)
    return started.trial_id


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.49, Verdict.CONTINUE), (0.5, Verdict.CONTINUE), (0.51, Verdict.STOP)]
)
def test_a_trial_goes_on_past_a_rung_with_a_value_within_its_limit(value, verdict) -> None:
    study = stopping()
    for rank in range(6):  # whatever its rank: all others are better, or all are worse
        trial = start_within(study, (1, 0.5))
        assert study.tell(trial, 1, value + rank / 1e4 * (1 if value > 0.5 else -1)) is verdict
        assert study[trial].status is (TrialStatus.RUNNING if verdict is Verdict.CONTINUE else TrialStatus.STOPPED)


def test_limits_of_a_metric_that_is_maximised_are_those_of_its_negative() -> None:
    study = stopping(mode="max")
    good, bad = start_within(study, (1, -0.5)), start_within(study, (1, -0.5))
    assert study.tell(good, 1, 0.51) is Verdict.CONTINUE
    assert study.tell(bad, 1, 0.49) is Verdict.STOP


def test_what_counts_at_a_rung_is_the_median_of_the_second_half_of_the_curve() -> None:
    """At rung 3 of the reports after 2 and 3, at rung 9 of those after 5 to 9."""
    study = stopping()
    trial = start_within(study, (1, 1.0), (3, 0.5), (9, 0.3))
    assert study.train(trial, 0.9, 0.3, 0.7) is Verdict.CONTINUE
    assert study.train(trial, 9.0, 0.31, 0.29, 0.29, 0.31, 0.3) is Verdict.CONTINUE
    other = start_within(study, (1, 1.0), (3, 0.5))
    assert study.train(other, 0.9, 0.7, 0.31) is Verdict.STOP


def test_the_latest_limit_counts() -> None:
    study = stopping()
    trial = start_within(study, (1, 0.5))
    start_within(study, (1, 0.2), of=trial)
    assert study.tell(trial, 1, 0.4) is Verdict.STOP


def test_of_those_that_come_to_a_rung_after_the_same_suggestion_each_is_to_be_better_than_those_before() -> None:
    """All are within their limits, but while no worker is free the model is not asked what it makes of the first."""
    study = stopping()
    trials = [start_within(study, (1, 1.0)) for _ in range(4)]
    verdicts = [study.tell(trial, 1, value) for trial, value in zip(trials, (0.6, 0.7, 0.5, 0.6), strict=True)]
    assert verdicts == [Verdict.CONTINUE, Verdict.STOP, Verdict.CONTINUE, Verdict.STOP]
    trial = start_within(study, (1, 1.0))  # and now it has been asked
    assert study.tell(trial, 1, 0.9) is Verdict.CONTINUE


def test_what_happened_while_the_model_computed_is_unknown_to_its_answer() -> None:
    study = stopping()
    first, second, third = (start_within(study, (1, 1.0)) for _ in range(3))
    (wanted,) = study.handle(WorkerReady(study.time))
    assert isinstance(wanted, SuggestionWanted)
    assert study.tell(first, 1, 0.5) is Verdict.CONTINUE
    study.handle(Suggested(study.time, wanted.trial_id, {"x": 0.9}, "model", "EI"))
    assert study.tell(second, 1, 0.6) is Verdict.STOP
    assert study.tell(third, 1, 0.4) is Verdict.CONTINUE


def test_in_batches_nothing_is_stopped_for_a_new_trial_that_would_not_be_started() -> None:
    study = stopping(asynchronous=False)
    trials = [start_within(study, (1, 1.0)) for _ in range(4)]
    for trial, value in zip(trials, (0.5, 0.6, 0.7, 0.8), strict=True):
        assert study.tell(trial, 1, value) is Verdict.CONTINUE


def test_nothing_is_ever_paused_and_a_complete_trial_ends() -> None:
    study = stopping()
    trial = start_within(study, (1, 1.0), (3, 1.0), (9, 1.0))
    assert study.train(trial, *[0.5] * 27) is Verdict.STOP
    assert study[trial].status is TrialStatus.COMPLETED
    assert study.state.view().paused == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_trial_is_stopped_whatever_its_limit(value) -> None:
    study = stopping()
    trial = start_within(study, (1, 1e100))
    assert study.tell(trial, 1, value) is Verdict.STOP


def test_before_the_model_leads_one_trial_goes_to_the_end_and_a_rung_sends_on_no_more_than_its_share() -> None:
    study = stopping()
    goes_on = []
    for trial, value in enumerate((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)):
        study.ready()
        goes_on.append(study.tell(trial, 1, value) is Verdict.CONTINUE)
    # each is the best so far; by rank alone all would go on
    assert goes_on == [True, False, False, True, False, False, True, False, False]
    assert study.train(0, *[0.9] * 25) is Verdict.CONTINUE
    assert study.train(0, 0.9) is Verdict.STOP and study[0].status is TrialStatus.COMPLETED


def test_a_trial_without_a_limit_is_judged_by_rank_and_so_are_all_when_the_model_fails() -> None:
    study = stopping()
    for value in (0.5, 0.6, 0.7):
        study.tell(study.start(), 1, value)
    assert study.tell(study.start(), 1, 0.1) is Verdict.CONTINUE
    trial = start_within(study, (1, 1.0))
    for _ in range(3):
        study.ready()
    assert study.tell(trial, 1, 0.9) is Verdict.STOP, "the limit is of a model that has failed since"


def test_once_no_trial_may_be_started_rank_decides_at_stopping() -> None:
    study = stopping(n_trials=4)
    for value in (0.5, 0.6, 0.7):
        study.tell(start_within(study, (1, 0.0)), 1, value)
    assert study.tell(start_within(study, (1, 0.0)), 1, 0.4) is Verdict.CONTINUE


def test_the_searcher_is_asked_for_limits_where_trials_are_stopped() -> None:
    for study, wants in ((stopping(), True), (Led(), False)):
        (wanted,) = study.handle(WorkerReady(0.0))
        assert isinstance(wanted, SuggestionWanted)
        assert study.state.request(wanted).wants_limits is wants


def test_a_study_that_went_by_rank_at_stopping_goes_on_so() -> None:
    """As the default did before the searcher led there."""
    stored = StudyOptions.from_mapping({"metric": "loss", "max_t": 27, "type": "stopping", "promotion_rule": "rank"})
    assert StudyOptions.from_json(stored.to_json()) == stored
    assert stored.searcher_name == "bayesopt"
