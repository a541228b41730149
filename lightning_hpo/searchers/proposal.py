"""From a fitted Gaussian process to a configuration: fantasies, incumbent, acquisition function, candidates."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import torch

from lightning_hpo.core.searcher import SearchView, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.trial import Config
from lightning_hpo.searchers.candidates import Candidates
from lightning_hpo.searchers.gp_model import ADDITIVE, SINGLE_FIDELITY, FittedModel
from lightning_hpo.searchers.history import promotion_cuts
from lightning_hpo.surrogates.acquisition import (
    Acquisition,
    acquisition_resource,
    evaluate,
    incumbent,
    log_expected_improvement,
    lower_confidence_bound,
    minimize_acquisition,
    thompson,
)
from lightning_hpo.surrogates.posterior import EnsemblePosterior, Posterior, Prediction
from lightning_hpo.surrogates.promotion import PromotionProbability


@dataclass(frozen=True)
class Proposal:
    """A configuration and why; no configuration if every candidate is excluded."""

    config: Config | None
    reason: str


def propose(
    view: SearchView, request: SuggestRequest, options: SearcherOptions, model: FittedModel, rng: np.random.Generator
) -> Proposal:
    """The configuration with the best acquisition value found.

    Random candidates are ranked by Thompson scores or by the acquisition function itself; the best one is improved by a
    local search in the relaxed unit cube and decoded.

    Raises:
        SurrogateError: if the model cannot be computed.
    """
    resource = _resource(view, request, options, model)
    with torch.no_grad():
        posterior = with_fantasies(model, options, rng)
        acquisition = _acquisition(posterior, resource, options, model)
        candidates = Candidates.draw(view, options, excluded_with_pending(view, options), rng)
        if not len(candidates.encoded):
            return Proposal(None, "")
        encoded = torch.from_numpy(candidates.encoded).to(model.device)
        prediction = posterior.predict(encoded, resource)
        promotion = _promotion(view, request.milestone, options, model, posterior, resource)
        scores = None
        if options.initial_scoring == "thompson_indep":
            scores = _thompson_scores(posterior, prediction, promotion, encoded, rng)
        if scores is None:
            values = acquisition(prediction.mean, prediction.variance).value
            scores = (values if promotion is None else values - promotion.log(encoded)[0]).cpu().numpy()
        lower, upper = torch.from_numpy(view.space.bounds).unbind(1)

        def refine(point: np.ndarray) -> np.ndarray:
            start = torch.from_numpy(point).to(model.device)[None]
            found, _ = minimize_acquisition(
                posterior, acquisition, start, resource, lower=lower, upper=upper, promotion=promotion
            )
            refined: np.ndarray = found[0].cpu().numpy()
            return refined

        config = candidates.choose(scores, None if options.skip_local_optimization else refine)
        if config is None:
            return Proposal(None, "")
        at = torch.from_numpy(view.space.encode(config)).to(model.device)[None]
        value = float(evaluate(posterior, acquisition, at, resource)[0])
        reason = _reason(view, options, model, resource, value)
        if promotion is not None:
            reason += f", passes the rungs below with {math.exp(float(promotion.log(at)[0])):.0%}"
    return Proposal(config, reason)


def excluded_with_pending(view: SearchView, options: SearcherOptions) -> Set[str]:
    """Match keys that are not proposed: of all trials, or with duplicates of pending and failed ones."""
    if not options.allow_duplicates:
        return view.taken
    pending = {p.trial_id for p in view.pending}
    return view.taken_by_failed | {view.space.match_key(view.configs[trial]) for trial in pending}


def with_fantasies(model: FittedModel, options: SearcherOptions, rng: np.random.Generator) -> Posterior:
    """The posterior given joint samples of what pending evaluations may give."""
    pending = model.history.pending
    if options.no_fantasizing or not len(pending):
        return model.posterior
    normals = torch.from_numpy(rng.standard_normal((len(pending), options.num_fantasy_samples)))
    inputs = torch.from_numpy(pending.inputs).to(model.device)
    resources = torch.tensor(pending.resources, dtype=torch.int64, device=model.device)
    return model.posterior.fantasize(inputs, resources, normals.to(model.device))


def _resource(view: SearchView, request: SuggestRequest, options: SearcherOptions, model: FittedModel) -> int:
    if model.name == SINGLE_FIDELITY:
        return 1
    if model.name in ADDITIVE:
        return view.max_t
    # All data say which levels have enough values; but where the model has seen none, there is no incumbent.
    seen = set(model.data.resource.tolist())
    return acquisition_resource(
        {resource: count for resource, count in model.history.counts().items() if resource in seen},
        options.resource_acq,
        options.resource_acq_bohb_threshold,
        request.milestone,
        view.max_t,
    )


def _acquisition(posterior: Posterior, resource: int, options: SearcherOptions, model: FittedModel) -> Acquisition:
    if options.acq_function == "lcb":
        return lower_confidence_bound(options.acq_function_kwargs.get("kappa", 1.0))
    xi = options.acq_function_kwargs.get("xi", 0.01)
    if options.xi_in_criterion_units:
        xi /= model.normalisation.scale
    return log_expected_improvement(incumbent(posterior, resource), xi)


def _thompson_scores(
    posterior: Posterior,
    prediction: Prediction,
    promotion: PromotionProbability | None,
    encoded: torch.Tensor,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Draws at the candidates; those that pass the rungs below in a draw come first. None if no candidate passes."""
    normals = torch.from_numpy(rng.standard_normal((len(encoded), posterior.columns))).to(encoded.device)
    scores: np.ndarray = thompson(normals)(prediction.mean, prediction.variance).value.cpu().numpy()
    if promotion is None:
        return scores
    passes = promotion.passes(encoded, torch.from_numpy(rng.standard_normal(len(encoded))).to(encoded.device))
    first = passes.cpu().numpy()
    return np.where(first, scores, scores + np.ptp(scores) + 1.0) if first.any() else None


def _promotion(
    view: SearchView, first: int, options: SearcherOptions, model: FittedModel, posterior: Posterior, resource: int
) -> PromotionProbability | None:
    if not options.weigh_promotion or model.name == SINGLE_FIDELITY or model.name in ADDITIVE:
        return None
    cuts = promotion_cuts(view, model.history, resource, first)
    if not cuts:
        return None
    values = model.normalisation.forward(np.array(list(cuts.values())))
    # Of the levels themselves, also where the posterior is an ensemble of them.
    levels = posterior.posterior if isinstance(posterior, EnsemblePosterior) else posterior
    return PromotionProbability(levels, dict(zip(cuts, values.tolist(), strict=True)))


def _reason(view: SearchView, options: SearcherOptions, model: FittedModel, resource: int, value: float) -> str:
    scale, mean = model.normalisation.scale, model.normalisation.mean
    if options.acq_function == "lcb":
        what = f"confidence bound {value * scale + mean:.3g}"
    else:
        what = f"EI {math.exp(-min(value, 700.0)) * scale:.3g}"
    weights = {resource: 1.0} if model.level_weights is None else model.level_weights
    if model.name == SINGLE_FIDELITY:
        where = ""
    elif len(weights) == 1:
        where = f" {place(view, *weights)}"
    else:
        where = " over levels " + ", ".join(f"{level} ({weight:.0%})" for level, weight in weights.items())
    return f"{what}{where}, from {len(model.history)} observations{model.remark}"


def place(view: SearchView, resource: int) -> str:
    """``at rung 9``, ``at max_t`` or ``at resource 5``."""
    if resource == view.max_t:
        return "at max_t"
    return f"at rung {resource}" if resource in view.rung_levels else f"at resource {resource}"
