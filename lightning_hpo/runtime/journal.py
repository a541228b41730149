"""The journal: an append-only list of events in one SQLite file.

The study *is* its events: opening a journal and folding over them gives the state. One launcher writes,
guarded by an advisory lock that the kernel releases when the process dies; readers never block it (WAL).
Everything is JSON text: opening a journal executes no code. Every row carries a checksum, so a damaged disk is noticed
instead of believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_hpo.core.events import Event, from_json, to_json
from lightning_hpo.errors import StudyCorrupt, StudyError, StudyLocked, StudyNotFound
from lightning_hpo.runtime.failpoints import failpoint

FILE_NAME = "study.db"
BACKUP_NAME = "study.db.bak"
LOCK_NAME = "study.lock"
SCHEMA = 1
_TEMPORARY_BACKUP = f"{BACKUP_NAME}.tmp"
_TEMPORARY_JOURNAL = f"{FILE_NAME}.new"
_TEMPORARY_NAMES = (_TEMPORARY_BACKUP, f"{_TEMPORARY_BACKUP}-journal", _TEMPORARY_JOURNAL)
_BUSY_S = 60.0

_TABLES = (
    "CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE event (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, trial INTEGER, data TEXT NOT NULL,"
    " crc INTEGER NOT NULL)",
)
"""``crc`` is the CRC-32 of the row's other columns (:func:`_crc`)."""


class Journal:
    """The events of one study on disk.

    Use :meth:`create`, :meth:`open` or :meth:`read`; close it, or use it in a ``with`` statement.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: _Lock | None) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = lock
        try:
            self._count = int(connection.execute("SELECT max(number) FROM event").fetchone()[0] or 0)
        except (sqlite3.Error, ValueError) as problem:
            raise _corrupt(folder, problem) from problem

    # ------------------------------------------------------------------------------------- opening

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        return (Path(folder) / FILE_NAME).exists()

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
            raise _unwritable(path, problem) from problem
        lock = _Lock(path)
        try:
            if cls.exists(path):
                raise StudyError(f"There is a study in {path} already. Continue it, or choose another folder.")
            _write_empty(path / FILE_NAME, {"schema": SCHEMA, **header})
            return cls(path, _connect(path / FILE_NAME), lock)
        except (sqlite3.OperationalError, OSError) as problem:
            lock.release()
            raise _unwritable(path, problem) from problem
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Journal:
        """The journal of a study that is to go on; nobody else can write to it until it is closed.

        Raises:
            StudyNotFound: if there is none.
            StudyLocked: if another process works on it.
            StudyCorrupt: if the file is damaged or comes from a newer version.
        """
        path = Path(folder)
        _require(path)
        lock = _Lock(path)
        try:
            for name in _TEMPORARY_NAMES:  # of a launcher that was killed
                (path / name).unlink(missing_ok=True)
            connection = _connect(path / FILE_NAME)
            _check(path, connection)
            return cls(path, connection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Journal:
        """A reader: it does not block the launcher and cannot change anything.

        Raises:
            StudyNotFound, StudyCorrupt: as :meth:`open`.
        """
        path = Path(folder)
        _require(path)
        try:
            connection = sqlite3.connect(
                f"{(path / FILE_NAME).resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None
            )
            _check(path, connection)
            return cls(path, connection, None)
        except sqlite3.DatabaseError as problem:
            raise _corrupt(path, problem) from problem

    @staticmethod
    def holder(folder: str | os.PathLike[str]) -> str | None:
        """Who works on the study (process, machine, since when); None if nobody does.

        The lock is not touched for longer than a look.
        """
        try:
            fd = os.open(Path(folder) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return os.pread(fd, 500, 0).decode(errors="replace").strip() or "an unknown process"
        finally:
            os.close(fd)
        return None

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
                if crc != _crc(name, value):
                    raise _corrupt(self.folder, f"the header's {name} is damaged")
                found[name] = json.loads(value)
        except (sqlite3.Error, ValueError) as problem:
            raise _corrupt(self.folder, problem) from problem
        return found

    def __len__(self) -> int:
        return self._count

    def append(self, events: Sequence[Event]) -> None:
        """Write events in one transaction; when this returns, they are on disk.

        Raises:
            StudyError: if they cannot be written (disk full, folder gone).
        """
        if not events:
            return
        rows = []
        for number, event in enumerate(events, self._count + 1):
            data = to_json(event)
            kind, text = data.pop("event"), json.dumps(data, separators=(",", ":"), allow_nan=False)
            rows.append((number, kind, data.get("trial_id"), text, _crc(number, kind, text)))
        try:
            with _transaction(self._connection):
                self._connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?)", rows)
                failpoint("journal.before_commit")
        except (sqlite3.Error, OSError) as problem:
            raise StudyError(
                f"The study in {self.folder} cannot be written: {problem}. "
                "Make room on the disk or restore the folder, then give the same command again to continue."
            ) from problem
        self._count += len(rows)
        failpoint("journal.committed")

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
                    raise _corrupt(self.folder, f"event {after} is missing")
                if crc != _crc(number, kind, data):
                    raise _corrupt(self.folder, f"event {number} is damaged")
                yield from_json({"event": kind, **json.loads(data)})
        except (sqlite3.Error, ValueError) as problem:
            raise _corrupt(self.folder, problem) from problem

    def backup(self) -> Path:
        """Copy the journal to ``study.db.bak`` beside it, also while it is written to.

        The copy is on disk and whole before it takes the place of the last one.

        Raises:
            StudyError: if it cannot be written.
        """
        target = self.folder / BACKUP_NAME
        temporary = self.folder / _TEMPORARY_BACKUP
        try:
            temporary.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(temporary)) as copy:
                self._connection.backup(copy)
            failpoint("journal.before_backup")
            _publish(temporary, target)
        except (sqlite3.Error, OSError) as problem:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StudyError(
                f"The backup {target} cannot be written: {problem}. Make room on the disk or restore the folder."
            ) from problem
        return target

    def close(self) -> None:
        self._connection.close()
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
        if self._clock() >= self._due and len(self._journal) > self._copied:
            self._due = self._clock() + self._every_s
            self._copied = len(self._journal)
            self._thread = threading.Thread(target=self._copy, name="journal-backup", daemon=True)
            self._thread.start()
        problem, self._problem = self._problem, None
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


class _Lock:
    """An advisory lock on a file beside the journal; it vanishes with the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise _unwritable(folder, problem) from problem
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 500, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(self._fd)
            raise StudyLocked(
                f"The study in {folder} is being worked on by {holder}. "
                "Wait until it ends or stop it, or look at the study with: lightning-hpo status"
            ) from None
        since = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _crc(*columns: object) -> int:
    return zlib.crc32("\x1f".join(map(str, columns)).encode())


