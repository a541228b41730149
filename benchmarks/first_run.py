"""Wall time of a whole first study: 20 trials on handwritten digits, two at a time, up to 27 epochs, ASHA.

    python benchmarks/first_run.py --json first_run.json
    python benchmarks/first_run.py --peer optuna_sha=optuna-venv/bin/python --peer syne_tune=syne-venv/bin/python ...

Ours is the recipe's command, ``python recipes/train.py -m hydra/launcher=hpo``, with promotion. The others
(``first_run_peer.py``: optuna_sha, optuna_hyperband, ray, syne_tune) train the same model on the same data, with the
same Trainer flags, each in its own environment. Time runs from the start of the process to its end, imports included.
Everything runs one after the other; ours between the others. Wall time says little on a machine with other work;
``processor_seconds``, the processor time of all processes of a run, says more then. (Not of Ray, whose daemons end
their workers without taking their times.)
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning_hpo import load_study

HERE = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36
ORPHANS_S = 10.0
"""Processes that a tuner leaves behind have this time to end."""


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Seconds from start to end of a process that must not fail, and seconds of processor time of all it started."""
    # Bytecode that an earlier run has written is used and written, as on any user's machine.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = processor_seconds()
    begun = time.monotonic()
    with open(log, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=HERE.parent)
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return {"seconds": round(seconds, 1), "processor_seconds": round(processor_seconds() - before, 1)}


def adopt_orphans() -> None:
    """Processes whose parent ended become this one's children, so that their processor time can be counted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def processor_seconds() -> float:
    """Used by all processes that this one or its descendants started, as far as they have ended."""
    deadline = time.monotonic() + ORPHANS_S
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(folder: Path, seed: int) -> dict[str, Any]:
    study = folder / "study"
    command = [sys.executable, "recipes/train.py", "-m", "hydra/launcher=hpo", f"hydra.sweep.dir={study}"]
    command += ["hydra.launcher.type=promotion", f"hydra.launcher.random_seed={seed}"]
    times = timed(command, folder / "log.txt")
    loaded = load_study(study)
    try:
        curves = [trial.curve for trial in loaded.trials.values()]
    finally:
        loaded.close()
    return {
        **times,
        "trials": len(curves),
        "epochs": sum(max(curve) for curve in curves),
        "best_seen": max(value for curve in curves for value in curve.values()),
    }


def peer(name: str, python: str, folder: Path, seed: int) -> dict[str, Any]:
    times = timed([python, str(HERE / "first_run_peer.py"), name, str(folder), str(seed)], folder / "log.txt")
    return {**times, **json.loads((folder / "peer.json").read_text())}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {
        kind: {name: statistics.median(run[kind] for run in of) for name, of in runs.items()}
        for kind in ("seconds", "processor_seconds")
    }
    return {
        "medians": medians,
        "times_ours": {
            kind: {name: round(s / of["lightning_hpo"], 2) for name, s in of.items()} for kind, of in medians.items()
        },
        "runs": runs,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours (default: %(default)s)")
    parser.add_argument("--peer-repeats", type=int, default=1, help="runs of each peer (default: %(default)s)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be repeated")
    arguments = parser.parse_args()
    adopt_orphans()
    peers = dict(text.split("=", 1) for text in arguments.peer)
    plan = [(name, seed) for name in peers for seed in range(arguments.peer_repeats)]
    # Spread among the peers' runs, so that a change of the machine's mood does not favour one side.
    for seed in range(arguments.repeats):
        plan.insert(round(seed * (len(plan) + 1) / arguments.repeats), ("lightning_hpo", seed))
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, seed in plan:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="first-run-") as path:
            folder = Path(path)
            run = ours(folder, seed) if name == "lightning_hpo" else peer(name, peers[name], folder, seed)
        runs.setdefault(name, []).append({"seed": seed, "load_1_min_before": load, **run})
        print(name, runs[name][-1], file=sys.stderr, flush=True)
    text = json.dumps(summary(runs), indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
