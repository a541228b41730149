"""Methods of one library x tasks x workers x seeds, one JSON file a run; files that exist are kept.

This runs in the library's own virtual environment. The driver needs numpy only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from driver import Task, Tuner, budget, simulate
from emulate import Emulated
from live import Live
from tables import Table

FULL_RUNS = {
    "mlp_digits": 20.0,
    "rff_digits_rot": 12.0,
    "boosting_friedman": 16.0,
    "crossing": 16.0,
    "autoencoder_digits": 16.0,
    "echo_sequence": 16.0,
    "linear_easy": 16.0,
    "convnet_digits": 16.0,
    "factorization_ratings": 16.0,
    "finetune": 16.0,
    "many_hyperparameters": 16.0,
    "noisy_policy": 16.0,
    "wine_tabular": 16.0,
    "char_gru": 16.0,
    "graph_nodes": 16.0,
    "gridworld_dyna": 16.0,
    "metric_digits": 16.0,
}
"""Budgets, in average full trainings."""


def record(task: Task, make: type[Tuner], n_workers: int, seed: int, full_runs: float) -> dict[str, Any]:
    """One experiment as JSON data."""
    random.seed(seed)
    np.random.seed(seed)
    end = budget(task, n_workers, full_runs)
    tuner = make(task.space, task.max_epochs, n_workers, seed)
    began = time.perf_counter()
    run = simulate(task, tuner, n_workers, end)
    wall = time.perf_counter() - began
    _, _, number, epoch = run.trace[-1]
    result = {
        "trace": run.trace, "best": run.best, "budget_seconds": end, "trials": run.trials, "resumed": run.resumed,
        "epochs": run.epochs, "completed": run.completed, "tuner_cpu_seconds": sum(run.suggest_seconds),
        "slowest_suggest_seconds": max(run.suggest_seconds), "report_cpu_seconds": sum(run.report_seconds),
        "wall_seconds": wall, "outcome": task.outcome(number, epoch),
    }  # fmt: skip
    if isinstance(task, Live):
        recommended = tuner.recommend()
        result["recommended"] = result["outcome"] if recommended is None else task.retrained(recommended)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True, help="lightning_hpo, syne_tune or optuna")
    parser.add_argument("--methods", default="", help="names, separated by commas; default: all of the library")
    parser.add_argument("--tables", default="", help="names of recorded tables")
    parser.add_argument("--live", default="", help="names or files of live tasks")
    parser.add_argument("--emulated", default="", help="names of recorded tables, answered by a smooth model of them")
    parser.add_argument("--workers", default="4")
    parser.add_argument("--seeds", default="0-9", help="first-last")
    parser.add_argument("--full-runs", type=float, help="budget of tasks that have none of their own")
    parser.add_argument("--trainer-python", default=sys.executable, help="Python that trains the live tasks")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    methods: dict[str, type[Tuner]] = importlib.import_module(f"with_{given.library}").METHODS
    names = [name for name in given.methods.split(",") if name] or list(methods)
    tasks: list[Task] = [Table(name) for name in given.tables.split(",") if name]
    tasks += [Emulated(name) for name in given.emulated.split(",") if name]
    tasks += [Live(name, given.cache, given.trainer_python) for name in given.live.split(",") if name]
    first, _, last = given.seeds.partition("-")
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in range(int(first), int(last or first) + 1):  # seeds outermost: a run that is cut short stays balanced
        for n_workers in map(int, given.workers.split(",")):
            for task in tasks:
                for name in names:
                    kind = type(task).__name__.lower()
                    file = given.out / f"{kind}__{task.name}__{n_workers}__{name}__{seed}.json"
                    if file.exists():
                        continue
                    full_runs = FULL_RUNS.get(task.name, given.full_runs)
                    if full_runs is None:
                        parser.error(f"{task.name} has no budget of its own. Give --full-runs.")
                    labels = {"kind": kind, "task": task.name, "workers": n_workers, "method": name, "seed": seed}
                    try:
                        result = record(task, methods[name], n_workers, seed, full_runs)
                    except Exception:
                        result = {"failed": traceback.format_exc()}
                    file.write_text(json.dumps({**labels, "full_runs": full_runs, **result}))
                    what = "FAILED" if "failed" in result else f"error {result['best']:.4f}, {result['trials']} trials"
                    print(kind, task.name, n_workers, name, seed, what, flush=True)


if __name__ == "__main__":
    main()
