"""What of a training's state is saved, and what may be unpickled when it is loaded.

``torch.load(weights_only=True)`` builds tensors, numbers, texts, lists and dictionaries and nothing else. Unpickling,
which all other objects need, executes what the file says.
"""

from __future__ import annotations

import io
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_hpo.errors import CheckpointError
from lightning_hpo.integrations.lightning_internals import FORCE_WEIGHTS_ONLY
from lightning_hpo.runtime.checkpoints import Written, write_durably

_HYPERPARAMETERS = tuple(
    key
    for owner in (LightningModule, LightningDataModule)
    for key in (owner.CHECKPOINT_HYPER_PARAMS_KEY, owner.CHECKPOINT_HYPER_PARAMS_TYPE)
)
_NOT_PICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
_STATES = (
    "the state_dict() of modules, data modules, callbacks, optimizers and schedulers (that of a scheduler of torch "
    "holds all its attributes, unless its class defines it)"
)
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def without_odd_hyperparameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint without hyperparameters that need pickle, such as a DictConfig, or cannot be pickled at all.

    Going on does not need them: the script passes them again.
    """
    odd = [key for key in _HYPERPARAMETERS if key in checkpoint and not _is_plain(checkpoint[key])]
    return {key: value for key, value in checkpoint.items() if key not in odd}


def _is_plain(value: Any) -> bool:
    """Whether it can be saved, and loaded again without unpickling."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # whatever a user's object raises when it is pickled
        return False
    return True


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> Written:
    """Write it so that ``path`` never holds half of it; see :func:`~lightning_hpo.runtime.checkpoints.write_durably`.

    Raises:
        CheckpointError: if it cannot be written or pickled.
    """
    try:
        return write_durably(path, lambda file: torch.save(checkpoint, file))
    except _NOT_PICKLABLE as problem:
        raise CheckpointError(
            f"The trial's state cannot be saved: {problem}. "
            f"Keep objects that cannot be pickled, such as a lambda, out of {_STATES}."
        ) from problem


def check_unpicklable(path: Path) -> None:
    """Refuse to unpickle what somebody else may have written.

    Raises:
        CheckpointError: if the file or its folder belongs to another user or can be written by others, or if torch was
            told never to unpickle.
    """
    if os.environ.get(FORCE_WEIGHTS_ONLY, "0").lower() in ("1", "y", "yes", "true"):
        reason = f"{FORCE_WEIGHTS_ONLY} is set"
    else:
        states = (path.stat(), path.parent.stat())
        if all(state.st_uid == os.geteuid() and not state.st_mode & _OTHERS_MAY_WRITE for state in states):
            return
        reason = "others than you may have written it"
    raise CheckpointError(
        f"The checkpoint {path} holds objects that only pickle can load, and it is not unpickled because {reason}. "
        f"Keep only tensors, numbers, texts, lists and dictionaries in {_STATES}, "
        "or let the trial start again from the beginning."
    )
