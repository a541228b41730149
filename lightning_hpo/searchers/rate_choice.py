"""From a fitted model of the rungs to the trial that a worker is best used for, new or paused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Set

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.core.events import Limit
from lightning_hpo.core.observations import bounded
from lightning_hpo.core.searcher import SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.searchers.base import number_of_configurations
from lightning_hpo.searchers.candidates import Candidates
from lightning_hpo.searchers.feasibility import Feasibility
from lightning_hpo.searchers.gp_model import FittedModel
from lightning_hpo.searchers.proposal import excluded_with_pending, place
from lightning_hpo.surrogates.rate import improvement_limits, improvement_rates
from lightning_hpo.surrogates.rungs import RungPosterior


@dataclasses.dataclass(frozen=True)
class _Option:
    """What a worker could do."""

    rate: float
    """Expected improvement per unit of resource, in the model's units."""
    milestone: int
    """The next rung of the trial, or ``max_t``."""
    resumes: int | None
    config: dict[str, object]


def choose(
    view: SearchView,
    options: SearcherOptions,
    model: FittedModel,
    rng: np.random.Generator,
    request: SuggestRequest,
) -> Suggestion | None:
    """The paused trial or the new configuration with the highest expected improvement per unit of resource.

    If the request wants them, the values at the next rungs are named with which the trials that run, and the new one,
    are worth more than the best new configuration: with those they are to go on.

    Returns:
        None if every configuration has been tried, so that nothing competes with the paused trials any more, or if no
        trial is paused and every candidate is known already.

    Raises:
        SurrogateError: if the model cannot be computed.
    """
    if _is_exhausted(view, options):
        return None
    with torch.no_grad():
        feasibility = Feasibility.of(view, options)
        outlook = _Outlook.of(view, options, model, feasibility.waiting_in_vain | view.infeasible.keys())
        # Of equals the first: where nothing promises anything, what is new, not what is known to be worse.
        could_be_done = (
            *_new(view, options, outlook, feasibility, rng),
            *_paused(view, outlook, feasibility.waiting_in_vain),
        )
        best = max(could_be_done, key=lambda o: o.rate, default=None)
        if best is None:
            return None
        limits = _limits(view, options, model, outlook, best, request.trial_id) if request.wants_limits else None
    reason = (
        f"EI {best.rate * model.normalisation.scale:.3g} per unit of resource at max_t, "
        f"judged next {place(view, best.milestone)}, from {len(model.history)} observations{model.remark}"
    )
    state = model.state if model.is_refitted else None
    return Suggestion(
        best.config, reason, "model", state=state, resumes=best.resumes, milestone=best.milestone, limits=limits
    )


def _is_exhausted(view: SearchView, options: SearcherOptions) -> bool:
    there_are = number_of_configurations(view, options)
    return not options.allow_duplicates and there_are is not None and len(view.taken) >= there_are


def _new(
    view: SearchView, options: SearcherOptions, outlook: _Outlook, feasibility: Feasibility, rng: np.random.Generator
) -> Iterator[_Option]:
    """The best of some random configurations."""
    candidates = Candidates.draw(view, options, excluded_with_pending(view, options), rng, feasibility)
    if not len(candidates.encoded):
        return
    # No local search from here: the rate is highest where the model knows least, at the bounds of the space, and among
    # thousands of new configurations there is always one that promises more than every paused trial.
    config = candidates.choose(-outlook.rates_of_new(candidates.encoded), None)
    if config is not None:
        (rate,) = outlook.rates_of_new(view.space.encode(config)[None])
        yield _Option(float(rate), outlook.levels[0], None, config)


def _limits(
    view: SearchView, options: SearcherOptions, model: FittedModel, outlook: _Outlook, best: _Option, new_trial: int
) -> tuple[Limit, ...]:
    """With which values trials are worth more than the best new one, where nothing else competes with it."""
    pending = model.history.pending
    ahead = {t: r for t, r in zip(pending.trial_ids, pending.resources, strict=True) if r < outlook.levels[-1]}
    next_level = ahead | {new_trial: outlook.levels[0]}
    configs = [view.configs[trial] if trial != new_trial else best.config for trial in next_level]
    inputs = torch.from_numpy(view.space.encode_many(configs)).to(model.device)
    # What is expected of the trial itself is what is to be found out.
    posteriors = (
        outlook.posterior if trial == new_trial else _believing(model, options, without=trial) for trial in next_level
    )
    across = [posterior.across(x[None]) for posterior, x in zip(posteriors, inputs, strict=True)]
    mean, covariance = (torch.cat(parts) for parts in zip(*across, strict=True))
    incumbents = torch.stack([outlook.incumbent(without=trial) for trial in next_level])
    cost = torch.tensor(outlook.levels, dtype=mean.dtype, device=model.device)

    def rate_of_new(best_of_others: Tensor) -> Tensor:
        return improvement_rates(mean[-1, -1], covariance[-1], outlook.noise, cost, best_of_others)

    limits = improvement_limits(mean, covariance, outlook.noise, cost, incumbents, rate_of_new)
    values = model.normalisation.backward(limits.cpu().numpy())
    return tuple(
        Limit(trial, level, bounded(float(value)))
        for (trial, first), row in zip(next_level.items(), values, strict=True)
        for level, value in zip(outlook.levels, row, strict=False)  # there is none at the last rung
        if level >= first
    )


