"""How results get into files: all at once or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightning_hpo.errors import StudyError
from lightning_hpo.runtime.journal import FILE_NAME, Journal

RESULTS_NAME = "optimization_results.yaml"
TRIALS_NAME = "trials.csv"

_OWN_NAMES = frozenset({RESULTS_NAME, TRIALS_NAME, "multirun.yaml", "search.log", "study.mark", "study.lock"})
"""What a study keeps in its folder besides its database."""


def check_target(target: Path) -> None:
    """Refuse to write what a user asked for over what a study lives on.

    Raises:
        StudyError: if the file is one of a study's own, or that cannot be told.
    """
    # The link, and what it points to: neither must be lost.
    for path in (target.parent.resolve() / target.name, target.resolve()):
        is_database = path.name.startswith(FILE_NAME)  # with SQLite's -wal and -shm, and the backup
        is_in_study = Journal.exists(path.parent)
        if (is_in_study and (is_database or path.name in _OWN_NAMES)) or (path.name == FILE_NAME and path.exists()):
            raise StudyError(f"{target} is a file of a study and would be lost. Write to a file with another name.")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file of a study; whoever reads it sees all of the old or all of the new one.

    Where a symbolic link has its name, the link is replaced: a study from elsewhere must not say which file of ours is
    written.

    Raises:
        StudyError: if it cannot be written.
    """
    with replacing(path) as temporary:
        _write(temporary, text)


def write_where_asked(target: Path, text: str) -> None:
    """Write to the file that a user named; see :func:`filling`."""
    with filling(target) as temporary:
        _write(temporary, text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to be written, which then takes the place of ``path``.

    Raises:
        StudyError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    with _told(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A new file to be written, whose content the file gets that a user named.

    A symbolic link is followed, and stays. What is no regular file, such as a pipe, stays too, and is written into.

    Raises:
        StudyError: if the target is a folder or cannot be written.
    """
    with _told(target):
        try:
            kind = stat.S_IFMT(os.stat(target).st_mode)
        except FileNotFoundError:
            kind = stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise StudyError(f"{target} is a folder, and a file is to be written. Give the name of a file in it.")
    if kind == stat.S_IFREG:
        with replacing(Path(os.path.realpath(target))) as temporary:
            yield temporary
        return
    with _told(target), tempfile.TemporaryDirectory(prefix="lhpo-") as folder:
        temporary = Path(folder) / "content"
        yield temporary
        with open(temporary, "rb") as content, open(target, "wb") as file:
            shutil.copyfileobj(content, file)


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except OSError as problem:
        raise StudyError(
            f"{path} cannot be written: {problem.strerror or problem}. "
            "Make room on the disk, or choose a folder you may write to."
        ) from problem
