"""Deleting checkpoints that a study does not need any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.core.events import CheckpointRemoved
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.report.folder import replay
from lightning_hpo.runtime.checkpoint_store import CheckpointStore, recorded_checkpoints
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.trial_folders import recorded_folder


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was deleted, or is to be."""

    trials: tuple[int, ...]
    """Trials whose recorded checkpoints go."""
    strays: tuple[str, ...]
    """Checkpoints that no trial has recorded, relative to the study folder."""
    size: int
    """Bytes of all these."""


def clean(
    folder: Path, *, everything: bool = False, confirm: Callable[[Cleaned], bool] = lambda doomed: True
) -> Cleaned | None:
    """Delete checkpoints of trials that are neither the best nor can go on, and what a crash left behind.

    The study is locked meanwhile, and remembers which checkpoints are gone.

    Args:
        everything: delete also the best one's and those of trials that can go on, which will start from the beginning.
        confirm: is shown what is to be deleted, and may refuse.

    Returns:
        What was deleted; None if it was refused.

    Raises:
        StudyNotFound, StudyCorrupt, StudyLocked: if there is no study, it cannot be read, or somebody works on it.
        CheckpointError: if a checkpoint is not where it should be: outside of the folder, or behind a link.
    """
    with Journal.open(folder) as journal:
        state = replay(journal)
        store = CheckpointStore(folder)
        trials = state.trials.values()
        # Not all that is below: another study may have been begun there.
        folders = [there for trial in trials if (there := recorded_folder(store.study_folder, trial)) is not None]
        recorded = recorded_checkpoints(trials)
        doomed, strays = doomed_checkpoints(state, everything), store.strays(folders, recorded)
        size = sum(file.size for file in (*doomed.values(), *strays))
        cleaned = Cleaned(tuple(doomed), tuple(stray.path for stray in strays), size)
        if not confirm(cleaned):
            return None
        for trial_id, checkpoint in doomed.items():
            # Recorded first: a study that expects a checkpoint which is gone would be worse than a stray file.
            journal.append([CheckpointRemoved(state.progress.time, trial_id, "lightning-hpo clean")])
            store.remove(checkpoint)
        store.sweep(folders, recorded)
    return cleaned


def doomed_checkpoints(state: StudyState, everything: bool = False) -> dict[int, Checkpoint]:
    """Trial -> checkpoint that may go: of final trials which are not the best at full resource or the best seen."""
    best = {incumbent[0] for incumbent in (state.best_full, state.best_any) if incumbent is not None}
    return {
        i: trial.checkpoint
        for i, trial in state.trials.items()
        if trial.checkpoint is not None
        and trial.checkpoint.path
        and (everything or (trial.status.is_final and i not in best))
    }
