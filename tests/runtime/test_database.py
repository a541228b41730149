"""What lies beside a study's database: its mark and its lock. The database itself is tested with the journal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_hpo.errors import StudyCorrupt, StudyError, StudyLocked
from lightning_hpo.runtime import database
from lightning_hpo.runtime.database import (
    FILE_NAME,
    LOCK_NAME,
    MARK_NAME,
    Lock,
    Mark,
    checksum,
    connect,
    connect_reader,
    new_file,
    unreadable,
)


@pytest.mark.parametrize("has_log", [False, True])
def test_a_study_is_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch, has_log: bool) -> None:
    """On a read-only disk, or in somebody else's folder; a launcher that was killed there has left its log."""
    with contextlib.closing(connect(tmp_path / FILE_NAME)) as writer:
        writer.execute("CREATE TABLE t (x)")
        writer.execute("INSERT INTO t VALUES (7)")
        if has_log:
            (tmp_path / "copy").mkdir()
            for path in tmp_path.glob(f"{FILE_NAME}*"):
                (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    folder = tmp_path / "copy" if has_log else tmp_path
    before = {path.name for path in folder.iterdir()}
    assert (f"{FILE_NAME}-wal" in before) == has_log
    monkeypatch.setattr(database.os, "access", lambda path, mode: mode != os.W_OK)
    with contextlib.closing(connect_reader(folder / FILE_NAME)) as reader:
        assert reader.execute("SELECT x FROM t").fetchall() == [(7,)]
        assert has_log or {path.name for path in folder.iterdir()} == before, "it tried to write"


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    problem = unreadable(tmp_path, sqlite3.OperationalError("unable to open database file"))
    assert not isinstance(problem, StudyCorrupt) and "Correct the permissions" in str(problem)


def test_a_mark_is_the_last_count_that_was_set(tmp_path: Path) -> None:
    assert Mark.read(tmp_path) == 0
    mark = Mark(tmp_path)
    for count in (7, 123456, 8):
        mark.set(count)
        assert Mark.read(tmp_path) == count
    mark.close()
    assert (tmp_path / MARK_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", range(10))
def test_a_damaged_mark_says_nothing_instead_of_something_wrong(tmp_path: Path, place: int) -> None:
    mark = Mark(tmp_path)
    mark.set(41)
    mark.close()
    content = bytearray((tmp_path / MARK_NAME).read_bytes())
    content[place] ^= 1
    (tmp_path / MARK_NAME).write_bytes(content)
    assert Mark.read(tmp_path) in (0, 41)


def test_a_mark_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    mark = Mark(tmp_path)
    mark.close()
    mark.set(3)
    assert Mark.read(tmp_path) == 0


def test_a_lock_names_its_holder_and_can_be_given_back(tmp_path: Path) -> None:
    assert Lock.holder(tmp_path) is None
    lock = Lock(tmp_path)
    assert "process" in (Lock.holder(tmp_path) or "")
    with pytest.raises(StudyLocked, match=r"worked on by process \d+ on .* since 20") as refused:
        Lock(tmp_path)
    assert str(refused.value).endswith(f"with: lightning-hpo status {tmp_path}")
    assert ", which is this very process. Call close() where it is open" in str(refused.value)
    lock.release()
    lock.release()
    assert Lock.holder(tmp_path) is None
    Lock(tmp_path).release()
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o600


def test_a_lock_goes_with_the_object_that_has_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert Lock.holder(tmp_path) is not None
    del lock
    assert Lock.holder(tmp_path) is None


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A process that does the work and ends; killed if it has not."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_forked_in_between_neither_gives_the_lock_back_nor_keeps_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with forked(lock.release) as child:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert Lock.holder(tmp_path) is not None
    with forked(signal.pause):
        lock.release()
        assert Lock.holder(tmp_path) is None


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        lock = Lock(tmp_path)
    with pytest.raises(StudyLocked):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_a_file_system_without_locks_is_named_and_not_taken_for_another_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    Lock(tmp_path).release()
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StudyError, match=r"has no locks \(No locks available\).* \(hydra\.sweep\.dir\)\.$") as refused:
        Lock(tmp_path)
    assert not isinstance(refused.value, StudyLocked)
    assert Lock.holder(tmp_path) is None


@contextlib.contextmanager
def looked_at(folder: Path) -> Iterator[None]:
    """Somebody has just found that nobody works on the study, and not let go of the lock yet."""
    fd = os.open(folder / LOCK_NAME, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(fd)


def test_who_looks_for_a_holder_does_not_make_a_launcher_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the moment is in which both meet: the reader lets go while the launcher waits."""
    Lock(tmp_path).release()
    waits = []
    with contextlib.ExitStack() as look:
        look.enter_context(looked_at(tmp_path))

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 20:
                look.close()

        monkeypatch.setattr(database.time, "sleep", wait)
        lock = Lock(tmp_path)
    assert len(waits) == 20 and max(waits) < 0.1
    assert f"process {os.getpid()} on" in (Lock.holder(tmp_path) or "")
    lock.release()


def test_launchers_start_beside_those_who_look_all_the_time(tmp_path: Path) -> None:
    Lock(tmp_path).release()
    looks, over = [0, 0], threading.Event()

    def look(number: int) -> None:
        while not over.is_set():
            Lock.holder(tmp_path)
            looks[number] += 1

    readers = [threading.Thread(target=look, args=(number,)) for number in range(len(looks))]
    for reader in readers:
        reader.start()
    try:
        for _ in range(300):
            Lock(tmp_path).release()
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert min(looks) > 0


def test_a_second_launcher_is_refused_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path)
    monkeypatch.setattr(database.time, "sleep", lambda _: pytest.fail("it waits for a launcher"))
    with pytest.raises(StudyLocked, match="worked on by process"):
        Lock(tmp_path)
    lock.release()


def test_a_reader_that_is_stopped_while_it_looks_is_not_taken_for_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lock(tmp_path).release()
    now = time.monotonic()
    monkeypatch.setattr(database.time, "monotonic", lambda: now)

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(database.time, "sleep", pass_by)
    with looked_at(tmp_path), pytest.raises(StudyLocked, match="nobody works on it") as refused:
        Lock(tmp_path)
    assert str(refused.value).endswith("End that program, or let it go on.")
    Lock(tmp_path).release()


def test_a_process_that_was_forked_during_a_look_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the file open as long as it lives, in which a lock stays if it was not given back."""
    Lock(tmp_path).release()
    inherited = []
    close = os.close
    monkeypatch.setattr(database.os, "close", lambda fd: (inherited.append(os.dup(fd)), close(fd)))
    assert Lock.holder(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(database, "_LOOKS_S", 0.0)
    Lock(tmp_path).release()
    for fd in inherited:
        os.close(fd)
    assert inherited


def test_the_checksum_is_crc_32() -> None:
    # The check value of CRC-32, of "123456789".
    assert checksum("123456789") == 0xCBF43926
    assert checksum(1, "a") != checksum("1a")


def test_a_new_file_is_for_its_owner_only_and_never_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "new").symlink_to(tmp_path / "precious")
    new_file(tmp_path / "new").close()
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "new").is_symlink()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_commits_survive_a_power_cut_and_readers_cannot_write(tmp_path: Path) -> None:
    writer = connect(tmp_path / FILE_NAME)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    writer.execute("CREATE TABLE t (x)")
    reader = connect_reader(tmp_path / FILE_NAME)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO t VALUES (1)")
    for connection in (writer, reader):
        assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
        connection.close()


def test_errors_say_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    locked = unreadable(tmp_path, sqlite3.OperationalError("database is locked"))
    forbidden = unreadable(tmp_path / "no", sqlite3.OperationalError("unable to open database file"))
    damaged = unreadable(tmp_path, sqlite3.DatabaseError("database disk image is malformed"))
    assert type(locked) is StudyError and "Close it there" in str(locked)
    assert type(forbidden) is StudyError and str(forbidden).endswith("Correct the permissions of its files.")
    assert type(damaged) is StudyCorrupt and "There is no backup" in str(damaged)
