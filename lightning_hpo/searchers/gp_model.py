"""From a view of the study to a fitted Gaussian process.

The models are in :mod:`lightning_hpo.surrogates`; here one is chosen, given the study's data, and fitted or taken up
again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import Choice, SearchSpace
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers.history import (
    FAR,
    History,
    learning_curves,
    limit_outliers,
    multi_fidelity,
    needs_refit,
    rung_medians,
    single_fidelity,
)
from lightning_hpo.surrogates.additive import ExponentialDecayModel, InnovationModel
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fit import FitOptions, fit
from lightning_hpo.surrogates.inducing import InducingModel
from lightning_hpo.surrogates.models import IndependentModel, JointModel, Surrogate, multitask
from lightning_hpo.surrogates.models import single_fidelity as single_fidelity_model
from lightning_hpo.surrogates.posterior import Posterior
from lightning_hpo.surrogates.rungs import RungCovariance, RungModel, RungSpread
from lightning_hpo.surrogates.targets import Normalisation, subsample, subsample_levels

_LARGE = 1000
"""From so many observations on a GPU, where there is one, is faster than one CPU thread."""

_FAR_OF_RUNGS = 3.0
"""Of one model of all rungs the worst must not fill the scale either: the order of the best is what it is asked for."""

SINGLE_FIDELITY = "single_fidelity"
ADDITIVE = ("gp_expdecay", "gp_issm")
RUNGS = "gp_rungs"


def model_name(view: SearchView, options: SearcherOptions, default: str) -> str:
    """Without rungs the model does not see the resource; otherwise the one of the options, or ``default``."""
    return (options.model or default) if view.rung_levels else SINGLE_FIDELITY


def history_of(view: SearchView, name: str, options: SearcherOptions) -> History:
    """The part of the view's data that a model can use."""
    if name == SINGLE_FIDELITY:
        return single_fidelity(view)
    if name in ADDITIVE:
        return learning_curves(view)
    if name == RUNGS:
        # It goes where it knows least: what bars single places does not keep it from a region where all diverge.
        return rung_medians(view, tells_diverged=options.avoid_infeasible)
    return multi_fidelity(view, at_levels_only=name == "gp_independent")


def make_surrogate(
    view: SearchView, name: str, options: SearcherOptions, data: Observations | None = None
) -> Surrogate:
    """The model of this name for the view's space and levels.

    Args:
        data: normalised; the model of all rungs looks at their spreads.
    """
    width, max_t = view.space.width, view.max_t
    warped = numeric_columns(view.space) if options.input_warping else ()
    ard, prior = options.gp_base_kernel == "matern52-ard", options.gp_lengthscale_prior
    match name:
        case "gp_multitask":
            return _approximated(multitask(width, max_t, options.gp_resource_kernel, warped, ard, prior), options)
        case "gp_independent":
            levels = (*view.rung_levels, max_t)
            return IndependentModel(width, levels, warped, ard, prior, options.separate_noise_variances)
        case "gp_rungs":
            levels = (*view.rung_levels, max_t)
            spread = None if data is None else RungSpread.of(data.y.cpu(), data.resource.cpu(), levels)
            return RungModel(RungCovariance(width, levels, warped, ard, prior, spread))
        case "gp_expdecay":
            return ExponentialDecayModel(width, max_t, warped, ard, prior, options.expdecay_normalize_inputs)
        case "gp_issm":
            return InnovationModel(width, max_t, warped, ard, prior, options.issm_gamma_one)
        case _:
            return _approximated(single_fidelity_model(width, warped, ard, prior), options)


def _approximated(model: JointModel, options: SearcherOptions) -> JointModel:
    """The model as the option ``approximation`` wants it."""
    if options.approximation == "none":
        return model
    return InducingModel(model.covariance, model.max_resource, options.num_inducing)


def numeric_columns(space: SearchSpace) -> tuple[int, ...]:
    """Coordinates of the encoding that belong to hyperparameters other than choices."""
    numeric = (space.columns(name) for name in space.encoded_names if not isinstance(space.domains[name], Choice))
    return tuple(column for columns in numeric for column in range(columns.start, columns.stop))


@dataclass(frozen=True)
class FittedModel:
    """A surrogate with parameters and data."""

    name: str
    surrogate: Surrogate
    history: History
    """All data of the model, before any subsampling."""
    kept: np.ndarray
    """Which of them the model saw, increasing."""
    data: Observations
    """What the model saw: normalised, and possibly fewer."""
    normalisation: Normalisation
    theta: torch.Tensor
    posterior: Posterior
    """Without pending evaluations."""
    state: dict[str, Any]
    """What the next suggestion needs to know of this fit."""
    is_refitted: bool
    remark: str = ""
    """What went wrong, for people."""
    level_weights: dict[int, float] | None = None
    """Of an ensemble of levels: resource -> weight."""

    @property
    def device(self) -> torch.device:
        return self.data.y.device


