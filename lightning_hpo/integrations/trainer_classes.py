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


def refuse_trainers(error: Callable[[], BaseException]) -> None:
    """From here on no Trainer of this process fits, validates, tests or predicts: it raises ``error()``. So it is until
    the end of what is inside :func:`refusals_end_here`."""

    def refusing(_: Callable[..., None]) -> Callable[..., None]:
        def refused(*_: Any, **__: Any) -> None:
            raise error()

        return refused

    for method in ("fit", "validate", "test", "predict"):
        _refusals.enter_context(with_trainers(method, refusing))


@contextmanager
def refusals_end_here() -> Iterator[None]:
    """See :func:`refuse_trainers`."""
    with _refusals:
        yield


_refusals = contextlib.ExitStack()


def _trainer_classes() -> Iterator[Any]:
    """The same Trainer has two names, one for each of the distributions it comes in."""
    import lightning.pytorch

    for module in (lightning.pytorch, sys.modules.get("pytorch_lightning")):
        if module is not None:
            yield module.Trainer
