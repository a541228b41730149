"""``recipes/train.py`` as a program."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "recipes" / "train.py"


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *overrides],
        cwd=folder, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_plain_run_trains_once_and_prints_the_metric(tmp_path: Path):
    done = train(tmp_path, "trainer.max_epochs=3", "seed=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    (score,) = re.findall(r"^val_acc=([0-9.]+) at epoch 3$", done.stdout, flags=re.MULTILINE)
    assert 0.5 < float(score) <= 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_program_knows_nothing_of_tuning():
    program = ast.parse(PROGRAM.read_text())
    imported = {alias.name for n in ast.walk(program) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module for n in ast.walk(program) if isinstance(n, ast.ImportFrom)}
    assert not any("hpo" in name for name in imported)
