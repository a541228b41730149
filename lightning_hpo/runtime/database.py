"""The SQLite file under the journal, and what lies beside it: lock, mark, backup.

Settings: WAL, so that readers do not block the writer, but not on network file systems, where machines cannot share the
memory it needs; ``synchronous=FULL``, so that a committed transaction survives a power cut. A file from elsewhere may
hold anything: its schema is not trusted, and views or triggers are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shlex
import socket
import sqlite3
import time
import weakref
import zlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from lightning_hpo.errors import StudyCorrupt, StudyError, StudyLocked
from lightning_hpo.runtime.filesystems import network_filesystem, open_own

FILE_NAME = "study.db"
BACKUP_NAME = "study.db.bak"
LOCK_NAME = "study.lock"
MARK_NAME = "study.mark"
BUSY_S = 60.0
"""How long to wait for another program that has locked the file."""
_LOOKS_S = 5.0
"""How long a launcher waits for those who look whether there is one: microseconds, unless they are stopped."""
_RETRY_S = 0.005
"""Longest pause between two tries."""

TABLES = {
    "header": "CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    "event": "CREATE TABLE event (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, trial INTEGER, data TEXT NOT NULL,"
    " crc INTEGER NOT NULL)",
}
"""``crc`` is the CRC-32 of the row's other columns (:func:`checksum`)."""


def checksum(*columns: object) -> int:
    """CRC-32 of a row's columns."""
    return zlib.crc32("\x1f".join(map(str, columns)).encode())


