"""The benchmark of suggestions: its scripted study, and that it measures what it says."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def suggest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("suggest")


def test_the_script_promotes_the_best_third_of_a_rung(suggest: ModuleType) -> None:
    _, observations = suggest.script(120, seed=3)
    assert len(observations) == 120
    seen: dict[int, dict[int, float]] = {level: {} for level in suggest.LEVELS}
    for trial, level, value in observations:
        assert trial not in seen[level]
        if level > 1:
            below = seen[suggest.LEVELS[suggest.LEVELS.index(level) - 1]]
            better = sum(v < below[trial] for v in below.values())
            assert better < len(below) // 3
        seen[level][trial] = value
    assert all(seen.values())


def test_the_last_suggestion_sees_all_observations_and_the_pending_ones_follow(suggest: ModuleType) -> None:
    given = suggest.task(60, calls=5, seed=0)
    assert given["sizes"] == [50, 52, 54, 56, 58, 60]
    assert len(given["observations"]) == 60 + given["pending"]


@pytest.mark.parametrize("method", ["mobster", "hypertune"])
def test_every_call_is_timed_and_the_objective_computed(suggest: ModuleType, method: str) -> None:
    given = suggest.task(16, calls=2, seed=0, options={"opt_maxiter": 5, "num_init_candidates": 20})
    answer = suggest.ours(method, given, seed=0)
    assert len(answer["seconds"]) == 3
    assert all(s > 0.0 for s in answer["seconds"])
    assert math.isfinite(suggest.objective(method, given, answer["parameters"]))
    given["sizes"][-1] = 501
    assert suggest.objective(method, given, answer["parameters"]) is None


def test_the_cold_call_is_not_among_the_others(suggest: ModuleType) -> None:
    found = suggest.summary([9.0, 1.0, 2.0, 3.0])
    assert (found["cold"], found["median"], found["mean"]) == (9.0, 2.0, 2.0)
