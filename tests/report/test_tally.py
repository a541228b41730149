from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo import Study, uniform
from lightning_hpo.core.events import AttemptEnded, Outcome, Reported, Resume, Start
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.report.tally import RungTally, Tally, counts, is_rung
from tests.report.studies import Driver, new_state, small_study, state_of


@pytest.mark.parametrize(("mode", "best"), [("min", [0.5, 0.45]), ("max", [0.5, 0.55])])
def test_rungs_count_trials_and_keep_the_best_value(mode: str, best: list[float]):
    tally = Tally(state_of(small_study(mode=mode)))
    assert tally.rungs == {1: RungTally(3, best[0]), 3: RungTally(1, pytest.approx(best[1]))}


def test_what_was_trained_and_what_full_training_would_have_taken():
    # Trained 1 + 3 + 1 + 0; in full the paused trials 0 and 2 would have taken 3 each, 1 took its 3, 3 failed.
    state = state_of(small_study())
    tally = Tally(state)
    assert tally.trained == 5
    assert tally.full_training(state) == 9


def test_trials_in_the_order_of_their_best_values():
    state = state_of(small_study())
    tally = Tally(state)
    assert tally.ordered() == [1, 2, 0]
    assert tally.leaders(2) == [1, 2]
    assert tally.best_of(1, state) == (0.4, 2)
    assert tally.best_of(3, state) is None


def test_in_mode_max_the_largest_value_leads():
    state = state_of(small_study(mode="max"))
    tally = Tally(state)
    assert tally.ordered() == [1, 2, 0]
    assert tally.best_of(1, state) == (0.6, 2)


def test_a_trial_that_ended_by_itself_saves_nothing():
    driver = Driver(new_state(algorithm="random", type=None, max_t=10))
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, 0.5))
    driver.feed(AttemptEnded(3.0, 0, 1, Outcome.COMPLETED))
    assert driver.state.trials[0].status is TrialStatus.COMPLETED
    assert Tally(driver.state).full_training(driver.state) == 1


def test_without_max_t_there_is_no_full_training():
    state = new_state(algorithm="random", type=None, max_t=None)
    assert Tally(state).full_training(state) is None
    assert Tally(state).rungs == {}


def test_values_that_are_not_finite_count_but_lead_nowhere():
    driver = Driver(new_state())
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, math.nan))
    tally = Tally(driver.state)
    assert tally.rungs[1] == RungTally(1, None)
    assert tally.ordered() == []
    assert tally.trained == 1


def test_trials_of_a_higher_bracket_are_not_counted_at_the_rungs_they_skip():
    state = new_state(max_t=9)
    driver = Driver(state)
    driver.ready()
    state.trials[0].bracket = 1
    assert [level for level in (1, 2, 3, 9) if is_rung(state, state.trials[0], level)] == [3, 9]


def test_where_the_searcher_leads_a_rung_counts_the_trials_that_were_judged_there_and_those_that_have_gone_on_too():
    study = Study.create({"x": uniform(0, 1)}, metric="loss", max_t=27, random_seed=0)
    state = study._state
    for _ in range(25):
        job = study.ask()
        epoch, verdict = getattr(job, "from_resource", 0), "continue"
        while verdict == "continue":
            epoch += 1
            verdict = study.tell(job.trial_id, epoch, abs(job.config["x"] - 0.3) + 1 / epoch)
    paused = {level: len(rung) for level, rung in state.scheduler.rungs().items()}
    resumed = [trial for trial in state.trials.values() if trial.resource > 1]
    assert paused[1] and resumed
    tally = Tally(state)
    assert {level: tally.rungs[level].count for level in paused} == paused


def test_counts_leave_out_what_nobody_is():
    assert counts(state_of(small_study())) == {
        TrialStatus.PAUSED: 2,
        TrialStatus.COMPLETED: 1,
        TrialStatus.FAILED: 1,
    }


FLOATS = st.one_of(st.floats(-1, 1), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(st.tuples(st.integers(0, 3), FLOATS, st.booleans()), max_size=40), st.sampled_from(["min", "max"]))
def test_kept_up_to_date_it_is_what_a_new_one_would_be(steps: list[tuple[int, float, bool]], mode: str):
    driver = Driver(new_state(mode=mode, max_t=9, n_trials=None))
    state = driver.state
    tally = Tally(state)

    def feed(event: object) -> None:
        driver.feed(event)
        tally.update(event, state)

    for number, value, is_repeated in steps:
        live = sorted(state.live)
        if number >= len(live):
            decision = driver.ready()
            assert isinstance(decision, (Start, Resume)) or decision
            continue
        trial = state.trials[live[number]]
        resource = max(trial.resource + (0 if is_repeated else 1), 1)
        feed(Reported(driver.time, trial.id, trial.attempt, resource, value))
        if trial.status is not TrialStatus.RUNNING or resource >= 9:
            feed(AttemptEnded(driver.time, trial.id, trial.attempt, Outcome.PAUSED))
    fresh = Tally(state)
    assert tally.rungs == fresh.rungs
    assert tally.trained == fresh.trained
    assert tally.resource == fresh.resource
    assert tally.ordered() == fresh.ordered()
