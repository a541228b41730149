"""The configuration to use when the study is over.

The lowest of many noisy reports is lower than what its configuration gives when it is trained again. So reports are
first averaged over neighbouring epochs, and then shrunk towards what the other configurations say: by a Gaussian
process over configurations where the searcher has a model, else towards their common mean (Efron and Morris 1975).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_hpo.core.options import SearcherOptions
from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.trial import Config
from lightning_hpo.errors import ReportError, SurrogateError

_WINDOW = 5
"""Reports that are averaged, at most."""


class Recommended(NamedTuple):
    """A configuration and what to expect of it."""

    trial_id: int
    config: Config
    mean: float
    """Expected value, to be minimised, at the best epoch of a training to ``max_t``."""
    std: float
    """Standard deviation of this expectation."""


@dataclass(frozen=True)
class _Candidates:
    trials: list[int]
    values: np.ndarray
    """(n,) lowest moving average of each trial's curve."""
    noise: float
    """Variance of a moving average, mean over trials."""


def recommend(view: SearchView, options: SearcherOptions) -> Recommended:
    """The best expected configuration among the trials that were trained furthest.

    Candidates are the trials that reached the highest or second highest level reached by any trial.

    Raises:
        ReportError: if no trial has reported a finite value.
    """
    candidates = _candidates(view)
    means, variances = _shrink(candidates)
    if len(candidates.trials) > 1 and view.state is not None and "parameters" in view.state:
        # If it fails, the common mean is an honest answer too.
        with contextlib.suppress(SurrogateError):
            means, variances = _smooth_over_configurations(view, options, candidates)
    best = int(np.lexsort((candidates.values, means))[0])
    trial = candidates.trials[best]
    return Recommended(trial, dict(view.configs[trial]), float(means[best]), float(np.sqrt(variances[best])))


def moving_average(curve: Mapping[int, float], window: int) -> np.ndarray:
    """Mean of each report and those before it, ``window`` in all; the first full windows come first.

    Args:
        curve: resource -> value; with fewer reports than ``window`` the mean of all is the only entry.
    """
    values = np.array([curve[resource] for resource in sorted(curve)])
    width = min(window, len(values))
    return np.convolve(values, np.full(width, 1.0 / width), mode="valid")


def report_noise(curves: list[np.ndarray]) -> float:
    """Variance of single reports about their curves, by second differences in the later half; 0 for short curves.

    Independent errors of variance ``s`` give second differences of variance ``6 s``; the median is not disturbed by
    steps of the learning rate.
    """
    halves = (curve[len(curve) // 2 :] for curve in curves)
    differences = np.concatenate([np.empty(0), *(np.abs(np.diff(half, 2)) for half in halves if len(half) > 2)])
    return float((np.median(differences) / 0.6745) ** 2 / 6.0) if len(differences) else 0.0


def _candidates(view: SearchView) -> _Candidates:
    curves = {trial: dict(view.curve(trial)) for trial in view.configs}
    reached = {trial: max(curve) for trial, curve in curves.items() if curve}
    if not reached:
        raise ReportError("No trial has reported a finite value yet. Tell the study some results first.")
    levels = (*view.rung_levels, view.max_t)
    passed = {trial: sum(resource >= level for level in levels) for trial, resource in reached.items()}
    top = max(passed.values())
    # Without rungs every trial that is as good as complete is a candidate, else only those at the two highest levels.
    trials = [trial for trial in passed if passed[trial] >= (top - 1 if view.rung_levels else top)]
    window = max(1, min(_WINDOW, view.max_t // 3))
    values = np.array([moving_average(curves[trial], window).min() for trial in trials])
    noise = report_noise([np.array([curves[trial][r] for r in sorted(curves[trial])]) for trial in trials])
    averaged = np.mean([1.0 / min(window, len(curves[trial])) for trial in trials])
    return _Candidates(trials, values, noise * float(averaged))


def _shrink(candidates: _Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances by empirical Bayes: as much towards the common mean as noise explains of the spread."""
    values, noise = candidates.values, candidates.noise
    spread = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    kept = max(0.0, 1.0 - noise / spread) if spread > 0.0 else float(noise == 0.0)
    if len(values) == 1:
        return values, np.full(1, noise)
    return values.mean() + kept * (values - values.mean()), np.full(len(values), kept * noise)


def _smooth_over_configurations(
    view: SearchView, options: SearcherOptions, candidates: _Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior moments of a single-fidelity Gaussian process, whose noise is at least that of the reports."""
    import torch

    from lightning_hpo.core.seeds import Stream, generator
    from lightning_hpo.searchers.gp_model import SINGLE_FIDELITY, make_surrogate
    from lightning_hpo.surrogates.data import Observations
    from lightning_hpo.surrogates.fit import FitOptions, fit
    from lightning_hpo.surrogates.targets import Normalisation

    normalisation = Normalisation.of(candidates.values)
    x = torch.from_numpy(view.space.encode_many([view.configs[trial] for trial in candidates.trials]))
    data = Observations.from_rows(x, torch.from_numpy(normalisation.forward(candidates.values)))
    surrogate = make_surrogate(view, SINGLE_FIDELITY, options)
    found = fit(
        surrogate, data, FitOptions(options.opt_nstarts, options.opt_maxiter), generator(view.seed, Stream.SURROGATE)
    )
    parameters = surrogate.space.values(found.theta)
    floor = candidates.noise / normalisation.scale**2
    parameters["noise"] = [max(noise, floor) for noise in parameters["noise"]]
    with torch.no_grad():
        prediction = surrogate.posterior(data, surrogate.space.theta(parameters)).predict(x, 1)
    mean, std = normalisation.mean_and_std(prediction.mean[:, 0].numpy(), prediction.variance.sqrt().numpy())
    return mean, std**2
