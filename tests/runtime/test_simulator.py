from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.domains import choice, loguniform, randint, uniform
from lightning_hpo.core.events import AttemptEnded, Outcome, Reported, Resume, Start, Suggested, from_json, to_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Suggestion
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import ConfigError, OptionError
from lightning_hpo.runtime.curves import Curve, CurveTable, NearestCurves
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.simulator import Delays, WorkerFailures, simulate
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.searchers import make_searcher
from tests.core.driving import snapshot
from tests.faults.virtual import searcher_of

SPACE = SearchSpace({"x": uniform(0.0, 1.0)})


class Listed:
    """Proposes the given values of x one after the other."""

    def __init__(self, *values: float) -> None:
        self._values = values

    def suggest(self, view, request):
        if request.trial_id >= len(self._values):
            return None
        return Suggestion({"x": self._values[request.trial_id]}, "the next of a list")


def options(**given) -> StudyOptions:
    return StudyOptions.from_mapping(
        {"metric": "loss", "algorithm": "asha", "max_t": 3, "points_to_evaluate": [], **given}
    )


def curve(config) -> Curve:
    """x, x, x: a unit takes 10 seconds."""
    return Curve([config["x"]] * 3, 10.0)


def run(*values: float, benchmark=curve, n_workers=1, max_time=math.inf, study=None, **more):
    return simulate(
        SPACE, study or options(), benchmark, n_workers=n_workers, max_time=max_time, searcher=Listed(*values), **more
    )


def test_synchronous_batches_are_as_wide_as_there_are_workers():
    """Two batches of four trials of 30 seconds; ``n_workers`` of the options is one and does not count."""
    study = options(algorithm="random", asynchronous=False, n_trials=8)
    result = run(*np.linspace(0.1, 0.8, 8).tolist(), n_workers=4, study=study)
    assert result.time == pytest.approx(60.0)


class Leading:
    """Starts three trials, then sends them on in turn, as far as the next one says."""

    def suggest(self, view, request):
        if request.trial_id < 3:
            return Suggestion({"x": 0.1 * (1 + request.trial_id)}, "a new one", "model", milestone=1)
        trial = min(view.paused, key=lambda i: (view.paused[i], i), default=None)
        if trial is None:
            return None
        return Suggestion(view.configs[trial], "one more time", "model", resumes=trial, milestone=3)


def test_a_searcher_that_leads_has_its_trials_resumed():
    result = run(study=options(algorithm="default", max_t=9), n_workers=2, benchmark=lambda c: Curve([c["x"]] * 9, 1.0))
    assert result.reason == "every configuration has been tried"
    led = simulate(
        SPACE, options(algorithm="default", max_t=9), lambda c: Curve([c["x"]] * 9, 1.0), n_workers=1, max_time=9.5,
        searcher=Leading(),
    )  # fmt: skip
    # three epochs for the first rung, then two more for each trial, one after the other
    assert times(led, Reported) == [(float(t), i) for t, i in enumerate([0, 1, 2, 0, 0, 1, 1, 2, 2], start=1)]
    assert led.state.trials[2].reason == "rank 3 of 3 at rung 1; one more time"


class Noisy:
    """x when the search trains it; x + 1, x + 2, .. when it is trained again."""

    def __call__(self, config) -> Curve:
        return curve(config)

    def retrained(self, config, replicate) -> Curve:
        return curve({"x": config["x"] + replicate})


@pytest.mark.parametrize("benchmark, expected", [(Noisy(), [1.25, 2.25]), (curve, [0.25, 0.25])])
def test_confirmations_have_curves_of_their_own(benchmark, expected):
    study = options(algorithm="random", n_trials=4, confirm={"top": 1, "seeds": 2})
    result = run(0.5, 0.25, benchmark=benchmark, study=study)
    assert [t.curve[3] for t in result.state.trials.values()] == [0.5, 0.25, *expected]
    assert result.reason == "the best one is confirmed"


