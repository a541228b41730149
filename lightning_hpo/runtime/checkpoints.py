"""Checkpoints that survive a crash at any instant.

A checkpoint is written to a temporary name in its own folder, flushed to disk, read back, and only then
renamed; the folder's entry is flushed too. Whoever finds the final name finds a whole file. It is recorded
with its SHA-256, and nothing is loaded whose hash differs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lightning_hpo.errors import CheckpointError, DiskFull
from lightning_hpo.runtime.failpoints import failpoint

FOLDER = "checkpoints"
"""Folder of a trial's checkpoints, inside the trial's folder."""

TEMPORARY_NAME = re.compile(r"\..*\.[0-9a-f]{12}\.partial")
CHECKPOINT_NAME = re.compile(r"resource-[1-9][0-9]*\.ckpt")
_CHUNK = 1 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
WITHOUT_LINKS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Writable(Protocol):
    """What a checkpoint's bytes are written to, in order."""

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Written:
    """What is now on disk."""

    sha256: str
    size: int
    """Bytes."""


def checkpoint_path(trial_folder: Path, resource: int) -> Path:
    """Where the checkpoint of a trial at a resource level lies."""
    return trial_folder / FOLDER / f"resource-{resource}.ckpt"


# ---------------------------------------------------------------------------------------- writing


