"""What a study costs: per epoch, per report, and in memory.

    python benchmarks/overhead.py --json overhead.json

``callback``: seconds an epoch of a tiny fit takes with the callback and without it, alone and in a trial.
``latency``: from a report to its decision, through the real channel, coordinator and journal; clients are processes
that report again after a pause, as trials do. ``commit`` in it, measured just before: one small durable SQLite
transaction and nothing else, on the same disk, the floor under every decision. ``throughput``: the same without a
pause, many clients. ``large``: 10,000 trials with 1,000,000 reports by ask and tell in memory, then a part of them from
a journal.

Nothing here needs a GPU. Every part can be run alone (``--only``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_hpo import Study, loguniform, uniform
from lightning_hpo.core.events import Decision, Event, Outcome, Resume, Start
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.backends.local import LocalBackend
from lightning_hpo.runtime.channel import TrialChannel
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.coordinator import Coordinator
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.runtime.suggesting import InlineHost
from lightning_hpo.runtime.trial_folders import TrialFolders
from lightning_hpo.searchers import make_searcher

SPACE = {"lr": loguniform(1e-5, 1e-1), "dropout": uniform(0.0, 0.7), "momentum": uniform(0.0, 1.0)}
METRICS = {"train_loss": 0.123456789, "val_loss": 0.234567891, "val_acc": 0.912345678}
SCRIPT = Path(__file__).with_name("overhead_script.py")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of durations in seconds, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "n": len(ordered),
        "p50_ms": round(1e3 * ordered[len(ordered) // 2], 3),
        "p99_ms": round(1e3 * ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)], 3),
        "max_ms": round(1e3 * ordered[-1], 3),
    }


# -------------------------------------------------------------------------------------------- callback


def callback(folder: Path, epochs: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per epoch without the callback and with it, alone and in a trial; medians over all epochs.

    ``wall`` in a trial holds the report, its durable commit and the answer; ``processor`` is the trial's own time.
    """
    output = folder / "epochs.jsonl"
    command = [sys.executable, str(SCRIPT), "--output", str(output), f"--epochs={epochs}", f"--repeats={repeats}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{SCRIPT.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    fits = [json.loads(line) for line in output.read_text().splitlines()]
    result: dict[str, Any] = {}
    for where in ("outside a study", "in a trial"):
        for clock in ("wall", "processor"):
            plain, called = (
                1e3 * statistics.median(s for fit in fits if fit["where"] == where for s in fit[kind][clock])
                for kind in ("plain", "callback")
            )
            result.setdefault(where.replace(" ", "_"), {})[clock] = {
                "epoch_without_ms": round(plain, 3),
                "epoch_with_ms": round(called, 3),
                "cost_ms": round(called - plain, 3),
            }
    return result


# ---------------------------------------------------------------------------------------------- commit


def commit(folder: Path, n: int, pause_s: float) -> dict[str, float]:
    """Durable transactions of one short row each, in a database set up as the journal's, with pauses as of a client.

    Without the pauses a disk answers much faster than it ever answers a study.
    """
    seconds = []
    with contextlib.closing(sqlite3.connect(folder / "commit.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("DROP TABLE IF EXISTS row")
        connection.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, data TEXT)")
        for number in range(n):
            time.sleep(pause_s)
            before = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO row VALUES (?, ?)", (number, "x" * 150))
            connection.execute("COMMIT")
            seconds.append(time.perf_counter() - before)
    return percentiles(seconds)


# --------------------------------------------------------------------------- coordinator, with real clients


class Silent:
    """Shows nothing."""

    def event(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        pass

    def say(self, message: str, warning: bool = False) -> None:
        print(message, file=sys.stderr)

    def tick(self, state: StudyState) -> None:
        pass


class Jobs:
    """A numbered folder for every trial."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, trial: Trial) -> Path:
        return self._folder / str(trial.id)

    def job(self, decision: Start | Resume, folder: Path, environment: dict[str, str]) -> Job:
        return Job(decision.trial_id, decision.attempt, folder, folder / "trial.log", environment)


def client(reports: int, pause_s: float, barrier: Path, clients: int, job: Job) -> None:
    """A trial that computes nothing: reports, and writes down when it asked and when it was answered.

    All clients wait for each other, so that every report is sent while all of them run.
    """
    channel = TrialChannel.from_environment()
    assert channel is not None
    channel.hello(reports)
    (barrier / str(job.trial_id)).touch()
    while len(os.listdir(barrier)) < clients:
        time.sleep(0.01)
    moments = array("d")
    for epoch in range(1, reports + 1):
        if pause_s:
            time.sleep(pause_s)
        before = time.perf_counter()
        answer = channel.report(epoch, 1.0 / epoch, METRICS, 0.1 * epoch)
        moments.extend((before, time.perf_counter()))
        assert answer.decision == ("complete" if epoch == reports else "continue"), answer
    (job.folder / "moments").write_bytes(moments.tobytes())
    channel.ended(Outcome.COMPLETED)


def reporting(folder: Path, clients: int, reports: int, pause_s: float) -> dict[str, Any]:
    """A whole study of ``clients`` trials at once, ``reports`` reports each, under ASHA of the stopping type.

    The trials' values are equal, so that none is stopped. Rates are those of the time in which all clients run.
    """
    barrier = folder / "barrier"
    barrier.mkdir(parents=True)
    entry = functools.partial(client, reports, pause_s, barrier, clients)
    space = SearchSpace.parse(SPACE)
    options = StudyOptions.from_mapping(
        {
            "metric": "val_error",
            "algorithm": "asha",
            "type": "stopping",
            "max_t": reports,
            "random_seed": 0,
            "n_workers": clients,
            "n_trials": clients,
        }
    )
    with contextlib.ExitStack() as closing:
        backend = LocalBackend(entry, n_workers=clients, gpus_per_trial=0, start_method="fork", preload=())
        closing.callback(backend.close)
        study = folder / "study"
        journal = closing.enter_context(Journal.create(study, study_header(space, options)))
        state = StudyState(space, options)
        server = closing.enter_context(ChannelServer(study))

        def inline(name: str) -> InlineHost:
            return InlineHost(make_searcher(name, options.searcher), state.view)

        coordinator = Coordinator(
            state=state,
            journal=journal,
            backend=backend,
            server=server,
            host=inline("random"),
            fallback=lambda: inline("random"),
            store=CheckpointStore(study),
            jobs=Jobs(folder),
            folders=TrialFolders(folder, state, Jobs(folder).folder),
            observer=Silent(),
        )
        before = time.process_time()
        coordinator.run()
        cpu = time.process_time() - before
        assert len(journal) >= clients * reports
    sent, answered = array("d"), array("d")
    for trial in range(clients):
        moments = array("d", (folder / str(trial) / "moments").read_bytes())
        sent += moments[::2]
        answered += moments[1::2]
    return {
        "clients": clients,
        "pause_ms": 1e3 * pause_s,
        "reports_per_s": round(len(sent) / (max(answered) - min(sent))),
        "launcher_cpu_us_per_report": round(1e6 * cpu / len(sent), 1),
        **percentiles([after - before for before, after in zip(sent, answered, strict=True)]),
    }


# ----------------------------------------------------------------------------------------------- large


def resident_mb() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def large(folder: Path, trials: int, reports: int, journalled: int) -> dict[str, Any]:
    """A study of ``trials`` trials, ``reports`` reports each, in memory; then ``journalled`` reports on disk.

    The journal gets its events in groups of 100, as from a busy coordinator.
    """
    options = {"metric": "val_error", "algorithm": "asha", "type": "stopping", "max_t": reports, "random_seed": 0}
    before_mb, begun = resident_mb(), time.perf_counter()
    study = Study.create(SPACE, **options)
    for number in range(trials):
        work = study.ask()
        assert isinstance(work, Start)
        for epoch in range(1, reports + 1):
            # Every trial is better than those before it, so that all are trained to the end.
            study.tell(work.trial_id, epoch, 1.0 / (number + epoch), metrics={"val_loss": 0.5})
    seconds = time.perf_counter() - begun
    memory = resident_mb() - before_mb
    result: dict[str, Any] = {
        "trials": trials,
        "reports": trials * reports,
        "seconds": round(seconds, 1),
        "us_per_report": round(1e6 * seconds / (trials * reports), 1),
        "memory_mb": round(memory, 1),
        "bytes_per_report": round(1e6 * memory / (trials * reports)),
    }
    assert sum(len(trial.curve) for trial in study.trials.values()) == trials * reports
    del study
    return result | {"journal": journal_of(folder, options, journalled, reports)}


def journal_of(folder: Path, options: dict[str, Any], n: int, reports: int) -> dict[str, Any]:
    """Write a study of ``n`` reports in groups of 100, then open it again."""
    space = SearchSpace.parse(SPACE)
    checked = StudyOptions.from_mapping(options)
    events = recorded(lambda: StudyState(space, checked), n, reports)
    with Journal.create(folder / "large", study_header(space, checked)) as journal:
        begun = time.perf_counter()
        for start in range(0, len(events), 100):
            journal.append(events[start : start + 100])
        written = time.perf_counter() - begun
    size = (folder / "large" / "study.db").stat().st_size
    begun = time.perf_counter()
    study = Study.load(folder / "large")
    opened = time.perf_counter() - begun
    study.close()
    assert sum(len(trial.curve) for trial in study.trials.values()) == n
    return {
        "events": len(events),
        "write_us_per_event": round(1e6 * written / len(events), 1),
        "open_s": round(opened, 2),
        "open_us_per_event": round(1e6 * opened / len(events), 1),
        "bytes_per_event": round(size / len(events)),
    }


def recorded(new_state: Callable[[], StudyState], n: int, reports: int) -> list[Event]:
    """The events of a study of ``n`` reports, ``reports`` for each trial."""
    events: list[Event] = []

    class Recording(StudyState):
        def handle(self, event: Event) -> list[Decision]:
            events.append(event)
            return super().handle(event)

    state = new_state()
    study = Study(Recording(state.space, state.options))
    for number in range(n // reports):
        work = study.ask()
        assert isinstance(work, Start)
        for epoch in range(1, reports + 1):
            study.tell(work.trial_id, epoch, 1.0 / (number + epoch), metrics={"val_loss": 0.5})
    return events


# ------------------------------------------------------------------------------------------------ main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--folder", type=Path, help="where to work; its disk is what is measured")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parts = ("callback", "latency", "throughput", "large")
    parser.add_argument("--only", choices=parts, action="append", help="this part; may be repeated")
    arguments = parser.parse_args()
    wanted = arguments.only or parts
    share = 10 if arguments.quick else 1
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        load = os.getloadavg()[0]
        # The parts with clients come first: they are forked, so this process should be small.
        for part, clients, reports, pause in (
            ("latency", 1, 2000, 0.005),
            ("latency", 2, 2000, 0.005),
            ("latency", 8, 1000, 0.05),
            ("throughput", 8, 5000, 0.0),
            ("throughput", 32, 2000, 0.0),
        ):
            if part in wanted:
                floor = commit(folder, 1000 // share, pause) if pause else None
                measured = reporting(folder / f"{part}{clients}", clients, reports // share, pause)
                if floor is not None:
                    measured |= {"commit": floor, "over_commit_p50": round(measured["p50_ms"] / floor["p50_ms"], 2)}
                result.setdefault(part, []).append(measured)
        if "callback" in wanted:
            result["callback"] = callback(folder, 300, max(1, 3 // share))
        if "large" in wanted:
            result["large"] = large(folder, 10_000 // share, 100, 200_000 // share)
    result["machine"] = {
        "cores": os.cpu_count(),
        "load_1_min": [load, os.getloadavg()[0]],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
