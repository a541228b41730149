"""Checkpoints: whole or absent, never deleted outside the study folder."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime import checkpoints
from lightning_hpo.runtime.checkpoints import (
    CheckpointStore,
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


# ------------------------------------------------------------------------------------------- store


def saved(study: Path, trial: str, resource: int, content: bytes = b"weights") -> Checkpoint:
    written = write(checkpoint_path(study / trial, resource), zip_bytes(content))
    return Checkpoint(resource, f"{trial}/checkpoints/resource-{resource}.ckpt", written.sha256, written.size)


def test_a_trial_announces_paths_relative_to_its_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    announced = Checkpoint(3, "checkpoints/resource-3.ckpt", "ab", 5)
    assert store.relative(tmp_path / "jobs" / "7", announced).path == "jobs/7/checkpoints/resource-3.ckpt"
    with pytest.raises(CheckpointError, match="not inside the study folder"):
        store.relative(tmp_path.parent / "elsewhere", announced)


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    checkpoint = saved(tmp_path, "0", 3)
    assert store.remove(checkpoint) is True
    assert store.remove(checkpoint) is False


def test_a_folder_of_shards_is_removed_but_not_through_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    study = tmp_path / "study"
    shards = checkpoint_path(study / "0", 3)
    (shards / "inner").mkdir(parents=True)
    (shards / "inner" / "shard").touch()
    store = CheckpointStore(study)
    assert store.remove(Checkpoint(3, "0/checkpoints/resource-3.ckpt", "", 1))
    assert not shards.exists()
    shards.mkdir()
    (shards / "link").symlink_to(outside)
    with pytest.raises(CheckpointError, match="symbolic link"):
        store.remove(Checkpoint(3, "0/checkpoints/resource-3.ckpt", "", 1))
    assert (outside / "precious").exists()


@pytest.mark.parametrize("link", ["0", "0/checkpoints", "0/checkpoints/resource-3.ckpt"])
def test_links_are_never_followed_to_delete(tmp_path: Path, link: str) -> None:
    study, outside = tmp_path / "study", tmp_path / "outside"
    study.mkdir()
    saved(outside, "0", 3)
    path = study / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / link)
    store = CheckpointStore(study)
    with pytest.raises(CheckpointError, match=r"Replace symbolic links .*\.$"):
        store.remove(Checkpoint(3, "0/checkpoints/resource-3.ckpt", "", 1))
    store.sweep([study / "0"], [])
    assert checkpoint_path(outside / "0", 3).exists()


@pytest.mark.parametrize(
    "path",
    ["study.db", "0/trial.log", "0/.hydra", "0/checkpoints", "0/checkpoints/last.ckpt", "0/resource-3.ckpt",
     "0/checkpoints/resource-3.ckpt/inner", "0/checkpoints/resource-3.ckpt.old", "resource-3.ckpt",
     "0/checkpoints/resource-3.ckpt\n"],
)  # fmt: skip
def test_nothing_but_checkpoints_is_deleted(tmp_path: Path, path: str) -> None:
    """Whatever a trial has announced, or a journal from elsewhere says."""
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(CheckpointError, match=r"not the path of a checkpoint .*\.$"):
        CheckpointStore(tmp_path).remove(Checkpoint(3, path, "", 1))
    assert file.exists()


odd_names = st.lists(
    st.sampled_from(
        ["..", ".", "", "a", "0", "checkpoints", "outside", "~", "*", "a b", "é", "\n", "x" * 300, "\0", "\\", "\ud800"]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200)
@given(odd_names, st.booleans())
def test_no_name_deletes_anything_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], absolute: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "odd"
    study, outside = root / "study", root / "outside"
    (study / "a").mkdir(parents=True, exist_ok=True)
    (outside / "a").mkdir(parents=True, exist_ok=True)
    precious = [outside / "a" / "0", root / "0", root / "a"]
    for path in precious:
        path.touch()
    if not (study / "0").is_symlink():
        (study / "0").symlink_to(outside)
    path = ("/" if absolute else "") + "/".join(names)
    try:
        CheckpointStore(study).remove(Checkpoint(1, path, "", 1))
    except CheckpointError as problem:
        assert str(problem).endswith(".")
    assert all(path.exists() for path in precious)
    assert study.is_dir()


def test_sweeping_deletes_strays_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    kept, stray = saved(tmp_path, "0", 3), saved(tmp_path, "0", 9)
    temporary = temporary_path(checkpoint_path(tmp_path / "0", 27))
    temporary.write_bytes(b"half")
    users = [tmp_path / "0" / "checkpoints" / name for name in ("last.ckpt", "epoch=3.ckpt", ".hidden.partial")]
    for path in [*users, tmp_path / "0" / "resource-5.ckpt"]:
        path.touch()
    deleted = store.sweep([tmp_path / "0", tmp_path / "1"], [kept])
    assert sorted(deleted) == sorted([stray.path, f"0/checkpoints/{temporary.name}"])
    verify(store.path(kept), kept.sha256)
    assert all(path.exists() for path in users)
    assert (tmp_path / "0" / "resource-5.ckpt").exists()


def test_the_least_promising_leave_first() -> None:
    def checkpoint(size: int) -> Checkpoint:
        return Checkpoint(1, "x", "", size)

    paused = {1: checkpoint(100), 2: checkpoint(100), 3: checkpoint(100), 4: checkpoint(50)}
    promise = {1: 0.9, 2: float("nan"), 3: 0.2, 4: 0.2}
    unlimited = CheckpointStore(Path("/study"))
    assert unlimited.over_budget(paused, promise.__getitem__) == []
    at = [
        CheckpointStore(Path("/study"), limit).over_budget(paused, promise.__getitem__)
        for limit in (350, 349, 250, 249, 100, 0)
    ]
    assert at == [[], [2], [2], [2, 3], [2, 3, 4], [2, 3, 4, 1]]
    assert CheckpointStore(Path("/study"), 350).over_budget(paused, promise.__getitem__, used=1) == [2]


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 1000), max_size=20), st.integers(0, 5000))
def test_the_budget_is_kept_and_nobody_leaves_in_vain(sizes: dict[int, int], limit: int) -> None:
    paused = {trial: Checkpoint(1, "x", "", size) for trial, size in sizes.items()}
    leaving = CheckpointStore(Path("/study"), limit).over_budget(paused, lambda trial: float(trial))
    left = sum(sizes.values()) - sum(sizes[trial] for trial in leaving)
    assert left <= limit
    assert leaving == sorted(sizes)[: len(leaving)]
    assert not leaving or left + sizes[leaving[-1]] > limit


def test_the_hash_of_a_file_is_plain_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert measure(tmp_path / "abc").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
