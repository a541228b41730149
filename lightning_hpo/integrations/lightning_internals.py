"""Every part of Lightning we touch that Lightning does not promise to keep.

Lightning saves and restores weights, optimizers, schedulers, loops and callbacks. It does not save random
numbers, and it has no way for a callback to say "load this file" or to go on as if there had been no pause.
The functions here close these gaps; each says what it relies on. Written against Lightning 2.5.0 to 2.6.6.
Where an attribute is missing in another version, training goes on correctly, but a resumed trial may differ
in its random numbers from one that was never paused.

How an epoch begins in Lightning, which all of this must repeat::

    fit_loop.setup_data                     makes the first iterator; again at every reload of the loaders
    fit_loop.on_run_start                   -> on_train_start
    each epoch:
      fit_loop.on_advance_start             reloads the loaders if due, sets the samplers' epoch
                                            -> on_train_epoch_start
      epoch_loop.on_run_start               makes a new iterator, except in epoch 0 and just after a restore
      batches ...                           -> on_validation_end of callbacks, then of the module
      fit_loop.on_advance_end               -> on_train_epoch_end, then epoch-wise schedulers
    fit_loop.on_run_end                     -> on_train_end
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr

from lightning_hpo.errors import StrategyUnsupported
from lightning_hpo.integrations.buffers import make_room_when_loaded

OLDEST_TESTED = (2, 5)
NEWEST_TESTED = (2, 6)
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable of torch: set to 1, nothing is ever unpickled."""

_log = logging.getLogger(__name__)


def warn_if_untested() -> None:
    """Log it if Lightning is older or newer than what the tests run on."""
    version = tuple(int(part) for part in lightning.__version__.split(".")[:2])
    if not OLDEST_TESTED <= version <= NEWEST_TESTED:
        _log.warning(
            "Lightning %s is outside the tested range %s to %s: resumed trials may not be bit-identical.",
            lightning.__version__,
            ".".join(map(str, OLDEST_TESTED)),
            ".".join(map(str, NEWEST_TESTED)),
        )


# ---------------------------------------------------------------------------------------- loading


def load_at_start(trainer: Trainer, path: Path, refuse: Callable[[Path], None]) -> bool:
    """Make the fit that is being set up restore ``path``, whatever ``ckpt_path`` the user passed.

    Relies on ``_checkpoint_connector.resume_start``, which every fit calls once after the ``setup`` hooks.
    What ``write_checkpoint`` has written is read without the user's ``CheckpointIO``, which may know another format.
    The file is loaded with ``weights_only=True``, which executes no code. If it holds objects that this cannot load
    (the state of a user's callback, say), ``refuse`` is asked, and if it does not raise, the file is unpickled.

    Args:
        path: the checkpoint; the caller has verified that it is the one that was recorded.
        refuse: raises if the file must not be unpickled.

    Returns:
        False if this version of Lightning has no such method: nothing will be restored.
    """
    connector = trainer._checkpoint_connector
    original = getattr(connector, "resume_start", None)
    if original is None:
        _log.warning("Lightning %s cannot be told to load %s.", lightning.__version__, path)
        return False
    chooses_loader = "weights_only" in inspect.signature(original).parameters

    def resume_start(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        connector.resume_start = original
        if isinstance(trainer.precision_plugin, DoublePrecision):
            # Lightning does so after it has loaded the weights, which would be rounded.
            trainer.precision_plugin.convert_module(trainer.lightning_module)
        with _written_by_torch(trainer):
            try:
                with _only_weights():
                    original(str(path), **({"weights_only": True} if chooses_loader else {}))
            except pickle.UnpicklingError:
                refuse(path)
                original(str(path), **({"weights_only": False} if chooses_loader else {}))
        make_room_when_loaded(trainer.lightning_module)

    connector.resume_start = resume_start
    return True


@contextlib.contextmanager
def _written_by_torch(trainer: Trainer) -> Iterator[None]:
    """Let files be read as ``torch.save`` writes them, unless the strategy has written them in its own way."""
    strategy = trainer.strategy
    if strategy_writes_itself(trainer):
        yield
        return
    of_the_user = strategy.checkpoint_io
    strategy.checkpoint_io = TorchCheckpointIO()
    try:
        yield
    finally:
        strategy.checkpoint_io = of_the_user


@contextlib.contextmanager
def _only_weights() -> Iterator[None]:
    """Torch's own switch, for versions of Lightning that do not hand ``weights_only`` on."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


# ----------------------------------------------------------------------------------------- saving


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Everything that Lightning would write into a checkpoint. All ranks must call it."""
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return checkpoint


def fits_to_find_a_setting(trainer: Trainer) -> bool:
    """Whether ``lr_find`` or ``scale_batch_size`` of Lightning's ``Tuner`` has begun this fit, which ends untrained.

    Relies on ``_early_exit`` of the finder that the ``Tuner`` adds to the Trainer for this fit; a finder among the
    script's own callbacks goes on to the training.
    """
    finders = (c for c in trainer.callbacks if isinstance(c, (LearningRateFinder, BatchSizeFinder)))
    return any(getattr(finder, "_early_exit", False) for finder in finders)


def ranks_it_started(trainer: Trainer) -> int:
    """How many ranks there are, if Lightning has started all but this one, each as a new interpreter; else 1."""
    return len(getattr(getattr(trainer.strategy, "launcher", None), "procs", ())) + 1


def refuse_child_processes(trainer: Trainer) -> None:
    """
    Raises:
        StrategyUnsupported: if the fit runs in children of this process, as with ``ddp_fork`` and ``ddp_spawn``. What
            they are told, a pause or a stop, is known to them only: the script would go on in this process as if the
            training were over, and Lightning brings back neither optimizers nor callbacks.
    """
    launcher = trainer.strategy.launcher
    if type(launcher) is _MultiProcessingLauncher:
        raise StrategyUnsupported(
            f"The Trainer's strategy trains in processes that are made from the script's by {launcher._start_method} "
            "(ddp_fork, ddp_spawn and the like), and the script would not hear of it when the training is paused or "
            "stopped there. Pass Trainer(strategy='ddp')."
        )


def strategy_writes_itself(trainer: Trainer) -> bool:
    """Whether the strategy has its own way to write (sharded checkpoints), in which every rank takes part."""
    return type(trainer.strategy).save_checkpoint is not Strategy.save_checkpoint


def has_whole_module(trainer: Trainer) -> bool:
    """Whether each rank has the whole module, and has restored it when ``on_fit_start`` comes."""
    return not (strategy_writes_itself(trainer) or trainer.strategy.restore_checkpoint_after_setup)


def cannot_pause_inside_epochs(trainer: Trainer) -> str | None:
    """Why not: a callback changes schedulers in ``on_train_epoch_start``, which does not come again after the pause."""
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)
    return "StochasticWeightAveraging" if averages else None