# ----------------------------------------------------------------------------------------- connections


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes. The caller holds the lock.

    Raises:
        sqlite3.Error: if the file cannot be opened or is no database.
    """
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _trust_nothing(connection)
        mode = "WAL" if network_filesystem(path.parent) is None else "DELETE"
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot change anything and blocks nobody.

    A file with a write-ahead log wants a small file beside it even to be read. Where that cannot be made, and no log is
    there, nobody writes: the file is read as it is.

    Raises:
        sqlite3.Error: if the file cannot be opened or is no database.
    """
    is_still = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    address = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if is_still else ''}"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
    try:
        _trust_nothing(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _trust_nothing(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")


def damage(connection: sqlite3.Connection) -> str | None:
    """What is wrong with the file as a whole; None if nothing is.

    Raises:
        sqlite3.Error: if it cannot be read.
    """
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        return "its pages are damaged"
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    if not TABLES.keys() <= {name for kind, name, _ in schema if kind == "table"}:
        return "it has not the tables of a study"
    # Views, triggers and virtual tables compute something when they are used.
    odd = [name for kind, name, sql in schema if kind not in ("table", "index") or "VIRTUAL" in (sql or "").upper()]
    return f"it holds {odd[0]!r}, which is no plain table" if odd else None


def is_altered(connection: sqlite3.Connection) -> bool:
    """Whether a table is not defined as in :data:`TABLES`.

    The definition is text in the file, and no checksum of SQLite guards it. With one byte of it changed, ``number`` may
    be no key any more, and every event would have the number NULL: a journal without events, to all appearances.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        for statement in TABLES.values():
            ours.execute(statement)
        # What they mean, not how they are written: tools that recover a database may write the same in other words.
        columns = [f"PRAGMA table_info({name})" for name in TABLES]
        return any(connection.execute(c).fetchall() != ours.execute(c).fetchall() for c in columns)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; durable when it is left without an exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


def new_file(path: Path) -> sqlite3.Connection:
    """A connection to an empty file for this user alone, in place of whatever had the name."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None)


def flush_and_rename(temporary: Path, target: Path) -> None:
    """Flush a file to disk, then give it its name."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -------------------------------------------------------------------------------------- lock and mark


class Lock:
    """An advisory lock on a file beside the journal; it vanishes with the object, and with the process that holds it.

    Raises:
        StudyLocked: if somebody holds it.
        StudyError: if the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._fd = open_own(folder / LOCK_NAME, os.O_RDWR)
        except OSError as problem:
            raise unwritable(folder, problem) from problem
        try:
            self._acquire(folder)
        except BaseException as problem:
            os.close(self._fd)
            if isinstance(problem, OSError):
                raise StudyError(
                    f"The file system of the study folder {folder} has no locks ({problem.strerror}), so nothing would "
                    "keep two launchers apart. Mount it with locks (flock), or choose a folder on another one "
                    "(hydra.sweep.dir)."
                ) from problem
            raise
        self._release = weakref.finalize(self, _unlock, self._fd, os.getpid())
        self._release.atexit = False  # a process that was forked from this one may still write
        since = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # a full disk: who holds it is told, not decided, by what it says
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{_this_process()} since {since}\n".encode(), 0)

    def _acquire(self, folder: Path) -> None:
        """Who looks for a holder has the lock, too, but shared and for an instant: that is waited for."""
        deadline = time.monotonic() + _LOOKS_S
        while not _flock(self._fd, fcntl.LOCK_EX):
            if not _flock(self._fd, fcntl.LOCK_SH):
                raise _locked(folder, _holder(self._fd))
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise StudyLocked(
                    f"The study in {folder} cannot be locked: nobody works on it, but a program that looks at it has "
                    f"not let go of its {LOCK_NAME} for {_LOOKS_S:g} s. End that program, or let it go on."
                )
            # Of different length, as two launchers that start together are in each other's way here.
            time.sleep(random.uniform(0.0, _RETRY_S))

    def release(self) -> None:
        self._release()

    @staticmethod
    def holder(folder: Path) -> str | None:
        """Who holds the lock (process, machine, since when); None if nobody does."""
        try:
            fd = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if not _flock(fd, fcntl.LOCK_SH):
                return _holder(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)  # as in _unlock
            return None
        except OSError:  # where there are no locks, nobody can hold one
            return None
        finally:
            os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    """Take a lock if it can be had at once.

    Raises:
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int, locked_in: int) -> None:
    """Closing is not enough: a process that was forked in between has the file open, too. It must not unlock it."""
    if os.getpid() == locked_in:
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _locked(folder: Path, holder: str) -> StudyLocked:
    way = "Wait until it ends or stop it"
    if holder.startswith(f"{_this_process()} since "):
        holder += ", which is this very process"
        way = "Call close() where it is open, or leave the with block"
    return StudyLocked(
        f"The study in {folder} is being worked on by {holder}. {way}, or look at the study with: "
        f"lightning-hpo status {shlex.quote(str(folder))}"
    )


def _holder(fd: int) -> str:
    return os.pread(fd, 500, 0).decode(errors="replace").strip() or "an unknown process"


class Mark:
    """How many events the database has had, kept apart from it.

    SQLite takes a damaged write-ahead log for one that ends where the damage begins, and says nothing: the commits
    after it are gone. If the database has fewer events than the mark says, that has happened. The mark is written
    after each commit and never flushed, so after a power cut it may be older than the database, but not newer.
    """

    _SIZE = 32

    def __init__(self, folder: Path) -> None:
        try:
            self._fd = open_own(folder / MARK_NAME, os.O_RDWR)
        except OSError as problem:
            raise unwritable(folder, problem) from problem

    def set(self, count: int) -> None:
        # Without a mark less is noticed, nothing is lost: a full disk is no reason to stop here.
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, f"{count} {checksum(count):08x}".ljust(self._SIZE - 1).encode() + b"\n", 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @classmethod
    def read(cls, folder: Path) -> int:
        """Least number of events that the database must have; 0 if there is no mark or it is damaged itself."""
        try:
            count, crc = (folder / MARK_NAME).read_text("ascii")[: cls._SIZE].split()
            return int(count) if f"{checksum(int(count)):08x}" == crc else 0
        except (OSError, ValueError):
            return 0


# -------------------------------------------------------------------------------------------- errors


def unwritable(folder: Path, problem: Exception) -> StudyError:
    return StudyError(f"The study folder {folder} cannot be written: {problem}. Choose a folder you may write to.")


def unreadable(folder: Path, problem: Exception) -> StudyError:
    """What an error of SQLite or of JSON means for somebody who opens the study."""
    if isinstance(problem, sqlite3.OperationalError):
        if "locked" in str(problem):
            return StudyError(
                f"The study in {folder} cannot be opened: another program has locked its {FILE_NAME}. "
                "Close it there, then try again."
            )
        is_refused = any(word in str(problem) for word in ("readonly", "unable to open"))
        if is_refused or not os.access(folder / FILE_NAME, os.R_OK):
            return StudyError(
                f"The study in {folder} cannot be opened: {problem}. Correct the permissions of its files."
            )
    return corrupt(folder, problem)


def corrupt(folder: Path, problem: object) -> StudyCorrupt:
    """The study is damaged; what to do depends on whether there is a backup."""
    return StudyCorrupt(f"The study in {folder} cannot be read: {problem}. {_way_out(folder)}")


def events_lost(folder: Path, written: int, found: int) -> StudyCorrupt:
    """The database has fewer events than were written."""
    return StudyCorrupt(
        f"The study in {folder} is damaged: {written} events were written to it, and {found} are left. "
        f"{_way_out(folder)} To go on with the {found} instead: rm {shlex.quote(str(folder / MARK_NAME))}"
    )


def _way_out(folder: Path) -> str:
    inside = f"cd {shlex.quote(str(folder))} && rm -f {FILE_NAME}-wal {FILE_NAME}-shm {MARK_NAME}"
    backup = _described_backup(folder / BACKUP_NAME)
    if backup is not None:
        return f"Put the backup ({backup}) in its place: {inside} && cp {BACKUP_NAME} {FILE_NAME}"
    return (
        f"If {FILE_NAME} is none of this package's, choose another folder for the study. "
        f"There is no backup; save what can be read: cd {shlex.quote(str(folder))} && "
        f"sqlite3 {FILE_NAME} .recover | sqlite3 recovered.db && rm -f {FILE_NAME}-wal {FILE_NAME}-shm {MARK_NAME} && "
        f"mv recovered.db {FILE_NAME}"
    )


def _described_backup(path: Path) -> str | None:
    """How much it holds and of when it is; None if there is none that can be read."""
    try:
        when = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", timespec="seconds")
        with contextlib.closing(connect_reader(path)) as connection:
            if damage(connection) is not None:
                return None
            (count,) = connection.execute("SELECT count(*) FROM event").fetchone()
        return f"{count} events, of {when}"
    except (OSError, sqlite3.Error):
        return None