def test_confirmations_fit_into_the_time():
    study = options(algorithm="random", n_workers=2, stop={"max_wallclock_time": 200.0}, confirm={"top": 1, "seeds": 2})
    result = run(*(0.01 * i for i in range(40)), study=study, n_workers=2)
    assert [t.confirms for t in result.state.trials.values()][-2:] == [0, 0]
    assert all(t.status is TrialStatus.COMPLETED for t in result.state.trials.values() if t.confirms is not None)
    # A training takes 30 s. The one round of confirmations is to begin after 200 - 30 - 10 s.
    assert 160 < result.state.trials[len(result.state.trials) - 1].started_at <= 170
    assert result.time <= 200


def times(result, kind):
    return [(e.time, e.trial_id) for e in result.events if isinstance(e, kind)]


class TestClock:
    def test_a_trial_takes_as_long_as_its_curve(self):
        result = run(0.5)
        assert times(result, Reported) == [(10.0, 0), (20.0, 0), (30.0, 0)]
        assert times(result, AttemptEnded) == [(30.0, 0)]
        assert (result.time, result.units, result.busy_seconds) == (30.0, 3, 30.0)
        assert result.reason == "every configuration has been tried"

    def test_workers_train_at_the_same_time(self):
        result = run(0.1, 0.2, 0.3, n_workers=2, study=options(algorithm="random", max_t=3))
        assert times(result, AttemptEnded) == [(30.0, 0), (30.0, 1), (60.0, 2)]

    def test_every_delay_is_where_it_belongs(self):
        delays = Delays(1.0, 0.1, 0.3, 2.0, 3.0)
        result = run(0.3, 0.2, 0.1, study=options(type="promotion"), delays=delays)
        # Training of trial 0 begins at 1; its report leaves at 11, arrives at 11.1; it obeys at 13.1, ends at 16.1.
        assert times(result, Reported)[0] == (pytest.approx(11.1), 0)
        assert times(result, AttemptEnded)[0] == (pytest.approx(16.1), 0)
        # Trials 1 and 2 take as long; trial 2 is resumed and trains two units from 49.3 on, complete 0.3 later.
        assert times(result, Reported)[3:] == [(pytest.approx(59.4), 2), (pytest.approx(69.4), 2)]
        assert times(result, AttemptEnded)[3] == (pytest.approx(69.6), 2)

    def test_units_may_take_different_times(self):
        result = run(0.5, benchmark=lambda config: Curve([0.5] * 3, [1.0, 2.0, 4.0]))
        assert [t for t, _ in times(result, Reported)] == [1.0, 3.0, 7.0]

    def test_nothing_happens_after_max_time(self):
        result = run(0.5, max_time=25.0)
        assert [t for t, _ in times(result, Reported)] == [10.0, 20.0]
        assert (result.time, result.reason) == (25.0, "25 seconds have passed")

    def test_the_stop_criterion_counts_virtual_time(self):
        result = run(*[0.5] * 9, study=options(algorithm="random", max_t=3, stop={"max_wallclock_time": 45}))
        assert result.time == 50.0 and "max_wallclock_time" in result.reason

    def test_the_searchers_own_time_counts_if_wished_while_others_train(self, monkeypatch):
        clock = iter(range(0, 1000, 4))  # every look at the CPU clock is 4 seconds later
        monkeypatch.setattr("lightning_hpo.runtime.simulator.time.process_time", lambda: float(next(clock)))
        result = run(0.5, 0.6, n_workers=2, study=options(algorithm="random", max_t=3), counts_searcher_time=True)
        assert times(result, Suggested)[:2] == [(4.0, 0), (8.0, 1)]
        assert times(result, AttemptEnded) == [(34.0, 0), (38.0, 1)]
        assert result.searcher_seconds == 12.0  # the third time it has nothing left

    def test_without_it_a_simulation_repeats_exactly(self):
        first, second = (run(0.3, 0.2, 0.1, n_workers=2, study=options(type="promotion")) for _ in range(2))
        assert first.events == second.events and first.incumbents == second.incumbents

    @pytest.mark.parametrize("given", [{"start": -1.0}, {"stop": math.nan}, {"on_trial_result": 0.2}])
    def test_delays_that_make_no_sense_are_refused(self, given):
        with pytest.raises(OptionError):
            Delays(**given)


