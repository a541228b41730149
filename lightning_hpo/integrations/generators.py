"""Random generators that objects keep for themselves, each by the path of attributes that leads to it.

A new process makes the same objects again, so that the same path leads to the generator that corresponds. Attributes
are read as they are stored: no property is called, nothing of the user's is executed.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import deque
from collections.abc import Iterator
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data.dataloader import _BaseDataLoaderIter

Generator: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | random.Random"

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CONTAINERS = (list, tuple, dict)
_MOST_ITEMS = 1000
"""A longer one holds data."""
_MOST_OBJECTS = 10_000
"""Of one owner; those near to it come first."""
_DATA = (torch.Tensor, np.ndarray, str, bytes, int, float, complex, type(None))
_LEAD_NOWHERE = (*_DATA, type, ModuleType, FunctionType, Trainer, _BaseDataLoaderIter)
"""What a Trainer or an iterator leads to is found from its owner, if at all."""


def generators_of(owner: Any, path: str = "") -> dict[str, Generator]:
    """Path, beginning with ``path`` -> generator, of the owner and of all that it holds.

    It looks into attributes, lists, tuples and dictionaries, what a ``functools.partial`` was given and the object of a
    bound method. A generator that is held twice has two paths.
    """
    found: dict[str, Generator] = {}
    seen = {id(owner)}
    waiting = deque([(path, owner)])
    while waiting and len(seen) <= _MOST_OBJECTS:
        path, holder = waiting.popleft()
        for step, value in _held_by(holder):
            if _is_one_of(_GENERATORS, value) and not _is_one_of((random.SystemRandom,), value):
                found[path + step] = value
            elif id(value) not in seen and _may_hold_some(value):
                seen.add(id(value))
                waiting.append((path + step, value))
    return found


def _may_hold_some(value: Any) -> bool:
    if _is_one_of(_CONTAINERS, value):
        return 0 < len(value) <= _MOST_ITEMS
    # Our own callbacks lead to states that were restored.
    return not _is_one_of(_LEAD_NOWHERE, value) and not type(value).__module__.startswith("lightning_hpo.")


def _held_by(holder: Any) -> Iterator[tuple[str, Any]]:
    if _is_one_of(_CONTAINERS, holder):
        items = list(holder.items() if isinstance(holder, dict) else enumerate(holder))
        yield from ((f"[{key!r}]", value) for key, value in items if _is_one_of((str, int), key))
    elif _is_one_of((functools.partial,), holder):
        yield from ((".args", holder.args), (".keywords", holder.keywords))
    elif _is_one_of((MethodType,), holder):
        yield ".__self__", holder.__self__
    else:
        yield from ((f".{name}", value) for name, value in _attributes(holder).items())


def _is_one_of(kinds: tuple[type, ...], value: Any) -> bool:
    """``isinstance`` would ask the object itself too, which may be a proxy that answers with an error."""
    return issubclass(type(value), kinds)


def _attributes(holder: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(AttributeError):
        found |= object.__getattribute__(holder, "__dict__")
    for kind in type(holder).__mro__:
        for name, slot in vars(kind).items() if "__slots__" in vars(kind) else ():
            if isinstance(slot, MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    found[name] = slot.__get__(holder)
    return found
