"""Promotion by the searcher: its model decides which trial goes on.

Who may go on is no question of rank here: a model that knows new and paused trials alike says which of them is worth
more (:mod:`lightning_hpo.searchers.freeze_thaw`; Swersky, Snoek, Adams, arXiv:1406.3896). The searcher also names the
milestone. Those of this package name the next rung; a searcher may let trials run through rungs, as earlier versions of
ours did, whose studies are continued.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_hpo.core.schedulers.base import Promotion, Ruling
from lightning_hpo.core.schedulers.hyperband import PromotionAsha

_PATIENCE = 3
"""After so many suggestions in a row that were not the model's, the model has failed."""


class SearcherLedPromotion(PromotionAsha):
    """A trial pauses at the milestone the searcher chose, and goes on when the searcher says so.

    The rank of a trial within its rung decides, as in :class:`PromotionAsha`, where no model does: before its first
    suggestion, if it fails, and once no new trial will be started. If that leaves no trial that was trained to the end,
    the best goes on to it.

    Args:
        args, options: as for :class:`PromotionAsha`.
    """

    is_searcher_led = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since_model = _PATIENCE

    def follow(self, origin: str) -> None:
        self._since_model = 0 if origin == "model" else self._since_model + 1

    @property
    def _is_led(self) -> bool:
        return self._since_model < _PATIENCE and not self._is_closed

    def aim(self, trial_id: int, milestone: int) -> int:
        job = self._jobs[trial_id]
        job.milestone = self._level(milestone)
        return job.milestone

    def _level(self, milestone: int) -> int:
        """The milestone itself if it is one, else the next one above it."""
        return next((level for level in self.levels if level >= milestone), self.max_t)

    def promote(self, bracket: int, is_paused: Callable[[int], bool]) -> Promotion | None:
        return None if self._is_led else super().promote(bracket, is_paused)

    def last_resort(self, is_paused: Callable[[int], bool]) -> Promotion | None:
        """The best of the highest rung: in a study of few trials no rank may have sent one on to the end."""
        (rungs,) = self._systems
        for rung in reversed(rungs.values()):
            found = next((e for e in rung.waiting() if is_paused(e.trial_id) and math.isfinite(e.value)), None)
            if found is not None:
                return self.resume(found.trial_id, self.max_t)
        return None

    def resume(self, trial_id: int, milestone: int) -> Promotion | None:
        rung = self._rung_of(trial_id)
        if rung is None:
            return None
        value = rung.value_of(trial_id)
        rung.mark_promoted(trial_id)
        job = self._jobs[trial_id]
        job.resume_from, job.milestone = rung.level, max(self._level(milestone), rung.next_level)
        reason = f"rank {rung.rank(value)} of {len(rung)} at rung {rung.level}"
        return Promotion(trial_id, rung.level, job.milestone, reason)

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        job = self._jobs[trial_id]
        if not math.isfinite(value) and job.resume_from < resource < job.milestone and resource in self.levels:
            job.milestone = resource  # a rung that it was to run through; nothing better is to come
        return super().report(trial_id, resource, value, cost)

    def held_back(self, trial_id: int) -> str | None:
        return None if self._is_led else super().held_back(trial_id)
