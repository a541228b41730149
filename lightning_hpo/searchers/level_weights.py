"""What each resource level is worth, judged by the highest level with enough observations (Li et al. 2022)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_hpo.core.searcher import SearchView
from lightning_hpo.searchers.gp_model import FittedModel
from lightning_hpo.surrogates.ensemble import ensemble_weights, highest_supported, level_losses, level_weights
from lightning_hpo.surrogates.models import IndependentModel, JointModel
from lightning_hpo.surrogates.posterior import EnsemblePosterior


@dataclass(frozen=True)
class JudgedLevels:
    """Weights of the levels up to the judging one."""

    weights: dict[int, float]
    """Resource -> weight, summing to 1; zero where nothing is observed."""
    judge: int
    """The level by whose observations the others were judged."""
    num_observations: int
    """How many it had."""

    def to_json(self) -> dict[str, Any]:
        weights = [[level, weight] for level, weight in self.weights.items()]
        return {"level_weights": weights, "judged_by": [self.judge, self.num_observations]}


def judge_levels(
    view: SearchView, model: FittedModel, num_samples: int, rng: np.random.Generator
) -> JudgedLevels | None:
    """New weights; None if no level above the first has enough observations, or the judge saw nothing new.

    Args:
        num_samples: posterior samples per ranking loss.
    """
    levels = (*view.rung_levels, view.max_t)
    resources = model.data.resource.tolist()
    counts = [resources.count(level) for level in levels]
    supported = highest_supported(counts)
    if supported == 1:
        return None
    judge, num_observations = levels[supported - 1], counts[supported - 1]
    if model.state.get("judged_by") == [judge, num_observations]:
        return None
    with_data = [level for level, count in zip(levels[:supported], counts, strict=False) if count]

    def normals(rows: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((rows, num_samples))).to(model.device)

    surrogate = model.surrogate
    assert isinstance(surrogate, (JointModel, IndependentModel)), "HyperTune refuses other models"
    with torch.no_grad():
        losses = level_losses(surrogate, model.data, model.theta, model.posterior, with_data, normals)
    found = dict(zip(with_data, level_weights(losses).tolist(), strict=True))
    return JudgedLevels({level: found.get(level, 0.0) for level in levels[:supported]}, judge, num_observations)


def ensemble_posterior(model: FittedModel) -> FittedModel:
    """The model with the ensemble of its levels as posterior; before the first judgement the lowest level observed."""
    observed = set(model.data.resource.tolist())
    weights = {level: weight for level, weight in model.state.get("level_weights", ()) if level in observed}
    kept = ensemble_weights(weights) or {min(observed): 1.0}
    return dataclasses.replace(model, posterior=EnsemblePosterior(model.posterior, kept), level_weights=kept)
