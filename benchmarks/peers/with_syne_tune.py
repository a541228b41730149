"""Syne Tune 0.13.0's schedulers, driven without its tuner and back-ends."""

from __future__ import annotations

import datetime
import logging
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from driver import Tuner
from tables import Config, Space

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
from syne_tune import config_space  # noqa: E402
from syne_tune.backend.trial_status import Trial  # noqa: E402
from syne_tune.optimizer import baselines  # noqa: E402

_DOMAINS = {
    "float": config_space.uniform,
    "float_log": config_space.loguniform,
    "int": config_space.randint,
    "int_log": config_space.lograndint,
}
_NO_TIME = datetime.datetime(2000, 1, 1)


class SyneTune(Tuner):
    """One of its baselines. Models begin after ``n_workers + 2`` random configurations, as it advises."""

    baseline: Callable[..., Any]
    has_rungs = True
    is_model = False
    options: ClassVar[dict[str, Any]] = {}
    search_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, space: Space, max_epochs: int, n_workers: int, seed: int) -> None:
        super().__init__(space, max_epochs, n_workers, seed)
        search = {"debug_log": False, **self.search_options}
        if self.is_model:
            search["num_init_random"] = n_workers + 2
        rungs = {"resource_attr": "epoch", "max_resource_attr": "epochs", "grace_period": 1, "reduction_factor": 3}
        domains = {
            name: config_space.choice(spec["categories"])
            if spec["type"] == "choice"
            else _DOMAINS[spec["type"]](spec["lower"], spec["upper"])
            for name, spec in space.items()
        }
        self.scheduler = type(self).baseline(
            {**domains, "epochs": max_epochs}, metric="error", mode="min", random_seed=seed, points_to_evaluate=[],
            search_options=search, **(rungs if self.has_rungs else {}), **self.options,
        )  # fmt: skip
        self.trials: dict[int, Trial] = {}

    def suggest(self, trial: int) -> tuple[str, Any] | None:
        suggestion = self.scheduler.suggest(trial)
        if suggestion is None:
            return None
        if suggestion.spawn_new_trial_id:
            self.trials[trial] = Trial(trial, dict(suggestion.config), _NO_TIME)
            self.scheduler.on_trial_add(self.trials[trial])
            config: Config = {name: suggestion.config[name] for name in self.space}
            return "start", config
        resumed = int(suggestion.checkpoint_trial_id)
        if suggestion.config is not None:
            self.trials[resumed].config = dict(suggestion.config)
        return "resume", resumed

    def report(self, trial: int, epoch: int, error: float) -> str:
        decision = self.scheduler.on_trial_result(self.trials[trial], {"error": error, "epoch": epoch})
        if decision in ("STOP", "PAUSE"):
            self.scheduler.on_trial_remove(self.trials[trial])
        return str(decision).lower()

    def complete(self, trial: int, epoch: int, error: float) -> None:
        self.scheduler.on_trial_complete(self.trials[trial], {"error": error, "epoch": epoch})


def _method(
    baseline: Callable[..., Any],
    has_rungs: bool = True,
    is_model: bool = False,
    model: str | None = None,
    **options: Any,
) -> type[Tuner]:
    search = {} if model is None else {"model": model}
    attributes = {"baseline": staticmethod(baseline), "has_rungs": has_rungs, "is_model": is_model, "options": options}
    return type("SyneTune_", (SyneTune,), {**attributes, "search_options": search})


METHODS: dict[str, type[Tuner]] = {
    "st-random": _method(baselines.RandomSearch, has_rungs=False),
    "st-bayesopt": _method(baselines.BayesianOptimization, has_rungs=False, is_model=True),
    "st-asha-stopping": _method(baselines.ASHA, type="stopping"),
    "st-asha-promotion": _method(baselines.ASHA, type="promotion"),
    "st-pasha": _method(baselines.PASHA),
    "st-bohb": _method(baselines.BOHB, type="promotion"),
    "st-mobster-joint": _method(baselines.MOBSTER, is_model=True, type="promotion"),
    "st-mobster-indep": _method(baselines.MOBSTER, is_model=True, model="gp_independent", type="promotion"),
    "st-hypertune-indep": _method(baselines.HyperTune, is_model=True, model="gp_independent", type="promotion"),
    "st-hypertune-joint": _method(baselines.HyperTune, is_model=True, model="gp_multitask", type="promotion"),
}
