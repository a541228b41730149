"""A large study: ask and tell, the journal, and opening it again: ``python benchmarks/replay.py --json replay.json``.

ASHA (promotion, max_t = 81) with random search and ``--trials`` trials in memory; its events are written to a journal
in groups as a coordinator under load would, copied, and folded again. Then ``--reports`` reports of trials that are all
trained to the end, in memory. Times are CPU seconds of one process, memory is the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_hpo import Study, loguniform, uniform
from lightning_hpo.core.events import Event
from lightning_hpo.core.study import StudyState
from lightning_hpo.runtime.journal import FILE_NAME, Journal
from lightning_hpo.runtime.stored import continued_state, study_header

SPACE = {"x": uniform(0.0, 1.0), "lr": loguniform(1e-4, 1.0)}
GROUP = 200
"""Events that share a commit."""


@contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    begun = time.process_time()
    yield
    found[f"{name}_s"] = round(time.process_time() - begun, 3)


def largest_memory() -> float:
    """MiB."""
    divisor = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / divisor, 1)


def train(study: Study) -> int:
    """One worker trains until nothing is left; returns the number of reports."""
    reports = 0
    while (job := study.ask()) is not None:
        at = getattr(job, "from_resource", 0)
        verdict = "continue"
        while verdict == "continue":
            at += 1
            reports += 1
            verdict = study.tell(job.trial_id, at, abs(job.config["x"] - 0.3) + 1 / at)
    return reports


def large_study(trials: int) -> dict[str, Any]:
    found: dict[str, Any] = {"trials": trials}
    study = Study.create(
        SPACE, metric="m", algorithm="asha", type="promotion", max_t=81, n_trials=trials, points_to_evaluate=[]
    )
    events: list[Event] = []
    kept = study._unwritten
    study._commit = lambda: (events.extend(kept), kept.clear())  # type: ignore[method-assign]
    with timed(found, "ask_and_tell"):
        found["reports"] = train(study)
    found["events"] = len(events)
    with tempfile.TemporaryDirectory() as folder:
        with Journal.create(folder, study_header(study.space, study.options)) as journal:
            with timed(found, "write"):
                for first in range(0, len(events), GROUP):
                    journal.append(events[first : first + GROUP])
            with timed(found, "backup"):
                journal.backup()
        found["file_mib"] = round((Path(folder) / FILE_NAME).stat().st_size / 2**20, 1)
        with timed(found, "open_and_replay"), Journal.open(folder) as journal:
            state, _ = continued_state(journal)
    found["is_the_same"] = same(state, study._state)
    return found


def same(replayed: StudyState, original: StudyState) -> bool:
    tables = [{i: repr(trial) for i, trial in state.trials.items()} for state in (replayed, original)]
    return tables[0] == tables[1] and replayed.best_any == original.best_any


def many_reports(reports: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    study = Study.create(SPACE, metric="m", algorithm="random", max_t=100, n_trials=reports // 100)
    with timed(found, "ask_and_tell"):
        found["reports"] = train(study)
    found["microseconds_per_report"] = round(found["ask_and_tell_s"] / found["reports"] * 1e6, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--reports", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    found = {"large_study": large_study(given.trials), "many_reports": many_reports(given.reports)}
    found["largest_memory_mib"] = largest_memory()  # type: ignore[assignment]
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
