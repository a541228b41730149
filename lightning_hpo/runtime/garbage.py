"""Spares a program the time in which Python looks for garbage among what torch and Lightning made at import.

They leave some 400,000 objects that stay to the end. A collection of the oldest generation looks at each of them, which
takes a quarter of a second, and happens every now and then while more is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


def set_aside() -> None:
    """Exempt what exists now from collections, until the interpreter ends.

    At its end the interpreter collects twice; once is enough.
    """
    gc.freeze()
    atexit.register(_give_back)


def _give_back() -> None:
    gc.unfreeze()
    gc.disable()


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """For a stretch in which many objects are made that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
