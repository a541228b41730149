"""What a script does after the training may fail: that costs no result, and is told."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from tests.integrations.programs import PROGRAM, ProgramServer

LAST_LINE = 'print("the script\'s last line", flush=True)'


def test_a_script_that_raises_after_its_training_counts_and_is_told(programs: ProgramServer, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace(LAST_LINE, 'raise ValueError("no test set")', 1))
    study = ["-m", "hydra/launcher=hpo", "hydra.launcher.metric=val_loss", "hydra.launcher.algorithm=random"]
    study += [
        "model.lr=interval(0.001,0.1)",
        "hydra.launcher.random_seed=1",
        "hydra.launcher.n_workers=1",
        f"hydra.launcher.study={tmp_path}/study",
    ]
    for trials in (2, 3):
        ended = programs.run(program, *study, f"hydra.launcher.n_trials={trials}", folder=tmp_path)
        assert ended.code == 0, ended.output
        during, _, closing = ended.output.partition("The study ended after")
        told = [line for line in during.splitlines() if line.startswith("Warning: ")]
        first = 0 if trials == 2 else 2
        what = "failed after the training, still completed: ValueError: no test set"
        assert told == [f"Warning: Trial {first} {what}  (study/{first}/trial.log)"]
        assert f"  trial 0 and {trials - 1} more {what}  (study/0/trial.log)" in closing.splitlines()
        assert f"trials                 {trials}: {trials} completed" in closing
        with open(ended.study / "trials.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["status"], row["error"]) for row in rows} == {("completed", "ValueError: no test set")}
        results = yaml.safe_load((ended.study / "optimization_results.yaml").read_text())
        assert results["best_at_full_resource"] is not None
