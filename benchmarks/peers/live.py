"""Live tasks: the configuration a tuner proposes is trained for real, the clock is a smooth cost model.

A task is a module in ``tasks/`` (or any file with ``SPACE``, ``EPOCHS`` and ``train(config, seed, epochs)``) and a cost
model next to the data (or ``NAME.cost.json`` next to the file). Training seeds come from a hash of task, configuration
and replicate: one configuration, one curve. Trainings run in a child process, whatever environment the tuner needs, and
are kept on disk.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tables import DATA, Config, Space, to_unit

STAGES = (3, 9)
"""Epochs are computed in stages, each from the start with the same seed: bad trials cost less training."""
RETRAININGS = 5
_CAST = {"float": float, "float_log": float, "int": int, "int_log": int}


def load_module(path: Path) -> ModuleType:
    """The module in a file, without a package around it."""
    spec = importlib.util.spec_from_file_location(f"live_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cost_features(space: Space, config: Config) -> np.ndarray:
    """Constant, numbers in [-1, 1], their squares and products, and per category itself and its products with them."""
    x = np.array([2.0 * to_unit(spec, config[k]) - 1.0 for k, spec in space.items() if spec["type"] != "choice"])
    parts = [np.ones(1), x, np.array([x[i] * x[j] for i in range(len(x)) for j in range(i, len(x))])]
    for name, spec in space.items():
        if spec["type"] == "choice":
            for category in spec["categories"][1:]:
                is_it = float(config[name] == category)
                parts += [np.array([is_it]), is_it * x]
    return np.concatenate(parts)


class CostModel:
    """Simulated seconds of an epoch, a smooth function of the configuration."""

    def __init__(self, file: Path, space: Space) -> None:
        data = json.loads(file.read_text())
        self.mean_epoch_seconds: float = data["mean_epoch_seconds"]
        self._space, self._weights = space, np.array(data["log_coefficients"])

    def __call__(self, config: Config) -> float:
        return float(np.exp(cost_features(self._space, config) @ self._weights))


def canonical(space: Space, config: Config) -> Config:
    """Plain values of the space's own types, in the order of the space."""
    return {k: config[k] if spec["type"] == "choice" else _CAST[spec["type"]](config[k]) for k, spec in space.items()}


class Live:
    """A task for :func:`driver.simulate` that trains what it is asked for.

    Args:
        task: name of a module in ``tasks/``, or path of a file.
        cache: folder of the curves, shared by all runs.
        trainer: Python that trains; needs numpy and scikit-learn.
    """

    def __init__(self, task: str, cache: Path, trainer: str = sys.executable) -> None:
        given = Path(task)
        self.path = given.resolve() if given.suffix == ".py" else Path(__file__).parent / "tasks" / f"{task}.py"
        module = load_module(self.path)
        self.name = self.path.stem
        self.space: Space = module.SPACE
        self.max_epochs: int = module.EPOCHS
        folder = self.path.parent if given.suffix == ".py" else DATA
        self._cost = CostModel(folder / f"{self.name}.cost.json", self.space)
        self.mean_epoch_seconds = self._cost.mean_epoch_seconds
        self._cache = cache / self.name
        self._trainer = trainer
        self._child: subprocess.Popen[str] | None = None
        self._configs: list[Config] = []
        self._numbers: dict[str, int] = {}
        self._curves: dict[str, np.ndarray] = {}

    def number(self, config: Config) -> int:
        """The number of this very configuration."""
        exact = canonical(self.space, config)
        key = self._key(exact, 0)
        if key not in self._numbers:
            self._numbers[key] = len(self._configs)
            self._configs.append(exact)
        return self._numbers[key]

    def error(self, number: int, epoch: int) -> float:
        """Validation error after this many epochs."""
        return float(self.curve(self._configs[number], epoch)[epoch - 1, 0])

    def seconds(self, number: int) -> float:
        """Simulated seconds of one epoch, by the cost model."""
        return self._cost(self._configs[number])

    def outcome(self, number: int, epoch: int) -> dict[str, Any]:
        """The configuration as it was reported, and trained again."""
        own = self.curve(self._configs[number], epoch)[epoch - 1]
        return {"val": float(own[0]), "test": float(own[1]), **self.retrained(self._configs[number])}

    def retrained(self, config: Config) -> dict[str, list[float]]:
        """Lowest validation error, and test error at that epoch, of trainings with other seeds."""
        exact = canonical(self.space, config)
        curves = [self.curve(exact, self.max_epochs, replicate) for replicate in range(1, RETRAININGS + 1)]
        best = [curve[int(curve[:, 0].argmin())] for curve in curves]
        return {"retrained_val": [float(b[0]) for b in best], "retrained_test": [float(b[1]) for b in best]}

    def curve(self, config: Config, epochs: int, replicate: int = 0) -> np.ndarray:
        """(at least ``epochs``, 2) validation and test errors."""
        key = self._key(config, replicate)
        known = self._curves.get(key)
        file = self._cache / key[:2] / f"{key}.npy"
        if known is None and file.exists():
            known = np.load(file)
        if known is None or len(known) < epochs:
            stage = next((s for s in STAGES if epochs <= s < self.max_epochs), self.max_epochs)
            known = self._train(config, int(key[:8], 16) % 2**31, stage)
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as stream:
                np.save(stream, known)
            unfinished.replace(file)
        self._curves[key] = known
        return known

    def _key(self, config: Config, replicate: int) -> str:
        text = ",".join(f"{name}={config[name]!r}" for name in sorted(config))
        return hashlib.sha256(f"{self.name}|{text}|{replicate}".encode()).hexdigest()

    def _train(self, config: Config, seed: int, epochs: int) -> np.ndarray:
        if self._child is None:
            command = [self._trainer, "-B", str(Path(__file__)), str(self.path)]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            atexit.register(self.close)
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps({"config": config, "seed": seed, "epochs": epochs}) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that trains {self.name} has ended. Read its error message above.")
        return np.array(json.loads(answer), np.float32)

    def close(self) -> None:
        """End the process that trains."""
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._child.wait(10)
            self._child = None


def serve(task: Path) -> None:
    """In the child: a request a line, an answer a line."""
    train = load_module(task).train
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        with np.errstate(all="ignore"):
            curve = train(request["config"], request["seed"], request["epochs"])
        answers.write(json.dumps(np.asarray(curve, np.float64).tolist()) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
