"""What is known of a study: its trials, what they reported, who is best.

Only the study's events change it (:mod:`lightning_hpo.core.study`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

from lightning_hpo.core.confirmation import Confirmation, check_seed, with_seed
from lightning_hpo.core.events import Reported, Told, Verdict
from lightning_hpo.core.observations import SearcherData
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.schedulers.base import Scheduler
from lightning_hpo.core.schedulers.factory import make_scheduler
from lightning_hpo.core.schedulers.fifo import Fifo
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.stopping import Progress
from lightning_hpo.core.trial import Config, Trial, TrialStatus
from lightning_hpo.core.view import StudyView
from lightning_hpo.errors import ReportError, SpaceError


class StudyRecord:
    """Everything a study knows.

    Args:
        space: what is searched.
        options: how.

    Attributes:
        trials: every trial by id; ids are 0, 1, 2, ... in the order of their start.
        ended: why nothing will be started any more, None while the study goes on.

    Raises:
        OptionError, SpaceError: if options contradict each other or the space, or nothing is searched.
    """

    def __init__(self, space: SearchSpace, options: StudyOptions) -> None:
        if not space.domains:
            raise SpaceError(
                "Nothing is searched: no entry of the space has a domain. "
                'Give at least one of them a domain, as in {"lr": loguniform(1e-4, 1e-1)}.'
            )
        check_seed(options.confirm, space)
        options.searcher.check_space(space)
        self.space = space
        self.options = options
        self.scheduler = make_scheduler(options)
        self.data = SearcherData(
            options.effective_searcher_data,
            self.scheduler.levels,
            self.scheduler.max_t,
            options.register_pending_myopic,
            self.scheduler.learns_at_completion,
        )
        self.trials: dict[int, Trial] = {}
        self.progress = Progress(options.metric)
        self.ended: str | None = None
        self.repeated_error: tuple[int, str] | None = None
        """The error with which all trials failed, none having reported in between, and the first that did so, if that
        ended the study."""
        initial = space.complete(options.points_to_evaluate)
        self.initial_configs: Sequence[Config] = options.searcher.permitted(space, initial)
        self.searcher_state: dict[str, Any] | None = None
        self.taken: dict[str, int] = {}
        """Match key of every trial's configuration -> the first trial that had it."""
        self.taken_by_failed: dict[str, None] = {}
        self.configs: dict[int, Config] = {}
        """Searched values of every trial but confirmations."""
        self.failed: set[int] = set()
        self.confirmation = Confirmation(options.confirm)
        self._live: set[int] = set()
        """Trials with a process."""
        self._verdicts: dict[int, Told] = {}
        """The last answer to each trial's running attempt."""
        self._best_any: tuple[float, int, int] | None = None
        self._best_full: tuple[float, int, int] | None = None
        self._clock: dict[int, float] = {}
        self._busy_seconds: dict[int, float] = {}
        self._busy_in_all = 0.0
        self._confirming = Fifo(self.scheduler.max_t)
        """The scheduler of confirmations."""

    def view(self) -> StudyView:
        """What a searcher may see."""
        return StudyView(self)

    @property
    def live(self) -> Set[int]:
        """Trials that have a worker."""
        return self._live

    @property
    def best_any(self) -> tuple[int, int, float] | None:
        """``(trial_id, resource, value)`` of the best report at any resource; None before the first finite report."""
        return None if self._best_any is None else self._public(self._best_any)

    @property
    def best_full(self) -> tuple[int, int, float] | None:
        """The same among reports at ``max_t``, or of trials that ended by themselves."""
        return None if self._best_full is None else self._public(self._best_full)

    def _public(self, best: tuple[float, int, int]) -> tuple[int, int, float]:
        value, trial_id, resource = best
        return trial_id, resource, self.criterion(value)

    def criterion(self, value: float) -> float:
        """The value that is minimised inside; its own inverse."""
        return value if self.options.mode == "min" else -value

    def busy_seconds(self, trial_id: int) -> float:
        """Time the trial's attempts took until their last reports; pauses do not count."""
        return self._busy_seconds.get(trial_id, 0.0)

    def trial(self, trial_id: int) -> Trial:
        """Raises ReportError if there is no such trial."""
        try:
            return self.trials[trial_id]
        except KeyError:
            raise ReportError(
                f"There is no trial {trial_id!r}; the study has {len(self.trials)}, and their ids are integers. "
                "Report with an id that ask() returned."
            ) from None

    def whole_config(self, trial: Trial) -> Config:
        """Searched values and constants; a confirmation's seed is its own."""
        whole = self.space.with_constants(trial.config)
        return with_seed(whole, self.options.confirm.seed_attr, trial.replicate)

    def is_trained_to_the_end(self, trial: Trial) -> bool:
        """Whether it has reported at ``max_t``: it owes no report any more."""
        return self.scheduler.max_t is not None and trial.resource >= self.scheduler.max_t

    def is_lost(self, trial: Trial) -> bool:
        """Whether its process is gone without having been told to end, and it waits to be tried again."""
        told = self._verdicts.get(trial.id)
        return trial.status is TrialStatus.WAITING and (told is None or told.verdict is Verdict.CONTINUE)

    def _scheduler_of(self, trial: Trial) -> Scheduler:
        return self.scheduler if trial.confirms is None else self._confirming

    def _account(self, trial: Trial, event: Reported, cost: float | None) -> None:
        trial.curve[event.resource] = event.value
        trial.metrics = dict(event.metrics)
        seconds = max(event.time - self._clock.get(trial.id, event.time), 0.0)
        self._busy_seconds[trial.id] = self._busy_seconds.get(trial.id, 0.0) + seconds
        self._busy_in_all += seconds
        self._clock[trial.id] = event.time
        if cost is not None:
            self.progress.cost += cost - trial.cost
            trial.cost = cost
        self.progress.add_report({**event.metrics, self.options.metric: event.value})
        criterion = self.criterion(event.value)
        if math.isfinite(criterion) and (self._best_any is None or criterion < self._best_any[0]):
            self._best_any = (criterion, trial.id, event.resource)

    def _note_full(self, trial: Trial, resource: int) -> None:
        criterion = self.criterion(trial.curve[resource])
        if math.isfinite(criterion) and (self._best_full is None or criterion < self._best_full[0]):
            self._best_full = (criterion, trial.id, resource)
