"""What a rank's process needs to go on as before, beside what Lightning saves: read at a pause, restored after it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_hpo.integrations import lightning_internals as internals
from lightning_hpo.integrations.buffers import Digests, digests, restore_buffers, unsaved_buffers
from lightning_hpo.integrations.lightning_loaders import Loaders
from lightning_hpo.integrations.module_state import ModuleState, module_state, restore_module_state
from lightning_hpo.integrations.pruning import rewinds_to, set_rewinds_to
from lightning_hpo.integrations.random_state import RandomState
from lightning_hpo.integrations.start_hooks import AsRestored


class RankState:
    """Random numbers, loaders, gradients, logged metrics and what training changes in module and Trainer, of each rank.

    Args:
        trainer: of the fit that is being set up.
        resumes: it will restore a checkpoint of ours.
        inside_epochs: it may be paused inside an epoch.
    """

    def __init__(self, trainer: Trainer, *, resumes: bool, inside_epochs: bool) -> None:
        self._trainer = trainer
        self._loaders = Loaders(trainer, resumes=resumes, inside_epochs=inside_epochs)
        self._then: dict[str, Any] | None = None
        """Of this rank before the pause, until it is restored."""
        self._buffers_at_start: Digests = {}
        self._as_restored: AsRestored | None = None
        self._random_at_pause: RandomState | None = None
        self._module_inside_epoch: ModuleState | None = None
        """What is to be restored before the first batch, after a pause inside an epoch."""

    def take_up(self, ranks: list[dict[str, Any]], checkpoint: dict[str, Any], of_others: Collection[str]) -> None:
        """Our checkpoint is about to be restored; no loader is made yet.

        Args:
            of_others: :func:`~lightning_hpo.integrations.start_hooks.weights_of_others` when it was saved.
        """
        self._then = ranks[self._trainer.global_rank % len(ranks)]
        internals.set_found_settings(self._trainer, self._then.get("found", self._then.get("batch_sizes", {})))
        if internals.has_whole_module(self._trainer):
            self._as_restored = AsRestored(checkpoint["state_dict"], of_others)
        self._loaders.will_be_restored(self._then.get("loaders", {}), internals.training_streams(checkpoint))

    def note_weights(self, pl_module: LightningModule) -> None:
        """Call it in ``on_fit_start``, before any other hook."""
        if self._as_restored is not None:
            self._as_restored.note_weights(pl_module)

    def note_options(self) -> None:
        """Call it in ``on_train_start``, before any other hook."""
        if self._as_restored is not None:
            self._as_restored.note_options(self._trainer.optimizers)

    def cannot_pause_inside_epochs(self) -> bool:
        """Call it when there are loaders: those with a state would be restored, and the others advanced with them."""
        return self._loaders.only_some_have_states()

    def begin(self, pl_module: LightningModule, *, inside_epoch: bool) -> None:
        """Call it in ``on_train_start``."""
        self._buffers_at_start = digests(pl_module, persistent_too=False)
        if self._then is None:
            return
        internals.put_metrics_back(self._trainer, self._then.get("metrics", {}))
        loaders = self._then.get("loaders", {})
        self._loaders.make_again(loaders)
        if not inside_epoch:
            internals.forget_restart(self._trainer)
            return
        then, self._then = self._then, None
        self._loaders.go_on_inside_epoch(loaders)
        self._loaders.restore_random_state(then["random"])
        internals.change_settings(self._trainer, then.get("settings", {}))
        # Not before the first batch only: a scheduler that Lightning steps after the validation comes even earlier.
        internals.when_started(self._trainer, lambda: self._restore_tensors(pl_module, then))
        self._module_inside_epoch = then["module"]

    def restore_between_epochs(self, pl_module: LightningModule) -> None:
        """Call it in ``on_train_epoch_start``, before anybody draws a random number."""
        if self._then is None:
            return
        then, self._then = self._then, None
        self._loaders.restore_random_state(then["random"])
        self._loaders.begin_epoch()
        internals.change_settings(self._trainer, then.get("settings", {}))
        restore_module_state(pl_module, then["module"])
        self._restore_tensors(pl_module, then)

    def _restore_tensors(self, pl_module: LightningModule, then: dict[str, Any]) -> None:
        if self._as_restored is not None:
            self._as_restored.put_back(pl_module, self._trainer.optimizers)
            self._as_restored = None
        _restore_gradients(pl_module, then.get("gradients", {}))
        restore_buffers(pl_module, then.get("buffers", {}))
        internals.set_syncs_forward(self._trainer, then.get("syncs_forward"))
        set_rewinds_to(self._trainer, then.get("rewinds_to", []))

    def restore_before_batch(self, pl_module: LightningModule) -> None:
        """Call it before the first batch: after a pause inside an epoch the module's hooks of the start come first."""
        if self._module_inside_epoch is not None:
            restore_module_state(pl_module, self._module_inside_epoch)
            self._module_inside_epoch = None

    def note_pause(self) -> None:
        """Call it at the end of the epoch; other callbacks may draw random numbers until :meth:`of_all_ranks`."""
        self._random_at_pause = self._loaders.random_state()

    def of_all_ranks(self, pl_module: LightningModule, *, inside_epoch: bool) -> list[dict[str, Any]]:
        """What :meth:`take_up` needs. All ranks must call it."""
        trainer = self._trainer
        on_rank_zero: Digests | None = None
        if trainer.world_size > 1:
            on_rank_zero = trainer.strategy.broadcast(digests(pl_module, persistent_too=True), src=0)
        state: dict[str, Any] = {
            "loaders": self._loaders.state(),
            "found": internals.found_settings(trainer),
            "buffers": unsaved_buffers(pl_module, self._buffers_at_start, on_rank_zero),
            "settings": internals.changeable_settings(trainer),
            "metrics": internals.metrics_so_far(trainer),
            "syncs_forward": internals.syncs_forward(trainer),
            "module": module_state(pl_module),
            "rewinds_to": rewinds_to(trainer),
        }
        state["random"] = self._loaders.random_state() if inside_epoch else self._random_at_pause
        # Automatic optimisation uses up its gradients by the end of an epoch.
        is_kept = inside_epoch or not pl_module.automatic_optimization
        state["gradients"] = _gradients(pl_module) if is_kept else {}
        return _gathered(trainer, state)

    def end(self) -> None:
        """The fit is over."""
        self._loaders.leave_alone()


def _gradients(pl_module: LightningModule) -> dict[str, torch.Tensor]:
    """Gradients that were accumulated but not used yet; all others are zero or None."""
    return {
        name: parameter.grad.detach().to("cpu", copy=True)
        for name, parameter in pl_module.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def _restore_gradients(pl_module: LightningModule, gradients: dict[str, torch.Tensor]) -> None:
    for name, parameter in pl_module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)


def _gathered(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's state, on every rank."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
