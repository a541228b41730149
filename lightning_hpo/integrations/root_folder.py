"""A Trainer that is given no folder writes into the trial's.

Trials that run at the same time would otherwise delete each other's logs and checkpoints in the working folder.
Lightning reads a default from the environment, which also reaches the processes that it starts by itself, but only
where the argument is left out, and only for the class ``Trainer``. ``LightningCLI`` passes every argument, a
configuration may say ``null``, and a script may derive from ``Trainer``; these mean no folder as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT_VARIABLE = "PL_TRAINER_DEFAULT_ROOT_DIR"
"""Where Lightning takes a Trainer's ``default_root_dir`` from if the script does not pass one."""


@contextmanager
def trainers_write_in(folder: Path) -> Iterator[None]:
    """While it lasts, ``folder`` is the ``default_root_dir`` of Trainers that are given none, or the user's own default
    in :data:`ROOT_VARIABLE`, which is set to ``folder`` for good if it is not set."""
    root = os.environ.setdefault(ROOT_VARIABLE, str(folder))
    with contextlib.ExitStack() as defaults:
        for trainer_class in trainer_classes():
            defaults.enter_context(_with_default_root(trainer_class, root))
        yield


def trainer_classes() -> Iterator[Any]:
    """The same Trainer has two names, one for each of the distributions it comes in."""
    import lightning.pytorch

    for module in (lightning.pytorch, sys.modules.get("pytorch_lightning")):
        if module is not None:
            yield module.Trainer


@contextmanager
def _with_default_root(trainer_class: Any, root: str) -> Iterator[None]:
    init = trainer_class.__init__

    @functools.wraps(init)
    def init_with_root(trainer: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("default_root_dir") is None:
            kwargs["default_root_dir"] = root
        init(trainer, *args, **kwargs)

    trainer_class.__init__ = init_with_root
    try:
        yield
    finally:
        trainer_class.__init__ = init