def _paused(view: SearchView, outlook: _Outlook, in_vain: Set[int]) -> Iterator[_Option]:
    """The best paused trial of every rung, but for those that wait in vain."""
    by_rung: dict[int, list[int]] = {}
    for trial, resource in view.paused.items():
        passed = sum(level <= resource for level in outlook.levels)
        # What the model has not seen of a trial, it cannot hold against it.
        is_known = passed > 0 and (trial, outlook.levels[passed - 1]) in outlook.seen
        if is_known and passed < len(outlook.levels) and trial not in in_vain:
            by_rung.setdefault(passed, []).append(trial)
    for passed, trials in sorted(by_rung.items()):
        rates = outlook.rates_of_known(trials, passed)
        best = int(np.argmax(rates))
        trial = trials[best]
        yield _Option(float(rates[best]), outlook.levels[passed], trial, dict(view.configs[trial]))


def _believing(model: FittedModel, options: SearcherOptions, without: int | None = None) -> RungPosterior:
    """The posterior once every running trial has reported what is expected of it, but for one."""
    posterior, pending = model.posterior, model.history.pending
    assert isinstance(posterior, RungPosterior)
    believed = [i for i, trial in enumerate(pending.trial_ids) if trial != without]
    if not believed or options.no_fantasizing:
        return posterior
    resources = torch.tensor([pending.resources[i] for i in believed], device=model.device)
    return posterior.believe(torch.from_numpy(pending.inputs[believed]).to(model.device), resources)


@dataclasses.dataclass(frozen=True)
class _Outlook:
    """What the model expects, once every running trial reports what is expected of it."""

    posterior: RungPosterior
    levels: tuple[int, ...]
    noise: Tensor
    """``(L,)`` of the values at the rungs."""
    seen: Set[tuple[int, int]]
    """Trials and rungs whose values the model has seen."""
    numbers: dict[int, int]
    """Trial that was observed -> its row in ``mean`` and ``covariance``."""
    mean: Tensor
    """``(n, L)``"""
    covariance: Tensor
    """``(n, L, L)``"""
    reachable: tuple[int, ...]
    """Rows of ``mean`` that are to be improved on: not those of trials that diverged, or wait in vain."""

    @classmethod
    def of(cls, view: SearchView, options: SearcherOptions, model: FittedModel, hopeless: Set[int]) -> _Outlook:
        posterior, observed = _believing(model, options), model.history.observed
        levels = posterior.covariance.levels
        rows = {trial: row for row, trial in enumerate(observed.trial_ids)}
        numbers = {trial: number for number, trial in enumerate(rows)}
        mean, covariance = posterior.across(torch.from_numpy(observed.inputs[list(rows.values())]).to(model.device))
        noise = posterior.new_noise(torch.tensor(levels, device=model.device))
        seen = frozenset((observed.trial_ids[i], observed.resources[i]) for i in model.kept)
        reachable = [number for trial, number in numbers.items() if trial not in hopeless] or list(numbers.values())
        return cls(posterior, levels, noise, seen, numbers, mean, covariance, tuple(reachable))

    def incumbent(self, without: int | None = None) -> Tensor:
        """Lowest mean at the last rung, but for that of one trial; infinite without any. Where values rise with the
        resource, those of low rungs are out of reach."""
        own = self.numbers.get(without) if without is not None else None
        rows = [row for row in self.reachable if row != own]
        return self.mean[rows, -1].min() if rows else self.mean.new_tensor(math.inf)

    def rates_of_new(self, encoded: np.ndarray) -> np.ndarray:
        """Of new trials, ``(B,)``."""
        mean, covariance = self.posterior.across(torch.from_numpy(encoded).to(self.mean.device))
        return self._rates(mean[:, -1], covariance, 0)

    def rates_of_known(self, trials: list[int], passed: int) -> np.ndarray:
        """Of trials that wait at the rung below number ``passed``."""
        rows = [self.numbers[trial] for trial in trials]
        return self._rates(self.mean[rows, -1], self.covariance[rows, passed:, passed:], passed)

    def _rates(self, mean: Tensor, covariance: Tensor, passed: int) -> np.ndarray:
        cost = torch.tensor(self.levels[passed:], dtype=mean.dtype, device=mean.device)
        cost -= self.levels[passed - 1] if passed else 0
        return improvement_rates(mean, covariance, self.noise[passed:], cost, self.incumbent()).cpu().numpy()
