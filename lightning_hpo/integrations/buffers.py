"""Buffers of a module that Lightning's checkpoint does not hold, or holds for one rank only.

Buffers that are not persistent are in no ``state_dict``; most are tables that the script makes again, some are changed
in training. And Lightning writes those of rank 0, while ranks whose buffers are not kept equal (running statistics with
``broadcast_buffers=False``, say) each have their own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Digests = dict[str, str]


def digests(module: nn.Module, *, persistent_too: bool) -> Digests:
    """Name of a buffer -> digest of its values."""
    unsaved = _not_persistent(module)
    return {name: _digest(buffer) for name, buffer in module.named_buffers() if persistent_too or name in unsaved}


def unsaved_buffers(
    module: nn.Module, at_start: Mapping[str, str], on_rank_zero: Mapping[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """Copies of what a checkpoint lacks.

    Args:
        at_start: digests of those that are not persistent, before the training.
        on_rank_zero: digests of all of them there; None: this is the only rank.
    """
    unsaved = _not_persistent(module)

    def is_lacking(name: str, buffer: torch.Tensor) -> bool:
        if name not in unsaved and on_rank_zero is None:
            return False
        now = _digest(buffer)
        if name in unsaved and now != at_start.get(name):
            return True
        return on_rank_zero is not None and now != on_rank_zero.get(name)

    return {
        name: buffer.detach().to("cpu", copy=True)
        for name, buffer in module.named_buffers()
        if is_lacking(name, buffer)
    }


def restore_buffers(module: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    """Those that the module still has."""
    for name, owner, attribute in _places(module):
        if name in saved:
            buffer = owner._buffers[attribute]
            if buffer is not None and buffer.shape == saved[name].shape and buffer.layout is torch.strided:
                buffer.detach().copy_(saved[name])  # in place: others may refer to it
            else:
                setattr(owner, attribute, saved[name].to(_device(buffer, module)))


def make_room_when_loaded(module: nn.Module) -> None:
    """Let the next ``load_state_dict`` find buffers of the shapes that it brings.

    Those that training sets or lets grow are None, or smaller, in a module that was just made, and torch would refuse.
    """

    def make_room(state: Mapping[str, torch.Tensor], *_: Any) -> None:
        hook.remove()
        for name, owner, attribute in _places(module):
            buffer = owner._buffers[attribute]
            # A lazy buffer finds its shape by itself.
            if name in state and not is_lazy(buffer) and (buffer is None or buffer.shape != state[name].shape):
                setattr(owner, attribute, torch.empty_like(state[name], device=_device(buffer, module)))

    hook = module._register_load_state_dict_pre_hook(make_room)


def _places(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Of each buffer, also if it is None: its name, the submodule it belongs to, its name there."""
    return [
        (f"{prefix}.{attribute}" if prefix else attribute, inner, attribute)
        for prefix, inner in module.named_modules()
        for attribute in inner._buffers
    ]


def _not_persistent(module: nn.Module) -> set[str]:
    return {name for name, owner, attribute in _places(module) if attribute in owner._non_persistent_buffers_set}


def _device(buffer: torch.Tensor | None, module: nn.Module) -> torch.device | None:
    """That of the buffer, or else of the module. None: the module has no parameters."""
    found = next(module.parameters(), None) if buffer is None else buffer
    return None if found is None else found.device


def _digest(buffer: torch.Tensor) -> str:
    """Of its values, shape and kind, whatever its layout: as it would be written."""
    digest = hashlib.sha256()
    torch.save(buffer.detach().to("cpu", copy=True), _Writing(digest.update))
    return digest.hexdigest()


class _Writing(io.RawIOBase):
    """A file that hands on what is written to it."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take

    def write(self, data: Any) -> int:
        self._take(data)
        return len(data)
