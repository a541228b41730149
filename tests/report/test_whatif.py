from __future__ import annotations

import json
import math
import time

import pytest

from lightning_hpo import Study, uniform
from lightning_hpo.cli import main
from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.events import AttemptEnded, Outcome, Reported, WorkerReady
from lightning_hpo.errors import OptionError, ReportError
from lightning_hpo.report.whatif import describe, options_for, recorded_curves, what_if
from lightning_hpo.searchers import make_searcher
from tests.core.driving import Driven


def recorded(*curves: tuple[float, ...], **options) -> Driven:
    """Trials at x = 0.1, 0.5, 0.9, ... that end early, 10 seconds a unit: 0.9 0.6 0.5, then 0.8 0.7, then 0.4."""
    curves = curves or ((0.9, 0.6, 0.5), (0.8, 0.7), (0.4,))
    configs = [{"x": 0.1 + 0.8 * i / (len(curves) - 1)} for i in range(len(curves))]
    study = Driven(algorithm="random", max_t=4, points_to_evaluate=configs, n_trials=len(curves), **options)
    for trial, values in enumerate(curves):
        study.ready()
        for resource, value in enumerate(values, 1):
            study.time += 10.0
            study.handle(Reported(study.time, trial, 1, resource, value))
        study.handle(AttemptEnded(study.time, trial, 1, Outcome.COMPLETED))
    return study


def searcher(options):
    return make_searcher(ALGORITHMS[options.algorithm].searcher, options.searcher)


class TestCurves:
    def test_of_the_nearest_trial_go_on_by_the_typical_change(self):
        """From 1 to 2 the changes are -0.3 and -0.1, median -0.2; from 2 to 3 it is -0.1; nobody reported at 4."""
        curves = recorded_curves(recorded().state)
        assert list(curves({"x": 0.15}).values) == pytest.approx([0.9, 0.6, 0.5, 0.5])
        assert list(curves({"x": 0.45}).values) == pytest.approx([0.8, 0.7, 0.6, 0.6])

    def test_go_on_by_less_the_nearer_they_are_to_the_end(self):
        """0.9 0.8 0.7 0.3 were followed by 0.5 0.45 0.4 0.2: a line of slope 1/2 and offset 0.05. NaN turns nothing."""
        study = recorded((0.9, 0.5), (0.8, 0.45), (0.7, 0.4), (0.3, 0.2), (0.8, math.nan), (0.5,))
        assert list(recorded_curves(study.state)({"x": 0.9}).values) == pytest.approx([0.5, 0.3, 0.3, 0.3])

    @pytest.mark.parametrize(("mode", "sign"), [("min", -1.0), ("max", 1.0)])
    def test_stay_within_what_the_study_has_seen(self, mode, sign):
        """The typical change would take an accuracy of 0.99 to 1.19, and an error of -0.99 to -1.19."""
        study = recorded((0.5 * sign, 0.7 * sign), (0.99 * sign,), mode=mode)
        assert list(recorded_curves(study.state)({"x": 0.9}).values) == pytest.approx([0.99 * sign] * 4)

    def test_that_diverged_do_not_come_back(self):
        study = recorded((0.9, 0.5, 0.4), (0.8, math.nan))
        assert list(recorded_curves(study.state)({"x": 0.9}).values) == pytest.approx(
            [0.8] + 3 * [math.nan], nan_ok=True
        )

    def test_a_unit_takes_as_long_as_it_took(self):
        assert recorded_curves(recorded().state)({"x": 0.1}).seconds == pytest.approx(10.0)

    def test_gaps_have_the_value_before_them(self):
        study = Driven(algorithm="random", max_t=6)
        study.ready()
        for resource, value in ((2, 0.5), (5, 0.2)):
            study.report(0, resource, value)
        assert list(recorded_curves(study.state)({"x": 0.5}).values) == [0.5, 0.5, 0.5, 0.5, 0.2, 0.2]

    def test_there_must_be_some(self):
        with pytest.raises(ReportError, match="Simulate when some have"):
            recorded_curves(Driven(max_t=4).state)


