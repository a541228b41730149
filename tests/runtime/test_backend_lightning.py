"""Trials that train with torch and Lightning, forked from a script that has used both."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.launching import Launcher, wait_until

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    script = Path(__file__).with_name("lightning_launcher.py")
    folder = tmp_path_factory.mktemp("trials")
    launcher = Launcher(folder, script, start_method="auto", n_workers=2, gpus_per_trial=0, threads_per_trial=2)
    launcher.next("made", timeout_s=120)
    yield launcher
    launcher.end()


def facts(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"facts{rank}.json").read_text())


def test_trials_are_forked_and_compute_with_threads_after_the_script_did(launcher: Launcher) -> None:
    folder, ended = launcher.run(0, do="compute", seed=1)
    launcher.send(op="state")
    assert launcher.next("state")["method"] == "fork"
    assert ended["exit_code"] == 0, (folder / "trial.log").read_text()
    assert facts(folder)["threads"] == 2
    assert facts(folder)["total"] == 400**3 + 2 * 2000**2


def test_unseeded_scripts_do_not_share_a_random_stream(launcher: Launcher) -> None:
    values = [
        facts(launcher.run(trial_id, do="compute", seed=seed)[0])["random"]
        for trial_id, seed in ((1, 1), (2, 2), (3, 1))
    ]
    assert values[0] == values[2] != values[1]


def test_a_trial_imports_nothing_again(launcher: Launcher) -> None:
    folder, ended = launcher.run(4, do="fit")
    assert ended["exit_code"] == 0, (folder / "trial.log").read_text()
    assert facts(folder)["steps"] == 8
    assert facts(folder)["imported_by"] == launcher.process.pid != ended["pid"]


@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_data_loading_workers_end_with_their_trial(launcher: Launcher, ending: str) -> None:
    trial_id = {"killed": 5, "stopped": 6}[ending]
    folder = launcher.start(trial_id, do="fit", num_workers=2, step_s=60)
    pid = launcher.next("Started")["pid"]
    wait_until((folder / "trains0").exists, timeout_s=20)
    assert len(launcher.processes()) == 5  # launcher, server, trial, two workers
    if ending == "killed":
        os.kill(pid, signal.SIGKILL)
    else:
        launcher.send(op="stop", trial_id=trial_id, attempt=1, grace_s=2.0)
    launcher.next("Exit", timeout_s=5)
    assert len(launcher.processes()) == 2


def test_ranks_train_one_model_together(launcher: Launcher) -> None:
    folder, ended = launcher.run(7, do="fit", ranks=2)
    logs = [(folder / name).read_text() for name in ("trial.log", "trial.rank1.log")]
    assert ended["exit_code"] == 0, logs
    ranks = [facts(folder, rank) for rank in range(2)]
    assert [rank["global_rank"] for rank in ranks] == [0, 1]
    assert [rank["early_rank"] for rank in ranks] == [0, 1]
    assert {rank["world_size"] for rank in ranks} == {2}
    assert {rank["steps"] for rank in ranks} == {4}  # 64 samples, batches of 8, two ranks
    assert ranks[0]["weight"] == ranks[1]["weight"]
    assert "GPU available" in logs[0] and "GPU available" not in logs[1]
