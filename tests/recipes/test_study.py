"""The recipes from end to end: a plain fit of each, and studies by the commands that users type."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from tests.recipes.conftest import write_fashion_mnist

ROOT = Path(__file__).parents[2]


def fit(recipe: str, folder: Path, *overrides: str) -> dict[str, float]:
    """Train the recipe's model for one epoch; returns the logged metrics."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        quiet = ["+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
        config = compose("config", overrides=[f"recipe={recipe}", *quiet, *overrides], return_hydra_config=True)
    config.hydra.runtime.output_dir = config.hydra.runtime.cwd = str(folder)
    HydraConfig.instance().set_config(config)
    trainer = instantiate(config.trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(instantiate(config.model), datamodule=instantiate(config.data))
    HydraConfig.instance().cfg = None
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class TestAPlainFit:
    def test_of_the_digits(self, tmp_path: Path):
        assert fit("mlp_digits", tmp_path, "model.lr=0.01")["val_acc"] > 0.7

    def test_of_fashion_mnist(self, fashion_mnist: Path):
        sizes = ["data.n_validation=10", "data.batch_size=5"]
        logged = fit("mlp_fashionmnist", fashion_mnist, f"data.root={fashion_mnist}", *sizes)
        # The 41st to 50th image are validated: two batches of five.
        assert logged["val_acc"] * 10 == pytest.approx(round(logged["val_acc"] * 10), abs=1e-5)
        assert logged["val_error"] == pytest.approx(1 - logged["val_acc"])

    def test_of_cifar10(self, cifar10: Path):
        sizes = ["data.n_validation=8", "data.batch_size=16", "data.num_workers=0"]
        logged = fit("resnet_cifar10", cifar10, f"data.root={cifar10}", *sizes)
        assert 0 <= logged["val_acc"] <= 1 and logged["train_loss"] > 0


def study(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "train.py"), "-m", "hydra/launcher=hpo", *overrides],
        cwd=folder, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
class TestAStudy:
    def test_of_the_digits_pauses_and_resumes_and_writes_its_results(self, tmp_path: Path):
        done = study(
            tmp_path, "hydra.launcher.type=promotion", "hydra.launcher.n_trials=7", "trainer.max_epochs=3",
            "hydra.launcher.random_seed=1", "hydra.sweep.dir=here",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["here"]
        results = yaml.safe_load((tmp_path / "here" / "optimization_results.yaml").read_text())
        assert set(results["best_params"]) == {"model.lr", "model.units", "model.dropout"}
        assert 0.5 < results["best_value"] <= 1
        with (tmp_path / "here" / "trials.csv").open() as file:
            trials = list(csv.DictReader(file))
        assert [int(trial["trial"]) for trial in trials] == list(range(7))
        assert all((tmp_path / "here" / str(k) / "trial.log").exists() for k in range(7))
        assert "promote" in done.stdout or "resume" in done.stdout

    def test_of_fashion_mnist_reads_the_recipe_that_is_named(self, tmp_path: Path):
        dice = np.random.default_rng(0)
        images, labels = dice.integers(256, size=700, dtype=np.uint8), dice.integers(10, size=700, dtype=np.uint8)
        write_fashion_mnist(tmp_path / "data", images, labels)
        done = study(
            tmp_path, "recipe=mlp_fashionmnist", "data.n_validation=200", "trainer.max_epochs=1",
            "hydra.launcher.algorithm=random", "hydra.launcher.n_trials=2", "hydra.sweep.dir=here",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        with (tmp_path / "here" / "trials.csv").open() as file:
            trials = list(csv.DictReader(file))
        assert [trial["status"] for trial in trials] == ["completed", "completed"]
        assert trials[0]["model.n_units_1"] == "64" and trials[0]["data.batch_size"] == "68"