def fit_model(view: SearchView, options: SearcherOptions, name: str, rng: np.random.Generator) -> FittedModel:
    """The model of this name, given the view's data.

    Its parameters are those of the last fit, kept in the view's state, if no fit is due.

    Raises:
        SurrogateError: if the model cannot be computed.
    """
    history = history_of(view, name, options)
    if options.limit_outliers:
        far = _FAR_OF_RUNGS if name == RUNGS else FAR
        history = dataclasses.replace(
            history, values=limit_outliers(history.values, np.array(history.observed.resources), far)
        )
    normalisation = normalise(history.values, options, options.reward_offset(view.mode))
    kept = _kept(view, history, name, options, rng)
    data = _observations(history, kept, normalisation, options)
    surrogate = make_surrogate(view, name, options, data)
    # Without rungs every value is that of a complete trial, so that there is nothing to tell apart.
    at_max_t = None if name == SINGLE_FIDELITY else history.counts()[view.max_t]
    # None before the first fit, and where a study goes on whose model had other parameters in an earlier version.
    fitted = {} if view.state is None else view.state.get("parameters", {})
    state = view.state if fitted.keys() == surrogate.space.slices.keys() else None
    if not needs_refit(state, options, len(history), at_max_t):
        assert state is not None
        theta = surrogate.space.theta(state["parameters"])
        posterior = surrogate.posterior(data, theta)
        return FittedModel(name, surrogate, history, kept, data, normalisation, theta, posterior, dict(state), False)
    fit_options = FitOptions(options.opt_nstarts, options.opt_maxiter, options.opt_warmstart)
    found = fit(surrogate, data, fit_options, rng, state, len(history))
    state = {
        **(state or {}),
        **found.state,
        "num_observations": len(history),
        "num_at_max_t": at_max_t or 0,
    }
    remark = ", parameters of the last fit" if found.failed else ""
    posterior = surrogate.posterior(data, found.theta)
    return FittedModel(name, surrogate, history, kept, data, normalisation, found.theta, posterior, state, True, remark)


def normalise(values: np.ndarray, options: SearcherOptions, offset: float) -> Normalisation:
    """From the user's targets to the model's, by the options ``normalize_targets`` and ``boxcox_transform``.

    Args:
        offset: what ``map_reward`` adds to the targets; it matters to the Box-Cox transformation only.
    """
    # Where nothing is transformed it would only cost digits.
    offset = offset if options.boxcox_transform else 0.0
    full = Normalisation.of(values, options.boxcox_transform, offset)
    return full if options.normalize_targets else Normalisation(0.0, 1.0, full.box_cox_lambda, offset)


def _kept(
    view: SearchView, history: History, name: str, options: SearcherOptions, rng: np.random.Generator
) -> np.ndarray:
    """Which observations the model sees."""
    values, limit = history.values, options.max_size_data_for_model
    everything = np.arange(len(values))
    if name in ADDITIVE:
        # These models need whole curves, and their cost is that of the number of curves.
        return everything
    if name == SINGLE_FIDELITY:
        return subsample(values, limit, rng, options.max_size_top_fraction)
    if limit is None or len(values) <= limit:
        return everything
    trials, resources = np.array(history.observed.trial_ids), np.array(history.observed.resources)
    is_at_rung = np.isin(resources, (*view.rung_levels, view.max_t))
    at_rungs = everything[is_at_rung]
    if len(at_rungs) <= limit:
        # What lies between rungs is left out first: the curve of a single trial may have as many values.
        between = rng.choice(everything[~is_at_rung], limit - len(at_rungs), replace=False)
        return np.sort(np.concatenate([at_rungs, between]))
    # A trial whose value is not kept cannot be compared with new ones, so the model of all rungs keeps the best.
    best_first = (values[at_rungs], options.max_size_top_fraction) if name == RUNGS else None
    return at_rungs[subsample_levels(trials[at_rungs], resources[at_rungs], limit, rng, best_first)]


def _observations(
    history: History, kept: np.ndarray, normalisation: Normalisation, options: SearcherOptions
) -> Observations:
    observed, values = history.observed, history.values
    targets = torch.from_numpy(normalisation.forward(values[kept])).to(choose_device(options, len(kept)))
    resources = torch.tensor(observed.resources, dtype=torch.int64)[kept]
    return Observations.from_rows(torch.from_numpy(observed.inputs[kept]), targets, resources)


def choose_device(options: SearcherOptions, num_observations: int) -> str:
    """Where to compute: ``device``, and if it is ``auto`` on the GPU only what is faster there.

    Raises:
        OptionError: if ``device`` is a GPU that this process does not see.
    """
    if options.device != "auto":
        if options.device != "cpu" and (torch.device(options.device).index or 0) >= torch.cuda.device_count():
            raise OptionError(
                f"searcher.device={options.device}, but the searcher's process sees {torch.cuda.device_count()} GPUs. "
                "Set searcher.device to auto or cpu."
            )
        return options.device
    return "cuda" if num_observations >= _LARGE and torch.cuda.is_available() else "cpu"