@contextlib.contextmanager
def after_validations(trainer: Trainer, then: Callable[[], None]) -> Iterator[None]:
    """While it lasts, ``then`` is called whenever the fit's validation loop has been run.

    In ``on_validation_end`` of a callback the module's own is still to come, as are its training mode and the reset of
    the metrics that the validation has logged. Relies on ``run`` of the validation loop.
    """
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    run = val_loop.run

    def run_and_tell() -> Any:
        result = run()
        then()
        return result

    val_loop.run = run_and_tell  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(val_loop).pop("run", None)


# ---------------------------------------------------------------------------------------- stopping


class ClosingEpoch:
    """While an epoch that is cut short is being closed, nobody but ``callback`` is told of its end.

    Lightning has no other way out of an epoch. Callbacks, the module and loggers see the true end of it after the
    pause; what was just saved would not know of this one.
    """

    def __init__(self, trainer: Trainer, callback: Callback) -> None:
        self._trainer, self._module = trainer, trainer.lightning_module
        self._callbacks, self._loggers = trainer.callbacks, trainer.loggers
        trainer.callbacks, trainer.loggers = [callback], []
        self._module.on_train_epoch_end = lambda: None  # type: ignore[method-assign]

    def end_epoch(self) -> None:
        """Call it in ``on_train_epoch_end``."""
        self._trainer.callbacks = self._callbacks
        vars(self._module).pop("on_train_epoch_end", None)

    def end(self) -> None:
        """Call it first in ``on_train_end``: Lightning has logged the averages of the epoch now."""
        self._trainer.loggers = self._loggers


def stop_after_this(trainer: Trainer) -> None:
    """Let the loops end as after early stopping, also before ``min_epochs`` and ``min_steps``."""
    trainer.fit_loop.min_epochs = None
    trainer.fit_loop.epoch_loop.min_steps = None
    trainer.should_stop = True


def is_last_batch_of_epoch(trainer: Trainer) -> bool:
    """Whether the batch just trained is the last one of its epoch."""
    epoch_loop = trainer.fit_loop.epoch_loop
    return bool(epoch_loop.batch_progress.is_last_batch) or epoch_loop.batch_idx + 1 == trainer.num_training_batches


def ends_by_itself(trainer: Trainer, epochs: int) -> bool:
    """Whether Lightning will end the fit here without us: early stopping, ``max_time``, the last step or epoch.

    Args:
        epochs: whole epochs done, this one included.
    """
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs:
        return True
    minimum_met = epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return bool(trainer.should_stop) and minimum_met


