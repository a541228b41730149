"""Long campaigns of faults: ``python benchmarks/chaos.py --virtual 2000 --simulated 1000 --failpoints 3 --kills 50``.

``--virtual N``: N studies on the virtual cluster of ``tests/faults/virtual.py``: real coordinator and state machine;
workers, channel, disk, searcher and launcher fail at random; what was promised is checked after every event, commit and
answer. ``--simulated N``: N studies in the simulator with random worker failures; the state's invariants are checked
after every event. ``--failpoints N``: "fail the n-th" for N algorithms: a study is killed at every hit of every
failpoint, launched again, and must end like one that was not killed. ``--kills N``: studies of the handwritten digits'
recipe in real processes, with N SIGKILLs.

Every study comes from ``--seed`` and its number. A study that breaks a promise is printed with what repeats it, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_hpo.core.domains import choice, loguniform, uniform
from lightning_hpo.core.options import ALGORITHMS as NAMED
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.runtime.curves import Curve
from lightning_hpo.runtime.simulator import Delays, WorkerFailures, simulate
from lightning_hpo.searchers import make_searcher
from tests.faults.virtual import Faults, VirtualCluster

SPACE = SearchSpace({"x": uniform(0.0, 1.0), "lr": loguniform(1e-4, 1.0), "act": choice(["relu", "gelu", "tanh"])})
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "random", "max_t": 4},
    {"algorithm": "grid", "max_t": 3},
    {"algorithm": "median", "max_t": 5},
    {"algorithm": "asha", "max_t": 9},
    {"algorithm": "asha", "max_t": 9, "type": "promotion"},
    {"algorithm": "asha", "max_t": 9, "type": "promotion", "brackets": 3},
    {"algorithm": "asha", "max_t": 9, "type": "promotion", "brackets": 2, "rung_system_per_bracket": True},
    {"algorithm": "asha", "max_t": 9, "type": "promotion", "asynchronous": False},
    {"algorithm": "pasha", "max_t": 27},
    {"algorithm": "bohb", "max_t": 9, "type": "promotion"},
    {"algorithm": "sync_hyperband", "max_t": 9},
    {"algorithm": "dehb", "max_t": 9},
]


def options_of(rng: random.Random, n_workers: int, **more: Any) -> StudyOptions:
    chosen = rng.choice(ALGORITHMS)
    seed = rng.randrange(2**31)
    return StudyOptions.from_mapping({"metric": "loss", "n_workers": n_workers, "random_seed": seed, **chosen, **more})


def virtual(rng: random.Random) -> Counter[str]:
    """One study on the virtual cluster with faults of all kinds."""
    faults = Faults(
        worker_dies=rng.choice([0.0, 0.02, 0.1]),
        script_raises=rng.choice([0.0, 0.02]),
        message_repeated=rng.choice([0.0, 0.2]),
        message_lost=rng.choice([0.0, 0.02]),
        message_malformed=rng.choice([0.0, 0.02]),
        checkpoint_damaged=rng.choice([0.0, 0.2]),
        no_room=rng.choice([0.0, 0.2]),
        searcher_fails=rng.choice([0.0, 0.1]),
        journal_full=rng.choice([0.0, 0.05]),
        crash_at_commits=frozenset(rng.sample(range(1, 80), rng.choice([0, 1, 3, 6]))),
        interrupts_at=tuple(sorted(rng.uniform(1, 60) for _ in range(rng.choice([0, 0, 1, 2])))),
    )
    n_workers = rng.randint(1, 4)
    options = options_of(rng, n_workers, n_trials=12, max_retries=50)
    max_disk = rng.choice([None, None, 25])
    cluster = VirtualCluster(options, SPACE, faults, rng.randrange(10**9), n_workers, max_disk)
    try:
        cluster.run()
        assert len(cluster.durable.trials) == 12, "the study has not got its trials"
    except BaseException:
        print(f"{options.algorithm} {options.to_json()}\n{faults}, {n_workers} workers, max_disk={max_disk}")
        raise
    return cluster.counts


def simulated(rng: random.Random) -> Counter[str]:
    """One simulated study with workers that vanish."""
    n_workers = rng.randint(1, 9)
    options = options_of(rng, n_workers, max_retries=rng.choice([0, 2, 100]))
    events = 0

    def watch(event: Any, state: Any) -> None:
        nonlocal events
        events += 1
        state.check_invariants()
        assert len(state.live) <= n_workers, "more trials than workers"

    def curve(config: dict[str, Any]) -> Curve:
        return Curve([config["x"] + 1 / r for r in range(1, 28)], 0.5 + config["x"])

    result = simulate(
        SPACE,
        options,
        curve,
        n_workers=n_workers,
        max_time=20.0,
        searcher=make_searcher(NAMED[options.algorithm].searcher, options.searcher),
        delays=Delays(rng.choice([0.0, 0.1]), 0.05, 0.05, 0.1, 0.2),
        has_checkpoints=rng.random() < 0.7,
        failures=WorkerFailures(rng.choice([0.01, 0.1, 0.4]), rng.randrange(10**9)),
        watch=watch,
    )
    return Counter(
        events=events, trials=len(result.state.trials), lost_workers=result.lost_workers, units_trained=result.units
    )


def campaign(name: str, one: Any, number: int, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    totals: Counter[str] = Counter()
    broken = []
    for i in range(number):
        try:
            totals += one(random.Random(f"{name} {seed} {i}"))
        except Exception:
            broken.append(i)
            print(f"{name} study {i} of seed {seed} broke a promise:\n{traceback.format_exc()}", flush=True)
    found = {"studies": number, "broken": broken, "seconds": round(time.perf_counter() - begun, 1), **totals}
    print(f"{name}: {found}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", type=int, default=200, metavar="N", help="studies on the virtual cluster")
    parser.add_argument("--simulated", type=int, default=200, metavar="N", help="studies in the simulator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    found = {
        "virtual": campaign("virtual", virtual, given.virtual, given.seed),
        "simulated": campaign("simulated", simulated, given.simulated, given.seed),
    }
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, **found}, indent=1) + "\n")
    return int(any(part["broken"] for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
