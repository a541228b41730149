"""What is left to a searcher: live tasks by somebody who knows one of the best configurations from the start.

    python benchmarks/ceiling.py --json ceiling.json --tasks mlp_digits,rff_digits_rot

An evolutionary search, whose trainings are not counted, looks for the configuration with the lowest mean validation
error over training seeds. Then that one is trained again and again, with seeds that took no part in its choice, on
four workers and in the budget of ``peers.py``. What a search has reached at a share of the budget is the lowest error
reported by then; here that is all luck. The test error of the configuration is what a recommendation could reach.
Others may be better still, and cheaper ones can be trained more often: it is no bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(HERE))
from driver import budget  # noqa: E402
from live import Live, load_module  # noqa: E402
from matrix import FULL_RUNS  # noqa: E402
from summary import standard_error  # noqa: E402
from tables import Config, Space, from_unit, random_config, to_unit  # noqa: E402

WORKERS = 4
SHARES = (0.25, 0.5, 1.0)
_PARENTS = 20
_FINALISTS = 10
_DRAWS = 10_000
"""Samples of a few trainings over which the lowest of them is averaged."""


@dataclass
class Known:
    """A configuration and its trainings."""

    config: Config
    lowest: list[float] = field(default_factory=list)
    """Lowest validation error of every training."""
    test: list[float] = field(default_factory=list)
    """Test error at that epoch."""

    def __len__(self) -> int:
        return len(self.lowest)

    @property
    def mean(self) -> float:
        return float(np.mean(self.lowest))

    def shrunk(self, prior: float) -> float:
        """Mean, with one more training that came out as ``prior``: a single lucky training is not believed."""
        return (sum(self.lowest) + prior) / (len(self) + 1)


class Trainings:
    """Every training has a seed of its own."""

    def __init__(self, path: Path) -> None:
        self.module: Any = load_module(path)
        self.count = 0

    def add(self, known: Known) -> None:
        """Train once more."""
        curve = np.asarray(self.module.train(known.config, self.count, self.module.EPOCHS))
        self.count += 1
        lowest = int(curve[:, 0].argmin())
        known.lowest.append(float(curve[lowest, 0]))
        known.test.append(float(curve[lowest, 1]))


def mutant(space: Space, config: Config, rng: np.random.Generator, width: float) -> Config:
    """Half of the numbers moved by about ``width`` of their range; categories drawn anew once in ten times."""
    moved: Config = {}
    for name, spec in space.items():
        value = config[name]
        if spec["type"] == "choice":
            if rng.random() < 0.1:
                value = spec["categories"][int(rng.integers(len(spec["categories"])))]
        elif rng.random() < 0.5:
            value = from_unit(spec, float(np.clip(to_unit(spec, value) + rng.normal(0.0, width), 0.0, 1.0 - 1e-9)))
        moved[name] = value
    return moved


def best_known(space: Space, trainings: Trainings, rng: np.random.Generator, random: int, generations: int) -> Config:
    """The configuration with the lowest mean validation error that an evolutionary search finds.

    Args:
        random: number of the first, random configurations.
        generations: after them.
    """
    population = [Known(random_config(space, rng)) for _ in range(random)]
    for known in population:
        trainings.add(known)
    for generation in range(generations):
        prior = float(np.quantile([k.mean for k in population], 0.1))
        parents = sorted(population, key=lambda k: k.shrunk(prior))[:_PARENTS]
        width = 0.15 * 0.85**generation
        children = [Known(mutant(space, p.config, rng, width)) for p in parents for _ in range(3)]
        for known in (*parents, *children):
            trainings.add(known)
        population += children
    finalists = sorted(population, key=lambda k: k.shrunk(prior))[:_FINALISTS]
    again = [Known(k.config) for k in finalists]
    for known in again:
        for _ in range(_FINALISTS):
            trainings.add(known)
    return min(again, key=lambda k: k.mean).config


def ceiling(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Figures of one task."""
    task = Live(name, Path("curves"))  # asked for costs only, it keeps nothing there
    rng = np.random.default_rng(given.seed)
    trainings = Trainings(task.path)
    config = best_known(task.space, trainings, rng, given.random, given.generations)
    spent = trainings.count
    judged = Known(config)
    for _ in range(given.trainings):
        trainings.add(judged)
    end = budget(task, WORKERS, FULL_RUNS[name])
    full = task.seconds(task.number(config)) * task.max_epochs
    values, lowest = np.array(judged.lowest), {}
    for share in SHARES:
        done = WORKERS * int(share * end / full)
        drawn = rng.choice(values, (_DRAWS, done)).min(1) if done else None
        lowest[share] = {"trainings": done, "mean": None if drawn is None else float(drawn.mean())}
    return {
        "task": name, "config": config, "searched": spent, "trainings": given.trainings,
        "val": float(values.mean()), "val_std": float(values.std(ddof=1)),
        "test": float(np.mean(judged.test)), "test_error": standard_error(np.array(judged.test)), "lowest": lowest,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--tasks", default="mlp_digits,rff_digits_rot")
    parser.add_argument("--random", type=int, default=600, help="random configurations of the search")
    parser.add_argument("--generations", type=int, default=15)
    parser.add_argument("--trainings", type=int, default=100, help="by which the best configuration is judged")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = []
    for name in given.tasks.split(","):
        one = ceiling(name, given)
        found.append(one)
        given.json.write_text(json.dumps(found, indent=1))
        test = f"test {100 * one['test']:.2f} +- {100 * one['test_error']:.2f} %"
        mean = f"{100 * one['val']:.2f} % (standard deviation {100 * one['val_std']:.2f})"
        print(f"{name}, {one['searched']} trainings searched: {mean}, {test}")
        for share, low in one["lowest"].items():
            what = f"lowest of {low['trainings']} {100 * low['mean']:.2f} %" if low["trainings"] else "no training done"
            print(f"  {share:.0%} of the budget: {what}")


if __name__ == "__main__":
    main()
