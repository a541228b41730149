"""The part of ``suggest.py`` that runs in Syne Tune's environment: its suggestions for a script read from stdin."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from syne_tune import config_space  # noqa: E402
from syne_tune.optimizer.schedulers.hyperband import HyperbandScheduler  # noqa: E402


def suggestions(method: str, given: dict, seed: int) -> dict:
    levels, configs = given["levels"], given["configs"]
    space = {f"x{i}": config_space.uniform(0.0, 1.0) for i in range(len(configs[0]))}
    scheduler = HyperbandScheduler(
        {**space, "epochs": levels[-1]},
        searcher="bayesopt" if method == "mobster" else "hypertune",
        metric="error",
        mode="min",
        type="promotion",
        resource_attr="epoch",
        max_resource_attr="epochs",
        grace_period=levels[0],
        reduction_factor=3,
        random_seed=seed,
        points_to_evaluate=[],
        search_options={"debug_log": False, "num_init_random": 1},
    )
    searcher = scheduler.searcher
    searcher.configure_scheduler(scheduler)

    def named(trial: int) -> dict:
        return {f"x{i}": v for i, v in enumerate(configs[trial])}

    observations, told, waiting, seconds = given["observations"], 0, set(), []
    for size in given["sizes"]:
        for trial, epoch, value in observations[told:size]:
            searcher.on_trial_result(str(trial), named(trial), {"error": value, "epoch": epoch}, update=True)
        told = size
        for trial, epoch, _ in observations[size : size + given["pending"]]:
            if (trial, epoch) not in waiting:
                waiting.add((trial, epoch))
                searcher.register_pending(str(trial), named(trial), epoch)
        before = time.process_time()
        config = searcher.get_config(trial_id=str(len(configs) + size), bracket=0, milestone=levels[0])
        seconds.append(time.process_time() - before)
        assert config is not None
    return {"seconds": seconds, "parameters": parameters(searcher.model_parameters(), levels)}


def parameters(fitted: dict, levels: list) -> dict:
    """The fitted hyperparameters by the names of ``lightning_hpo``."""
    fitted = {name: float(np.reshape(value, -1)[0]) for name, value in fitted.items()}
    inverse = [value for name, value in fitted.items() if "inv_bw" in name]
    result = {"noise": [fitted["noise_variance"]], "lengthscale": [1.0 / value for value in inverse]}
    if "kernel_alpha" in fitted:
        return {
            **result,
            "outputscale": [fitted["kernel_kernelx_covariance_scale"]],
            "mean": [fitted["kernel_meanx_mean_value"]],
            "alpha": [fitted["kernel_alpha"]],
            "mean_lambda": [fitted["kernel_mean_lam"]],
            "gamma": [fitted["kernel_gamma"]],
        }
    return {
        **result,
        "outputscale": [fitted[f"covariance_scale{level}"] for level in levels],
        "mean": [fitted[f"mean{level}_mean_value"] for level in levels],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    given = json.load(sys.stdin)
    suggestions(args.task, {**given, "sizes": [8, 10]}, args.seed + 1)
    print(json.dumps(suggestions(args.task, given, args.seed)))