class TestPausing:
    def test_a_trial_goes_on_where_it_paused(self):
        result = run(0.3, 0.2, 0.1, study=options(type="promotion"))
        assert [(e.trial_id, e.resource) for e in result.events if isinstance(e, Reported)] == [
            (0, 1), (1, 1), (2, 1), (2, 2), (2, 3),
        ]  # fmt: skip
        assert result.units == 5

    def test_without_checkpoints_it_trains_from_scratch(self):
        result = run(0.3, 0.2, 0.1, study=options(type="promotion"), has_checkpoints=False)
        assert [(e.trial_id, e.resource) for e in result.events if isinstance(e, Reported)][3:] == [
            (2, 1), (2, 2), (2, 3),
        ]  # fmt: skip
        assert result.units == 6
        assert result.state.trials[2].status is TrialStatus.COMPLETED

    def test_a_curve_is_looked_up_once_per_trial(self):
        asked = []

        def noisy(config):
            asked.append(config["x"])
            return curve(config)

        run(0.3, 0.2, 0.1, benchmark=noisy, study=options(type="promotion"))
        assert asked == [0.3, 0.2, 0.1]

    def test_a_short_curve_ends_its_trial(self):
        result = run(0.5, benchmark=lambda config: Curve([0.5, 0.4], 1.0))
        assert result.state.trials[0].status is TrialStatus.COMPLETED
        assert result.state.best_full == (0, 2, 0.4)


class TestResult:
    def test_traces_the_incumbent(self):
        result = run(0.3, 0.5, 0.1, benchmark=lambda c: Curve([c["x"], c["x"] - 0.05, c["x"]], 1.0), study=options())
        assert [(step.trial_id, step.resource, round(step.value, 3)) for step in result.incumbents] == [
            (0, 1, 0.3), (0, 2, 0.25), (2, 1, 0.1), (2, 2, 0.05),
        ]  # fmt: skip
        assert result.best_at(0.5) is None
        assert result.best_at(1.5) == 0.3 and result.best_at(2.0) == 0.25

    def test_is_in_the_users_sign(self):
        result = run(0.3, 0.5, 0.4, study=options(mode="max"))
        assert [step.value for step in result.incumbents] == [0.3, 0.5]

    def test_events_are_the_study(self):
        result = run(*np.linspace(0.9, 0.1, 20).tolist(), n_workers=3, study=options(type="promotion", max_t=3))
        again = StudyState(SPACE, options(type="promotion", max_t=3, n_workers=3))
        for event in result.events:
            again.handle(from_json(json.loads(json.dumps(to_json(event)))))
        assert snapshot(again) == snapshot(result.state)

    def test_a_journal_of_a_study_with_another_number_of_workers_is_refused(self, tmp_path):
        with (
            Journal.create(tmp_path, study_header(SPACE, options())) as journal,
            pytest.raises(OptionError, match=r"Give n_workers=1, or make the journal with n_workers=2\."),
        ):
            run(0.3, 0.2, journal=journal, n_workers=2)

    def test_a_journal_gets_them_too(self, tmp_path):
        with Journal.create(tmp_path, {}) as journal:
            result = run(0.3, 0.2, 0.1, journal=journal)
            assert list(journal.events()) == result.events

    def test_there_must_be_a_worker(self):
        with pytest.raises(OptionError, match="Set n_workers to 1 or more"):
            run(0.5, n_workers=0)

    @pytest.mark.parametrize("max_time", [0.0, -1.0, math.nan])
    def test_a_clock_that_does_not_run_is_refused(self, max_time):
        with pytest.raises(OptionError, match=r"Set max_time to the seconds of the virtual clock\.$"):
            run(0.5, max_time=max_time)

    def test_a_benchmark_that_answers_no_curve_is_refused(self):
        with pytest.raises(ConfigError, match=r"Return a lightning_hpo\.Curve of values and seconds\.$"):
            run(0.5, benchmark=lambda config: [0.5, 0.4])


