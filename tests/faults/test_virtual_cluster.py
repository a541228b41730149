from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.core.trial import TrialStatus
from tests.faults.virtual import NO_FAULTS, PROBABILITIES, Faults, VirtualCluster

SPACE = SearchSpace({"x": uniform(0.0, 1.0)})
ALGORITHMS = {
    "random": {"algorithm": "random", "max_t": 4},
    "stopping": {"algorithm": "asha", "max_t": 9},
    "promotion": {"algorithm": "asha", "type": "promotion", "max_t": 9},
    "brackets": {"algorithm": "asha", "type": "promotion", "max_t": 9, "brackets": 3},
    "pasha": {"algorithm": "pasha", "max_t": 9},
    "median": {"algorithm": "median", "max_t": 5},
    "sync_hyperband": {"algorithm": "sync_hyperband", "max_t": 9},
    "dehb": {"algorithm": "dehb", "max_t": 4, "reduction_factor": 2},
    "bohb": {"algorithm": "bohb", "type": "promotion", "max_t": 9},
    "led": {"algorithm": "default", "max_t": 9},
    "led, stopping": {"algorithm": "default", "max_t": 9, "type": "stopping"},
    "led in batches": {"algorithm": "default", "max_t": 9, "asynchronous": False},
    "batches": {"algorithm": "asha", "type": "promotion", "max_t": 9, "asynchronous": False},
}


def cluster(name: str, faults: Faults = NO_FAULTS, *, n_workers: int = 3, n_trials: int = 12, **more) -> VirtualCluster:
    options = {"metric": "loss", "n_trials": n_trials, "n_workers": n_workers, "max_retries": 50, **ALGORITHMS[name]}
    return VirtualCluster(StudyOptions.from_mapping(options), SPACE, faults, n_workers=n_workers, **more)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_faults_every_study_ends(name):
    made = cluster(name)
    result = made.run()
    assert result.reason == "all 12 trials are done" and result.problem is None
    assert made.counts["launches"] == 1 and made.counts["warnings"] == 0
    assert len(made.durable.trials) == 12


EVERYTHING = st.builds(
    Faults,
    **{name: st.sampled_from(tried) for name, tried in PROBABILITIES.items()},
    crash_at_commits=st.frozensets(st.integers(1, 80), max_size=6),
    interrupts_at=st.lists(st.floats(1.0, 60.0), max_size=2).map(lambda times: tuple(sorted(times))),
)


# A failing example is small enough: its seed repeats it.
@settings(max_examples=60, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(ALGORITHMS)),
    faults=EVERYTHING,
    seed=st.integers(0, 10**6),
    n_workers=st.integers(1, 4),
    max_disk=st.sampled_from([None, None, 25]),
)
def test_whatever_goes_wrong_nothing_acknowledged_is_lost(name, faults, seed, n_workers, max_disk):
    """The cluster checks after every event, commit and answer; see its ``assert`` statements."""
    made = cluster(name, faults, seed=seed, n_workers=n_workers, max_disk=max_disk)
    made.run()
    assert len(made.durable.trials) == 12


@settings(max_examples=30, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(ALGORITHMS)),
    faults=EVERYTHING,
    seed=st.integers(0, 10**6),
    evaluations=st.integers(1, 20),
)
def test_whatever_goes_wrong_a_study_that_has_ended_goes_on_when_its_limit_is_raised(name, faults, seed, evaluations):
    if name == "led, stopping":
        evaluations = min(evaluations, 8)  # stopped by lot, all trials may be done after one report each
    made = cluster(name, faults, seed=seed)
    unlimited = made.options
    made.options = dataclasses.replace(unlimited, stop=StopCriterion(max_num_evaluations=evaluations))
    first = made.run()
    assert f"max_num_evaluations is {evaluations}" in first.reason
    made.options = unlimited
    made.run()
    assert len(made.durable.trials) == 12


@pytest.mark.parametrize("name", ["random", "promotion", "sync_hyperband"])
def test_a_launcher_that_crashes_at_any_commit_goes_on(name):
    """Fail the n-th, for every n, until a run gets through without a crash."""
    whole = cluster(name, n_trials=6, n_workers=2)
    whole.run()
    configs = {i: t.config for i, t in whole.durable.trials.items()}
    crashed_at = 0
    for commit in range(1, 1000):
        made = cluster(name, Faults(crash_at_commits=frozenset({commit})), n_trials=6, n_workers=2)
        made.run()
        if not made.counts["crashes"]:
            break
        crashed_at = commit
        assert {i: t.config for i, t in made.durable.trials.items()} == configs
    assert crashed_at > 30


