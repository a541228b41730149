"""Small data sets for surrogate models."""

from __future__ import annotations

import numpy as np
import torch

from lightning_hpo.surrogates.additive import ExponentialDecayModel, InnovationModel
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.models import RESOURCE_KERNELS, IndependentModel, Surrogate, multitask, single_fidelity

LEVELS = (1, 3, 9)


def rungs(n_configs: int = 12, dimension: int = 3, seed: int = 0) -> Observations:
    """Configurations of successive halving: a third of them goes on to each next level."""
    rng = np.random.default_rng(seed)
    x = rng.random((n_configs, dimension))
    rows, resources, y = [], [], []
    for k, r in enumerate(LEVELS):
        for i in range(max(1, n_configs // 3**k)):
            rows.append(x[i])
            resources.append(r)
            y.append(np.sin(4.0 * x[i, 0]) + x[i, -1] ** 2 - 0.4 * np.log(r) + 0.1 * rng.standard_normal())
    values = np.array(y)
    return Observations.from_rows(
        np.array(rows).tolist(), ((values - values.mean()) / values.std()).tolist(), resources
    )


def curves(lengths: tuple[int, ...] = (9, 2, 4, 1), dimension: int = 3, seed: int = 0) -> Observations:
    """Learning curves of the given lengths, observed at every resource from 1 on."""
    rng = np.random.default_rng(seed)
    rows, resources, y = [], [], []
    for length in lengths:
        x = rng.random(dimension)
        for r in range(1, length + 1):
            rows.append(x.tolist())
            resources.append(r)
            y.append(x[0] + np.exp(-0.5 * r) + 0.1 * rng.standard_normal())
    return Observations.from_rows(rows, y, resources)


def models(dimension: int = 3) -> dict[str, Surrogate]:
    """Every model, by name; the largest resource is 9."""
    joint = {kernel: multitask(dimension, 9, kernel) for kernel in RESOURCE_KERNELS}
    return {
        "single-fidelity": single_fidelity(dimension),
        "single-fidelity, warped, one length scale": single_fidelity(dimension, warped=(0, 2), ard=False),
        "single-fidelity, log-normal length scales": single_fidelity(dimension, lengthscale_prior="log_normal"),
        "exp-decay-sum, warped": multitask(dimension, 9, warped=(1,)),
        **joint,
        "independent": IndependentModel(dimension, LEVELS),
        "independent, log-normal length scales": IndependentModel(dimension, LEVELS, lengthscale_prior="log_normal"),
        "independent, separate noise": IndependentModel(dimension, LEVELS, separate_noise=True),
        "expdecay": ExponentialDecayModel(dimension, 9),
        "expdecay, normalised": ExponentialDecayModel(dimension, 9, normalize_resource=True),
        "issm": InnovationModel(dimension, 9),
        "issm, gamma one": InnovationModel(dimension, 9, gamma_one=True),
    }


def data_for(name: str) -> Observations:
    """Data the model of this name can be fitted to."""
    if name.startswith("single"):
        return rungs().at(1)
    return curves() if name.startswith(("expdecay", "issm")) else rungs()


def random_theta(model: Surrogate, seed: int = 0, size: int = 1) -> torch.Tensor:
    """Vectors near the initial values, with noise that keeps matrices well conditioned, ``(size, p)``."""
    rng = np.random.default_rng(seed)
    theta = model.space.initial + 0.3 * torch.from_numpy(rng.standard_normal((size, model.space.size)))
    theta[:, model.space.slices["noise"]] += 3.0
    return theta.clamp(model.space.lower, model.space.upper)