class TestFailures:
    def test_a_lost_worker_costs_a_part_of_a_unit_and_the_trial_is_tried_again(self):
        result = run(0.5, failures=WorkerFailures(0.5, seed=3), study=options(max_retries=100))
        assert result.lost_workers > 0
        assert result.state.trials[0].status is TrialStatus.COMPLETED
        assert result.state.trials[0].attempt == 1 + result.lost_workers
        assert result.time > 30.0

    def test_they_happen_as_often_as_said(self):
        failures = WorkerFailures(0.2, seed=0)
        lost = sum(failures.moment(trial, 1, resource) is not None for trial in range(100) for resource in range(20))
        assert lost == pytest.approx(400, abs=75)  # four standard deviations

    @settings(max_examples=40)
    @given(
        algorithm=st.sampled_from(["random", "asha", "pasha", "median", "sync_hyperband", "dehb", "grid", "bohb"]),
        kind=st.sampled_from(["stopping", "promotion"]),
        n_workers=st.integers(1, 9),
        probability=st.sampled_from([0.0, 0.05, 0.4]),
        seed=st.integers(0, 1000),
        has_checkpoints=st.booleans(),
        asynchronous=st.booleans(),
    )
    def test_whatever_fails_the_study_stays_sound(
        self, algorithm, kind, n_workers, probability, seed, has_checkpoints, asynchronous
    ):
        given_type = {"type": kind} if algorithm in ("asha", "bohb") else {}
        study = options(
            algorithm=algorithm, max_t=9, random_seed=seed, asynchronous=asynchronous, n_workers=n_workers, **given_type
        )
        seen: set[tuple[int, int]] = set()

        def watch(event, state):
            state.check_invariants()
            assert len(state.live) <= n_workers
            seen.update((i, r) for i, t in state.trials.items() for r in t.curve)
            assert all(r in state.trials[i].curve for i, r in seen), "a result was lost"

        result = simulate(
            SPACE,
            study,
            lambda config: Curve([config["x"] + 1 / r for r in range(1, 10)], 1.0 + config["x"]),
            n_workers=n_workers,
            max_time=60.0,
            searcher=searcher_of(study),
            delays=Delays(0.1, 0.05, 0.05, 0.1, 0.2),
            has_checkpoints=has_checkpoints,
            failures=WorkerFailures(probability, seed),
            watch=watch,
        )
        assert result.busy_seconds <= n_workers * 60.0 + 2.0 * n_workers
        assert result.state.progress.started == len(result.state.trials) > 0


class TestCurves:
    def test_times_may_be_an_array(self):
        assert Curve(np.array([0.5, 0.4]), np.array([1.0, 2.0])).elapsed(0, 2) == 3.0
        with pytest.raises(ConfigError, match=r"Give one positive number of seconds, or one for each unit\.$"):
            Curve([0.5], math.inf)

    def test_must_have_values_and_positive_times(self):
        for values, seconds in (([], 1.0), ([0.1], 0.0), ([0.1, 0.2], [1.0]), ([0.1], -1.0), ([0.1], math.nan)):
            with pytest.raises(ConfigError):
                Curve(values, seconds)

    def test_of_the_nearest_record_in_the_scale_of_the_hyperparameter(self):
        space = SearchSpace({"lr": loguniform(1e-4, 1.0)})
        records = [{"lr": 1e-4}, {"lr": 1e-2}, {"lr": 1.0}]
        nearest = NearestCurves(space, records, lambda row: Curve([float(row)], 1.0))
        # In log scale 0.002 is nearer to 0.01, and 0.2 to 1.
        assert [nearest({"lr": lr}).values[0] for lr in (2e-4, 2e-3, 9e-2, 2e-1)] == [0.0, 1.0, 1.0, 2.0]

    def test_a_record_with_the_same_choices_always_wins(self):
        space = SearchSpace({"a": uniform(0.0, 1.0), "b": uniform(0.0, 1.0), "act": choice(["relu", "gelu", "tanh"])})
        records = [{"a": 0.0, "b": 0.0, "act": "relu"}, {"a": 1.0, "b": 1.0, "act": "gelu"}]
        nearest = NearestCurves(space, records, lambda row: Curve([float(row)], 1.0))
        assert nearest.nearest({"a": 0.01, "b": 0.01, "act": "gelu"}) == 1
        assert nearest.nearest({"a": 0.51, "b": 0.51, "act": "tanh"}) == 1

    def test_ties_go_to_the_earlier_record(self):
        nearest = NearestCurves(SPACE, [{"x": 0.4}, {"x": 0.6}, {"x": 0.4}], lambda row: Curve([0.0], 1.0))
        assert nearest.nearest({"x": 0.5}) == 0 and nearest.nearest({"x": 0.41}) == 0

    def test_there_must_be_records(self):
        with pytest.raises(ConfigError, match="no recorded curves"):
            NearestCurves(SPACE, [], curve)


