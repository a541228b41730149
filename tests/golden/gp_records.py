"""Recorded hyperparameters and data of Gaussian processes, as our models and tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_hpo.surrogates.additive import ExponentialDecayModel, InnovationModel
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import IndependentModel, Surrogate, multitask, single_fidelity


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def model_of(record: dict[str, Any]) -> Surrogate:
    hyper, d = record["hyper"], record["dimension"]
    warped = tuple(range(*hyper["warp_x"]["range"])) if "warp_x" in hyper else ()
    shape = {"warped": warped, "ard": hyper.get("ard", True)}
    match record["model"]:
        case "single-fidelity":
            return single_fidelity(d, **shape)
        case "gp_independent":
            return IndependentModel(
                d, record["rung_levels"], separate_noise=hyper.get("separate_noise_variances", False), **shape
            )
        case "gp_expdecay":
            return ExponentialDecayModel(d, record["r_max"], normalize_resource=hyper["normalize_resource"], **shape)
        case "gp_issm":
            return InnovationModel(d, record["r_max"], gamma_one=hyper["gamma_is_one"], unit_innovations=True, **shape)
        case kernel:
            return multitask(d, hyper.get("num_folds", record["r_max"]), kernel, **shape)


def theta_of(record: dict[str, Any], model: Surrogate) -> Tensor:
    """The recorded hyperparameters under our names."""
    hyper = record["hyper"]

    def listed(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [value[str(level)] for level in record["rung_levels"]]
        return value if isinstance(value, list) else [value]

    values = {
        "lengthscale": [1.0 / ib for ib in listed(hyper["inv_bw"])],
        "outputscale": listed(hyper["covariance_scale"]),
        "mean": listed(hyper["mean"]),
        "noise": listed(hyper["noise_variance"]),
    }
    warps = [hyper[name] for name in ("warp_x", "warp_r") if name in hyper]
    if warps:
        values["warp_a"] = [a for w in warps for a in listed(w["a"])]
        values["warp_b"] = [b for w in warps for b in listed(w["b"])]
    renamed = {
        "alpha": "alpha", "mean_lam": "mean_lambda", "gamma": "gamma", "delta": "delta", "beta": "beta",
        "residual_covariance_scale": "residual_outputscale",
    }  # fmt: skip
    values |= {ours: [hyper[theirs]] for theirs, ours in renamed.items() if theirs in hyper}
    if "residual_inv_bw" in hyper:
        values["residual_lengthscale"] = [1.0 / hyper["residual_inv_bw"]]
    if record["model"] == "gp_issm":
        values["negative_alpha"] = [-hyper["alpha"]]
    return model.space.theta(values)


def data_of(record: dict[str, Any]) -> Observations:
    if "curves" in record:
        x = [row for row, curve in zip(record["X"], record["curves"], strict=True) for _ in curve]
        r = [e for curve in record["curves"] for e in range(1, len(curve) + 1)]
        return Observations.from_rows(x, [y for curve in record["curves"] for y in curve], r)
    return Observations.from_rows(record["X"], record["y"], record.get("r"))
