"""Large studies, and what may change when a study goes on."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_hpo.core.domains import choice, loguniform, uniform
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    DropCheckpoint,
    Event,
    Outcome,
    Reported,
    Resume,
    Start,
    Suggested,
    SuggestionWanted,
    Told,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import StudyMismatch
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import check_same_study, study_header
from lightning_hpo.searchers import make_searcher
from lightning_hpo.study import Study, load_study

SPACE = SearchSpace({"lr": loguniform(1e-4, 1.0), "x": uniform(0.0, 1.0), "act": choice(["relu", "gelu"])})
OPTIONS = {"metric": "loss", "algorithm": "asha", "type": "promotion", "max_t": 27, "n_trials": 20, "random_seed": 0}

# ------------------------------------------------------------------------------------------- changes

ACCEPTED = [
    {"n_trials": 40},
    {"n_trials": 5},
    {"n_workers": 8},
    {"max_retries": 0},
    {"asynchronous": False},
    {"stop": {"max_wallclock_time": 60.0}},
    {"max_failures_in_a_row": 1},
    {"searcher": {"device": "cpu"}},
]
REFUSED = [
    ({"metric": "acc"}, "metric: 'loss' -> 'acc'"),
    ({"mode": "max"}, "mode: 'min' -> 'max'"),
    ({"max_t": 81}, "max_t: 27 -> 81"),
    ({"grace_period": 3}, "grace_period: "),
    ({"reduction_factor": 4}, "reduction_factor: "),
    ({"brackets": 2}, "brackets: "),
    ({"type": "stopping"}, "type: 'promotion' -> 'stopping'"),
    ({"algorithm": "bohb"}, "algorithm: 'asha' -> 'bohb'"),
    ({"random_seed": 1}, "random_seed: 0 -> 1"),
    ({"points_to_evaluate": [{"x": 0.1}]}, "points_to_evaluate: "),
    ({"searcher": {"allow_duplicates": True}}, "searcher"),
]
OTHER_SPACES = {
    "wider": {"lr": loguniform(1e-5, 1.0)},
    "narrower": {"lr": loguniform(1e-3, 1.0)},
    "on another scale": {"lr": uniform(1e-4, 1.0)},
    "with another category": {"act": choice(["relu", "gelu", "tanh"])},
    "with one more": {"depth": choice([1, 2])},
    "with a constant": {"x": 0.5},
}


def header() -> dict:
    return study_header(SPACE, StudyOptions.from_mapping(OPTIONS))


@pytest.mark.parametrize("change", ACCEPTED, ids=lambda change: next(iter(change)))
def test_how_long_and_how_wide_may_change(change):
    check_same_study(header(), SPACE, StudyOptions.from_mapping({**OPTIONS, **change}))


@pytest.mark.parametrize(("change", "difference"), REFUSED, ids=lambda value: next(iter(value)) if value else None)
def test_what_a_study_means_may_not_change_and_the_difference_is_shown(change, difference):
    with pytest.raises(StudyMismatch) as caught:
        check_same_study(header(), SPACE, StudyOptions.from_mapping({**OPTIONS, **change}))
    assert difference in str(caught.value)
    assert str(caught.value).endswith("or start a new study in another folder.")


@pytest.mark.parametrize("name", OTHER_SPACES)
def test_nor_may_the_space(name):
    space = SearchSpace({**SPACE.domains, **OTHER_SPACES[name]})
    with pytest.raises(StudyMismatch, match="space: ") as caught:
        check_same_study(header(), space, StudyOptions.from_mapping(OPTIONS))
    assert "preset" not in str(caught.value), "no algorithm has one for the space"


def test_two_changes_are_both_shown():
    with pytest.raises(StudyMismatch, match=r"max_t: 27 -> 9(.|\n)*random_seed: 0 -> 4"):
        check_same_study(header(), SPACE, StudyOptions.from_mapping({**OPTIONS, "max_t": 9, "random_seed": 4}))


# ---------------------------------------------------------------------------------------------- size

MANY = 10_000
PROGRAM = """
import sys; sys.path.insert(0, sys.argv[2])
from tests.faults.test_limits import large_study
large_study(sys.argv[1])
"""


def large_study(folder: str) -> None:
    """10,000 trials of 8 workers, with everything that a launcher does for a report but the wait for the disk.

    Raises:
        AssertionError: if a report takes too long or all of it too much memory.
    """
    options = StudyOptions.from_mapping({**OPTIONS, "n_trials": MANY, "n_workers": 8})
    state = StudyState(SPACE, options)
    searcher = make_searcher("random", options.searcher)
    journal = Journal.create(folder, study_header(SPACE, options))
    journal._connection.execute("PRAGMA synchronous=OFF")  # of the disk of this machine there is nothing to learn
    took: list[float] = []
    batch: list[Event] = []

    def handle(event: Event) -> list:
        batch.append(event)
        return state.handle(event)

    def begin() -> bool:
        (decision,) = handle(WorkerReady(0.0))
        if isinstance(decision, SuggestionWanted):
            suggestion = searcher.suggest(state.view(), state.request(decision))
            assert suggestion is not None
            (decision, *_) = handle(Suggested(0.0, decision.trial_id, suggestion.config, "random", "drawn"))
        if not isinstance(decision, (Start, Resume)):
            return False
        handle(AttemptStarted(0.0, decision.trial_id, decision.attempt))
        return True

    while begin():
        trial = state.trials[next(iter(state.live))]
        told: Told | None = None
        while told is None or (told.verdict is Verdict.CONTINUE and not told.completed):
            at = trial.resource + 1
            event = Reported(0.0, trial.id, trial.attempt, at, abs(trial.config["x"] - 0.3) + 1 / at)
            begun = time.process_time()
            told = next(d for d in handle(event) if isinstance(d, Told))
            journal.append(batch)
            batch.clear()
            took.append(time.process_time() - begun)
        saved = Checkpoint(trial.resource, f"{trial.id}/{trial.resource}.ckpt", "0" * 64, 10)
        decisions = handle(CheckpointSaved(0.0, trial.id, trial.attempt, saved))
        outcome = Outcome.COMPLETED if told.completed else Outcome.PAUSED
        decisions += handle(AttemptEnded(0.0, trial.id, trial.attempt, outcome))
        assert len([d for d in decisions if isinstance(d, DropCheckpoint)]) <= 2
    journal.append(batch)
    journal.close()
    took.sort()
    assert took[int(0.99 * len(took))] < 0.005, f"99 of 100 reports take less than {took[int(0.99 * len(took))]:.4f} s"
    # Not ru_maxrss, which begins with the size of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert peak < 500e6, f"{peak / 1e6:.0f} MB"


@pytest.mark.slow
def test_ten_thousand_trials_cost_milliseconds_a_report_and_little_memory(tmp_path, request):
    root = str(request.config.rootpath)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    begun = time.perf_counter()
    study = load_study(tmp_path)
    assert len(study.trials) == MANY
    assert study.ask() is None
    study.close()
    assert time.perf_counter() - begun < 30.0


def test_a_ceiling_that_the_noise_holds_down_does_not_slow_a_study_down():
    """Every report is noise: of 2,000 trials, each pair that crosses twice counts for PASHA's epsilon."""
    took = {}
    for kind in ("promotion", "pasha"):
        draw = random.Random(0)
        study = Study.create({"x": uniform(0.0, 1.0)}, metric="m", algorithm="asha", type=kind, max_t=27)
        begun = time.process_time()
        while len(study.trials) < 2000:
            job, verdict = study.ask(), "continue"
            resource = job.from_resource if isinstance(job, Resume) else 0
            while verdict == "continue":
                resource += 1
                verdict = study.tell(job.trial_id, resource, draw.random())
        took[kind] = time.process_time() - begun
    assert took["pasha"] < 4 * took["promotion"], took
