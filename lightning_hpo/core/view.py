"""What a searcher may see of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from lightning_hpo.core.observations import bounded
from lightning_hpo.core.searcher import Observation, Pending
from lightning_hpo.core.trial import Config, Trial, TrialStatus

if TYPE_CHECKING:
    from lightning_hpo.core.record import StudyRecord
    from lightning_hpo.core.space import SearchSpace


class StudyView:
    """A searcher's view (:class:`lightning_hpo.core.searcher.SearchView`) of a study."""

    def __init__(self, state: StudyRecord) -> None:
        self._state = state

    @property
    def space(self) -> SearchSpace:
        return self._state.space

    @property
    def seed(self) -> int:
        return self._state.options.random_seed

    @property
    def mode(self) -> str:
        return self._state.options.mode

    @property
    def max_t(self) -> int:
        state = self._state
        return state.scheduler.max_t or max((t.resource for t in state.trials.values()), default=1) or 1

    @property
    def rung_levels(self) -> tuple[int, ...]:
        return self._state.scheduler.levels

    @property
    def default_bracket_weights(self) -> tuple[float, ...]:
        return self._state.scheduler.bracket_weights

    @property
    def observations(self) -> Sequence[Observation]:
        return self._state.data.observations()

    @property
    def pending(self) -> Sequence[Pending]:
        return self._state.data.pending()

    @property
    def paused(self) -> Mapping[int, int]:
        state = self._state
        return {
            i: trial.resource
            for i, trial in state.trials.items()
            if trial.status is TrialStatus.PAUSED and trial.confirms is None and state.scheduler.may_promote(i)
        }

    @property
    def failed(self) -> Set[int]:
        return self._state.failed

    @property
    def infeasible(self) -> Mapping[int, int]:
        return {
            i: trial.resource or 1
            for i, trial in self._state.trials.items()
            if trial.status.is_final and trial.confirms is None and _is_infeasible(trial)
        }

    @property
    def configs(self) -> Mapping[int, Config]:
        return self._state.configs

    @property
    def confirmations(self) -> Mapping[int, Sequence[int]]:
        trials = self._state.trials
        complete = {
            confirmed: [i for i in again if trials[i].status is TrialStatus.COMPLETED]
            for confirmed, again in self._state.confirmation.of.items()
        }
        return {confirmed: again for confirmed, again in complete.items() if again}

    @property
    def initial_configs(self) -> Sequence[Config]:
        return self._state.initial_configs

    @property
    def taken(self) -> Set[str]:
        return self._state.taken.keys()

    @property
    def taken_by_failed(self) -> Set[str]:
        return self._state.taken_by_failed.keys()

    @property
    def state(self) -> Mapping[str, Any] | None:
        return self._state.searcher_state

    def curve(self, trial_id: int) -> Mapping[int, float]:
        state = self._state
        curve = state.trials[trial_id].curve
        return {r: bounded(state.criterion(v)) for r, v in curve.items() if math.isfinite(v)}


def _is_infeasible(trial: Trial) -> bool:
    if trial.last_value is None:
        return trial.status is TrialStatus.FAILED and not trial.failures
    return not math.isfinite(trial.last_value)
