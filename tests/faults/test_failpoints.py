"""Fail the n-th: a study is killed at every named instant, launched again, and must end as if nothing had happened.

A sample: ``benchmarks/chaos.py --failpoints`` tries every hit of every failpoint for every algorithm.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.runtime.failpoints import NAMES
from tests.faults.durable import DurableCluster
from tests.faults.test_virtual_cluster import ALGORITHMS

SPACE = SearchSpace({"x": uniform(0.0, 1.0)})


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """In memory if that can be had: thousands of commits are waited for."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def cluster(folder, name: str, *, n_trials: int = 6, **more) -> DurableCluster:
    options = {"metric": "loss", "n_trials": n_trials, "n_workers": 1, "max_retries": 3, **ALGORITHMS[name]}
    return DurableCluster(folder, StudyOptions.from_mapping(options), SPACE, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study in which nothing goes wrong."""
    made = cluster(tmp_path_factory.mktemp("whole") / "study", "promotion")
    assert made.run_with() == {"launches": 1}
    return made.story(), made.trace


def test_every_failpoint_is_passed_in_a_study_that_goes_on(folder):
    made = cluster(folder / "study", "promotion")
    made.run_with("*=pass,journal.committed=exit@12")
    assert made.trace.keys() == NAMES.keys()


WORKER_SIDE = [name for name in NAMES if name.startswith(("callback.", "channel.", "checkpoint."))]
CASES = [(name, True) for name in NAMES] + [(name, False) for name in WORKER_SIDE]


@pytest.mark.parametrize(("name", "alone"), CASES, ids=[f"{n}-{'alone' if alone else 'all'}" for n, alone in CASES])
def test_a_study_that_is_killed_at_a_failpoint_ends_as_if_it_had_not_been(whole, name, alone, folder):
    story, trace = whole
    hits = trace.get(name, 1)
    for hit in {1, random.Random(name).randint(1, hits)}:
        made = cluster(folder / f"study-{hit}", "promotion", alone=alone)
        made.run_with(f"{name}=exit@{hit}")
        assert made.story() == story, f"{name}, hit {hit} of {hits}"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("journal.", "coordinator.", "checkpoint."))]
)
def test_an_error_of_the_system_at_a_failpoint_changes_nothing_either(whole, name, folder):
    story, trace = whole
    hit = random.Random(name).randint(1, trace.get(name, 1))
    made = cluster(folder / "study", "promotion")
    made.run_with(f"{name}=raise:EIO@{hit}")
    assert made.story() == story, f"{name}, hit {hit}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_several_crashes_change_no_decision_of_any_algorithm(name, folder):
    whole = cluster(folder / "whole", name)
    whole.run_with()
    killed = cluster(folder / "killed", name)
    happened = killed.run_with(
        "journal.before_commit=exit@9,journal.committed=exit@25,coordinator.before_start=exit@5,"
        "checkpoint.written=exit@1,callback.before_report=exit@4"
    )
    assert happened["killed"] == 3
    assert killed.story() == whole.story()
