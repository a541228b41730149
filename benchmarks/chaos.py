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
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_hpo.core.domains import choice, loguniform, uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.runtime.curves import Curve
from lightning_hpo.runtime.failpoints import NAMES
from lightning_hpo.runtime.simulator import Delays, WorkerFailures, simulate
from tests.faults.durable import DurableCluster
from tests.faults.killing import ENVIRONMENT, KINDS, MARK, KilledStudy
from tests.faults.virtual import PROBABILITIES, Faults, VirtualCluster, searcher_of

ROOT = Path(__file__).resolve().parents[1]
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
    {"algorithm": "asha", "max_t": 9, "type": "promotion", "improvement_probability": 0.4},
    {"algorithm": "asha", "max_t": 9, "type": "promotion", "brackets": 2, "delayed_promotion": True},
    {"algorithm": "default", "max_t": 9},
    {"algorithm": "default", "max_t": 9, "type": "stopping"},
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
        **{name: rng.choice(tried) for name, tried in PROBABILITIES.items()},
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
        searcher=searcher_of(options),
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


def failpoints(n_algorithms: int) -> dict[str, Any]:
    """Fail the n-th, for every n: each algorithm's study is killed once at every hit of every failpoint."""
    begun = time.perf_counter()
    totals: Counter[str] = Counter()
    broken = []
    for chosen in ALGORITHMS[:n_algorithms]:
        options = StudyOptions.from_mapping(
            {"metric": "loss", "n_workers": 1, "n_trials": 6, "max_retries": 3, **chosen}
        )
        space = SearchSpace({"x": uniform(0.0, 1.0)})
        with tempfile.TemporaryDirectory(dir=_in_memory()) as folder:
            whole = DurableCluster(Path(folder) / "whole", options, space)
            whole.run_with()
            for name, hit, alone in (
                (n, h, a) for n in NAMES for h in range(1, whole.trace.get(n, 1) + 1) for a in (0, 1)
            ):
                if alone and name.startswith(("journal.", "coordinator.")):
                    continue  # no worker passes there
                made = DurableCluster(Path(folder) / f"{name}-{hit}-{alone}", options, space, alone=bool(alone))
                try:
                    totals += made.run_with(f"{name}=exit@{hit}")
                    assert made.story() == whole.story(), "the study has ended otherwise"
                except AssertionError:
                    broken.append([options.algorithm, name, hit, alone])
                    print(f"{chosen}, {name}, hit {hit}:\n{traceback.format_exc()}", flush=True)
                totals["studies"] += 1
    found = {"broken": broken, "seconds": round(time.perf_counter() - begun, 1), **totals}
    print(f"failpoints: {found}", flush=True)
    return found


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Recipe:
    """A launcher of the digits' recipe in a process of its own."""

    def __init__(self, arguments: list[str], log: Path, mark: str) -> None:
        command = [sys.executable, str(ROOT / "recipes" / "train.py"), "-m", "hydra/launcher=hpo", *arguments]
        environment = {**os.environ, **ENVIRONMENT, MARK: mark, "OMP_NUM_THREADS": "1"}
        self._log = log
        with open(log, "a") as output:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    @property
    def output(self) -> str:
        return self._log.read_text()


def kills(number: int, seed: int) -> dict[str, Any]:
    """Studies of the digits' recipe, one after the other, until so many processes were killed."""
    rng = random.Random(seed)
    begun = time.perf_counter()
    totals: Counter[str] = Counter()
    orphans_s: list[float] = []
    noticed_s: list[float] = []
    broken = []
    while sum(totals[kind] for kind in KINDS) < number:
        with tempfile.TemporaryDirectory() as folder:
            study = _killed_recipe(Path(folder), rng)
            left = number - sum(totals[kind] for kind in KINDS)
            kinds = rng.choices(KINDS, weights=(3, 2, 2, 3, 3, 2, 3), k=min(left, 10))
            try:
                study.kill_until_it_ends(rng, tuple(kinds), pause_s=(0.0, 2.0))
            except AssertionError:
                broken.append(totals["studies"])
                print(
                    f"study {totals['studies']} of seed {seed} broke a promise:\n{traceback.format_exc()}", flush=True
                )
            again, different = study.repeated()
            totals.update(study.kills, studies=1, epochs_repeated=again, epochs_repeated_differently=different)
            orphans_s += study.orphans_s
            noticed_s += study.noticed_s
            print(f"kills so far: {dict(totals)}", flush=True)
    found = {
        "broken": broken,
        "seconds": round(time.perf_counter() - begun, 1),
        "kills": sum(totals[kind] for kind in KINDS),
        "until everything of a killed launcher was gone, s": _spread(orphans_s),
        "until the end of a killed trial was in the journal, s": _spread(noticed_s),
        **totals,
    }
    print(f"kills: {found}", flush=True)
    return found


def _killed_recipe(folder: Path, rng: random.Random) -> KilledStudy:
    study = folder / "study"
    mark = uuid.uuid4().hex
    settings = [
        f"hydra.sweep.dir={study}", f"hydra.launcher.random_seed={rng.randrange(1000)}", "hydra.launcher.n_trials=54",
        "hydra.launcher.algorithm=asha", "hydra.launcher.type=promotion", "hydra.launcher.max_retries=50",
        "trainer.max_epochs=9", "+data.num_workers=1",
    ]  # fmt: skip
    return KilledStudy(
        study, lambda more: Recipe([*settings, *more], folder / "output.txt", mark), mark, starting_s=(0.0, 20.0)
    )


def _spread(times: list[float]) -> dict[str, float]:
    times = sorted(times) or [0.0]
    return {"median": round(times[len(times) // 2], 2), "largest": round(times[-1], 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", type=int, default=0, metavar="N", help="studies on the virtual cluster")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="studies in the simulator")
    parser.add_argument("--failpoints", type=int, default=0, metavar="N", help="algorithms that are killed everywhere")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="real SIGKILLs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    campaigns = {
        "virtual": lambda number: campaign("virtual", virtual, number, given.seed),
        "simulated": lambda number: campaign("simulated", simulated, number, given.seed),
        "failpoints": failpoints,
        "kills": lambda number: kills(number, given.seed),
    }
    found = {name: run(getattr(given, name)) for name, run in campaigns.items() if getattr(given, name)}
    if not found:
        parser.error("nothing to do: give --virtual, --simulated, --failpoints or --kills")
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, **found}, indent=1) + "\n")
    return int(any(part["broken"] for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
