"""Which checkpoints of a running study are deleted, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_hpo.core.events import DropCheckpoint
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime.checkpoint_store import CheckpointStore, recorded_checkpoints


class Retention:
    """Deletes checkpoints, each after it is on disk that it is gone: a crash must not leave a record of nothing.

    Args:
        state: the study.
        store: the checkpoints.
        folder: of a trial.
        removed: takes in that a trial's checkpoint is gone, and why.
        after_commit: runs a function once the turn's events are durable.
        warn: tells people.
    """

    def __init__(
        self,
        state: StudyState,
        store: CheckpointStore,
        folder: Callable[[Trial], Path],
        removed: Callable[[int, str], None],
        after_commit: Callable[[Callable[[], None]], None],
        warn: Callable[[str], None],
    ) -> None:
        self._state = state
        self._store = store
        self._folder = folder
        self._removed = removed
        self._after_commit = after_commit
        self._warn = warn

    def drop(self, decision: DropCheckpoint) -> None:
        """Delete a checkpoint that will not be needed again."""
        if self._state.trials[decision.trial_id].checkpoint == decision.checkpoint:
            self._removed(decision.trial_id, decision.reason)
        self._safely(lambda: self._store.remove(decision.checkpoint))

    def sweep_after(self, trial_id: int) -> None:
        """Delete what a process that ended in the middle of saving has left; no process of the trial is there now."""

        def sweep() -> None:
            trial = self._state.trials[trial_id]
            self._store.sweep([self._folder(trial)], recorded_checkpoints(self._state.trials.values()))

        self._safely(sweep)

    def keep_within_budget(self) -> None:
        """Paused trials that are least likely to be promoted give up their checkpoints first (``max_disk``)."""
        if self._store.max_disk is None:
            return
        trials = self._state.trials.values()
        paused = {t.id: t.checkpoint for t in trials if t.status is TrialStatus.PAUSED and t.checkpoint is not None}
        others = sum(t.checkpoint.size for t in trials if t.checkpoint is not None and t.id not in paused)
        for trial_id in self._store.over_budget(paused, lambda t: -self._state.scheduler.promise(t), others):
            self.drop(DropCheckpoint(trial_id, paused[trial_id], "max_disk"))

    def _safely(self, action: Callable[[], object]) -> None:
        def act() -> None:
            try:
                action()
            except CheckpointError as problem:
                self._warn(str(problem))

        self._after_commit(act)
