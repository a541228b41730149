"""What hooks of a fit's start change, though the fit goes on from a pause, is put back.

``on_fit_start`` and ``on_train_start`` are called in every process of a trial. Initial weights that a module sets
there, a codebook that it draws from the data, a learning rate would be set a second time, over what was just restored.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def weights_of_others(module: nn.Module, saved: Mapping[str, Any]) -> list[str]:
    """Names in a ``state_dict`` under which a callback saves something else, averages say, than the training has."""
    now = module.state_dict()
    return [name for name, value in saved.items() if name not in now or not _are_equal(now[name], value)]


class AsRestored:
    """Weights, buffers and options of optimizers as they were before any hook of the start.

    Args:
        saved: the checkpoint's ``state_dict``.
        of_others: :func:`weights_of_others` when it was saved. The hooks of the start may restore the training's.
    """

    def __init__(self, saved: Mapping[str, Any], of_others: Collection[str]) -> None:
        self._weights = {name: value for name, value in saved.items() if name not in of_others}
        self._options: list[list[dict[str, Any]]] = []

    def note_weights(self, module: nn.Module) -> None:
        """Call it when the module is restored, before the first hook."""
        # Callbacks may save other weights than those of the training, and restore the latter by themselves.
        now = module.state_dict()
        self._weights = {
            name: saved for name, saved in self._weights.items() if name in now and _are_equal(now[name], saved)
        }

    def note_options(self, optimizers: Sequence[Optimizer]) -> None:
        """Call it when the optimizers are restored, before the first hook that comes then."""
        self._options = [[_options(group) for group in optimizer.param_groups] for optimizer in optimizers]

    def put_back(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Call it when no hook of the start comes any more."""
        now = module.state_dict()
        for name, saved in self._weights.items():
            if name in now and _are_alike(now[name], saved):
                now[name].copy_(saved)  # in place: it is the module's own memory
        for optimizer, groups in zip(optimizers, self._options, strict=False):
            if len(groups) == len(optimizer.param_groups):
                for group, options in zip(optimizer.param_groups, groups, strict=True):
                    group.update(options)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}


def _are_alike(now: Any, saved: Any) -> bool:
    """Whether one can be copied into the other; of sparse tensors torch cannot tell whether they are equal."""
    are_dense = all(isinstance(value, torch.Tensor) and value.layout is torch.strided for value in (now, saved))
    return are_dense and now.shape == saved.shape and now.dtype == saved.dtype


def _are_equal(now: Any, saved: Any) -> bool:
    if not _are_alike(now, saved):
        return False
    return now.data_ptr() == saved.data_ptr() or torch.equal(now, saved.to(now.device))
