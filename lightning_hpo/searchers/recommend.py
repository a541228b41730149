"""The configuration to use when the study is over.

The lowest of many noisy reports is lower than what its configuration gives when it is trained again. So where the best
were trained again (:mod:`lightning_hpo.core.confirmation`), the mean of these trainings decides. Else reports are first
averaged over neighbouring epochs. Both are shrunk towards what the other configurations say: by a Gaussian process over
configurations where the searcher has a model, else towards their common mean (Efron and Morris, *Data Analysis Using
Stein's Estimator and its Generalizations*, JASA 70(350), 1975).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_hpo.core.confirmation import furthest, moving_average, window
from lightning_hpo.core.searcher import SearchView
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.trial import Config
from lightning_hpo.errors import ReportError, SurrogateError
from lightning_hpo.searchers.history import limit_outliers

_BEST_SEEN = 0.5
"""Share of the best among the candidates that a model sees, if it cannot see all."""


class Recommended(NamedTuple):
    """A configuration and what to expect of it."""

    trial_id: int
    config: Config
    mean: float
    """Expected value, to be minimised, at the best epoch of a training to ``max_t``."""
    std: float
    """Standard deviation of this expectation; infinite where nothing tells it. Without confirmations it does not count
    what another seed of training would change: one training of each configuration cannot tell."""
    confirmations: int = 0
    """Trainings with other seeds that the expectation comes from; 0: it comes from the search."""


@dataclass(frozen=True)
class _Candidates:
    trials: list[int]
    values: np.ndarray
    """(n,) lowest moving average of each trial's curve; that of a diverged one is cut."""
    noise: float | None
    """Variance of a moving average, mean over trials; None if the reports are too few to tell."""
    missing: np.ndarray
    """(n,) expected square of the change until ``max_t``; 0 for trials that were trained that far."""


def recommend(view: SearchView, options: SearcherOptions) -> Recommended:
    """The best expected configuration: among those that were confirmed, else among the trials trained furthest.

    The latter are the trials that reached the highest or second highest level reached by any trial, without those that
    failed.

    Raises:
        ReportError: if no trial has reported a finite value.
    """
    confirmed = _confirmed(view)
    if confirmed:
        return _best_confirmed(view, confirmed)
    candidates = _candidates(view)
    means, variances = _shrink(candidates.values, candidates.noise)
    if len(candidates.trials) > 1 and view.state is not None and "parameters" in view.state:
        # If it fails, the common mean is an honest answer too.
        with contextlib.suppress(SurrogateError):
            means, variances = _smooth_over_configurations(view, options, candidates)
    best = int(np.lexsort((candidates.values, means))[0])
    trial = candidates.trials[best]
    std = float(np.sqrt(variances[best] + candidates.missing[best]))
    return Recommended(trial, dict(view.configs[trial]), float(means[best]), std)


