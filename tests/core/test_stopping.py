from __future__ import annotations

import math

import pytest

from lightning_hpo.core.stopping import Progress, StopCriterion
from lightning_hpo.errors import OptionError


def reported(*values: float, metric: str = "loss") -> Progress:
    progress = Progress(metric)
    for value in values:
        progress.add_report({metric: value})
    return progress


@pytest.mark.parametrize(
    ("option", "counter"),
    [
        ("max_wallclock_time", "time"),
        ("max_num_evaluations", "evaluations"),
        ("max_num_trials_started", "started"),
        ("max_num_trials_completed", "completed"),
        ("max_num_trials_finished", "finished"),
        ("max_cost", "cost"),
    ],
)
def test_a_limit_stops_the_study_when_it_is_exceeded_not_when_it_is_reached(option, counter):
    criterion = StopCriterion(**{option: 3})
    assert criterion.reason(Progress(**{counter: 3})) is None
    assert option in criterion.reason(Progress(**{counter: 4}))


def test_without_limits_a_study_goes_on():
    busy = Progress("loss", 1e9, 10**6, 10**5, 10**5, 0, 10**5, 1e6, {"loss": -1e9}, {"loss": 1e9})
    assert StopCriterion().reason(busy) is None


class TestThresholds:
    def test_are_strict(self):
        assert StopCriterion(min_metric_value={"loss": 0.1}).reason(reported(0.1)) is None
        assert StopCriterion(min_metric_value={"loss": 0.1}).reason(reported(0.0999)) is not None
        assert StopCriterion(max_metric_value={"acc": 0.9}).reason(reported(0.9, metric="acc")) is None
        assert StopCriterion(max_metric_value={"acc": 0.9}).reason(reported(0.91, metric="acc")) is not None

    def test_remember_every_report(self):
        assert StopCriterion(min_metric_value={"loss": 0.1}).reason(reported(0.05, 0.7)) is not None

    def test_a_bare_number_is_meant_for_the_metric_of_the_study(self):
        progress = reported(0.05)
        progress.add_report({"loss": 0.5, "acc": 0.99})
        assert StopCriterion(min_metric_value=0.1).reason(progress) is not None
        assert StopCriterion(max_metric_value=0.9).reason(progress) is None

    def test_a_metric_that_was_never_reported_does_not_stop(self):
        criterion = StopCriterion(min_metric_value={"absent": 1.0}, max_metric_value={"absent": -1.0})
        assert criterion.reason(reported(0.5)) is None

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_diverged_trial_reaches_none(self, value):
        progress = reported(0.5, value, 0.4)
        assert progress.evaluations == 3
        assert StopCriterion(min_metric_value=0.3, max_metric_value=0.6).reason(progress) is None
        assert (progress.lowest, progress.highest) == ({"loss": 0.4}, {"loss": 0.5})


class TestOptions:
    def test_are_read_from_plain_data(self):
        criterion = StopCriterion.from_mapping(
            {"max_wallclock_time": 120, "max_num_evaluations": 1e3, "max_cost": None}
        )
        assert criterion == StopCriterion(max_wallclock_time=120.0, max_num_evaluations=1000)
        assert type(criterion.max_num_evaluations) is int

    def test_a_typing_error_is_recognised(self):
        with pytest.raises(OptionError, match=r"stop\.max_wallclock_tim is .* Did you mean 'max_wallclock_time'"):
            StopCriterion.from_mapping({"max_wallclock_tim": 120})

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_wallclock_time", "2h"),
            ("max_wallclock_time", -1),
            ("max_wallclock_time", math.nan),
            ("max_cost", math.inf),
            ("max_cost", True),
            ("max_num_evaluations", 2.5),
            ("max_num_trials_started", -3),
            ("min_metric_value", "0.1"),
            ("min_metric_value", {"loss": None}),
            ("max_metric_value", {3: 0.1}),
        ],
    )
    def test_a_wrong_value_is_refused_with_the_fix(self, option, value):
        with pytest.raises(OptionError, match=rf"stop\.{option}.*Set stop\.{option}[^=]* to .*\.$"):
            StopCriterion.from_mapping({option: value})

    def test_a_bare_number_is_no_criterion(self):
        with pytest.raises(OptionError, match="Write a limit by its name"):
            StopCriterion.from_mapping(120)
