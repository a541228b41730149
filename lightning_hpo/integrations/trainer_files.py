"""The files that a Trainer's loggers and its ``ModelCheckpoint`` write: where, and what a pause keeps of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

_LAST_SAVED = "_last_checkpoint_saved"
_NOT_IN_ITS_STATE = (_LAST_SAVED, "_last_global_step_saved", "_defer_save_until_validation")
"""Attributes of ``ModelCheckpoint`` that decide what it saves, and that Lightning does not save."""


def folders_now(trial: Path) -> tuple[str, str]:
    """The trial's folder and the working folder: what the paths in a checkpoint mean depends on both."""
    try:
        working = os.getcwd()
    except OSError:  # it was deleted, and no relative path means anything
        working = str(trial.resolve())
    return str(trial.resolve()), working


def keep_checkpoint_folders(
    trainer: Trainer,
    checkpoint: dict[str, Any],
    within: Path,
    then: Sequence[str] | None,
    saving: Mapping[str, Mapping[str, Any]] | None,
) -> None:
    """Call in ``on_load_checkpoint``: lets every ``ModelCheckpoint`` go on with its files of the earlier attempts.

    By default it writes where the logger does, which has another version for every attempt. It forgets which of its
    files are the best, and never deletes them, if its folder differs from the one it had. So it gets that folder again
    if it lies in ``within``. Elsewhere nothing is written because of us: there it goes on in its new folder, and knows
    the files in the old one as long as the best of them is there.

    Args:
        within: the trial's folder.
        then: :func:`folders_now` when the checkpoint was written; None: as they are now.
        saving: :func:`saving_state` when the checkpoint was written; None: unknown.
    """
    now = folders_now(within)
    states = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not state or state.get("dirpath") is None:
            continue
        _read_paths(state, then or now, now)
        best = state.get("best_model_path")
        if _lies_in(state["dirpath"], within):
            callback.dirpath = state["dirpath"]
        elif not best or _is_remote(best) or os.path.exists(best):
            state["dirpath"] = callback.dirpath
        remembered = dict((saving or {}).get(callback.state_key, {}))
        _read_paths(remembered, then or now, now)
        for name, value in remembered.items():
            is_gone = name == _LAST_SAVED and not _is_remote(value) and not os.path.exists(value)
            setattr(callback, name, "" if is_gone else value)


def saving_state(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """What every ``ModelCheckpoint`` goes by when it saves, beside its own state, by its key."""
    return {
        callback.state_key: {name: getattr(callback, name) for name in _NOT_IN_ITS_STATE if hasattr(callback, name)}
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint)
    }


def keep_last_as_it_is(trainer: Trainer) -> None:
    """Call at a pause, before other callbacks are told that the training ends, after :func:`saving_state`.

    A ``ModelCheckpoint(save_last=True)`` that has saved nothing yet would do it then. The training does not end, and a
    later attempt would find the file, think it another run's, and number its own.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            setattr(callback, _LAST_SAVED, getattr(callback, _LAST_SAVED, "") or "not now")


def files_of_checkpoint_callbacks(trainer: Trainer, within: Path) -> list[str]:
    """What lies in those folders of every ``ModelCheckpoint`` that are in the trial's, as seen from the trial's."""
    dirs = {c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath is not None}
    places = (Path(folder).resolve() for folder in dirs if _lies_in(folder, within))
    return sorted({str(file.relative_to(within.resolve())) for place in places for file in place.rglob("*")})


def replace_files_of_lost_attempts(trainer: Trainer, within: Path, kept: Sequence[str]) -> None:
    """Let every ``ModelCheckpoint`` write its files where an attempt that was lost has written the same ones.

    It would take them for another run's and number its own, so that its best is called ``epoch=3-step=24-v1.ckpt``. No
    file is deleted. All ranks must call it, when the folders are known and before anything is saved.

    Args:
        within: the trial's folder. In others files of other trials may have come.
        kept: :func:`files_of_checkpoint_callbacks` when the checkpoint was written; empty if the trial begins again.
    """
    lost = set(files_of_checkpoint_callbacks(trainer, within)) - set(kept)
    # They share what they leave to each other: a name that one of them has taken in this attempt is taken.
    places = {str(within.resolve() / file) for file in trainer.strategy.broadcast(sorted(lost))}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.file_exists = _without(places, callback.file_exists)  # type: ignore[method-assign]


def _without(places: set[str], exists: Callable[[Any, Trainer], bool]) -> Callable[[Any, Trainer], bool]:
    """``ModelCheckpoint.file_exists``, to which files in ``places`` are not there until it was asked, and has saved."""

    def file_exists(filepath: Any, trainer: Trainer) -> bool:
        place = os.path.realpath(filepath)
        if place in places:
            places.discard(place)
            return False
        return exists(filepath, trainer)

    return file_exists


def _read_paths(state: dict[str, Any], then: Sequence[str], now: Sequence[str]) -> None:
    """Let the paths in the state of a ``ModelCheckpoint`` name the files that they named when it was saved.

    A study may be continued in another working folder, and its folder may have been moved.
    """

    def read(path: Any) -> Any:
        if not path or _is_remote(path):
            return path
        place = Path(then[1], path)
        if Path(then[0]) in place.parents:
            place = now[0] / place.relative_to(then[0])
        return path if place == Path(now[1], path) else str(place)

    for name in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path", _LAST_SAVED):
        if name in state:
            state[name] = read(state[name])
    if "best_k_models" in state:
        state["best_k_models"] = {read(path): score for path, score in state["best_k_models"].items()}


def places_outside(trainer: Trainer, within: Path) -> dict[str, str]:
    """Folders outside of ``within`` where the Trainer makes files whose names other trainings may choose too.

    A logger of files numbers its versions by looking which are there; two that begin at the same time find the same.
    Loggers of services name each run by themselves.

    Returns:
        Folder -> class of the logger or callback that writes there.
    """
    writers: list[tuple[Any, str]] = []
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            is_named = isinstance(logger.version, str)
            writers.append((logger.log_dir if is_named else logger.root_dir, type(logger).__name__))
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            writers.append((callback.dirpath, type(callback).__name__))
    found: dict[str, str] = {}
    for folder, name in writers:
        place = str(folder) if _is_remote(folder) else os.path.realpath(folder)
        is_inside = _lies_in(place, within) or Path(place) == within.resolve()
        if not is_inside and not any(Path(other) in Path(place).parents for other in found):
            found.setdefault(place, name)
    return found


def _lies_in(folder: Any, outer: Path) -> bool:
    """Whether it lies there really: a symbolic link may lead out."""
    return not _is_remote(folder) and outer.resolve() in Path(folder).resolve().parents


def _is_remote(path: Any) -> bool:
    return "://" in str(path)
