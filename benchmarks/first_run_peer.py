"""The study of ``first_run_study.py`` under another tuner, as its documents say; run in that tuner's environment.

``python first_run_peer.py NAME FOLDER SEED`` writes ``FOLDER/peer.json``: trials, epochs trained, best accuracy seen.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Nothing that only one of the tuners needs is imported here: the clock runs.
Summary = dict[str, Any]


def optuna(folder: Path, seed: int, make_pruner: Callable[[Any], Any]) -> Summary:
    """One process, one trial after the other, Optuna's pruning callback for Lightning."""
    import optuna
    from first_run_study import DROPOUT, LR, METRIC, N_TRIALS, UNITS, fit
    from optuna_integration import PyTorchLightningPruningCallback

    def objective(trial: Any) -> float:
        config = {
            "lr": trial.suggest_float("lr", *LR, log=True),
            "units": trial.suggest_int("units", *UNITS, log=True),
            "dropout": trial.suggest_float("dropout", *DROPOUT),
        }
        return fit(config, PyTorchLightningPruningCallback(trial, monitor=METRIC))

    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed), pruner=make_pruner(optuna.pruners)
    )
    study.optimize(objective, n_trials=N_TRIALS)
    reports = [trial.intermediate_values for trial in study.trials]
    return {
        "version": optuna.__version__,
        "trials": len(reports),
        "epochs": sum(map(len, reports)),
        "best_seen": max(value for values in reports for value in values.values()),
    }


def optuna_sha(folder: Path, seed: int) -> Summary:
    """Successive halving, the nearest to ASHA that Optuna has."""
    from first_run_study import ETA

    return optuna(folder, seed, lambda pruners: pruners.SuccessiveHalvingPruner(1, ETA))


def optuna_hyperband(folder: Path, seed: int) -> Summary:
    """Hyperband, which Optuna's documents recommend."""
    from first_run_study import ETA, MAX_EPOCHS

    return optuna(folder, seed, lambda pruners: pruners.HyperbandPruner(1, MAX_EPOCHS, ETA))


def ray(folder: Path, seed: int) -> Summary:
    """ASHA, which stops trials in Ray Tune; two trials at a time."""
    import ray
    from first_run_study import DROPOUT, ETA, LR, MAX_EPOCHS, METRIC, N_TRIALS, UNITS, WORKERS
    from ray import tune

    ray.init(num_cpus=WORKERS, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(_ray_trial, {"cpu": 1}),
        param_space={"lr": tune.loguniform(*LR), "units": tune.lograndint(UNITS[0], UNITS[1] + 1)}
        | {"dropout": tune.uniform(*DROPOUT)},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=N_TRIALS,
            scheduler=tune.schedulers.ASHAScheduler(max_t=MAX_EPOCHS, grace_period=1, reduction_factor=ETA),
            search_alg=tune.search.BasicVariantGenerator(random_state=seed),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="study"),
    )
    results = tuner.fit()
    return {
        "version": ray.__version__,
        "trials": len(results),
        "epochs": sum(result.metrics["training_iteration"] for result in results),
        "best_seen": max(float(result.metrics_dataframe[METRIC].max()) for result in results),
    }


def _ray_trial(config: dict[str, Any]) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from first_run_study import METRIC, fit
    from lightning.pytorch import Callback, LightningModule, Trainer
    from ray import tune

    class Report(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            tune.report({METRIC: float(trainer.callback_metrics[METRIC])})

    fit(config, Report())


def syne_tune(folder: Path, seed: int) -> Summary:
    """ASHA of the promotion type, two workers, trials that write checkpoints."""
    os.environ["SYNETUNE_FOLDER"] = str(folder)
    import logging
    from importlib.metadata import version

    from syne_tune import StoppingCriterion, Tuner, config_space
    from syne_tune.backend import LocalBackend
    from syne_tune.optimizer.baselines import ASHA

    # Not first_run_study, which imports torch: the tuner does without.
    n_trials, max_epochs, eta, workers = 20, 27, 3, 2
    logging.getLogger().setLevel(logging.WARNING)
    space = {
        "lr": config_space.loguniform(1e-5, 1e-1),
        "units": config_space.lograndint(8, 256),
        "dropout": config_space.uniform(0.0, 0.7),
        "epochs": max_epochs,
    }
    tuner = Tuner(
        trial_backend=LocalBackend(str(Path(__file__).with_name("first_run_syne_tune_trial.py"))),
        scheduler=ASHA(
            space,
            metric="val_acc",
            mode="max",
            type="promotion",
            resource_attr="epoch",
            max_resource_attr="epochs",
            grace_period=1,
            reduction_factor=eta,
            random_seed=seed,
        ),
        stop_criterion=StoppingCriterion(max_num_trials_started=n_trials),
        n_workers=workers,
        sleep_time=0.1,
        wait_trial_completion_when_stopping=True,
    )
    tuner.run()
    last = tuner.tuning_status.trial_rows.values()
    return {
        "version": version("syne-tune"),
        "trials": len(last),
        "epochs": sum(int(result["epoch"]) for result in last),
        "best_seen": tuner.tuning_status.overall_metric_statistics.max_metrics["val_acc"],
    }


PEERS = {f.__name__: f for f in (optuna_sha, optuna_hyperband, ray, syne_tune)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    summary = PEERS[arguments.name](arguments.folder, arguments.seed)
    (arguments.folder / "peer.json").write_text(json.dumps(summary))