def report_noise(curves: Sequence[np.ndarray]) -> float | None:
    """Variance of single reports about their curves, by second differences in the later half; None for short curves.

    Independent errors of variance ``s`` give second differences of variance ``6 s``; the median is not disturbed by
    steps of the learning rate.
    """
    halves = (curve[len(curve) // 2 :] for curve in curves)
    differences = np.concatenate([np.empty(0), *(np.abs(np.diff(half, 2)) for half in halves if len(half) > 2)])
    return float((np.median(differences) / 0.6745) ** 2 / 6.0) if len(differences) else None


def _confirmed(view: SearchView) -> dict[int, np.ndarray]:
    """Trial -> lowest moving averages of its confirmations; without configurations that diverged in one of them."""
    width = window(view.max_t)
    curves = {trial: [view.curve(again) for again in found] for trial, found in view.confirmations.items()}
    return {
        trial: np.array([min(moving_average(curve, width)) for curve in found])
        for trial, found in curves.items()
        if all(found)
    }


def _best_confirmed(view: SearchView, confirmed: Mapping[int, np.ndarray]) -> Recommended:
    """By means over trainings, whose variance is pooled over the configurations."""
    trials = list(confirmed)
    counts = np.array([len(confirmed[trial]) for trial in trials])
    values = np.array([confirmed[trial].mean() for trial in trials])
    freedom = int((counts - 1).sum())
    squares = sum(float(((found - found.mean()) ** 2).sum()) for found in confirmed.values())
    means, variances = _shrink(values, squares / freedom / counts if freedom else None)
    best = int(np.lexsort((values, means))[0])
    trial = trials[best]
    std = float(np.sqrt(variances[best]))
    return Recommended(trial, dict(view.configs[trial]), float(means[best]), std, int(counts[best]))


def _candidates(view: SearchView) -> _Candidates:
    curves = {trial: dict(curve) for trial in view.configs if (curve := view.curve(trial))}
    # A configuration whose training failed is likely to fail again; it is better than none.
    curves = {trial: curve for trial, curve in curves.items() if trial not in view.failed} or curves
    if not curves:
        raise ReportError("No trial has reported a finite value yet. Tell the study some results first.")
    width = window(view.max_t)
    lowest = {trial: min(moving_average(curve, width)) for trial, curve in curves.items()}
    trials = furthest(curves, view.rung_levels, view.max_t)
    # Values of different levels do not compare: many that are worse for being trained less would make the best of those
    # that were trained further look like noise. What is as good already stays.
    most = max(max(curves[trial]) for trial in trials)
    best = min(lowest[trial] for trial in trials if max(curves[trial]) == most)
    trials = [trial for trial in trials if max(curves[trial]) == most or lowest[trial] <= best]
    values = limit_outliers(np.array([lowest[trial] for trial in trials]))
    noise = report_noise([np.array([curves[trial][r] for r in sorted(curves[trial])]) for trial in trials])
    if noise is not None:
        noise *= float(np.mean([1.0 / _averaged(curves[trial], width) for trial in trials]))
    shown = [curves[trial] for trial in trials]
    reached = {max(curve) for curve in shown}
    missing = {r: _missing(r, shown, view.max_t, width) for r in reached}
    return _Candidates(trials, values, noise, np.array([missing[max(curve)] for curve in shown]))


def _averaged(curve: Mapping[int, float], width: int) -> int:
    """Reports in a moving average of a curve whose reports are evenly spaced."""
    return max(1, min(len(curve), len(curve) * width // max(curve)))


def _missing(reached: int, curves: Sequence[Mapping[int, float]], max_t: int, width: int) -> float:
    """Expected square of what the lowest moving average of a trial changes from ``reached`` until ``max_t``.

    After ``r`` units it is the mean square of what it has changed since then in the trials that reached ``max_t``.
    Where none has, learning curves are taken for power laws: what is to come until ``max_t`` is like what came between
    ``r * r / max_t`` and ``r``, in all of ``curves``. If there is nothing to look back on, it is the variance among the
    curves.
    """
    if reached >= max_t:
        return 0.0
    complete = [other for other in curves if max(other) >= max_t]
    since = reached if complete else max(1, reached * reached // max_t)
    changes = [
        min(moving_average(other, width)) - min(moving_average(early, width))
        for other in complete or curves
        if (early := {r: value for r, value in other.items() if r <= since}) and len(early) < len(other)
    ]
    if changes:
        return float(np.mean(np.square(changes)))
    return _variance(np.array([min(moving_average(other, width)) for other in curves]))


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else float("inf")


def _shrink(values: np.ndarray, noise: np.ndarray | float | None) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances by empirical Bayes: as much towards the common mean as noise explains of the spread.

    Args:
        values: (n,)
        noise: their variances, one for each or for all. None: unknown; nothing is shrunk then, and the variance of the
            values bounds that of their noise.
    """
    if noise is None:
        return values, np.full(len(values), _variance(values))
    noise = np.broadcast_to(noise, values.shape)
    if len(values) == 1:
        return values, noise
    between = max(0.0, _variance(values) - float(noise.mean()))
    total = between + noise
    kept = np.divide(between, total, out=np.ones_like(values), where=total > 0.0)
    common = values.mean()
    # The last term: the common mean is an estimate itself.
    return common + kept * (values - common), kept * noise + (1.0 - kept) ** 2 * float(total.mean()) / len(values)


def _smooth_over_configurations(
    view: SearchView, options: SearcherOptions, candidates: _Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior moments of a single-fidelity Gaussian process, whose noise is at least that of the reports.

    Of more candidates than a model may see, it sees the best and some others; the rest has an infinite mean.
    """
    import torch

    from lightning_hpo.core.seeds import Stream, generator
    from lightning_hpo.searchers.gp_model import SINGLE_FIDELITY, make_surrogate
    from lightning_hpo.surrogates.data import Observations
    from lightning_hpo.surrogates.fit import FitOptions, fit
    from lightning_hpo.surrogates.targets import Normalisation, subsample

    rng = generator(view.seed, Stream.SURROGATE)
    limit = options.max_size_data_for_model
    seen = subsample(candidates.values, limit and max(limit, 2), rng, _BEST_SEEN)
    values = candidates.values[seen]
    normalisation = Normalisation.of(values)
    x = torch.from_numpy(view.space.encode_many([view.configs[candidates.trials[i]] for i in seen]))
    data = Observations.from_rows(x, torch.from_numpy(normalisation.forward(values)))
    surrogate = make_surrogate(view, SINGLE_FIDELITY, options)
    found = fit(surrogate, data, FitOptions(options.opt_nstarts, options.opt_maxiter), rng)
    parameters = surrogate.space.values(found.theta)
    deviation = math.sqrt(candidates.noise or 0.0) / normalisation.scale
    floor = deviation * deviation  # infinite where a power would raise; the model bounds it
    parameters["noise"] = [max(noise, floor) for noise in parameters["noise"]]
    with torch.no_grad():
        prediction = surrogate.posterior(data, surrogate.space.theta(parameters)).predict(x, 1)
    means, variances = np.full((2, len(candidates.values)), np.inf)
    means[seen], std = normalisation.mean_and_std(prediction.mean[:, 0].numpy(), prediction.variance.sqrt().numpy())
    variances[seen] = std**2
    return means, variances