class TestTable:
    @pytest.fixture
    def path(self, tmp_path):
        spec = {
            "lr": {"type": "float_log", "lower": 1e-4, "upper": 1.0},
            "units": {"type": "int", "lower": 1, "upper": 8},
            "width": {"type": "int_log", "lower": 1, "upper": 64},
            "drop": {"type": "float", "lower": 0.0, "upper": 1.0},
            "act": {"type": "choice", "categories": ["relu", "gelu"]},
        }
        np.savez(
            tmp_path / "table.npz",
            meta=json.dumps({"name": "tiny", "space": spec, "max_epochs": 2}),
            hp_lr=[1e-3, 1e-1], hp_units=[2, 7], hp_width=[4, 32], hp_drop=[0.25, 0.5], hp_act=[1, 0],
            val_error=np.array([[0.5, 0.4], [0.3, 0.2]], dtype=np.float32),
            epoch_seconds=[1.5, 2.5],
        )  # fmt: skip
        return tmp_path / "table.npz"

    def test_is_read_without_executing_anything(self, path):
        table = CurveTable(path)
        assert (table.name, table.max_t, len(table.configs)) == ("tiny", 2, 2)
        assert table.configs[0] == {"lr": 1e-3, "units": 2, "width": 4, "drop": 0.25, "act": "gelu"}
        domains = table.space.domains
        assert domains["units"] == randint(1, 8) and domains["act"].members == ("relu", "gelu")

    def test_answers_with_the_nearest_row(self, path):
        table = CurveTable(path)
        found = table({"lr": 2e-1, "units": 8, "width": 20, "drop": 0.5, "act": "relu"})
        assert list(found.values) == pytest.approx([0.3, 0.2]) and found.seconds == 2.5

    def test_can_be_simulated_on(self, path):
        table = CurveTable(path)
        study = options(algorithm="random", max_t=2, n_trials=30)
        searcher = make_searcher("random", study.searcher)
        result = simulate(table.space, study, table, n_workers=2, max_time=100.0, searcher=searcher)
        assert len(result.state.trials) == 30
        assert result.state.best_full[2] == pytest.approx(0.2)

    def test_that_is_none_is_refused(self, path, tmp_path):
        with pytest.raises(ConfigError, match=r"Give an \.npz file"):
            CurveTable(tmp_path / "missing.npz")
        with pytest.raises(ConfigError, match="val_loss"):
            CurveTable(path, metric="val_loss")
        np.savez(tmp_path / "pickle.npz", meta=np.array({"a": 1}, dtype=object))
        with pytest.raises(ConfigError):
            CurveTable(tmp_path / "pickle.npz")


def test_jobs_are_those_of_a_live_run():
    """Start and resume are what the study decides; nothing is decided here."""
    decided = []

    class Watched(StudyState):
        def handle(self, event):
            decisions = super().handle(event)
            decided.extend(d for d in decisions if isinstance(d, (Start, Resume)))
            return decisions

    result = run(0.3, 0.2, 0.1, study=options(type="promotion"))
    state = Watched(SPACE, options(type="promotion"))
    for event in result.events:
        state.handle(event)
    ended = [e for e in result.events if isinstance(e, AttemptEnded) and e.outcome is not Outcome.LOST]
    assert len(decided) == len(ended) == 4


def test_the_documents_example_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    best, units, _lost = capsys.readouterr().out.split()
    assert 0 < float(best) < 1.5 and int(units) > 300
