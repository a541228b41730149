"""The neutral driver of the peers' benchmark: what its figures mean."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's files are scripts for several environments, no package."""
    monkeypatch.syspath_prepend(str(PEERS))


class Curves:
    """Three configurations of 2 epochs; an epoch of number n takes n + 1 seconds."""

    name, max_epochs, mean_epoch_seconds = "curves", 2, 2.0
    space: dict[str, Any] = {"x": {"type": "int", "lower": 0, "upper": 2}}  # noqa: RUF012
    errors = ((0.9, 0.5), (0.8, 0.7), (0.6, 0.6))

    def number(self, config: dict[str, Any]) -> int:
        return int(config["x"])

    def error(self, number: int, epoch: int) -> float:
        return self.errors[number][epoch - 1]

    def seconds(self, number: int) -> float:
        return number + 1.0

    def outcome(self, number: int, epoch: int) -> dict[str, Any]:
        return {}


def script(*answers: Any, verdicts: dict[tuple[int, int], str] | None = None) -> Any:
    """A tuner that gives these answers, and these verdicts for (trial, epoch)."""
    from driver import Tuner

    class Script(Tuner):
        def __init__(self) -> None:
            super().__init__({}, 2, 1, 0)
            self.answers = list(answers)
            self.completed: list[int] = []

        def suggest(self, trial: int) -> Any:
            return self.answers.pop(0) if self.answers else None

        def report(self, trial: int, epoch: int, error: float) -> str:
            return (verdicts or {}).get((trial, epoch), "continue")

        def complete(self, trial: int, epoch: int, error: float) -> None:
            self.completed.append(trial)

    return Script()


def start(x: int) -> tuple[str, dict[str, int]]:
    return "start", {"x": x}


def test_the_trace_holds_every_new_lowest_error_with_its_simulated_time() -> None:
    from driver import simulate

    run = simulate(Curves(), script(start(0), start(2)), n_workers=2, end=10.0)
    # epochs end at 1 and 2 (trial 0), at 3 and 6 (trial 1, whose 0.6 is no improvement on 0.5)
    assert run.trace == [(1.0, 0.9, 0, 1), (2.0, 0.5, 0, 2)]
    assert (run.trials, run.epochs, run.completed) == (2, 4, 2)


def test_a_paused_trial_goes_on_where_it_was_paused() -> None:
    from driver import simulate

    tuner = script(start(0), start(1), ("resume", 0), verdicts={(0, 1): "pause", (1, 1): "stop"})
    run = simulate(Curves(), tuner, n_workers=1, end=10.0)
    # trial 0: 0-1, trial 1: 1-3, trial 0 again: its second epoch ends at 4
    assert run.trace == [(1.0, 0.9, 0, 1), (3.0, 0.8, 1, 1), (4.0, 0.5, 0, 2)]
    assert run.resumed == 1
    assert tuner.completed == [0]


def test_what_ends_after_the_budget_does_not_count() -> None:
    from driver import simulate

    run = simulate(Curves(), script(start(2)), n_workers=1, end=5.9)
    assert (run.epochs, run.completed) == (1, 0)


def test_a_trial_that_is_not_paused_cannot_be_resumed() -> None:
    from driver import simulate

    with pytest.raises(RuntimeError, match="not paused"):
        simulate(Curves(), script(start(0), ("resume", 0)), n_workers=2, end=5.0)


def test_the_budget_is_full_trainings_shared_by_the_workers() -> None:
    from driver import budget

    assert budget(Curves(), n_workers=4, full_runs=6.0) == 6.0 * 2.0 * 2 / 4


@pytest.mark.parametrize(
    ("spec", "value", "unit"),
    [
        ({"type": "float", "lower": 2.0, "upper": 6.0}, 3.0, 0.25),
        ({"type": "float_log", "lower": 1e-4, "upper": 1.0}, 1e-3, 0.25),
        ({"type": "int", "lower": 0, "upper": 9}, 4, 0.45),
        ({"type": "int_log", "lower": 1, "upper": 8}, 2, math.log(4) / math.log(17)),
    ],
)
def test_numbers_are_encoded_in_their_scale_and_back(spec: dict[str, Any], value: float, unit: float) -> None:
    from tables import from_unit, to_unit

    assert to_unit(spec, value) == pytest.approx(unit)
    assert from_unit(spec, unit) == pytest.approx(value)


def test_a_recorded_configuration_finds_its_own_curve() -> None:
    from tables import DATA, Table

    table = Table("mlp_digits")
    with np.load(DATA / "mlp_digits.npz") as arrays:
        row = 1234
        config = {name: arrays[f"hp_{name}"][row].item() for name in table.space}
    config["activation"] = table.space["activation"]["categories"][config["activation"]]
    assert table.number(config) == row


