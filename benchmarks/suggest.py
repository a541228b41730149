"""CPU seconds per suggestion of the model-based searchers, beside Syne Tune on the same data.

    python benchmarks/suggest.py --json suggest.json
    python benchmarks/suggest.py --json suggest.json --peer-python PATH_TO/bin/python
    python benchmarks/suggest.py --json large.json --methods mobster --sizes 1000 2000 5000 --calls 3 --max-data 0 \
        --approximation inducing

The data are scripted: trials of 9 hyperparameters in the unit cube that report at rungs 1, 3, 9 and 27, in the order of
asynchronous successive halving. Between two suggestions two observations arrive, so the model is fitted anew for each;
the next four observations are pending. Both tuners see the same observations in the same order, each in a process of
its own with one thread; the proposals themselves are not run. Measured is the process's CPU time, after a
warm-up on other data: of the first suggestion, when nothing has been fitted before (``cold``), and of those that
follow.

The last suggestion of a row sees exactly ``n`` observations. ``objective`` is the negative log posterior density of the
parameters it was based on, computed by this package for both; lower is better. Above 500 observations both fit a
subsample, unless ``--max-data`` is larger, or 0 for all; then the objective is that of all data, also where the
parameters were fitted through inducing points. ``memory`` is the largest resident size of our process.

The peer needs an environment of its own: ``syne-tune==0.13.0 autograd "numpy<2" statsmodels``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np

DIMENSION = 9
LEVELS = (1, 3, 9, 27)
PENDING = 4
PER_CALL = 2
METHODS = ("mobster", "hypertune")
_EXACT = 2000
"""Largest number of observations at which the exact objective is computed."""


def metric(x: np.ndarray, resource: int, rng: np.random.Generator) -> float:
    """A validation error that falls with the resource, has interactions, and some inputs that do not matter."""
    limit = 0.3 * np.sin(4.0 * x[0]) + 0.4 * (x[1] - 0.3) ** 2 + 0.3 * x[2] * x[3] + 0.1 * x[4]
    return float(0.6 + limit + (0.2 + 0.2 * x[5]) * resource**-0.5 + 0.02 * rng.standard_normal())


def script(n: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int, float]]]:
    """Configurations and the first ``n`` observations ``(trial, resource, value)``, best thirds being promoted."""
    rng = np.random.default_rng(seed)
    configs = rng.random((n, DIMENSION))
    observations: list[tuple[int, int, float]] = []
    rungs: list[dict[int, float]] = [{} for _ in LEVELS]
    promoted: list[set[int]] = [set() for _ in LEVELS]
    started = 0
    while len(observations) < n:
        trial, level = started, 0
        for k in range(len(LEVELS) - 2, -1, -1):
            ranked = sorted(rungs[k], key=rungs[k].__getitem__)
            ready = [t for t in ranked[: len(ranked) // 3] if t not in promoted[k]]
            if ready:
                trial, level = ready[0], k + 1
                promoted[k].add(trial)
                break
        else:
            started += 1
        value = metric(configs[trial], LEVELS[level], rng)
        rungs[level][trial] = value
        observations.append((trial, LEVELS[level], value))
    return configs, observations


def task(n: int, calls: int, seed: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What one process is given, as JSON data; ``options`` are those of our searcher."""
    configs, observations = script(n + PENDING, seed)
    sizes = [max(6, n - PER_CALL * k) for k in range(calls, -1, -1)]
    return {
        "configs": configs.tolist(),
        "observations": observations,
        "sizes": sizes,
        "levels": LEVELS,
        "pending": PENDING,
        "options": options or {},
    }


@dataclass
class ScriptedView:
    """The searchers' view of the scripted study."""

    space: Any
    seed: int
    observations: list[Any]
    pending: list[Any]
    configs: dict[int, dict[str, Any]]
    state: dict[str, Any] | None = None
    mode: str = "min"
    max_t: int = LEVELS[-1]
    rung_levels: tuple[int, ...] = LEVELS[:-1]
    default_bracket_weights: tuple[float, ...] = (1.0,)
    failed: frozenset[int] = frozenset()
    initial_configs: tuple[dict[str, Any], ...] = ()
    taken_by_failed: frozenset[str] = frozenset()
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.taken = {self.space.match_key(config) for config in self.configs.values()}

    def curve(self, trial_id: int) -> dict[int, float]:
        return {o.resource: o.value for o in self.observations if o.trial_id == trial_id}


