"""The stopping criterion, asked after every step of a study."""

from __future__ import annotations

import pytest

from lightning_hpo.core.stopping import Progress, StopCriterion

pytestmark = pytest.mark.golden("stopping")

FINISHED = ("completed", "stopped", "stopping", "failed")


def test_answer_after_every_step(record):
    criterion = StopCriterion.from_mapping(record["criterion"])
    progress = Progress()
    for step in record["steps"]:
        states = list(step["trial_states"].values())
        progress.time = step["wallclock_time"]
        progress.started = len(states)
        progress.completed = states.count("completed")
        progress.finished = sum(state in FINISHED for state in states)
        for _, metrics in step["new_reports"]:
            progress.add_report(metrics)

        counts = {name: getattr(progress, name) for name in ("started", "completed", "finished", "evaluations")}
        assert counts == step["counts"]
        assert (criterion.reason(progress) is not None) is step["stop"]
