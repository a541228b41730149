from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_hpo.core.events import WorkerReady
from lightning_hpo.runtime import database, filesystems
from lightning_hpo.runtime.filesystems import network_filesystem
from lightning_hpo.runtime.journal import Journal

MOUNTS = r"""
22 1 0:21 / / rw,relatime - ext4 disk1 rw
23 22 0:22 / /net rw,relatime shared:1 - nfs4 server:net rw,vers=4.2
24 23 0:23 / /net/fast rw - xfs disk2 rw
25 22 0:24 / /my\040data rw - lustre mgs@tcp:data rw
26 22 0:25 / /remote rw - fuse.sshfs someone@somewhere: rw
27 22 0:26 / /covered rw - nfs server:old rw
28 22 0:27 / /covered rw - tmpfs tmpfs rw
a line of another kernel
"""


@pytest.fixture
def mounts(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    return table


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/local/studies", None),
        ("/net/someone/studies", "nfs4"),
        ("/net", "nfs4"),
        ("/net/fast/studies", None),
        ("/network/someone", None),
        ("/my data/studies", "lustre"),
        ("/remote/x", "fuse.sshfs"),
        ("/covered/x", None),
    ],
)
def test_the_nearest_mount_decides(mounts, path, kind):
    assert network_filesystem(Path(path), mounts) == kind


def test_where_the_system_does_not_tell_nothing_is_assumed(tmp_path):
    assert network_filesystem(tmp_path, tmp_path / "nothing") is None


def test_the_temporary_folder_of_these_tests_is_read_from_the_real_table(tmp_path):
    assert network_filesystem(tmp_path) is None or isinstance(network_filesystem(tmp_path), str)


@pytest.mark.parametrize(("kind", "mode"), [(None, "wal"), ("nfs4", "delete")])
def test_a_journal_needs_no_shared_memory_on_a_network_file_system(tmp_path, monkeypatch, kind, mode):
    monkeypatch.setattr(database, "network_filesystem", lambda _: kind)
    with Journal.create(tmp_path, {"space": {}}) as journal:
        journal.append([WorkerReady(1.0)])
        with Journal.read(tmp_path) as reader:
            assert len(reader) == 1
        assert journal._connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert (tmp_path / "study.db-shm").exists() == (mode == "wal")
        journal.append([WorkerReady(2.0)])
    with Journal.open(tmp_path) as journal:
        assert [event.time for event in journal.events()] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("room", "says"),
    [
        ({}, None),
        ({"f_bavail": 200}, "the disk is full"),
        ({"f_favail": 10}, "the disk can take no more files"),
        ({"f_files": 0, "f_favail": 0}, None),  # does not count them
        ({"f_blocks": 0, "f_bavail": 0, "f_files": 0, "f_favail": 0}, None),  # tells nothing
    ],
)
@pytest.mark.parametrize("user", [0, 1000])
def test_whether_a_trial_has_room_is_told_for_who_asks(monkeypatch, room: dict[str, int], says: str | None, user: int):
    """What is kept for the superuser is no room for others."""
    whole = {"f_frsize": 4096, "f_blocks": 10**6, "f_bavail": 10_000, "f_files": 10_000, "f_favail": 10_000} | room
    whole |= {"f_bfree": whole["f_bavail"], "f_ffree": whole["f_favail"]}
    if user:
        whole |= {"f_bfree": 10**6, "f_ffree": 10**6}
    monkeypatch.setattr(filesystems.os, "statvfs", lambda path: SimpleNamespace(**whole))
    monkeypatch.setattr(filesystems.os, "geteuid", lambda: user)
    assert filesystems.shortage(Path("/study")) == says


def test_where_the_system_does_not_tell_there_is_room(tmp_path: Path) -> None:
    assert filesystems.shortage(tmp_path) is None
    assert filesystems.shortage(tmp_path / "missing") is None


def test_a_folder_whose_name_the_file_system_cannot_hold_is_found_out_before_it_is_made(tmp_path: Path) -> None:
    assert filesystems.name_too_long(tmp_path / "missing" / ("a" * 255)) is None
    assert "255 bytes" in str(filesystems.name_too_long(tmp_path / "missing" / ("a" * 256) / "b"))
    assert "255 bytes" in str(filesystems.name_too_long(tmp_path / ("ä" * 128)))
    assert "4096 bytes" in str(filesystems.name_too_long(tmp_path.joinpath(*["a" * 200] * 20)))