def write_durably(path: Path, write: Callable[[Writable], None]) -> Written:
    """Write a zip file, as ``torch.save`` makes them, so that ``path`` never holds half of it.

    Args:
        path: final name. Its folder is made if need be, with access for the user alone.
        write: writes the bytes, from first to last.

    Raises:
        DiskFull: if there is no room; the message says how much is missing.
        CheckpointError: if it cannot be written or cannot be read back. In both cases ``path`` is as before
            and no temporary file is left.
    """
    temporary = temporary_path(path)
    hashing: _HashingWriter | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_link(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            failpoint("checkpoint.opened")
            hashing = _HashingWriter(file)
            write(hashing)
            hashing.finish(path)
            failpoint("checkpoint.written")
            file.flush()
            os.fsync(file.fileno())
        _check_zip(temporary, hashing.size)
        failpoint("checkpoint.before_rename")
        os.replace(temporary, path)
        failpoint("checkpoint.renamed")
        _sync_folder(path.parent)
    except OSError as problem:
        raise _cannot_write(path, problem, hashing.size if hashing else 0) from problem
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return Written(hashing.digest(), hashing.size)


def temporary_path(path: Path) -> Path:
    """A fresh temporary name beside ``path``, which :meth:`CheckpointStore.sweep` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def publish(temporary: Path, path: Path) -> Written:
    """Make durable what somebody else wrote to a temporary name (a file, or a folder with shards), then rename it.

    Raises:
        CheckpointError: if there is nothing, or it cannot be read back or renamed.
    """
    try:
        if not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "nothing was written")
        for file in files_below(temporary):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        _refuse_link(path.parent)
        replaced = None
        if temporary.is_dir():
            _sync_folder(temporary)
            replaced = temporary_path(path) if path.exists() else None
        written = measure(temporary)
        if replaced is not None:  # a folder cannot take the place of another in one step
            os.rename(path, replaced)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        if replaced is not None:
            remove_from(path.parent, replaced.name)
    except OSError as problem:
        raise _cannot_write(path, problem, 0) from problem
    return written


class _HashingWriter:
    """Hashes what is written. After a failure it goes on counting, to learn how much room is missing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._failure: OSError | None = None
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.size += len(data)
        if self._failure is None:
            self._hash.update(data)
            try:
                self._file.write(data)
            except OSError as problem:
                self._failure = problem
                with contextlib.suppress(OSError):
                    self._file.truncate(0)
        return len(data)

    def flush(self) -> None:
        if self._failure is None:
            self._file.flush()

    def finish(self, path: Path) -> None:
        if self._failure is not None:
            raise _cannot_write(path, self._failure, self.size) from self._failure

    def digest(self) -> str:
        return self._hash.hexdigest()


def _no_room(path: Path, needed: int) -> DiskFull:
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
    return DiskFull(
        f"The disk is full: {path} needs {_readable(needed)}, free are {_readable(free)}, "
        f"missing are {_readable(max(needed - free, 1))}. "
        "Free that much room, or limit the checkpoints of paused trials with hydra.launcher.max_disk."
    )


def _cannot_write(path: Path, problem: OSError, needed: int) -> CheckpointError:
    if problem.errno in _NO_ROOM:
        return _no_room(path, needed)
    return CheckpointError(
        f"The checkpoint {path} cannot be written: {problem.strerror or problem}. "
        "Make its folder writable for the user who runs the study."
    )


def _check_zip(path: Path, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise CheckpointError(
            f"{path} should have {size} bytes and has {found}. "
            "Check the file system, or move the study to another disk."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except zipfile.BadZipFile as problem:
        raise _not_a_checkpoint(path, str(problem)) from problem
    if not entries:
        raise _not_a_checkpoint(path, "it is empty")


def _not_a_checkpoint(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole checkpoint: {reason}. Save checkpoints in torch's zip format.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some network file systems cannot flush a folder; the rename is atomic there all the same.
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------ verification


def measure(path: Path) -> Written:
    """SHA-256 and size of a file, or of a folder: the hash of its files' relative paths and hashes, sorted.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.is_dir():
        return _measure_file(path)
    total = hashlib.sha256()
    size = 0
    for file in files_below(path):
        written = _measure_file(file)
        total.update(f"{file.relative_to(path).as_posix()}\0{written.sha256}\n".encode())
        size += written.size
    return Written(total.hexdigest(), size)


def verify(path: Path, sha256: str) -> None:
    """
    Raises:
        CheckpointError: if the file is missing or is not the one with this hash.
    """
    try:
        found = measure(path).sha256
    except OSError as problem:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {problem.strerror or problem}. "
            "Restore it, or let the trial start again from the beginning."
        ) from problem
    if found != sha256:
        raise CheckpointError(
            f"The checkpoint {path} is not the one that was saved: its SHA-256 is {found}, recorded is {sha256}. "
            "Restore it, or let the trial start again from the beginning."
        )


def _measure_file(path: Path) -> Written:
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Written(digest.hexdigest(), size)


def files_below(path: Path) -> list[Path]:
    """The file itself, or every file below the folder, sorted; links are not followed."""
    if not path.is_dir():
        return [path]
    files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    return sorted(file for file in files if not file.is_symlink())


# -------------------------------------------------------------------------------------- links, deletion


def _refuse_link(folder: Path) -> None:
    """What is written through a link could never be deleted: see :meth:`CheckpointStore.remove`."""
    if folder.is_symlink():
        raise CheckpointError(
            f"{folder} is a symbolic link, and checkpoints are not written through links. "
            "Replace it by a folder, or put the whole study where it points to with hydra.sweep.dir=..."
        )


def remove_from(folder: Path, name: str) -> None:
    """Delete what has this name in the folder, which must not be a link itself; see :func:`remove_entry`."""
    descriptor = os.open(folder, WITHOUT_LINKS)
    try:
        remove_entry(descriptor, name)
    finally:
        os.close(descriptor)


def remove_entry(folder: int, name: str) -> bool:
    """Delete a file, or a folder with all that is in it; links are neither followed nor deleted.

    Args:
        folder: descriptor of the folder that holds it.

    Returns:
        False if it was gone already.

    Raises:
        OSError: if it is a link or holds one, or cannot be deleted.
    """
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "it is a symbolic link")
        if stat.S_ISDIR(mode):
            below = os.open(name, WITHOUT_LINKS, dir_fd=folder)
            try:
                for inner in os.listdir(below):
                    remove_entry(below, inner)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _readable(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000.0:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000.0
    return f"{value:.1f} TB"
