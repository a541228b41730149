"""Checkpoints: whole or absent."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime import checkpoints
from lightning_hpo.runtime.checkpoints import (
    checkpoint_path,
    measure,
    publish,
    temporary_path,
    verify,
    write_durably,
)


def zip_bytes(content: bytes = b"weights") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data.pkl"), content)  # without the time of writing
    return buffer.getvalue()


def write(path: Path, data: bytes) -> checkpoints.Written:
    return write_durably(path, lambda file: file.write(data))  # type: ignore[arg-type, return-value]


def test_what_is_written_is_what_is_recorded(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "3", 9)
    data = zip_bytes()
    written = write(path, data)
    assert path == tmp_path / "3" / "checkpoints" / "resource-9.ckpt"
    assert path.read_bytes() == data
    assert (written.size, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [entry.name for entry in path.parent.iterdir()] == ["resource-9.ckpt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    verify(path, written.sha256)


@pytest.mark.parametrize(
    "broken",
    [b"", b"not a zip", zip_bytes()[:-1], zip_bytes()[: len(zip_bytes()) // 2]],
    ids=["empty", "not a zip", "last byte missing", "half"],
)
def test_a_broken_file_never_replaces_a_good_one(tmp_path: Path, broken: bytes) -> None:
    path = checkpoint_path(tmp_path, 9)
    write(path, zip_bytes(b"good"))
    with pytest.raises(CheckpointError, match=r"\.$"):
        write(path, broken)
    assert path.read_bytes() == zip_bytes(b"good")
    assert len(list(path.parent.iterdir())) == 1


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def raising(file: Any) -> None:
        file.write(zip_bytes()[:10])
        raise RuntimeError("interrupted")

    path = checkpoint_path(tmp_path, 9)
    with pytest.raises(RuntimeError, match="interrupted"):
        write_durably(path, raising)
    assert list(path.parent.iterdir()) == []


class FullDisk:
    """A file on a disk that has room for ``room`` bytes."""

    def __init__(self, file: Any, room: int, code: int) -> None:
        self._file, self._room, self._code = file, room, code

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(self._code, os.strerror(self._code))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = checkpoint_path(tmp_path, 9)
    write(path, zip_bytes(b"good"))
    fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda fd, mode: FullDisk(fdopen(fd, mode), 3_000_000, code))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage(9_000_000, 6_000_000, 3_000_000))

    def writing(file: Any) -> None:
        for _ in range(10):
            file.write(b"x" * 1_000_000)
        file.flush()

    with pytest.raises(CheckpointError) as caught:
        write_durably(path, writing)
    message = str(caught.value)
    assert str(path) in message
    assert "needs 10.0 MB, free are 3.0 MB, missing are 7.0 MB" in message
    assert message.endswith("hydra.launcher.max_disk.")
    monkeypatch.undo()
    assert path.read_bytes() == zip_bytes(b"good")
    assert len(list(path.parent.iterdir())) == 1


def test_a_failing_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda fd, mode: FullDisk(fdopen(fd, mode), 0, errno.EIO))
    with pytest.raises(CheckpointError, match=r"cannot be written: Input/output error\. Make"):
        write(checkpoint_path(tmp_path, 1), zip_bytes())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error_not_silence(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write(folder / "resource-1.ckpt", zip_bytes())


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(checkpoint_path(tmp_path, 1), zip_bytes())


def test_every_truncation_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    data = zip_bytes(bytes(range(256)) * 4)
    sha256 = write(path, data).sha256
    for sixteenth in range(16):
        path.write_bytes(data[: len(data) * sixteenth // 16])
        with pytest.raises(CheckpointError, match="not the one that was saved"):
            verify(path, sha256)
        flipped = bytearray(data)
        flipped[len(data) * sixteenth // 16] ^= 0x01
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="not the one that was saved"):
            verify(path, sha256)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify(path, sha256)


def test_a_folder_of_shards_is_published_and_verified_as_one(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    for content in (b"old", b"new"):
        temporary = temporary_path(path)
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "shard-0").write_bytes(content)
        (temporary / "meta").write_bytes(b"12345")
        written = publish(temporary, path)
    assert written.size == 3 + 5
    assert (path / "inner" / "shard-0").read_bytes() == b"new"
    verify(path, written.sha256)
    (path / "inner" / "shard-0").write_bytes(b"bad")
    with pytest.raises(CheckpointError):
        verify(path, written.sha256)


def test_the_old_shards_stay_until_the_new_ones_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint_path(tmp_path, 3)
    (path / "inner").mkdir(parents=True)
    (path / "old").touch()
    temporary = temporary_path(path)
    temporary.mkdir()
    (temporary / "new").touch()
    replace = os.replace
    seen: list[list[str]] = []

    def watched(source: Path, target: Path) -> None:
        seen.append(sorted(file.name for file in path.parent.rglob("*") if file.is_file()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    publish(temporary, path)
    assert seen == [["new", "old"]]
    assert sorted(file.name for file in path.parent.rglob("*")) == ["new", "resource-3.ckpt"]


def test_nothing_is_written_or_deleted_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "resource-3.ckpt").mkdir(parents=True)
    (outside / "resource-3.ckpt" / "precious").touch()
    (tmp_path / "checkpoints").symlink_to(outside)
    path = checkpoint_path(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"symbolic link, .* hydra\.sweep\.dir"):
        write(checkpoint_path(tmp_path, 1), zip_bytes())
    temporary = temporary_path(path)
    temporary.mkdir()
    with pytest.raises(CheckpointError, match="symbolic link"):
        publish(temporary, path)
    assert (outside / "resource-3.ckpt" / "precious").exists()
    assert not (outside / "resource-1.ckpt").exists()


def test_publishing_nothing_is_an_error(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    with pytest.raises(CheckpointError, match="nothing was written"):
        publish(temporary_path(path), path)


def test_the_hash_of_a_file_is_plain_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert measure(tmp_path / "abc").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