def expected_validations(trainer: Trainer) -> int | None:
    """How often the Trainer will validate in all; None if that cannot be known beforehand."""
    batches, every = trainer.num_training_batches, getattr(trainer, "val_check_batch", None)
    if every is None or not trainer.enable_validation or batches == float("inf") or every == float("inf"):
        return None
    if trainer.max_epochs in (None, -1) or trainer.max_steps != -1:
        return None
    if trainer.check_val_every_n_epoch is None:
        return int(trainer.max_epochs * batches // every)
    return int(trainer.max_epochs // trainer.check_val_every_n_epoch * (batches // every))


def training_streams(checkpoint: dict[str, Any]) -> list[Any]:
    """The states of those training loaders that have one."""
    fit_loop = checkpoint.get("loops", {}).get("fit_loop", {})
    return list(fit_loop.get("state_dict", {}).get("combined_loader", ()))


# ------------------------------------------------------------------------------- going on as before


def found_settings(trainer: Trainer) -> dict[str, float]:
    """Attribute -> what a ``BatchSizeFinder`` or ``LearningRateFinder`` has found; it is in no checkpoint."""
    module = trainer.lightning_module
    names = [next(filter(lambda n: lightning_hasattr(module, n), _names_set_by(c)), "") for c in trainer.callbacks]
    found = {name: lightning_getattr(module, name) for name in names if name}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def set_found_settings(trainer: Trainer, found: dict[str, float]) -> None:
    """Before any loader or optimizer is made."""
    for name, value in found.items():
        lightning_setattr(trainer.lightning_module, name, value)


def _names_set_by(callback: Callback) -> tuple[str, ...]:
    """The attribute that a finder sets: the first of these that the module has."""
    if isinstance(callback, BatchSizeFinder):
        return (callback._batch_arg_name,)
    if isinstance(callback, LearningRateFinder) and callback._update_attr:
        return (callback._attr_name,) if callback._attr_name else ("lr", "learning_rate")
    return ()


_METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
_SETTINGS = ("accumulate_grad_batches", "gradient_clip_val")


def metrics_so_far(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """What was logged last, as Lightning keeps it for schedulers, callbacks and modules. Each rank has its own."""
    return {kept: dict(_plain(getattr(trainer, kept))) for kept in _METRICS}


def _plain(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor):
            # Other ranks, which are sent it, may not see this rank's device.
            yield name, value.detach().to("cpu", copy=True)
        elif isinstance(value, (float, int)):
            yield name, value


def put_metrics_back(trainer: Trainer, metrics: dict[str, dict[str, Any]]) -> None:
    """What :func:`metrics_so_far` has read."""
    for kept, values in metrics.items():
        getattr(trainer, kept).update(values)


def changeable_settings(trainer: Trainer) -> dict[str, Any]:
    """Settings of the Trainer that callbacks may change in the training, and Lightning reads anew at every step."""
    return {name: getattr(trainer, name) for name in _SETTINGS}


def change_settings(trainer: Trainer, settings: dict[str, Any]) -> None:
    """What :func:`changeable_settings` has read."""
    for name, value in settings.items():
        setattr(trainer, name, value)


_SYNCS_FORWARD = "require_forward_param_sync"


def syncs_forward(trainer: Trainer) -> bool | None:
    """Whether the next forward makes the ranks' buffers equal. Torch's DDP does so in the first one of a process, and
    then only after a backward that has synchronised the gradients. None: there is no DDP."""
    return getattr(trainer.strategy.model, _SYNCS_FORWARD, None)


def set_syncs_forward(trainer: Trainer, syncs: bool | None) -> None:
    """What :func:`syncs_forward` has read."""
    if syncs is not None and hasattr(trainer.strategy.model, _SYNCS_FORWARD):
        setattr(trainer.strategy.model, _SYNCS_FORWARD, syncs)


def skip_searches_at_start(trainer: Trainer) -> None:
    """Let the tuners among the callbacks not search at the start of this fit: they did so in the first attempt.

    Searching again would also make Lightning forget what it is about to restore. What they do later, as classes derived
    from them may, they go on doing.
    """
    for callback in trainer.callbacks:
        for kind in (BatchSizeFinder, LearningRateFinder):
            if isinstance(callback, kind) and type(callback).on_fit_start is kind.on_fit_start:
                _skip_once(callback, "on_fit_start")


def _skip_once(owner: Any, name: str) -> None:
    setattr(owner, name, lambda *_: vars(owner).pop(name))


def when_started(trainer: Trainer, then: Callable[[], None]) -> None:
    """Call in ``on_train_start`` to have ``then`` called once the module's own is over too. Relies on the strategy's
    hook, which comes next."""
    strategy = trainer.strategy

    def on_train_start() -> None:
        vars(strategy).pop("on_train_start")
        strategy.on_train_start()
        then()

    strategy.on_train_start = on_train_start  # type: ignore[method-assign]


def forget_restart(trainer: Trainer) -> None:
    """Call in ``on_train_start`` after a restore between epochs.

    With ``max_steps`` Lightning takes every restore for one inside an epoch and would run an empty epoch first.
    """
    fit_loop = trainer.fit_loop
    # The property of the fit loop would set it again; the property of the loops inside it also tells their children.
    fit_loop._restarting = False
    fit_loop.epoch_loop.restarting = False
    fit_loop.epoch_loop.reset_restart_stage()


def step_schedulers_as_ever(trainer: Trainer) -> None:
    """Call in ``on_train_epoch_end``: after a restore inside the epoch, Lightning would leave out the step of a
    ``ReduceLROnPlateau``, for it does not restore the metrics that this one looks at, and we do."""
    trainer.fit_loop._restarting = False
