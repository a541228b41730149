"""Deleting checkpoints that a study does not need any more."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.core.events import CheckpointRemoved
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.report.folder import replay
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.checkpoints import FOLDER
from lightning_hpo.runtime.journal import Journal


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was deleted."""

    trials: tuple[int, ...]
    """Trials whose recorded checkpoints are gone."""
    strays: tuple[str, ...]
    """Checkpoints that no trial has recorded, relative to the study folder."""
    size: int
    """Bytes of the recorded ones."""


def clean(
    folder: Path, *, everything: bool = False, confirm: Callable[[dict[int, Checkpoint]], bool] = lambda doomed: True
) -> Cleaned | None:
    """Delete checkpoints of trials that are neither the best nor can go on, and what a crash left behind.

    The study is locked meanwhile, and remembers which checkpoints are gone.

    Args:
        everything: delete also the best one's and those of trials that can go on, which will start from the beginning.
        confirm: is shown trial -> checkpoint, and may refuse.

    Returns:
        What was deleted; None if it was refused.

    Raises:
        StudyNotFound, StudyCorrupt, StudyLocked: if there is no study, it cannot be read, or somebody works on it.
        CheckpointError: if a checkpoint is not where it should be: outside of the folder, or behind a link.
    """
    with Journal.open(folder) as journal:
        state = replay(journal)
        doomed = doomed_checkpoints(state, everything)
        if not confirm(doomed):
            return None
        store = CheckpointStore(folder)
        for trial_id, checkpoint in doomed.items():
            # Recorded first: a study that expects a checkpoint which is gone would be worse than a stray file.
            journal.append([CheckpointRemoved(state.progress.time, trial_id, "lightning-hpo clean")])
            store.remove(checkpoint)
        kept = [t.checkpoint for t in state.trials.values() if t.checkpoint is not None and t.id not in doomed]
        strays = store.sweep(_folders_with_checkpoints(store.study_folder), kept)
    return Cleaned(tuple(doomed), tuple(strays), sum(checkpoint.size for checkpoint in doomed.values()))


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


def _folders_with_checkpoints(study_folder: Path) -> list[Path]:
    """Folders of trials; links are not followed."""
    found = []
    for parent, names, _ in os.walk(study_folder):
        if FOLDER in names:
            found.append(Path(parent))
            names.remove(FOLDER)
    return sorted(found)