def ours(method: str, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Our suggestions for the script: seconds of each, the first being cold, and the last parameters."""
    import torch

    from lightning_hpo.core.searcher import Observation, Pending, SuggestRequest
    from lightning_hpo.core.space import SearchSpace, uniform
    from lightning_hpo.searchers import make_searcher

    torch.set_num_threads(1)
    space = SearchSpace({f"x{i}": uniform(0.0, 1.0) for i in range(DIMENSION)})
    configs = [{f"x{i}": v for i, v in enumerate(row)} for row in given["configs"]]
    observations = given["observations"]
    options = {"num_init_random": 1, **given["options"]}
    searcher = make_searcher("bayesopt" if method == "mobster" else "hypertune", options)
    clock = time.perf_counter if options.get("device") == "cuda" else time.process_time
    seconds, state = [], None
    for size in given["sizes"]:
        seen, next_ones = observations[:size], observations[size : size + given["pending"]]
        known = sorted({o[0] for o in seen} | {o[0] for o in next_ones})
        pending = [Pending(t, r) for t, r, _ in next_ones]
        seen = [Observation(*o) for o in seen]
        view = ScriptedView(space, seed, seen, pending, {t: configs[t] for t in known}, state)
        request = SuggestRequest(max(known) + 1, milestone=1)
        before = clock()
        suggestion = searcher.suggest(view, request)  # type: ignore[arg-type]
        seconds.append(clock() - before)
        assert suggestion is not None and suggestion.origin == "model", suggestion
        state = suggestion.state or state
    assert state is not None
    memory = torch.cuda.max_memory_allocated() if options.get("device") == "cuda" else 0
    resident = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "parameters": state["parameters"], "gpu_bytes": memory, "memory": resident}


def objective(method: str, given: dict[str, Any], parameters: dict[str, Any]) -> float | None:
    """The objective at these parameters for all observations of the last suggestion; None if it saw a subsample, or if
    there are more than 2000."""
    import torch

    from lightning_hpo.surrogates.data import Observations
    from lightning_hpo.surrogates.models import IndependentModel, Surrogate, multitask

    n = given["sizes"][-1]
    limit = given["options"].get("max_size_data_for_model", 500)
    if n > min(limit or _EXACT, _EXACT):
        return None
    trial, resource, value = zip(*given["observations"][:n], strict=True)
    y = np.array(value)
    data = Observations.from_rows(np.array(given["configs"])[list(trial)], (y - y.mean()) / y.std(), resource)
    model: Surrogate = multitask(DIMENSION, LEVELS[-1])
    if method == "hypertune":
        model = IndependentModel(DIMENSION, LEVELS)
    theta = model.space.theta(parameters)
    return float(model.objective(data)(torch.as_tensor(theta)[None])[0])


def summary(seconds: list[float]) -> dict[str, float]:
    warm = seconds[1:]
    return {
        "cold": seconds[0],
        "median": float(np.median(warm)),
        "p95": float(np.quantile(warm, 0.95)),
        "mean": float(np.mean(warm)),
    }


def in_process(python: str, program: Path, method: str, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Runs one task in a fresh process and returns its answer."""
    command = [python, str(program), "--task", method, "--seed", str(seed)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread}
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def rows(
    methods: list[str], sizes: list[int], calls: int, seed: int, peer: str | None, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    here = Path(__file__).resolve()
    programs = {"lightning_hpo": (sys.executable, here)}
    if peer is not None:
        programs["syne_tune"] = (peer, here.with_name("suggest_peer.py"))
    for method in methods:
        for n in sizes:
            given = task(n, calls, seed, options)
            row: dict[str, Any] = {"method": method, "n": n, "calls": calls, "options": options}
            for name, (python, program) in programs.items():
                answer = in_process(python, program, method, given, seed)
                value = objective(method, given, answer["parameters"])
                row[name] = {**answer, **summary(answer["seconds"]), "objective": value}
            if peer is not None:
                for statistic in ("cold", "median", "p95", "mean"):
                    row[f"{statistic}_ratio"] = row["syne_tune"][statistic] / row["lightning_hpo"][statistic]
            yield row


def line(row: dict[str, Any]) -> str:
    parts = [f"{row['method']:>9} n={row['n']:<5}"]
    for name in ("lightning_hpo", "syne_tune"):
        if name in row:
            r = row[name]
            value = math.nan if r["objective"] is None else r["objective"]
            times = "/".join(f"{1e3 * r[s]:.0f}" for s in ("median", "p95", "cold"))
            parts.append(f"{name}: {times} ms (median/p95/cold), objective {value:.2f}")
            if "memory" in r:
                parts.append(f"{r['memory'] / 2**20:.0f} MiB")
    if "median_ratio" in row:
        ratios = "/".join(f"{row[f'{s}_ratio']:.1f}" for s in ("median", "p95", "cold"))
        parts.append(f"{ratios} times less")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--peer-python", help="interpreter of an environment with syne-tune 0.13.0")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 100, 200, 500, 1000])
    parser.add_argument("--calls", type=int, default=15, help="suggestions timed after the cold one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of our searcher; cuda: wall time")
    parser.add_argument("--max-data", type=int, default=500, help="max_size_data_for_model of our searcher; 0: all")
    parser.add_argument("--approximation", choices=("none", "inducing"), default="none", help="of our searcher")
    parser.add_argument("--num-inducing", type=int, default=300, help="of our searcher")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        ours(args.task, task(12, 1, args.seed + 1), args.seed)
        given = json.load(sys.stdin)
        ours(args.task, task(12, 1, args.seed + 1, given["options"]), args.seed)
        print(json.dumps(ours(args.task, given, args.seed)))
        return
    results = []
    options = {
        "device": args.device,
        "max_size_data_for_model": args.max_data or None,
        "approximation": args.approximation,
        "num_inducing": args.num_inducing,
    }
    for row in rows(args.methods, args.sizes, args.calls, args.seed, args.peer_python, options):
        print(line(row), flush=True)
        results.append(row)
        if args.json:
            args.json.write_text(json.dumps({"benchmark": "suggest", "rows": results}, indent=1))


if __name__ == "__main__":
    main()
