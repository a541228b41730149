"""The journal: an append-only list of events in one SQLite file.

The study *is* its events: opening a journal and folding over them gives the state. One launcher writes,
guarded by an advisory lock that the kernel releases when the process dies; readers never block it (WAL).
Everything is JSON text: opening a journal executes no code. Every row carries a checksum, and a mark beside the
database says how many there must be, so a damaged disk is noticed instead of believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_hpo.core.events import Event, from_json, to_json
from lightning_hpo.errors import StudyCorrupt, StudyError, StudyNotFound
from lightning_hpo.runtime.database import (
    BACKUP_NAME,
    FILE_NAME,
    MARK_NAME,
    TABLES,
    Lock,
    Mark,
    checksum,
    connect,
    connect_reader,
    corrupt,
    damage,
    events_lost,
    flush_and_rename,
    is_altered,
    new_file,
    transaction,
    unreadable,
    unwritable,
)
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.filesystems import network_filesystem

SCHEMA = 1
_TEMPORARY_BACKUP = f"{BACKUP_NAME}.tmp"
_TEMPORARY_JOURNAL = f"{FILE_NAME}.new"
_TEMPORARY_NAMES = (_TEMPORARY_BACKUP, f"{_TEMPORARY_BACKUP}-journal", _TEMPORARY_JOURNAL)


class Journal:
    """The events of one study on disk.

    Use :meth:`create`, :meth:`open` or :meth:`read`; close it, or use it in a ``with`` statement.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: Lock | None, mark: Mark | None) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = lock
        self._mark = mark
        self._file = _looked_up(folder / FILE_NAME)
        self._count = int(connection.execute("SELECT max(number) FROM event").fetchone()[0] or 0)

    # ------------------------------------------------------------------------------------- opening

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """
        Raises:
            StudyError: if that cannot be told.
        """
        try:
            return (Path(folder) / FILE_NAME).exists()
        except OSError as problem:
            raise StudyError(
                f"Whether there is a study in {folder} cannot be told: {problem.strerror or problem}. "
                "Correct the folder's name or its permissions."
            ) from problem

    @classmethod
    def create(cls, folder: str | os.PathLike[str], header: dict[str, Any]) -> Journal:
        """A new journal.

        Args:
            folder: the study folder; made if needed, readable by its owner only.
            header: JSON data: what the study needs besides its events.

        Raises:
            StudyError: if there is a study already, or the folder cannot be written.
            StudyLocked: if another process works on it.
        """
        path = Path(folder)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise unwritable(path, problem) from problem
        with contextlib.ExitStack() as held:
            lock = Lock(path)
            held.callback(lock.release)
            if cls.exists(path):
                raise StudyError(f"There is a study in {path} already. Continue it, or choose another folder.")
            try:
                _write_empty(path / FILE_NAME, {"schema": SCHEMA, **header})
                mark = Mark(path)
                held.callback(mark.close)
                connection = connect(path / FILE_NAME)
                held.callback(connection.close)
                journal = cls(path, connection, lock, mark)
            except (sqlite3.Error, OSError) as problem:
                raise unwritable(path, problem) from problem
            held.pop_all()
            return journal

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Journal:
        """The journal of a study that is to go on; nobody else can write to it until it is closed.

        Raises:
            StudyNotFound: if there is none.
            StudyLocked: if another process works on it.
            StudyCorrupt: if the file is damaged, has lost events, or comes from a newer version.
            StudyError: if another program has locked the file, or it may not be read.
        """
        path = Path(folder)
        _require(path)
        with contextlib.ExitStack() as held:
            lock = Lock(path)
            held.callback(lock.release)
            for name in _TEMPORARY_NAMES:  # of a launcher that was killed
                with contextlib.suppress(OSError):
                    (path / name).unlink()
            mark = Mark(path)
            held.callback(mark.close)
            journal = cls._checked(path, connect, lock, mark)
            mark.set(len(journal))
            held.pop_all()
            return journal

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Journal:
        """A reader: it does not block the launcher and cannot change anything.

        Raises:
            StudyNotFound, StudyCorrupt, StudyError: as :meth:`open`.
        """
        path = Path(folder)
        _require(path)
        return cls._checked(path, connect_reader, None, None)

    @classmethod
    def _checked(
        cls, path: Path, connect: Callable[[Path], sqlite3.Connection], lock: Lock | None, mark: Mark | None
    ) -> Journal:
        # Read first: a launcher may write while somebody looks on.
        written = Mark.read(path)
        with contextlib.ExitStack() as held:
            try:
                connection = connect(path / FILE_NAME)
                held.callback(connection.close)
                _check(path, connection)
                journal = cls(path, connection, lock, mark)
            except (sqlite3.Error, ValueError, RecursionError) as problem:
                raise unreadable(path, problem) from problem
            if len(journal) < written:
                raise events_lost(path, written, len(journal))
            held.pop_all()
            return journal

    @staticmethod
    def holder(folder: str | os.PathLike[str]) -> str | None:
        """Who works on the study (process, machine, since when); None if nobody does.

        The lock is not touched for longer than a look.
        """
        return Lock.holder(Path(folder))

    # -------------------------------------------------------------------------------------- content

    @property
    def header(self) -> dict[str, Any]:
        """What the study was created with.

        Raises:
            StudyCorrupt: if the file is damaged.
        """
        found = {}
        try:
            for name, value, crc in self._connection.execute("SELECT name, value, crc FROM header"):
                if crc != checksum(name, value):
                    raise corrupt(self.folder, f"the header's {name} is damaged")
                found[name] = json.loads(value)
        except (sqlite3.Error, ValueError, RecursionError) as problem:
            raise unreadable(self.folder, problem) from problem
        for name, value in found.items():
            if not _may_be(name, value):
                raise corrupt(self.folder, f"the header's {name} is nothing that this package writes")
        return found

    def __len__(self) -> int:
        return self._count

    def append(self, events: Sequence[Event]) -> None:
        """Write events in one transaction; when this returns, they are on disk.

        Raises:
            StudyNotFound: if the file was deleted or replaced: what is written would be nowhere.
            StudyError: if they cannot be written (disk full).
        """
        with contextlib.suppress(OSError):  # that the file system does not answer now, is told when it is written to
            self._check_file()
        if not events:
            return
        rows = []
        for number, event in enumerate(events, self._count + 1):
            data = to_json(event)
            kind, text = data.pop("event"), json.dumps(data, separators=(",", ":"), allow_nan=False)
            rows.append((number, kind, data.get("trial_id"), text, checksum(number, kind, text)))
        try:
            with transaction(self._connection):
                self._connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?)", rows)
                failpoint("journal.before_commit")
        except (sqlite3.Error, OSError) as problem:
            raise StudyError(
                f"The study in {self.folder} cannot be written: {problem}. "
                "Make room on the disk or restore the folder, then give the same command again to continue."
            ) from problem
        self._count += len(rows)
        if self._mark is not None:
            self._mark.set(self._count)
        failpoint("journal.committed")

    def _check_file(self) -> None:
        """
        Raises:
            StudyNotFound: if the name is another file's by now.
        """
        found = _looked_up(self.folder / FILE_NAME)
        # What other machines have mounted may get another number whenever it is looked at.
        is_here = found is not None and (found == self._file or network_filesystem(self.folder) is not None)
        if not is_here:
            raise StudyNotFound(
                f"The study in {self.folder} is gone: its {FILE_NAME} was deleted, moved or replaced meanwhile. "
                "Put the folder back where it was and continue, or begin the study anew."
            )

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events in the order of writing, from number ``after + 1`` on.

        Raises:
            StudyCorrupt: if the file is damaged.
        """
        try:
            for number, kind, data, crc in self._connection.execute(
                "SELECT number, kind, data, crc FROM event WHERE number > ? ORDER BY number", (after,)
            ):
                after += 1
                if number != after:
                    raise corrupt(self.folder, f"event {after} is missing")
                if crc != checksum(number, kind, data):
                    raise corrupt(self.folder, f"event {number} is damaged")
                yield from_json({"event": kind, **json.loads(data)})
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as problem:
            raise unreadable(self.folder, problem) from problem

    def backup(self) -> Path:
        """Copy the journal to ``study.db.bak`` beside it, also while it is written to.

        The copy is on disk and whole before it takes the place of the last one.

        Raises:
            StudyError: if it cannot be written.
        """
        target = self.folder / BACKUP_NAME
        temporary = self.folder / _TEMPORARY_BACKUP
        try:
            with contextlib.closing(new_file(temporary)) as copy:
                self._connection.backup(copy)
            failpoint("journal.before_backup")
            flush_and_rename(temporary, target)
        except (sqlite3.Error, OSError) as problem:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StudyError(
                f"The backup {target} cannot be written: {problem}. Make room on the disk or restore the folder."
            ) from problem
        return target

    def close(self) -> None:
        self._connection.close()
        if self._mark is not None:
            self._mark.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backups:
    """Keeps ``study.db.bak`` up to date, in a thread: a reader does not hold up the writer.

    Args:
        journal: what to copy.
        every_s: seconds between two copies.
        clock: monotonic clock, seconds.
    """

    def __init__(self, journal: Journal, every_s: float, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._every_s = every_s
        self._clock = clock
        self._due = clock() + every_s
        self._copied = len(journal)
        self._thread: threading.Thread | None = None
        self._problem: StudyError | None = None

    def tick(self) -> StudyError | None:
        """Begin a copy if it is time and there is something new; returns why the last one failed, once."""
        if self._thread is not None and self._thread.is_alive():
            return None
        problem, self._problem = self._problem, None
        if self._clock() >= self._due and len(self._journal) > self._copied:
            self._due = self._clock() + self._every_s
            thread = threading.Thread(target=self._copy, name="journal-backup", daemon=True)
            try:
                thread.start()
            except RuntimeError as refusal:
                return StudyError(
                    f"No backup of the study was made: {refusal}. Raise the limit of processes (ulimit -u)."
                )
            self._thread, self._copied = thread, len(self._journal)
        return problem

    def _copy(self) -> None:
        try:
            with Journal.read(self._journal.folder) as reader:
                reader.backup()
        except StudyError as problem:
            self._problem = problem

    def wait(self) -> StudyError | None:
        """Wait for a copy that is being made; returns why it failed."""
        if self._thread is not None:
            self._thread.join()
        return self._problem

    def finish(self) -> StudyError | None:
        """The last copy, when the study ends; returns why it failed."""
        self.wait()
        if len(self._journal) > self._copied:
            self._copied = len(self._journal)
            self._problem = None
            self._copy()
        return self._problem


def _looked_up(file: Path) -> tuple[int, int] | None:
    """Device and number of what has this name; None if nothing has it."""
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _may_be(name: str, value: Any) -> bool:
    """Whether a value of the header is of the kind that its readers rely on; space and options check themselves."""
    if name == "resource":
        return isinstance(value, str)
    if name == "settings":
        return isinstance(value, dict)
    if name == "continue":
        return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("command", "folder", "in"))
    return True


def _write_empty(file: Path, header: dict[str, Any]) -> None:
    """A journal without events appears whole or not at all, so a crash leaves no study that cannot be opened."""
    temporary = file.with_name(_TEMPORARY_JOURNAL)
    rows = [(name, json.dumps(value, allow_nan=False)) for name, value in header.items()]
    with contextlib.closing(new_file(temporary)) as connection, transaction(connection):
        for statement in TABLES.values():
            connection.execute(statement)
        connection.executemany("INSERT INTO header VALUES (?, ?, ?)", [(*row, checksum(*row)) for row in rows])
    # Of a study whose main file was deleted: it must not be taken for ours.
    for left_over in (f"{file.name}-wal", f"{file.name}-shm", MARK_NAME):
        file.with_name(left_over).unlink(missing_ok=True)
    failpoint("journal.before_create")
    flush_and_rename(temporary, file)
    failpoint("journal.created")


def _check(folder: Path, connection: sqlite3.Connection) -> None:
    """
    Raises:
        StudyCorrupt: if the file is damaged or newer than this version.
        sqlite3.Error, ValueError, RecursionError: if it cannot be read.
    """
    problem = damage(connection)
    if problem is not None:
        raise corrupt(folder, problem)
    row = connection.execute("SELECT value FROM header WHERE name='schema'").fetchone()
    schema = None if row is None else json.loads(row[0])
    if type(schema) is not int:
        raise corrupt(folder, "it has no header")
    if schema > SCHEMA:
        raise StudyCorrupt(
            f"The study in {folder} was written by a newer version (schema {schema}, this one knows {SCHEMA}). "
            "Upgrade hydra-lightning-hpo to open it."
        )
    if is_altered(connection):
        raise corrupt(folder, "the definition of its tables is damaged")


def _require(folder: Path) -> None:
    if not Journal.exists(folder):
        raise StudyNotFound(f"There is no study in {folder} (no {FILE_NAME}). Give the folder of a study.")
    if (folder / FILE_NAME).is_dir():
        raise StudyError(
            f"{folder / FILE_NAME} is a folder, and the file of a study has this name. "
            "Rename it, or choose another folder for the study."
        )
