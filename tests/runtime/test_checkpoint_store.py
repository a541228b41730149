"""The store of checkpoints: who may go, and that nothing outside the study folder ever does."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.checkpoints import checkpoint_path, temporary_path, verify
from tests.runtime.test_checkpoints import write, zip_bytes


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


@settings(max_examples=100)
@given(odd_names)
def test_sweeping_odd_folders_deletes_nothing_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.getbasetemp() / "swept"
    study = root / "study"
    precious = [root / "outside" / "checkpoints" / "resource-3.ckpt", root / "checkpoints" / "resource-3.ckpt"]
    for path in precious:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    study.mkdir(exist_ok=True)
    if not (study / "0").is_symlink():
        (study / "0").symlink_to(root / "outside")
    with contextlib.suppress(CheckpointError, ValueError, OSError):  # no file system has such names
        CheckpointStore(study).sweep([study.joinpath(*names)], [])
    assert all(path.exists() for path in precious)


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


@pytest.mark.parametrize("names_folders", ["by the link", "by what it points to"])
def test_a_study_that_is_reached_by_a_symbolic_link_is_swept_too(tmp_path: Path, names_folders: str) -> None:
    real, link = tmp_path / "scratch" / "runs", tmp_path / "runs"
    real.mkdir(parents=True)
    link.symlink_to(real)
    store = CheckpointStore(link / "study")
    kept, stray = saved(real / "study", "0", 3), saved(real / "study", "0", 9)
    assert store.sweep([(link if names_folders == "by the link" else real) / "study" / "0"], [kept]) == [stray.path]


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
