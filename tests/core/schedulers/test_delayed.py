"""Delayed promotion: a rung never sends on more than its quantile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import OptionError
from tests.core.driving import Driven

BETTER_AND_BETTER = [1.0 - 0.01 * i for i in range(13)]


def promotions(study: Driven, values: list[float], **cost: float) -> list[str]:
    """What went on while trials with these values at every resource came in, one after the other."""
    found = []
    for value in values:
        while "->" in (job := study.job()):
            found.append(job)
            trial, goal = map(int, job.split("->"))
            there = study[trial].curve[study[trial].resource]
            for resource in range(study[trial].resource + 1, goal + 1):
                study.tell(trial, resource, there, **cost)
        study.tell(int(job[1:]), 1, value, **cost)
    return found


def test_a_rung_sends_on_no_more_than_a_third() -> None:
    """One of 3, two of 6, three of 9, four of 12: the best at that time. By rank each new best goes on."""
    assert promotions(Driven(type="promotion", max_t=3, delayed_promotion=True), BETTER_AND_BETTER) == [
        "2->3", "5->3", "8->3", "11->3"
    ]  # fmt: skip
    by_rank = promotions(Driven(type="promotion", max_t=3), BETTER_AND_BETTER)
    assert by_rank == [f"{trial}->3" for trial in range(2, 12)]


def test_rank_decides_still() -> None:
    """The worst of all does not go on, however few have gone: a third of 4 is the best alone, and it has gone on."""
    study = Driven(type="promotion", max_t=3, delayed_promotion=True)
    assert promotions(study, [0.1, 0.5, 0.6, 0.7, 0.8, 0.9]) == ["0->3"]
    assert study.job() == "1->3"


def test_all_that_rank_lets_go_on_do_when_no_new_trial_will_be_started() -> None:
    study = Driven(type="promotion", max_t=3, delayed_promotion=True, n_trials=9)
    assert promotions(study, BETTER_AND_BETTER[:9]) == ["2->3", "5->3"]
    assert [study.job() for _ in range(4)] == ["8->3", "7->3", "6->3", "idle"]


def test_costs_count_instead_of_trials() -> None:
    """Equal costs are as good as counts. One that cost 10 of 13 may not go on, though it is the best."""
    study = Driven(type="cost_promotion", max_t=3, delayed_promotion=True)
    assert promotions(study, BETTER_AND_BETTER, cost=1.0) == ["2->3", "5->3", "8->3", "11->3"]
    study = Driven(type="cost_promotion", max_t=3, delayed_promotion=True)
    promotions(study, [0.9, 0.8, 0.7], cost=1.0)
    assert study.job() == "2->3"


@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60),
    settings=st.sampled_from(
        [{"type": "promotion"}, {"type": "promotion", "brackets": 2}, {"type": "pasha"}, {"type": "cost_promotion"}]
    ),
)
def test_holds_at_every_rung_at_any_time(values: list[float], settings: dict[str, object]) -> None:
    study = Driven(max_t=9, delayed_promotion=True, **settings)
    for value in values:
        while True:
            job = study.job()
            goal = job.split("->")[1] if "->" in job else None
            (trial,) = study.state.live
            if goal is None:
                resource = study[trial].milestone
                study.tell(trial, resource, value, cost=1.0)
                break
            for resource in range(study[trial].resource + 1, int(goal) + 1):
                study.tell(trial, resource, value, cost=1.0)
            for rung in study.state.scheduler.rungs().values():
                assert rung.num_promoted <= len(rung) / 3 + 1e-9


def test_the_default_algorithm_presets_it_by_rank() -> None:
    by_rank = {"metric": "loss", "promotion_rule": "rank"}
    assert not StudyOptions.from_mapping({"metric": "loss"}).delayed_promotion
    assert StudyOptions.from_mapping(by_rank).delayed_promotion
    assert not StudyOptions.from_mapping({**by_rank, "delayed_promotion": False}).delayed_promotion
    others = ALGORITHMS.keys() - {"default"}
    assert not any(
        StudyOptions.from_mapping({"metric": "loss", "algorithm": name, "max_t": 9}).delayed_promotion
        for name in others
    )


def test_free_trials_are_sent_on() -> None:
    """Costs of zero leave no share to keep to."""
    study = Driven(type="cost_promotion", max_t=3, delayed_promotion=True)
    assert promotions(study, [0.9, 0.8, 0.7], cost=0.0) == ["1->3", "0->3"]


def stopping(**options: object) -> str:
    """The verdicts at rung 1 on ever better trials: C goes on, S is stopped."""
    study = Driven(type="stopping", max_t=3, **options)
    verdicts = ""
    for trial, value in enumerate(BETTER_AND_BETTER):
        study.ready()
        verdicts += study.tell(trial, 1, value).name[0]
        if verdicts[-1] == "C":
            study.train(trial, value, value)
    return verdicts


def test_at_stopping_one_too_many_is_stopped() -> None:
    """The first two are not judged and count as sent on: three of 9 may go on, four of 12."""
    assert stopping() == "C" * 13
    assert stopping(delayed_promotion=True) == "CCSSSSSSCSSCS"


def test_at_stopping_rank_decides_when_no_new_trial_will_be_started() -> None:
    assert stopping(delayed_promotion=True, n_trials=13) == "CCSSSSSSCSSCC"


@pytest.mark.parametrize(
    ("ladder", "brackets"),
    [
        ({"max_t": 27}, 2),
        ({"max_t": 4}, 2),  # rungs 1 and 3
        ({"max_t": 3}, None),  # the second bracket would train everything to the end
        ({"max_t": 10, "grace_period": 9}, None),
        ({"max_t": 9, "rung_levels": [3, 9]}, None),
        ({"max_t": 3, "brackets": 2}, 2),
    ],
)
def test_the_default_has_a_second_bracket_where_that_has_a_rung(ladder: dict[str, object], brackets: int) -> None:
    by_rank = {"metric": "loss", "promotion_rule": "rank"}
    assert StudyOptions.from_mapping({**by_rank, **ladder}).brackets == brackets


def test_every_bracket_is_looked_at_before_the_end() -> None:
    """Two brackets with rungs of their own: whoever may go on does, whatever bracket is drawn last."""
    for seed in range(10):
        study = Driven(
            type="promotion",
            max_t=9,
            brackets=2,
            rung_system_per_bracket=True,
            delayed_promotion=True,
            n_trials=15,
            random_seed=seed,
        )
        study.run(lambda trial, resource: 1.0 - 0.01 * trial - 0.001 * resource)
        scheduler = study.state.scheduler
        paused = {trial.id for trial in study.state.trials.values() if trial.status is TrialStatus.PAUSED}
        rungs = [rung for system in range(scheduler.num_systems) for rung in scheduler.rungs(system).values()]
        assert [rung.best_promotable(paused.__contains__) for rung in rungs] == [None] * len(rungs)


@pytest.mark.parametrize("algorithm", ["random", "sync_hyperband", "dehb", "median"])
def test_is_refused_where_nothing_is_promoted_by_rank(algorithm: str) -> None:
    with pytest.raises(OptionError, match=r"delayed_promotion would do nothing\. Leave it out, or choose .* asha\.$"):
        StudyOptions.from_mapping({"metric": "loss", "algorithm": algorithm, "delayed_promotion": True})
