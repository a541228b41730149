"""From a fitted model of the rungs to the trial that a worker is best used for, new or paused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_hpo.core.searcher import SearchView, Suggestion
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.searchers.candidates import Candidates
from lightning_hpo.searchers.gp_model import FittedModel
from lightning_hpo.searchers.proposal import excluded_keys, place
from lightning_hpo.surrogates.rate import improvement_rates
from lightning_hpo.surrogates.rungs import RungPosterior


class _Best(NamedTuple):
    """The best of some trials at the same rung."""

    rate: float
    number: int
    """Which of them."""
    milestone: int
    """Where to look at it again."""


def choose(
    view: SearchView, options: SearcherOptions, model: FittedModel, rng: np.random.Generator
) -> Suggestion | None:
    """The paused trial or the new configuration with the highest expected improvement per unit of resource.

    Returns:
        None if no trial is paused and no configuration is left.

    Raises:
        SurrogateError: if the model cannot be computed.
    """
    with torch.no_grad():
        outlook = _Outlook.of(view, options, model)
        best, suggestion = 0.0, None
        candidates = Candidates.draw(view, options, excluded_keys(view, options), rng)
        if len(candidates.encoded):
            rates, milestones = outlook.rates(torch.from_numpy(candidates.encoded).to(model.device), 0)
            config = candidates.choose(-rates, None)
            if config is not None:
                # the chosen one need not be the best: that may be known already
                found = outlook.best(torch.from_numpy(view.space.encode(config)).to(model.device)[None], 0)
                best, suggestion = found.rate, Suggestion(config, "", "model", milestone=found.milestone)
        for trial_id, found in outlook.paused():
            if suggestion is None or found.rate > best:
                config = dict(view.configs[trial_id])
                best = found.rate
                suggestion = Suggestion(config, "", "model", resumes=trial_id, milestone=found.milestone)
    if suggestion is None:
        return None
    assert suggestion.milestone is not None
    reason = (
        f"EI {best * model.normalisation.scale:.3g} per unit of resource at max_t, "
        f"judged next {place(view, suggestion.milestone)}, from {len(model.history)} observations{model.remark}"
    )
    return dataclasses.replace(suggestion, reason=reason, state=model.state if model.is_refitted else None)


@dataclasses.dataclass(frozen=True)
class _Outlook:
    """What the model expects, once every running trial reports what is expected of it."""

    view: SearchView
    posterior: RungPosterior
    levels: tuple[int, ...]
    noise: Tensor
    incumbent: Tensor
    started: list[int]
    """Trials that are observed or pending."""
    moments: tuple[Tensor, Tensor]
    """Theirs, at all rungs."""

    @classmethod
    def of(cls, view: SearchView, options: SearcherOptions, model: FittedModel) -> _Outlook:
        posterior, pending = model.posterior, model.history.pending
        assert isinstance(posterior, RungPosterior)
        if len(pending) and not options.no_fantasizing:
            inputs = torch.from_numpy(pending.inputs).to(model.device)
            resources = torch.tensor(pending.resources, dtype=torch.int64, device=model.device)
            posterior = posterior.believe(inputs, resources)
        levels = posterior.covariance.levels
        observed = model.history.observed
        rows = {trial: row for row, trial in enumerate(observed.trial_ids)}
        started = list(rows)
        mean, covariance = posterior.across(torch.from_numpy(observed.inputs[list(rows.values())]).to(model.device))
        numbers = {trial: number for number, trial in enumerate(started)}
        where = [levels.index(resource) for resource in observed.resources]
        incumbent = mean[[numbers[trial] for trial in observed.trial_ids], where].min()
        noise = posterior.new_noise(torch.tensor(levels, device=model.device))
        return cls(view, posterior, levels, noise, incumbent, started, (mean, covariance))

    def rates(self, x: Tensor, passed: int) -> tuple[np.ndarray, np.ndarray]:
        """Of new trials, ``(B,)``, and their first milestones."""
        return self._rates(*self.posterior.across(x), passed)

    def _rates(self, mean: Tensor, covariance: Tensor, passed: int) -> tuple[np.ndarray, np.ndarray]:
        levels = torch.tensor(self.levels, dtype=mean.dtype, device=mean.device)
        done = levels[passed - 1] if passed else 0.0
        cost, noise = levels[passed:] - done, self.noise[passed:]
        rates = improvement_rates(mean[:, -1], covariance[:, passed:, passed:], noise, cost, self.incumbent)
        return rates.rate.cpu().numpy(), np.array(self.levels)[passed:][rates.rung.cpu().numpy()]

    def best(self, x: Tensor, passed: int) -> _Best:
        """Of new trials."""
        rates, milestones = self.rates(x, passed)
        number = int(np.argmax(rates))
        return _Best(float(rates[number]), number, int(milestones[number]))

    def paused(self) -> Iterator[tuple[int, _Best]]:
        """The best paused trial of every rung."""
        numbers = {trial: number for number, trial in enumerate(self.started)}
        by_rung: dict[int, list[int]] = {}
        for trial, resource in self.view.paused.items():
            passed = sum(level <= resource for level in self.levels)
            if trial in numbers and passed < len(self.levels):
                by_rung.setdefault(passed, []).append(numbers[trial])
        mean, covariance = self.moments
        for passed, waiting in sorted(by_rung.items()):
            rates, milestones = self._rates(mean[waiting], covariance[waiting], passed)
            number = int(np.argmax(rates))
            yield self.started[waiting[number]], _Best(float(rates[number]), number, int(milestones[number]))
