"""Where trials write: a folder for each, which no other trial has, and which it keeps.

A trial's checkpoints have the same names as another's, so two trials in one folder would delete each other's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial


def recorded_folder(study: Path, trial: Trial) -> Path | None:
    """Where the study's record says that the trial writes: what its attempts were given, else where its checkpoint is.

    None if it says nothing, as of a trial that has not begun, or anything but a folder inside the study: a study from
    elsewhere may say anything.
    """
    if trial.folder is not None:
        return _inside(study, PurePosixPath(trial.folder))
    if trial.checkpoint is not None:  # of an earlier version
        return _inside(study, PurePosixPath(trial.checkpoint.path).parent.parent)
    return None


def _inside(study: Path, path: PurePosixPath) -> Path | None:
    is_safe = path.parts and not path.is_absolute() and ".." not in path.parts and str(path).isprintable()
    return study.joinpath(path) if is_safe else None


class TrialFolders:
    """Gives every trial of a study its folder.

    A trial that has begun goes on in the folder that is recorded. Any other gets the one that it wants, unless an
    earlier trial has it: then its number is appended to the name.

    Args:
        study: the study folder, as the jobs' folders begin.
        state: the study.
        wanted: the folder that a trial would have if it were the only one.
        say: tells people, once, that trials wanted the same folder.
    """

    def __init__(
        self,
        study: Path,
        state: StudyState,
        wanted: Callable[[Trial], Path],
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._study = study
        self._wanted = wanted
        self._say = say
        self._of: dict[int, Path] = {}
        self._taken: dict[str, int] = {}
        """Normalised path -> the trial that has it."""
        self._is_told = False
        for trial in state.trials.values():
            recorded = recorded_folder(study, trial)
            if recorded is not None and os.path.normpath(recorded) not in self._taken:
                self._give(trial, recorded)
        for trial in state.trials.values():
            self.of(trial)

    def of(self, trial: Trial) -> Path:
        """The trial's folder, below the study folder.

        Raises:
            HpoError: if the trial cannot have the folder it wants.
        """
        if trial.id not in self._of:
            self._give(trial, self._free(trial, self._wanted(trial)))
        return self._of[trial.id]

    def name(self, trial: Trial) -> str:
        """The same relative to the study folder, with forward slashes: what is recorded."""
        return Path(os.path.relpath(self.of(trial), self._study)).as_posix()

    def _give(self, trial: Trial, folder: Path) -> None:
        self._of[trial.id] = folder
        self._taken[os.path.normpath(folder)] = trial.id

    def _free(self, trial: Trial, wanted: Path) -> Path:
        folder = wanted
        while os.path.normpath(folder) in self._taken:
            folder = folder.with_name(f"{folder.name}_{trial.id}")
        if folder != wanted and not self._is_told:
            self._is_told = True
            first = self._taken[os.path.normpath(wanted)]
            self._say(
                f"Trials {first} and {trial.id} were both to write to {os.path.relpath(wanted, self._study)}, and "
                f"would delete each other's checkpoints there: trial {trial.id} gets {folder.name}, and others alike. "
                "For other names let hydra.sweep.subdir hold ${hydra.job.num}."
            )
        return folder
