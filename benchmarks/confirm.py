"""What it gains to train the best configurations again before a study ends (option ``confirm``), on live tasks.

    python benchmarks/confirm.py --json confirm.json --cache curves --seeds 0-19

Studies on a virtual clock, all with the same budget of simulated seconds, that of ``peers.py`` or a multiple; what
confirmation takes is taken from the search. At the end the recommended configuration is trained five times with seeds
that no study has seen: their mean test error is the figure. Beside it, how far the recommendation was from the truth:
the mean validation error of these trainings minus the expected one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(HERE))
from driver import budget  # noqa: E402
from live import Live, canonical  # noqa: E402
from matrix import FULL_RUNS  # noqa: E402
from summary import standard_error  # noqa: E402
from with_lightning_hpo import domains  # noqa: E402

from lightning_hpo import SearchSpace  # noqa: E402
from lightning_hpo.core.options import StudyOptions  # noqa: E402
from lightning_hpo.runtime.curves import Curve  # noqa: E402
from lightning_hpo.runtime.simulator import simulate  # noqa: E402
from lightning_hpo.searchers import make_searcher  # noqa: E402
from lightning_hpo.searchers.recommend import recommend  # noqa: E402

WORKERS = 4
UNSEEN = 100
"""Replicates of confirmations are this much above those of the trainings that judge the recommendation."""


class Trainings(Sequence[float]):
    """Validation errors of one training, epoch by epoch; trained as far as they are asked for."""

    def __init__(self, task: Live, config: dict[str, Any], replicate: int) -> None:
        self._task, self._config, self._replicate = task, config, replicate

    def __len__(self) -> int:
        return self._task.max_epochs

    def __getitem__(self, position: Any) -> Any:
        return float(self._task.curve(self._config, position + 1, self._replicate)[position, 0])


class Trained:
    """A live task as a benchmark of the simulator."""

    def __init__(self, task: Live) -> None:
        self.task = task

    def __call__(self, config: dict[str, Any]) -> Curve:
        return self._curve(config, 0)

    def retrained(self, config: dict[str, Any], replicate: int) -> Curve:
        return self._curve(config, UNSEEN + replicate)

    def _curve(self, config: dict[str, Any], replicate: int) -> Curve:
        exact = canonical(self.task.space, config)
        return Curve(Trainings(self.task, exact, replicate), self.task.seconds(self.task.number(exact)))


def study(task: Live, algorithm: str, seed: int, top: int, seeds: int, times: float) -> dict[str, Any]:
    """One study, and what became of its recommendation."""
    end = budget(task, WORKERS, times * FULL_RUNS[task.name])
    options = StudyOptions.from_mapping(
        {
            "metric": "error", "algorithm": algorithm, "max_t": task.max_epochs, "n_workers": WORKERS,
            "random_seed": seed, "points_to_evaluate": [], "type": "promotion",
            "stop": {"max_wallclock_time": end}, "confirm": {"top": top, "seeds": seeds},
        }
    )  # fmt: skip
    space = SearchSpace(domains(task.space))
    searcher = make_searcher(options.searcher_name, options.searcher)
    result = simulate(space, options, Trained(task), n_workers=WORKERS, max_time=end, searcher=searcher)
    found = recommend(result.state.view(), options.searcher)
    again = task.retrained({name: found.config[name] for name in task.space})
    best = result.state.best_any
    return {
        "seed": seed, "best": None if best is None else best[2], "expected": found.mean, "std": found.std,
        "confirmations": found.confirmations, "trials": len(result.state.trials),
        "retrained_val": float(np.mean(again["retrained_val"])),
        "retrained_test": float(np.mean(again["retrained_test"])),
    }  # fmt: skip


def summarise(runs: list[dict[str, Any]]) -> dict[str, float]:
    test = np.array([run["retrained_test"] for run in runs])
    off = np.array([run["retrained_val"] - run["expected"] for run in runs])
    return {
        "test": float(test.mean()), "test_se": standard_error(test),
        "expected_too_low_by": float(off.mean()), "expected_too_low_by_se": standard_error(off),
        "trials": float(np.mean([run["trials"] for run in runs])),
        "confirmations": float(np.mean([run["confirmations"] for run in runs])),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--cache", type=Path, default=Path("curves"), help="folder of trained curves")
    parser.add_argument("--tasks", default="mlp_digits,rff_digits_rot")
    parser.add_argument("--algorithm", default="asha")
    parser.add_argument("--confirm", default="0x1,2x2,3x3", help="top x seeds; 0x1: none")
    parser.add_argument("--times", type=float, default=1.0, help="multiple of the budget")
    parser.add_argument("--seeds", default="0-19", help="first-last")
    given = parser.parse_args()
    first, _, last = given.seeds.partition("-")
    blocks: list[dict[str, Any]] = []
    for name in given.tasks.split(","):
        task = Live(name, given.cache)
        for wanted in given.confirm.split(","):
            top, _, seeds = wanted.partition("x")
            runs = [
                study(task, given.algorithm, seed, int(top), int(seeds), given.times)
                for seed in range(int(first), int(last) + 1)
            ]
            figures = summarise(runs)
            labels = {"task": name, "algorithm": given.algorithm, "times": given.times, "confirm": wanted}
            blocks.append({**labels, **figures, "runs": runs})
            print(
                f"{name} {given.algorithm} confirm {wanted}: test {100 * figures['test']:.2f} ± "
                f"{100 * figures['test_se']:.2f} %, validation {100 * figures['expected_too_low_by']:+.2f} ± "
                f"{100 * figures['expected_too_low_by_se']:.2f} points above the expected one, "
                f"{figures['trials']:.0f} trials, {figures['confirmations']:.1f} confirmations of the recommended",
                flush=True,
            )
            given.json.write_text(json.dumps(blocks, indent=1) + "\n")
        task.close()


if __name__ == "__main__":
    main()
