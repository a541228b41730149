from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo.core.events import WorkerReady
from lightning_hpo.runtime import database
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