class TestExpectations:
    def test_of_training_everything(self):
        """One worker and 120 s: the three first configurations are trained to the end."""
        (found,) = what_if(recorded().state, ["random"], searcher, n_workers=1, max_time=120.0, seeds=2)
        assert found.best == pytest.approx(0.4) and found.best_std == 0.0
        assert found.seconds_to_recorded_best == pytest.approx(90.0)  # 0.4, after the first unit of the third trial
        assert (found.reached, found.units, found.worker_seconds) == (2, 12.0, 120.0)

    def test_more_workers_are_faster(self):
        few, many = (
            what_if(recorded().state, ["random"], searcher, n_workers=n, max_time=120.0, seeds=1)[0] for n in (1, 3)
        )
        assert many.seconds_to_recorded_best == pytest.approx(10.0)
        assert few.seconds_to_recorded_best == pytest.approx(90.0)
        assert many.trials > few.trials

    def test_time_and_workers_are_the_studys_unless_told_otherwise(self):
        (found,) = what_if(recorded(n_workers=2).state, ["random"], searcher, seeds=1)
        assert (found.n_workers, found.seconds) == (2, 60.0)

    def test_of_a_metric_to_be_maximised(self):
        (found,) = what_if(recorded(mode="max").state, ["random"], searcher, n_workers=1, max_time=50.0, seeds=1)
        assert found.best == pytest.approx(0.9) and found.seconds_to_recorded_best == pytest.approx(10.0)

    def test_what_cannot_be_simulated_is_refused(self):
        state = recorded().state
        for arguments in ({"seeds": 0}, {"max_time": 0.0}, {"max_time": math.inf}, {"n_workers": 0}):
            with pytest.raises(OptionError):
                what_if(state, ["random"], searcher, **arguments)
        with pytest.raises(OptionError, match="Did you mean 'mobster'"):
            what_if(state, ["mobstr"], searcher)


def test_an_algorithm_that_cannot_be_simulated_is_refused_before_the_first_simulation():
    def too_early(options):
        raise AssertionError(f"{options.algorithm} is simulated")

    with pytest.raises(OptionError, match="Did you mean 'mobster'"):
        what_if(recorded().state, ["random", "mobstr"], too_early, max_time=10.0)


def test_options_are_the_studys_with_the_other_algorithms_searcher():
    base = Driven(algorithm="bohb", type="promotion", max_t=9, brackets=2, searcher={"num_candidates": 5}).options
    same = options_for(base, "bohb", 9, 4, 7)
    assert (same.searcher.num_candidates, same.random_seed, same.n_workers) == (5, 7, 4)
    other = options_for(base, "asha", 9, 4, 7)
    assert (other.type, other.brackets, other.searcher.num_candidates) == ("promotion", 2, 64)
    assert options_for(base, "pasha", 9, 4, 7).effective_type == "pasha"


def test_a_preset_of_the_studys_algorithm_is_not_one_of_the_other():
    base = Driven(algorithm="default", promotion_rule="rank", max_t=9).options
    assert base.improvement_probability == 0.4
    assert options_for(base, "default", 9, 4, 7).improvement_probability == 0.4
    for other in ("asha", "mobster", "random"):
        assert options_for(base, other, 9, 4, 7).improvement_probability == 0
    led = Driven(algorithm="default", max_t=9).options
    assert options_for(led, "default", 9, 4, 7).promotion_rule == "searcher"
    for other in ("asha", "mobster", "random"):
        assert options_for(led, other, 9, 4, 7).promotion_rule == "rank"
    for given in ({"type": "stopping"}, {"type": "promotion", "brackets": 2}):
        asha = Driven(algorithm="asha", max_t=9, **given).options
        assert options_for(asha, "default", 9, 4, 7).promotion_rule == "searcher"


def test_the_command_compares_with_the_studys_own_algorithm(tmp_path, capsys):
    study = Study.create({"x": uniform(0, 1)}, metric="loss", algorithm="random", max_t=3, n_trials=6, path=tmp_path)
    began = time.monotonic()
    while (job := study.ask()) is not None:
        for resource in (1, 2, 3):
            study.tell(job.trial_id, resource, job.config["x"] / resource)
    seconds = 2 * (time.monotonic() - began)
    study.close()
    command = [
        "simulate",
        str(tmp_path),
        "--algorithm",
        "asha",
        "--workers",
        "4",
        "--seconds",
        f"{seconds:.4f}",
        "--seeds",
        "2",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "mean of 2 simulations with 4 workers" in shown and "\nrandom " in shown and "\nasha " in shown
    assert main([*command, "--json"]) == 0
    assert [row["algorithm"] for row in json.loads(capsys.readouterr().out)] == ["random", "asha"]
    assert main(["simulate", str(tmp_path), "--algorithm", "nonsense"]) == 2


def test_the_table_says_when_the_recorded_best_was_never_reached():
    state = recorded().state
    found = what_if(state, ["random"], searcher, n_workers=1, max_time=15.0, seeds=1)
    assert "never" in describe(state, found, "epoch").plain


def test_simulating_leaves_the_study_as_it_is():
    study = recorded()
    before = repr(study.state.trials)
    what_if(study.state, ["random", "asha"], searcher, max_time=100.0, seeds=1)
    assert repr(study.state.trials) == before
    (decision,) = study.state.handle(WorkerReady(0.0))
    assert "all 3 trials are done" in decision.reason
