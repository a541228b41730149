"""A goal that no trial can reach is named at the first report."""

from __future__ import annotations

from lightning_hpo.core.events import Reported
from lightning_hpo.report.goals import Goals
from tests.report.studies import Driver, new_state


def told(stop: dict, *reports: dict[str, float]) -> list[str | None]:
    study, goals = Driver(new_state(stop=stop)), Goals()
    study.ready()
    found = []
    for resource, metrics in enumerate(reports, 1):
        event = Reported(study.time, 0, 1, resource, 0.5, {"val_loss": 0.5, **metrics})
        study.feed(event)
        found.append(goals.warning(event, study.state))
    return found


def test_a_metric_that_is_not_logged_is_named_once_with_the_nearest_that_is():
    (first, second) = told({"max_metric_value": {"val_akk": 0.9}}, {"val_acc": 0.5}, {"val_acc": 0.6})
    assert first is not None and second is None
    assert "stop.max_metric_value names 'val_akk'" in first and "Did you mean 'val_acc'?" in first


def test_goals_that_can_be_reached_are_not_spoken_of():
    assert told({"max_metric_value": {"val_acc": 0.9}, "min_metric_value": 0.1}, {"val_acc": 0.5}) == [None]
    assert told({"max_num_trials_started": 3}, {}) == [None]