def _write_empty(file: Path, header: dict[str, Any]) -> None:
    """A journal without events appears whole or not at all, so a crash leaves no study that cannot be opened."""
    temporary = file.with_name(_TEMPORARY_JOURNAL)
    temporary.unlink(missing_ok=True)
    rows = [(name, json.dumps(value, allow_nan=False)) for name, value in header.items()]
    with (
        contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection,
        _transaction(connection),
    ):
        for statement in _TABLES:
            connection.execute(statement)
        connection.executemany("INSERT INTO header VALUES (?, ?, ?)", [(*row, _crc(*row)) for row in rows])
    for left_over in ("-wal", "-shm"):  # of a study whose main file was deleted: it must not be taken for ours
        file.with_name(file.name + left_over).unlink(missing_ok=True)
    failpoint("journal.before_create")
    _publish(temporary, file)
    failpoint("journal.created")


def _publish(temporary: Path, target: Path) -> None:
    os.chmod(temporary, 0o600)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError as problem:
        connection.close()
        raise _corrupt(path.parent, problem) from problem


def _check(folder: Path, connection: sqlite3.Connection) -> None:
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise _corrupt(folder, "its pages are damaged")
        row = connection.execute("SELECT value FROM header WHERE name='schema'").fetchone()
        schema = None if row is None else json.loads(row[0])
    except (sqlite3.Error, ValueError) as problem:
        raise _corrupt(folder, problem) from problem
    if not isinstance(schema, int):
        raise _corrupt(folder, "it has no header")
    if schema > SCHEMA:
        raise StudyCorrupt(
            f"The study in {folder} was written by a newer version (schema {schema}, this one knows {SCHEMA}). "
            "Upgrade hydra-lightning-hpo to open it."
        )


def _require(folder: Path) -> None:
    if not Journal.exists(folder):
        raise StudyNotFound(f"There is no study in {folder} (no {FILE_NAME}). Give the folder of a study.")


def _unwritable(folder: Path, problem: Exception) -> StudyError:
    return StudyError(f"The study folder {folder} cannot be written: {problem}. Choose a folder you may write to.")


def _corrupt(folder: Path, problem: object) -> StudyCorrupt:
    return StudyCorrupt(
        f"The study in {folder} cannot be read: {problem}. "
        f"Delete {FILE_NAME}-wal and {FILE_NAME}-shm and copy the backup {BACKUP_NAME} over {FILE_NAME}, "
        f"or recover what can be read with: sqlite3 {FILE_NAME} .recover"
    )