def test_a_live_task_trains_the_same_curve_again_and_its_first_epochs_alone() -> None:
    pytest.importorskip("sklearn")
    from live import load_module

    task = load_module(PEERS / "tasks" / "mlp_digits.py")
    config = {name: spec.get("lower", "relu") for name, spec in task.SPACE.items()} | {"batch_size": 128}
    full, first = task.train(config, 7, 3), task.train(config, 7, 2)
    assert np.array_equal(full[:2], first)
    assert not np.array_equal(full, task.train(config, 8, 3))


def test_the_cost_model_has_a_coefficient_for_every_feature() -> None:
    from live import DATA, cost_features
    from tables import Table, random_config

    for name in ("mlp_digits", "rff_digits_rot"):
        table = Table(name)
        model = json.loads((DATA / f"{name}.cost.json").read_text())
        config = random_config(table.space, np.random.default_rng(0))
        predicted = math.exp(cost_features(table.space, config) @ np.array(model["log_coefficients"]))
        assert predicted == pytest.approx(table.seconds(table.number(config)), rel=1.0)


def test_figures_pair_the_seeds_and_find_the_time_to_the_references_end() -> None:
    from summary import figures

    def run(*trace: tuple[float, float]) -> dict[str, Any]:
        data = {"trace": [(*entry, 0, 1) for entry in trace], "budget_seconds": 10.0}
        return data | dict.fromkeys(("tuner_cpu_seconds", "trials", "completed", "epochs"), 1.0)

    reference = {0: run((1.0, 0.5), (9.0, 0.3)), 1: run((2.0, 0.4), (8.0, 0.1))}
    faster = {0: run((2.0, 0.2)), 1: run((1.0, 0.2))}
    best, other = figures({"asha-promotion": reference, "new": faster}, min_seeds=2)
    assert [row["method"] for row in (best, other)] == ["asha-promotion", "new"]
    assert other["error_100"] == pytest.approx(0.2)
    assert other["minus_asha"] == pytest.approx(0.0)
    assert other["minus_asha_se"] == pytest.approx(0.1)  # differences -0.1 and +0.1
    assert other["wins_ties_losses"] == [1, 0, 1]
    assert other["time_to_asha"] == pytest.approx(0.2)  # both are at 0.2 from 20 % of the budget on
    assert best["rank_100"] == other["rank_100"] == 1.5


def test_methods_are_compared_with_syne_tunes_of_the_same_name_over_the_seeds_both_have() -> None:
    from summary import pairs, pairs_markdown

    def run(error: float, cpu: float) -> dict[str, Any]:
        return {"trace": [(1.0, error, 0, 1)], "budget_seconds": 2.0, "tuner_cpu_seconds": cpu}

    own = {0: run(0.10, 1.0), 1: run(0.32, 3.0), 2: run(0.90, 9.0)}
    other = {0: run(0.20, 10.0), 1: run(0.20, 30.0), 3: run(0.05, 50.0)}
    (row,) = pairs({"bohb": own, "st-bohb": other, "asha-promotion": own})

    assert row["method"] == "bohb" and row["seeds"] == [0, 1]
    assert row["own"] == pytest.approx(0.21) and row["other"] == pytest.approx(0.2)
    assert row["difference"] == pytest.approx(0.01)
    assert row["difference_se"] == pytest.approx(0.11)  # of -0.10 and 0.12: half their distance
    assert (row["own_cpu_seconds"], row["other_cpu_seconds"]) == (2.0, 20.0)
    assert pairs_markdown([row]).endswith("| bohb | 2 | 21.00 ± 11.00 | 20.00 ± 0.00 | +1.00 ± 11.00 | 2.00 | 20.00 |")


def test_the_command_runs_our_methods_on_a_table_and_writes_figures(tmp_path: Path) -> None:
    command = [
        sys.executable, str(PEERS.parent / "peers.py"), "--json", str(tmp_path / "figures.json"),
        "--work", str(tmp_path), "--tables", "mlp_digits", "--methods", "random,asha-promotion", "--seeds", "0-1",
        "--min-seeds", "2", "--plots", str(tmp_path / "plots"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (block,) = json.loads((tmp_path / "figures.json").read_text())["blocks"]
    by_method = {row["method"]: row for row in block["methods"]}
    assert by_method.keys() == {"random", "asha-promotion"}
    assert by_method["random"]["trials"] == by_method["random"]["completed"] + 4  # four were cut off by the end
    assert by_method["asha-promotion"]["error_100"] <= by_method["asha-promotion"]["error_25"]
    assert (tmp_path / "plots" / "table_mlp_digits_4.svg").read_text().startswith("<svg")


def test_an_emulated_task_follows_its_table_and_repeats_itself() -> None:
    from emulate import Emulated
    from scipy.stats import spearmanr
    from tables import Table

    table, task = Table("mlp_digits"), Emulated("mlp_digits")
    rows = range(0, table.val_error.shape[0], 16)
    numbers = [task.number(table.config(row)) for row in rows]
    last = [task.error(number, 27) for number in numbers]
    assert spearmanr(last, table.val_error[list(rows), 26]).statistic > 0.9
    assert task.number(table.config(16)) == numbers[1]
    assert task.seconds(numbers[1]) == pytest.approx(table.seconds(16), rel=0.3)
