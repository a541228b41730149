"""Optuna's samplers and pruners, through ask and tell in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from driver import Tuner
from tables import Config, Space

warnings.filterwarnings("ignore")
import optuna  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Optuna(Tuner):
    """A sampler and a pruner."""

    sampler: Callable[[int], Any]
    pruner: Callable[[int], Any]

    def __init__(self, space: Space, max_epochs: int, n_workers: int, seed: int) -> None:
        super().__init__(space, max_epochs, n_workers, seed)
        kind = type(self)
        self.study = optuna.create_study(sampler=kind.sampler(seed), pruner=kind.pruner(max_epochs))
        self.trials: dict[int, Any] = {}

    def suggest(self, trial: int) -> tuple[str, Any] | None:
        asked = self.study.ask()
        self.trials[trial] = asked
        config: Config = {}
        for name, spec in self.space.items():
            if spec["type"] == "choice":
                config[name] = asked.suggest_categorical(name, spec["categories"])
            else:
                suggest = asked.suggest_float if spec["type"].startswith("float") else asked.suggest_int
                config[name] = suggest(name, spec["lower"], spec["upper"], log=spec["type"].endswith("log"))
        return "start", config

    def report(self, trial: int, epoch: int, error: float) -> str:
        told = self.trials[trial]
        told.report(error, epoch)
        if epoch < self.max_epochs and told.should_prune():
            self.study.tell(told, state=optuna.trial.TrialState.PRUNED)
            return "stop"
        return "continue"

    def complete(self, trial: int, epoch: int, error: float) -> None:
        self.study.tell(self.trials[trial], error)


def _tpe(seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed)


def _random(seed: int) -> Any:
    return optuna.samplers.RandomSampler(seed=seed)


def _halving(max_epochs: int) -> Any:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


def _hyperband(max_epochs: int) -> Any:
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3)


def _none(max_epochs: int) -> Any:
    return optuna.pruners.NopPruner()


def _method(sampler: Callable[[int], Any], pruner: Callable[[int], Any]) -> type[Tuner]:
    return type("Optuna_", (Optuna,), {"sampler": staticmethod(sampler), "pruner": staticmethod(pruner)})


METHODS: dict[str, type[Tuner]] = {
    "optuna-tpe": _method(_tpe, _none),
    "optuna-tpe-hyperband": _method(_tpe, _hyperband),
    "optuna-random-sh": _method(_random, _halving),
}