def test_a_study_that_was_killed_ends_like_one_that_was_not():
    """Every trial to the end: what happened in between cannot be seen in the result."""
    whole = cluster("random")
    whole.run()
    killed = cluster("random", Faults(worker_dies=0.05, crash_at_commits=frozenset(range(5, 200, 17))), seed=9)
    killed.run()
    assert killed.counts["crashes"] >= 3 and killed.counts["workers killed"] >= 3
    curves = [{i: (t.config, t.curve, t.status) for i, t in c.durable.trials.items()} for c in (whole, killed)]
    assert curves[0] == curves[1]
    assert killed.durable.best_full == whole.durable.best_full


def test_a_hung_trial_is_ended_and_tried_again():
    made = cluster("promotion", Faults(message_lost=0.05), seed=1, epoch_timeout=30.0)
    made.run()
    assert made.counts["messages lost"] >= 3
    assert sum(t.failures for t in made.durable.trials.values()) >= 3
    assert not any(t.status is TrialStatus.FAILED for t in made.durable.trials.values())


def test_a_searcher_that_fails_is_replaced_by_random_search():
    made = cluster("bohb", Faults(searcher_fails=1.0))
    made.run()
    assert len(made.durable.trials) == 12 and made.counts["warnings"] == 1


def test_a_study_waits_while_the_disk_is_full():
    made = cluster("promotion", Faults(journal_full=0.3), seed=3)
    made.run()
    assert made.counts["disk full"] >= 5
    assert sum(t.failures for t in made.durable.trials.values()) == 0


def test_trials_wait_with_their_checkpoints_while_the_disk_is_full():
    made = cluster("promotion", Faults(no_room=0.7), seed=3)
    said = []
    made.say = lambda message, warning=False: said.append(message)  # type: ignore[method-assign]
    made.run()
    assert made.counts["saves without room"] >= 10
    assert all(t.failures == 0 for t in made.durable.trials.values())
    assert said[0].startswith("The study waits: The disk is full")
    assert said[1].endswith("the study goes on.")


def test_an_interrupted_study_goes_on():
    made = cluster("random", Faults(interrupts_at=(5.0, 20.0)))
    made.run()
    assert made.counts["interrupts"] == 2 and made.counts["launches"] == 3
    assert all(t.failures == 0 for t in made.durable.trials.values())


def test_a_batch_system_that_ends_everything_costs_no_retry():
    """SIGTERM to the launcher and to all trials: those die of it before they can pause."""
    made = cluster("random", Faults(interrupts_at=(5.0, 30.0)))
    waited = made.wait

    def wait(waitables, timeout):
        before = made.counts["interrupts"]
        ready = waited(waitables, timeout)
        if made.counts["interrupts"] > before:
            for process in list(made._processes.values()):
                made._die(process, signal=15)
        return ready

    made.wait = wait  # type: ignore[method-assign]
    made.run()
    assert made.counts["interrupts"] == 2 and made.counts["attempts"] > 12
    assert all(t.failures == 0 for t in made.durable.trials.values())


def test_checkpoints_that_take_too_much_room_are_given_up():
    made = cluster("promotion", max_disk=25, n_trials=30)
    largest = 0
    event = made.event

    def watch(*args):
        nonlocal largest
        event(*args)
        paused = [t for t in made.durable.trials.values() if t.status is TrialStatus.PAUSED and t.checkpoint]
        largest = max(largest, len(paused))

    made.event = watch  # type: ignore[method-assign]
    made.run()
    assert 0 < largest <= 4  # two fit, and those of a turn that is not over yet


def test_a_study_stops_by_its_criterion_while_all_workers_are_busy():
    options = StudyOptions.from_mapping(
        {"metric": "loss", "algorithm": "random", "max_t": 1000, "stop": {"max_wallclock_time": 100.0}}
    )
    made = VirtualCluster(options, SPACE, n_workers=2)
    result = made.run()
    assert "max_wallclock_time" in result.reason
    assert 100.0 < made.now < 110.0
