"""Random generators that objects keep for themselves, each by the path of attributes that leads to it.

A new process makes the same objects again, so that the same path leads to the generator that corresponds. Attributes
and items are read as they are stored: no property or method of the user's is called, which might open a file.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data.dataloader import _BaseDataLoaderIter

Generator: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | random.Random"

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CONTAINERS: tuple[type, ...] = (list, tuple, dict)
_MOST_ITEMS = 1000
"""A longer one holds data."""
_MOST_OBJECTS = 10_000
"""Of one owner; those near to it come first."""
_STORED = (MemberDescriptorType, GetSetDescriptorType)
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
            if _is_one_of(_GENERATORS, value):
                if _has_state(value):
                    found[path + step] = value
            elif id(value) not in seen and _may_hold_some(value):
                seen.add(id(value))
                waiting.append((path + step, value))
    return found


def _has_state(generator: Any) -> bool:
    """Whether one knows what its state is made of: that of the system has none, others may have one of their own."""
    return not _is_one_of((random.Random,), generator) or type(generator).getstate is random.Random.getstate


def _may_hold_some(value: Any) -> bool:
    if (kind := _container(value)) is not None:
        return 0 < kind.__len__(value) <= _MOST_ITEMS
    # Our own callbacks lead to states that were restored.
    return not _is_one_of(_LEAD_NOWHERE, value) and not type(value).__module__.startswith("lightning_hpo.")


def _held_by(holder: Any) -> Iterator[tuple[str, Any]]:
    if (kind := _container(holder)) is not None:
        items = list(dict.items(holder) if kind is dict else enumerate(kind.__iter__(holder)))
        yield from ((f"[{key!r}]", value) for key, value in items if _is_one_of((str, int), key))
    elif _is_one_of((functools.partial,), holder):
        yield from ((".args", holder.args), (".keywords", holder.keywords))
    elif _is_one_of((MethodType,), holder):
        yield ".__self__", holder.__self__
    else:
        yield from ((f".{name}", value) for name, value in _attributes(holder).items())


def _container(value: Any) -> Any:
    """The kind of container that it is, whose own methods read what is stored: a list of the user's may fetch it."""
    return next((kind for kind in _CONTAINERS if issubclass(type(value), kind)), None)


def _is_one_of(kinds: tuple[type, ...], value: Any) -> bool:
    """``isinstance`` would ask the object itself too, which may be a proxy that answers with an error."""
    return issubclass(type(value), kinds)


def _attributes(holder: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, slot in _slots(type(holder)):
        try:
            value = slot.__get__(holder)
        except Exception:  # a slot that is empty, or a proxy that stands for nothing yet
            continue
        if name == "__dict__":
            found |= value if type(value) is dict else {}
        else:
            found[name] = value
    return found


@functools.lru_cache(maxsize=10_000)
def _slots(kind: type) -> list[tuple[str, Any]]:
    """Where instances of a class store their attributes. A ``__dict__`` that is computed is no such place."""
    bases = [vars(base) for base in kind.__mro__]
    slots = [item for base in bases if "__slots__" in base for item in base.items()]
    stores = [("__dict__", base["__dict__"]) for base in bases if "__dict__" in base][:1]
    return [(name, slot) for name, slot in (*stores, *slots) if isinstance(slot, _STORED)]
