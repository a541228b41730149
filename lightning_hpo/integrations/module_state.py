"""What training changes in a LightningModule, and Lightning does not save.

* Fine-tuning decides as it goes which parameters are frozen, which submodules are in training mode, and which of them
  keep running statistics. A new process has all of it as the script makes it at first.
* The metrics of torchmetrics keep what they have seen in attributes that are not in a ``state_dict`` unless one asks
  for it. Those that Lightning does not reset by itself, such as the best value so far, run across epochs.
* Pruned parameters (``torch.nn.utils.prune``) are two tensors in training, the parameter and its mask; Lightning's
  callback saves their product, with which the pruned part would be trained again.

The state is made of tensors, numbers, texts, tuples, lists and dictionaries only, so that a checkpoint with it loads
with ``weights_only=True``. It names parameters and submodules; where a name is missing, or new, nothing is changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

ModuleState = dict[str, Any]

_BESIDE_STATES = ("_update_count", "_num_vals_seen", "min_val", "max_val")
"""What torchmetrics' own metrics (``Metric``, ``Running``, ``MinMaxMetric``) remember beside their declared states."""
_RUNNING = "track_running_stats"
_PLAIN = (bool, int, float, str, bytes, type(None))

_log = logging.getLogger(__name__)


def module_state(module: nn.Module) -> ModuleState:
    """What :func:`restore_module_state` needs. Of several ranks, each has its own."""
    # A collection updates one metric of each group and brings the others up to date when somebody asks for them.
    for _, collection in _those_of_torchmetrics(module, "MetricCollection"):
        list(collection.items())
    metrics = _those_of_torchmetrics(module, "Metric")
    submodules = dict(module.named_modules())
    return {
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "training": {name: inner.training for name, inner in submodules.items()},
        _RUNNING: {name: vars(inner)[_RUNNING] for name, inner in submodules.items() if _keeps_statistics(inner)},
        "trackers": {name: len(tracker) for name, tracker in _those_of_torchmetrics(module, "MetricTracker")},
        "metrics": {name: saved for name, metric in metrics if (saved := _metric_state(name, metric))},
        "pruned": {name: saved for name, inner in submodules.items() if (saved := _pruned(inner))},
    }


def restore_module_state(module: nn.Module, state: ModuleState) -> None:
    """Call it when no hook of the start of a fit comes any more: modules reset metrics and freeze parameters there."""
    for name, saved in state.get("pruned", {}).items():
        _prune_again(module.get_submodule(name), saved)
    for name, parameter in module.named_parameters():
        if state["requires_grad"].get(name, parameter.requires_grad) != parameter.requires_grad:
            parameter.requires_grad_(not parameter.requires_grad)
    # A tracker makes a metric for each epoch.
    for name, tracker in _those_of_torchmetrics(module, "MetricTracker"):
        for _ in range(len(tracker), state["trackers"].get(name, 0)):
            tracker.increment()
    for name, inner in module.named_modules():
        # As Lightning does after a validation: train() would change what is inside too.
        inner.training = state["training"].get(name, inner.training)
        if _keeps_statistics(inner):
            setattr(inner, _RUNNING, state[_RUNNING].get(name, vars(inner)[_RUNNING]))
    for name, metric in _those_of_torchmetrics(module, "Metric"):
        if name in state["metrics"]:
            _restore_metric(metric, state["metrics"][name])


def _those_of_torchmetrics(module: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
    """Submodules of this class, with their names. None if nobody has imported torchmetrics."""
    wanted = getattr(sys.modules.get("torchmetrics"), kind, None)
    found = dict(module.named_modules()) if wanted is not None else {}
    yield from ((name, inner) for name, inner in found.items() if isinstance(inner, wanted))


def _keeps_statistics(module: nn.Module) -> bool:
    # Not asked for: a module may answer for another one, or by an error.
    return isinstance(vars(module).get(_RUNNING), bool)


def _pruned(module: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Name of a pruned parameter of this very module -> its values and its mask."""
    hooks = module._forward_pre_hooks.values()
    names = [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
    return {name: [_portable(getattr(module, f"{name}_{part}")) for part in ("orig", "mask")] for name in names}


def _prune_again(module: nn.Module, saved: Mapping[str, list[torch.Tensor]]) -> None:
    for name, (values, mask) in saved.items():
        parameter = getattr(module, name, None)
        if f"{name}_orig" in module._parameters or not isinstance(parameter, nn.Parameter):
            continue
        # The optimizer goes on with the same parameter.
        prune.custom_from_mask(module, name, mask.to(parameter.device))
        with torch.no_grad():
            parameter.copy_(values)


def _remembered(metric: Any) -> Iterator[str]:
    """Names of the attributes in which a metric keeps what it has seen."""
    yield from metric._defaults
    yield from (name for name in _BESIDE_STATES if name in vars(metric))


def _metric_state(name: str, metric: Any) -> dict[str, Any]:
    try:
        return {attribute: _portable(getattr(metric, attribute)) for attribute in _remembered(metric)}
    except TypeError as problem:
        _log.warning(
            "The metric %s begins anew when this trial is resumed, for %s. Keep only tensors, numbers and texts in its "
            "states.",
            name,
            problem,
        )
        return {}


def _restore_metric(metric: Any, state: Mapping[str, Any]) -> None:
    for attribute in _remembered(metric):
        if attribute in state:
            stays = isinstance(state[attribute], list) and getattr(metric, "compute_on_cpu", False)
            setattr(metric, attribute, _placed(state[attribute], torch.device("cpu") if stays else metric.device))
    # The result it had in store belongs to another state; it is computed again from this one when it is asked for.
    metric._computed = None


def _portable(value: Any) -> Any:
    """A copy in the processor's memory.

    Raises:
        TypeError: if something in it could only be loaded by unpickling.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).to("cpu", copy=True)
    if type(value) in (list, tuple):
        return type(value)(_portable(item) for item in value)
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"its state holds an object of class {type(value).__name__}")


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        # A copy: the module must not change what others may read.
        return value.to(device, copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(item, device) for item in value)
    return value
