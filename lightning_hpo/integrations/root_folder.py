"""A Trainer that is given no folder writes into the trial's.

Trials that run at the same time would otherwise delete each other's logs and checkpoints in the working folder.
Lightning reads a default from the environment, which also reaches the processes that it starts by itself, but only
where the argument is left out, and only for the class ``Trainer``. ``LightningCLI`` passes every argument, a
configuration may say ``null``, and a script may derive from ``Trainer``; these mean no folder as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning_hpo.integrations.trainer_classes import with_trainers

ROOT_VARIABLE = "PL_TRAINER_DEFAULT_ROOT_DIR"
"""Where Lightning takes a Trainer's ``default_root_dir`` from if the script does not pass one."""


def trainers_write_in(folder: Path) -> AbstractContextManager[None]:
    """While it lasts, ``folder`` is the ``default_root_dir`` of Trainers that are given none, or the user's own default
    in :data:`ROOT_VARIABLE`, which is set to ``folder`` for good if it is not set."""
    root = os.environ.setdefault(ROOT_VARIABLE, str(folder))

    def with_default_root(init: Callable[..., None]) -> Callable[..., None]:
        def init_with_root(trainer: Any, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("default_root_dir") is None:
                kwargs["default_root_dir"] = root
            init(trainer, *args, **kwargs)

        return init_with_root

    return with_trainers("__init__", with_default_root)
