"""Decision by decision, the schedulers repeat what the reference implementation did."""

from __future__ import annotations

import pytest

from lightning_hpo.core.brackets import default_distribution, milestones, num_brackets
from lightning_hpo.core.events import (
    AttemptEnded,
    CheckpointSaved,
    Outcome,
    Reported,
    Resume,
    Start,
    Suggested,
    SuggestionWanted,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.rungs import quantiles, rung_levels
from lightning_hpo.core.schedulers.pasha import Pasha
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, TrialStatus
from lightning_hpo.errors import OptionError


@pytest.mark.golden("rungs")
def test_levels_quantiles_and_brackets(record):
    given = record["input"]

    def levels():
        return rung_levels(
            given["max_t"],
            given["grace_period"],
            given["reduction_factor"],
            given["rung_increment"],
            given["rung_levels"],
        )

    if record["error"]:
        with pytest.raises(OptionError):
            levels()
        return
    found = levels()
    assert list(found) == record["rung_levels"]
    count = num_brackets(given["brackets"], found)
    assert count == record["num_brackets"]
    assert quantiles(found, given["max_t"]) == pytest.approx(record["quantiles"], abs=1e-12)
    assert [list(milestones(found, given["max_t"], b)) for b in range(count)] == record["milestones"]
    assert default_distribution(found, given["max_t"], count) == pytest.approx(
        record["bracket_distribution"], abs=1e-12
    )


class RecordedStudy(StudyState):
    """A study whose bracket draws are given."""

    bracket = 0

    def _draw_bracket(self):
        return self.bracket


class Replay:
    """Feeds a recorded trace to a study, and keeps what was decided."""

    def __init__(self, settings):
        options = StudyOptions.from_mapping(
            {
                "metric": "value",
                "mode": settings["mode"],
                "algorithm": "asha",
                "type": settings["type"],
                "max_t": settings["max_t"],
                "grace_period": settings["grace_period"],
                "reduction_factor": settings["reduction_factor"],
                "rung_increment": settings["rung_increment"],
                "rung_levels": settings["rung_levels_arg"],
                "brackets": settings["brackets"],
                "rung_system_per_bracket": settings["rung_system_per_bracket"],
                "min_rung_entries": settings["min_entries_rule"],
                "late_reports": "lost",
                "searcher_data": settings.get("searcher_data", "rungs"),
                "register_pending_myopic": settings.get("register_pending_myopic", False),
                "points_to_evaluate": [],
                "n_workers": 10**6,
                "max_failures_in_a_row": 10**6,
            }
        )
        self.study = RecordedStudy(SearchSpace({"x": uniform(0.0, 1.0)}), options)

    def suggest(self, event):
        _, self.study.bracket, kind, *expected = event
        (decision,) = self.study.handle(WorkerReady(0.0))
        if kind == "new":
            assert isinstance(decision, SuggestionWanted)
            config = {"x": (1 + decision.trial_id) / 10_000}
            (decision,) = self.study.handle(Suggested(0.0, decision.trial_id, config, "random", ""))
            assert isinstance(decision, Start)
            assert [decision.trial_id, decision.milestone] == expected
        else:
            assert isinstance(decision, Resume)
            assert [decision.trial_id, decision.from_resource, decision.milestone] == expected

    def report(self, event):
        _, trial_id, epoch, value, expected, *more = event
        trial = self.study.trials[trial_id]
        told = self.study.handle(Reported(0.0, trial_id, trial.attempt, epoch, value))[0]
        assert told.verdict.name == expected
        if more:
            assert isinstance(self.study.scheduler, Pasha)
            system = self.study.scheduler.system_of(trial.bracket)
            assert self.study.scheduler.ceiling(system) == more[0]
            assert self.study.scheduler.epsilon(system) == pytest.approx(more[1], abs=1e-9)
        if trial.status is TrialStatus.PAUSING:
            self.study.handle(CheckpointSaved(0.0, trial_id, trial.attempt, Checkpoint(epoch, f"{trial_id}", "", 0)))
            self.study.handle(AttemptEnded(0.0, trial_id, trial.attempt, Outcome.PAUSED))
        elif told.verdict is Verdict.STOP:
            self.study.handle(AttemptEnded(0.0, trial_id, trial.attempt, Outcome.STOPPED))

    def error(self, event):
        attempt = self.study.trials[event[1]].attempt
        self.study.handle(AttemptEnded(0.0, event[1], attempt, Outcome.FAILED, "it failed"))

    def feed(self, event):
        {"suggest": self.suggest, "report": self.report, "error": self.error}[event[0]](event)

    def rungs(self):
        scheduler = self.study.scheduler
        promotes = record_type(scheduler)
        found = []
        for system in range(scheduler.num_systems):
            for level, rung in scheduler.rungs(system).items():
                entries = [[i, self.study.criterion(v), p][: 3 if promotes else 2] for i, v, p in rung.entries()]
                if entries:
                    found.append({"system": system, "level": level, "entries": entries})
        return found


def record_type(scheduler):
    return type(scheduler).__name__ != "StoppingAsha"


@pytest.mark.golden("traces", "traces_ratio_rule")
def test_decisions(record):
    replay = Replay(record["settings"])
    for event in record["events"]:
        replay.feed(event)
        replay.study.check_invariants()
    assert replay.rungs() == [rung for rung in record["final_rungs"] if rung["entries"]]


@pytest.mark.golden("searcher_view")
def test_what_the_searcher_sees(record):
    replay = Replay(record["settings"])
    data = replay.study.data
    sign = 0.0 if record["settings"]["mode"] == "min" else 1.0
    observed, pending = {}, set()
    for event, (added, removed, pending_added, pending_removed) in zip(record["events"], record["views"], strict=True):
        replay.feed(event)
        observed.update({(trial, resource): value for trial, resource, value in added})
        for trial, resource, *_ in removed:
            del observed[trial, resource]
        pending |= {tuple(p) for p in pending_added}
        pending -= {tuple(p) for p in pending_removed}
        # The records hold 1 - value where the metric is maximised, we hold -value.
        assert {(o.trial_id, o.resource): o.value + sign for o in data.observations()} == pytest.approx(
            observed, abs=1e-12
        )
        assert set(data.pending()) == pending
