"""The weights to which Lightning's ``ModelPruning`` goes back, which are in no checkpoint of Lightning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning


def rewinds_to(trainer: Trainer) -> list[torch.Tensor | None]:
    """The values to which ``ModelPruning`` sets parameters back, by the lottery ticket hypothesis.

    None: they share the parameter's memory and are trained with it. So they do on the device where the parameters were
    first, once they have been used, because Lightning does not copy them.
    """
    return [
        None if value.data_ptr() == parameter.data_ptr() else value.detach().to("cpu", copy=True)
        for value, parameter in _rewound(trainer)
    ]


def set_rewinds_to(trainer: Trainer, values: list[torch.Tensor | None]) -> None:
    """What :func:`rewinds_to` has read."""
    for (value, parameter), saved in zip(_rewound(trainer), values, strict=False):
        value.data = parameter.data if saved is None else saved.to(value.device, copy=True)


def _rewound(trainer: Trainer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What ``ModelPruning`` keeps of parameters, each with the parameter.

    Relies on its ``_original_layers`` and ``_parameters_to_prune``.
    """
    for callback in trainer.callbacks:
        kept = getattr(callback, "_original_layers", None) if isinstance(callback, ModelPruning) else None
        for layer in (kept or {}).values():
            for number, name in layer["names"]:
                module, value = callback._parameters_to_prune[number][0], getattr(layer["data"], name)
                if isinstance(value, torch.Tensor):
                    yield value, getattr(module, f"{name}_orig" if hasattr(module, f"{name}_orig") else name)
