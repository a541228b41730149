"""Methods of Lightning's Trainer replaced for a while, whatever the name under which a script knows it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def with_trainers(method: str, around: Callable[[Callable[..., None]], Callable[..., None]]) -> Iterator[None]:
    """While it lasts, a method of every Trainer class is another one.

    Args:
        method: its name.
        around: from the method to the one that takes its place.
    """
    with contextlib.ExitStack() as replaced:
        for trainer_class in _trainer_classes():
            original = getattr(trainer_class, method)
            setattr(trainer_class, method, functools.wraps(original)(around(original)))
            replaced.callback(setattr, trainer_class, method, original)
        yield


def _trainer_classes() -> Iterator[Any]:
    """The same Trainer has two names, one for each of the distributions it comes in."""
    import lightning.pytorch

    for module in (lightning.pytorch, sys.modules.get("pytorch_lightning")):
        if module is not None:
            yield module.Trainer
