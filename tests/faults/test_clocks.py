"""Clocks that jump, machines that sleep, launchers that are frozen."""

from __future__ import annotations

import ast
import random
import time
from pathlib import Path

import lightning_hpo
from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import AttemptStarted
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from tests.faults.virtual import VirtualCluster

PACKAGE = Path(lightning_hpo.__file__).parent
DAY_S = 86_400.0
FOR_PEOPLE = {
    "runtime/database.py",  # since when the lock is held, of when the backup is
}


def cluster(**options) -> VirtualCluster:
    given = {"metric": "loss", "algorithm": "asha", "type": "promotion", "max_t": 9, "n_trials": 8, "n_workers": 2}
    return VirtualCluster(
        StudyOptions.from_mapping({**given, **options}), SearchSpace({"x": uniform(0.0, 1.0)}), n_workers=2
    )


def test_core_and_runtime_read_the_wall_clock_for_people_only():
    """Everything else is measured with clocks that no daemon and no daylight saving time moves."""
    readers = set()
    for folder in ("core", "runtime", "searchers"):
        for file in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                    "time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.today", "datetime.utcnow",
                    "datetime.fromtimestamp",
                ):  # fmt: skip
                    readers.add(file.relative_to(PACKAGE).as_posix())
    assert readers <= FOR_PEOPLE


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch):
    straight = cluster()
    straight.run()
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + rng.choice([-DAY_S, 0.0, DAY_S]))
    jumping = cluster()
    jumping.run()
    assert jumping.journal._texts == straight.journal._texts


def test_a_machine_that_slept_for_a_day_takes_no_trial_for_hung():
    """Where the monotonic clock goes on meanwhile: frozen containers, some virtual machines."""
    made = cluster()
    made.trial_timeout = 600.0
    wait = made.wait
    naps = [5.0, 20.0, 40.0]

    def nap(waitables, timeout):
        ready = wait(waitables, timeout)
        if naps and made.now % DAY_S > naps[0]:
            naps.pop(0)
            made.now += DAY_S
        return ready

    made.wait = nap  # type: ignore[method-assign]
    made.run()
    assert not naps and made.now > 3 * DAY_S
    assert all(trial.failures == 0 for trial in made.durable.trials.values())


def test_nor_does_a_launcher_that_was_stopped_for_an_hour():
    """SIGSTOP, or a disk that takes an hour for a commit: the trials wait for the launcher, not it for them."""
    made = cluster(algorithm="random", type=None)
    made.trial_timeout = 600.0
    commit, stalls = made.after_commit, iter([3, 9, 15])
    next_stall = next(stalls)

    def slow(events):
        nonlocal next_stall
        commit(events)
        if made._commits == next_stall:
            made.now += 3600.0
            next_stall = next(stalls, -1)

    made.after_commit = slow  # type: ignore[method-assign]
    made.run()
    assert next_stall == -1
    assert all(trial.failures == 0 for trial in made.durable.trials.values())
    attempts = [event for event in made.journal.events() if isinstance(event, AttemptStarted)]
    assert len(attempts) == len(made.durable.trials)


def test_a_trial_that_really_hangs_is_still_found():
    made = cluster(algorithm="random", type=None, n_trials=2, max_retries=1)
    answered = made._hear
    lost = []

    def deaf_once(process, reply):
        if process.attempt == 1 and process.resource == 3:
            lost.append(process.trial_id)
        else:
            answered(process, reply)

    made._hear = deaf_once  # type: ignore[method-assign]
    made.run()
    assert sorted(set(lost)) == [0, 1]
    assert [trial.failures for trial in made.durable.trials.values()] == [1, 1]
