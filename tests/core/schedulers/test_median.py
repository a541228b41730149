from __future__ import annotations

import math

import pytest

from lightning_hpo.core.events import Verdict
from tests.core.driving import Driven


def five_trials(**options) -> Driven:
    """Running averages at 2: 0.1, 0.2, 0.3, 0.4 and 0.5; the median is 0.3."""
    study = Driven(algorithm="median", max_t=4, **{"grace_period": 2, **options})
    for first, second in ((0.1, 0.1), (0.1, 0.3), (0.5, 0.1), (0.4, 0.4), (0.9, 0.1)):
        study.ready()
        assert study.train(len(study.state.trials) - 1, first, second) is Verdict.CONTINUE
    study.ready()
    return study


def test_a_trial_whose_best_is_worse_than_the_median_average_is_stopped():
    assert five_trials().train(5, 0.9, 0.31) is Verdict.STOP


def test_its_best_value_so_far_counts_not_its_last():
    assert five_trials().train(5, 0.25, 0.9) is Verdict.CONTINUE


def test_ties_continue():
    assert five_trials().train(5, 0.9, 0.3) is Verdict.CONTINUE


def test_nobody_is_stopped_within_the_grace_period():
    assert five_trials().train(5, 0.99) is Verdict.CONTINUE


def test_nobody_is_stopped_before_five_others_have_come_as_far():
    study = five_trials()
    study.train(5, 0.1, 0.1)
    assert study.train(5, 0.99) is Verdict.CONTINUE  # it is alone at 3


def test_the_rule_is_mirrored_for_a_metric_to_be_maximised():
    study = Driven(algorithm="median", max_t=4, mode="max")
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        study.ready()
        study.train(len(study.state.trials) - 1, value)
    study.ready()
    study.ready()
    assert study.train(5, 0.3) is Verdict.CONTINUE
    assert study.train(6, 0.29) is Verdict.STOP


@pytest.mark.parametrize("last", [math.nan, 0.3])
def test_a_trial_that_was_trained_to_the_end_is_told_so_whatever_it_reported(last):
    study = five_trials()
    study.train(5, 0.1, 0.1, 0.1)
    assert study.report(5, 4, last).completed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_its_trial_and_touches_no_average(bad):
    study = five_trials()
    assert study.train(5, bad) is Verdict.STOP
    study.ready()
    assert study.train(6, 0.9, 0.3) is Verdict.CONTINUE
    study.ready()
    assert study.train(7, 0.9, 0.9) is Verdict.STOP


def test_a_trial_that_reaches_max_t_is_complete():
    study = five_trials()
    study.train(0, 0.1)
    assert study.report(0, 4, 0.1).completed
