"""Asynchronous Hyperband: stopping, promotion (ASHA) and cost-aware promotion.

Source: Li et al., arXiv:1810.05934 (ASHA); Klein et al., arXiv:2003.10865 (stopping and promotion variants).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_hpo.core.brackets import default_distribution, milestones, num_brackets
from lightning_hpo.core.events import Verdict
from lightning_hpo.core.rungs import Rung
from lightning_hpo.core.schedulers.base import Promotion, Ruling, Scheduler
from lightning_hpo.core.schedulers.prospects import Prospects
from lightning_hpo.errors import ReportError

_ALWAYS = 1.0 / 3.0
"""Share of a rung's promotions that need no prospect of an improvement. The best value is a lucky one after a while,
which nothing is likely to beat; models still have to learn about the upper rungs."""


@dataclass(slots=True)
class _Job:
    """Where a trial stands: its bracket, its next milestone, and the resource from which it was resumed."""

    bracket: int
    milestone: int
    resume_from: int = 0


class AsynchronousHyperband(Scheduler):
    """What stopping and promotion have in common: rungs, brackets, and one job per trial.

    Args:
        max_t: resource at which a trial is complete. No rung: trials are not compared there.
        levels: rung levels below ``max_t`` (:func:`lightning_hpo.core.rungs.rung_levels`).
        brackets: number of brackets, cut to ``len(levels) + 1``.
        rung_system_per_bracket: False: all trials compete at every level they have as a milestone; True: only within
            their bracket.
        min_entries: see :class:`~lightning_hpo.core.rungs.Rung`.
        late_reports: what a report does that jumped over a milestone. ``"count"``: it counts for the highest
            milestone it passed; ``"lost"``: the milestone is lost for the trial (stopping), or the report is an error
            (promotion).
        improvement_probability: a trial goes on past a rung only if it improves on the best value with at least this
            probability (:class:`~lightning_hpo.core.schedulers.prospects.Prospects`). 0: its rank alone decides. Where
            the probability is unknown it is taken for 1; at every rung a third of the share that the rank lets go on
            always does; and the rank alone decides once no new trial will be started, because a new configuration is
            what a worker would be better used for. At promotion, the best of those that wait decides for its rung:
            others have farther to fall.
        delayed_promotion: a rung of quantile ``q`` never sends on more than ``q n`` of its ``n`` trials (with quantiles
            of cost: than ``q`` of its cost); at stopping, one that would be too many is stopped. Without it, whoever is
            among the best at the moment goes on, and where a searcher keeps finding better ones that is most of them.
            Not once no new trial will be started. (Li et al., *Hyper-Tune*, VLDB 2022, arXiv:2201.06834, section 4.2:
            D-ASHA, which pauses trials.)
    """

    def __init__(
        self,
        max_t: int,
        levels: Sequence[int],
        brackets: int = 1,
        rung_system_per_bracket: bool = False,
        min_entries: str = "ratio",
        late_reports: str = "count",
        improvement_probability: float = 0.0,
        delayed_promotion: bool = False,
    ) -> None:
        self.max_t: int = max_t
        self.levels = tuple(levels)
        self.num_brackets = num_brackets(brackets, levels)
        self.bracket_weights = default_distribution(self.levels, max_t, self.num_brackets)
        self.rung_system_per_bracket = rung_system_per_bracket
        self._late_reports = late_reports
        self._needed = improvement_probability
        self._is_delayed = delayed_promotion
        self._prospects = Prospects((*levels, max_t)) if improvement_probability > 0.0 else None
        self._is_closed = False
        starts = range(self.num_brackets) if rung_system_per_bracket else (0,)
        self._systems = [self._make_system(milestones(levels, max_t, s), min_entries) for s in starts]
        self._jobs: dict[int, _Job] = {}

    @staticmethod
    def _make_system(ladder: Sequence[int], min_entries: str) -> dict[int, Rung]:
        return {a: Rung(a, b, min_entries) for a, b in itertools.pairwise(ladder)}

    def system_of(self, bracket: int) -> int:
        """Number of the rung system in which trials of the bracket compete."""
        return bracket if self.rung_system_per_bracket else 0

    def rungs(self, system: int = 0) -> dict[int, Rung]:
        """Level -> rung of one system, lowest level first."""
        return self._systems[system]

    @property
    def num_systems(self) -> int:
        return len(self._systems)

    def first_milestone(self, bracket: int) -> int:
        return milestones(self.levels, self.max_t, bracket)[0]

    def start(self, trial_id: int, bracket: int) -> int:
        self._jobs[trial_id] = _Job(bracket, self.first_milestone(bracket))
        return self._jobs[trial_id].milestone

    def _next_level(self, level: int) -> int:
        return next((r for r in self.levels if r > level), self.max_t)

    def _reached(self, job: _Job, resource: int) -> int | None:
        """The milestone this report counts for: the highest reached at which the trial was not judged yet."""
        level = max((r for r in self.levels[job.bracket :] if job.milestone <= r <= resource), default=None)
        if level is None or level == resource or self._late_reports == "count":
            return level
        return None

    def close(self) -> None:
        self._is_closed = True

    def reopen(self) -> None:
        self._is_closed = False

    def _learn(self, trial_id: int, value: float, level: int | None) -> None:
        if self._prospects is not None:
            self._prospects.report(trial_id, value, level)

    def fail(self, trial_id: int) -> None:
        if self._prospects is not None:
            self._prospects.end(trial_id)

    def _ceiling_of(self, trial_id: int) -> int:
        """Largest resource to which the trial may be trained at present."""
        return self.max_t

    def _improvement(self, trial_id: int, rung: Rung) -> float:
        """Probability that the trial improves on the best value; 1 where the rule does not apply."""
        if self._prospects is None or self._is_closed:
            return 1.0
        if rung.num_promoted < _ALWAYS * rung.quantile * len(rung) - 1e-9:
            return 1.0
        known = self._prospects.improvement(trial_id, rung.level, self._ceiling_of(trial_id))
        return 1.0 if known is None else known

    def _must_wait(self, trial_id: int, rung: Rung) -> bool:
        """Would the rung send on more than it may, with this trial?"""
        return self._is_delayed and not self._is_closed and self._is_exhausted(trial_id, rung)

    def _is_exhausted(self, trial_id: int, rung: Rung) -> bool:
        return rung.num_promoted + 1 > rung.quantile * len(rung) + 1e-9

    def _complete(self) -> Ruling:
        return Ruling(Verdict.STOP, f"trained to max_t={self.max_t}", level=self.max_t, completed=True)


class StoppingAsha(AsynchronousHyperband):
    """A trial that is not among the best at a milestone is stopped; nothing is ever paused."""

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        if resource >= self.max_t:
            self._learn(trial_id, value, self.max_t)
            return self._complete()
        job = self._jobs[trial_id]
        level = self._reached(job, resource)
        self._learn(trial_id, value, level)
        if level is None:
            if resource >= job.milestone:
                job.milestone = self._next_level(resource)
                return Ruling(Verdict.CONTINUE, f"jumped over a rung, next at {job.milestone}", job.milestone)
            return Ruling(Verdict.CONTINUE, f"not at a rung; next at {job.milestone}")
        rung = self._systems[self.system_of(job.bracket)][level]
        rung.add(trial_id, value)
        job.milestone = self._next_level(level)
        if not math.isfinite(value):
            return Ruling(Verdict.STOP, f"the metric is {value} at rung {level}", level=level)
        goes_on, why = self._judge(trial_id, rung, value)
        reason = f"rank {rung.rank(value)} of {len(rung)} at rung {level}: {why}"
        if goes_on:
            return Ruling(Verdict.CONTINUE, reason, job.milestone, level)
        return Ruling(Verdict.STOP, reason, level=level)

    def _judge(self, trial_id: int, rung: Rung, value: float) -> tuple[bool, str]:
        """Whether the trial goes on past the rung that it has entered with this finite value, and why."""
        passed = rung.passes(value)
        if passed is None:
            if self._is_delayed:
                rung.mark_promoted(trial_id)
            return True, "too few trials to judge"
        if not passed:
            return False, f"worse than the {rung.quantile:.0%} quantile"
        if self._must_wait(trial_id, rung):
            return False, "the rung has sent on its share"
        improvement = self._improvement(trial_id, rung)
        if improvement < self._needed:
            return False, f"improves with {improvement:.0%}"
        if self._prospects is not None or self._is_delayed:
            rung.mark_promoted(trial_id)
        return True, f"within the {rung.quantile:.0%} quantile"


class PromotionAsha(AsynchronousHyperband):
    """A trial pauses at its milestone.

    Whenever a worker is free, the best paused trial of the highest possible rung goes on.
    """

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        if resource >= self.max_t:
            self._learn(trial_id, value, self.max_t)
            return self._complete()
        job = self._jobs[trial_id]
        if resource <= job.resume_from:
            return Ruling(Verdict.CONTINUE, f"repeats what is known up to {job.resume_from}")
        if resource < job.milestone:
            self._learn(trial_id, value, None)
            return Ruling(Verdict.CONTINUE, f"not at a rung; next at {job.milestone}")
        level = self._reached(job, resource)
        if level is None:
            raise ReportError(
                f"Trial {trial_id} reported at {resource} without a report at its milestone {job.milestone}. "
                "Report after every unit of resource, or choose rung levels at which the metric is reported."
            )
        self._learn(trial_id, value, level)
        rung = self._systems[self.system_of(job.bracket)][level]
        rung.add(trial_id, value)
        if not math.isfinite(value):
            return Ruling(Verdict.STOP, f"the metric is {value} at rung {level}", level=level)
        return Ruling(Verdict.PAUSE, f"rank {rung.rank(value)} of {len(rung)} at rung {level}", level=level)

    def promote(self, bracket: int, is_paused: Callable[[int], bool]) -> Promotion | None:
        system = self.system_of(bracket)
        for level, rung in reversed(self._systems[system].items()):
            if not self._may_promote_from(system, level):
                continue
            trial_id = self._promotable(rung, is_paused)
            if trial_id is None or self._must_wait(trial_id, rung):
                continue
            if self._improvement(trial_id, rung) < self._needed:
                continue
            value = rung.value_of(trial_id)
            rung.mark_promoted(trial_id)
            job = self._jobs[trial_id]
            job.resume_from, job.milestone = level, rung.next_level
            reason = f"rank {rung.rank(value)} of {len(rung)} at rung {level}"
            return Promotion(trial_id, level, rung.next_level, reason)
        return None

    def _may_promote_from(self, system: int, level: int) -> bool:
        return True

    def _promotable(self, rung: Rung, is_paused: Callable[[int], bool]) -> int | None:
        return rung.best_promotable(is_paused)

    def _rung_of(self, trial_id: int) -> Rung | None:
        """The rung in which the trial waits."""
        job = self._jobs.get(trial_id)
        if job is None:
            return None
        rungs = self._systems[self.system_of(job.bracket)].values()
        return next((rung for rung in reversed(rungs) if trial_id in rung), None)

    def may_promote(self, trial_id: int) -> bool:
        rung = self._rung_of(trial_id)
        return rung is not None and math.isfinite(rung.value_of(trial_id))

    def held_back(self, trial_id: int) -> str | None:
        rung = self._rung_of(trial_id)
        if rung is None or not rung.passes(rung.value_of(trial_id)):
            return None
        if self._must_wait(trial_id, rung):
            return "the rung has sent on its share for now (delayed_promotion)"
        improvement = self._improvement(trial_id, rung)
        if improvement >= self._needed:
            return None
        return f"it would improve on the best value with {improvement:.0%}, and needs {self._needed:.0%}"

    def promise(self, trial_id: int) -> float:
        rung = self._rung_of(trial_id)
        return 1.0 if rung is None else rung.rank(rung.value_of(trial_id)) / len(rung)


class CostPromotion(PromotionAsha):
    """Promotion with quantiles of cost instead of counts.

    Entries are taken best first while the sum of their costs stays within ``q`` of the rung's total; the first of
    them that was not promoted is the candidate. A trial's cost is the total it has spent to reach the level.

    Args:
        args, options: as for :class:`PromotionAsha`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._costs: dict[tuple[int, int], float] = {}

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        if cost is None:
            raise ReportError(
                f"Trial {trial_id} reported no cost at {resource}, which type=cost_promotion needs. "
                "Report a cost, or use type=promotion."
            )
        ruling = super().report(trial_id, resource, value, cost)
        if ruling.level is not None:
            self._costs[trial_id, ruling.level] = cost
        return ruling

    def _share(self, rung: Rung) -> float:
        """Cost that may go on from the rung; a little more, so that it does not depend on the unit of cost."""
        return rung.quantile * math.fsum(self._costs[e.trial_id, rung.level] for e in rung.ranked()) * (1.0 + 1e-9)

    def _is_exhausted(self, trial_id: int, rung: Rung) -> bool:
        gone = sum(self._costs[other, rung.level] for other, _, was_promoted in rung.entries() if was_promoted)
        return gone + self._costs[trial_id, rung.level] > self._share(rung)

    def _promotable(self, rung: Rung, is_paused: Callable[[int], bool]) -> int | None:
        if len(rung) < 2:
            return None
        share = self._share(rung)
        waiting = {e.trial_id for e in rung.waiting()}
        spent = 0.0
        for entry in rung.ranked():
            spent += self._costs[entry.trial_id, rung.level]
            if spent > share or math.isinf(entry.value):
                return None
            if entry.trial_id in waiting and is_paused(entry.trial_id):
                return entry.trial_id
        return None
