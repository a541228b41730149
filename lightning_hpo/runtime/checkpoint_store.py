"""The store of a study's checkpoints: where they are, and which may go.

The launcher alone deletes. It never leaves the study folder: every deletion walks down from the folder's own file
descriptor and refuses symbolic links on the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightning_hpo.core.trial import Checkpoint, Trial
from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime.checkpoints import (
    CHECKPOINT_NAME,
    FOLDER,
    TEMPORARY_NAME,
    WITHOUT_LINKS,
    files_below,
    remove_entry,
)
from lightning_hpo.runtime.database import FILE_NAME
from lightning_hpo.runtime.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class Stray:
    """What a crash left behind: a temporary file, or a checkpoint that was never recorded."""

    path: str
    """Relative to the study folder, with forward slashes."""
    size: int
    """Bytes."""


def recorded_checkpoints(trials: Iterable[Trial]) -> list[Checkpoint]:
    """Those that the study knows of: the others in its trials' folders are strays."""
    return [trial.checkpoint for trial in trials if trial.checkpoint is not None]


class CheckpointStore:
    """The checkpoints of a study: where they are, how much room they take, which may go.

    The store remembers nothing: what is recorded is in the study's state. Paths of checkpoints are relative
    to the study folder, with forward slashes.

    Args:
        study_folder: nothing outside it is ever touched.
        max_disk: bytes that the checkpoints of all trials may take together; None for no limit.
    """

    def __init__(self, study_folder: Path, max_disk: int | None = None) -> None:
        self.study_folder = study_folder.resolve()
        self._as_given = study_folder.absolute()
        """Trials name their folders like the study's: where a symbolic link leads to it, by the link."""
        self.max_disk = max_disk

    def path(self, checkpoint: Checkpoint) -> Path:
        """The checkpoint's absolute path.

        Raises:
            CheckpointError: if it would lie outside the study folder.
        """
        return self.study_folder.joinpath(*_parts(checkpoint.path))

    def relative(self, trial_folder: Path, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint as its trial announced it (path relative to the trial's folder), relative to the study folder.

        Raises:
            CheckpointError: if it would lie outside the study folder.
        """
        try:
            prefix = trial_folder.resolve().relative_to(self.study_folder)
        except ValueError as problem:
            raise _outside(str(trial_folder)) from problem
        path = prefix.joinpath(*_parts(checkpoint.path)).as_posix()
        return Checkpoint(checkpoint.resource, path, checkpoint.sha256, checkpoint.size)

    def remove(self, checkpoint: Checkpoint) -> bool:
        """Delete the checkpoint; False if it was gone already.

        Raises:
            CheckpointError: if the path leaves the study folder, a symbolic link is on it, or it does not look like a
                checkpoint's: whatever a trial announces or a journal says, nothing else is deleted.
        """
        parts = _parts(checkpoint.path)
        if len(parts) < 2 or parts[-2] != FOLDER or not CHECKPOINT_NAME.fullmatch(parts[-1]):
            raise CheckpointError(
                f"{checkpoint.path!r} is not the path of a checkpoint that this package writes, so it is not deleted. "
                "Delete it yourself if nobody needs it."
            )
        try:
            failpoint("checkpoint.before_remove")
            with self._opened(parts[:-1]) as folder:
                found = remove_entry(folder, parts[-1])
            failpoint("checkpoint.removed")
            return found
        except FileNotFoundError:
            return False
        except OSError as problem:
            raise CheckpointError(
                f"The checkpoint {checkpoint.path!r} in {self.study_folder} is not deleted: {problem.strerror}. "
                "Replace symbolic links inside the study folder by what they point to."
            ) from problem

    def over_budget(
        self, paused: Mapping[int, Checkpoint], promise: Callable[[int], float], used: int = 0
    ) -> list[int]:
        """Which paused trials must give up their checkpoints to keep within ``max_disk``.

        Args:
            paused: trial id -> its checkpoint.
            promise: of a trial id, larger is more promising; NaN counts as least.
            used: bytes of checkpoints that may not go.

        Returns:
            Trial ids, least promising first; of equals the larger checkpoint goes first.
        """
        if self.max_disk is None:
            return []
        excess = used + sum(checkpoint.size for checkpoint in paused.values()) - self.max_disk
        leaving = []
        for trial_id in sorted(paused, key=lambda t: (_least_if_nan(promise(t)), -paused[t].size, -t)):
            if excess <= 0:
                break
            leaving.append(trial_id)
            excess -= paused[trial_id].size
        return leaving

    def strays(self, trial_folders: Iterable[Path], recorded: Collection[Checkpoint]) -> list[Stray]:
        """What a crash left behind: temporary files, and checkpoints that were never recorded.

        Only names of this module are considered, ``checkpoints/resource-*.ckpt`` and its temporary names, and only in
        these folders, unless one is another study's or lies in its folder: what that has recorded is not known here.

        Raises:
            CheckpointError: if a trial's folder lies outside the study folder.
        """
        found = []
        for _, _, path in self._strays(trial_folders, recorded):
            with contextlib.suppress(OSError):
                files = files_below(self.study_folder / path)
                found.append(Stray(path, sum(file.lstat().st_size for file in files)))
        return found

    def sweep(self, trial_folders: Iterable[Path], recorded: Collection[Checkpoint]) -> list[str]:
        """Delete what :meth:`strays` finds. Call it while none of these trials runs.

        Returns:
            The deleted paths, relative to the study folder.

        Raises:
            CheckpointError: if a trial's folder lies outside the study folder.
        """
        failpoint("checkpoint.before_sweep")
        deleted = []
        for folder, name, path in self._strays(trial_folders, recorded):
            with contextlib.suppress(OSError):
                if remove_entry(folder, name):
                    deleted.append(path)
        return deleted

    def _strays(
        self, trial_folders: Iterable[Path], recorded: Collection[Checkpoint]
    ) -> Iterator[tuple[int, str, str]]:
        """Descriptor of the folder, name in it, and path of each."""
        keep = {checkpoint.path for checkpoint in recorded}
        for trial_folder in trial_folders:
            below = (*self._parts_below(trial_folder.absolute()), FOLDER)
            with contextlib.suppress(OSError), self._opened(below, is_ours_alone=True) as folder:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries if not entry.is_symlink())
                for name in names:
                    path = "/".join((*below, name))
                    if TEMPORARY_NAME.fullmatch(name) or (CHECKPOINT_NAME.fullmatch(name) and path not in keep):
                        yield folder, name, path

    def _parts_below(self, trial_folder: Path) -> tuple[str, ...]:
        for root in (self._as_given, self.study_folder):
            if trial_folder.is_relative_to(root):
                parts = trial_folder.relative_to(root).parts
                if ".." not in parts:
                    return parts
        raise _outside(str(trial_folder))

    @contextlib.contextmanager
    def _opened(self, parts: Collection[str], is_ours_alone: bool = False) -> Iterator[int]:
        """Descriptor of a folder below the study folder, reached without following any link.

        Raises:
            FileExistsError: if it is to be ours alone, and on the way there is the folder of another study.
            OSError: if it cannot be reached.
        """
        descriptor = os.open(self.study_folder, WITHOUT_LINKS)
        try:
            for part in parts:
                below = os.open(part, WITHOUT_LINKS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
                if is_ours_alone and FILE_NAME in os.listdir(descriptor):
                    raise FileExistsError(errno.EEXIST, "it is the folder of another study")
            yield descriptor
        finally:
            os.close(descriptor)


def _parts(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise _outside(path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError as problem:  # no file has such a name
        raise _outside(path) from problem
    return parts


def _outside(path: str) -> CheckpointError:
    return CheckpointError(f"{path!r} is not inside the study folder. Keep checkpoints where the trials write them.")


def _least_if_nan(promise: float) -> float:
    return promise if promise == promise else float("-inf")
