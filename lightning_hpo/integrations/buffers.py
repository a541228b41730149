"""Buffers of a module that Lightning's checkpoint does not hold, or holds for one rank only.

Buffers that are not persistent are in no ``state_dict``; most are tables that the script makes again, some are changed
in training. And Lightning writes those of rank 0, while ranks whose buffers are not kept equal (running statistics with
``broadcast_buffers=False``, say) each have their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

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
    for name, buffer in list(module.named_buffers()):
        if name in saved:
            owner, _, attribute = name.rpartition(".")
            value = saved[name].to(buffer.device)
            if value.shape == buffer.shape:
                buffer.detach().copy_(value)  # in place: others may refer to it
            else:
                setattr(module.get_submodule(owner), attribute, value)


def _not_persistent(module: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        for name in inner._non_persistent_buffers_set
    }


def _digest(buffer: torch.Tensor) -> str:
    values = buffer.detach().to("cpu").contiguous()
    content = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode() + content).hexdigest()
