"""The one line a training script needs: ``Trainer(callbacks=[HPOCallback()])``.

Outside a trial the callback does nothing at all. Inside one it

* tells the launcher the metric after each epoch (or validation) and does what the launcher answers,
* pauses: writes a checkpoint and lets Lightning end the fit as after early stopping,
* resumes: restores that checkpoint, in a new process, so that weights, optimizer, schedulers, callbacks, random
  numbers, frozen parameters, training modes and metrics of torchmetrics go on as if there had been no pause.

What cannot be had: plain attributes of modules, callbacks and data modules (``self.best = 0``), unless they save them
by ``on_save_checkpoint`` or ``state_dict``; metrics of torchmetrics that are no submodules of the LightningModule; the
state of random generators inside persistent DataLoader workers; what samplers, datasets and loaders with a length
count, unless the data module saves it; inside an epoch, the global random numbers of a stream that draws them in the
main process item by item; averages of *training* values over an epoch that was paused in its middle cover the part
after the pause, unless a metric of torchmetrics makes them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelSummary, ProgressBar

from lightning_hpo.integrations.earlier_files import let_config_be_saved_again
from lightning_hpo.integrations.failures import judge
from lightning_hpo.integrations.lightning_internals import fits_to_find_a_setting, skip_searches_at_start
from lightning_hpo.integrations.steered_fit import STATE_KEY, SteeredFit
from lightning_hpo.report.log_notes import note_for_the_log
from lightning_hpo.runtime.channel import trial_channel

_numbers = itertools.count(1)


class HPOCallback(EarlyStopping):
    """Connects a Trainer to the study; does nothing if the script is run by itself.

    Args:
        monitor: logged name of the metric; None for the study's ``metric``. If both are given they must agree.
        quiet: in a trial, remove progress bars and model summaries, which nobody watches.

    Of several in one Trainer the first one counts. Only the first fit of a trial that has this callback is steered, but
    for those of Lightning's ``Tuner``, which look for a learning rate or a batch size; further ones are left alone, and
    a note in the trial's log, which the launcher shows, says so. If the script catches what the steered fit raises, the
    next one takes its place; without a next one the trial has failed. After a pause or a stop ``fit`` returns normally,
    and then ``fit``, ``validate``, ``test`` and ``predict`` of every Trainer raise
    :class:`~lightning_hpo.errors.TrialPaused` or :class:`~lightning_hpo.errors.TrialStopped`.

    It derives from ``EarlyStopping`` because Lightning calls such callbacks after the module at the end of
    an epoch, when everything is logged. Once a fit has begun, ``trainer.early_stopping_callback`` is the script's own
    one; where there is none it is this one, which has no ``best_score``.

    Raises:
        ResourceMismatch: when the fit begins, if the Trainer does not train for ``max_t``, or if it may be paused
            inside an epoch and could not go on there; when it ends, if there was nothing to train on.
        StrategyUnsupported: if the Trainer trains in child processes (``ddp_fork``, ``ddp_spawn``).
        MetricMissing: after the first epoch that should have logged the metric.
        MetricInvalid: if the metric is not one real number.
        OptionError: if ``monitor`` is not the study's metric.
        CheckpointError: if a checkpoint cannot be written, or the one to resume from is damaged.
        ChannelError: if the launcher is gone.
    """

    has_been_made = False
    """Was a callback made in this process, or before it was forked? A script that makes none has forgotten it."""
    _has_told_of_further_fits = False

    def __init__(self, monitor: str | None = None, *, quiet: bool = True) -> None:
        super().__init__(monitor=monitor or "", check_on_train_epoch_end=True)
        self._number = next(_numbers)
        self._asked_metric = monitor
        self._quiet = quiet
        self._fit: SteeredFit | None = None
        self._finished = False
        HPOCallback.has_been_made = True
        if quiet and trial_channel() is not None:
            _hide_tips()

    # Early stopping itself is not wanted.

    @property
    def state_key(self) -> str:
        # Lightning wants one per instance: a Trainer may get one from the configuration and another in the script.
        # There is no state, so that nothing is looked for under it in a checkpoint.
        return f"HPOCallback {self._number}"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    # Hooks.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        channel = trial_channel()
        if channel is None:
            # Of those that are early stopping for Lightning the script's own comes first. A new list: Lightning is
            # iterating over the old one.
            trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]
            return
        if stage != "fit":
            return
        if channel.attempt > 1:
            let_config_be_saved_again(trainer)
        if self not in trainer.callbacks:
            return  # the first of several in this Trainer has taken the places of all
        if fits_to_find_a_setting(trainer):
            # It runs in every attempt, as the rest of the script before the fit that counts.
            self._remove_bars(trainer)
            return
        if self._finished or channel.steered_by not in (None, self):
            _tell_of_further_fits(trainer)
            return
        channel.steered_by, channel.fit_error = self, None
        self._fit = SteeredFit(self, channel, trainer, self._asked_metric)
        self._take_places(trainer, resuming=self._fit.resumes)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A tuner inside the fit restores checkpoints of its own.
        if self._fit is not None and STATE_KEY in checkpoint:
            self._fit.take_up(checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.begin(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.begin_epoch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and not trainer.sanity_checking:
            self._fit.note_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._fit is None or stage != "fit":
            return
        if self._fit.has_begun:
            self._finished = True
        elif (channel := trial_channel()) is not None:
            # A fit that never trained leaves the turn to the next one.
            channel.steered_by = None
        fit, self._fit = self._fit, None
        fit.check_trained()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning does not call teardown then. The script may catch the exception and try again, with other objects.
        channel = trial_channel()
        if self._fit is None or channel is None:
            return
        fit, self._fit = self._fit, None
        fit.leave_alone()
        channel.steered_by, channel.fit_error = None, judge(exception)

    # For the helper at the front of the list.

    def first_at_fit_start(self, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.begin_fit(pl_module)

    def first_at_train_start(self) -> None:
        if self._fit is not None:
            self._fit.begin_training()

    def first_in_epoch(self, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.restore_between_epochs(pl_module)

    def first_in_batch(self, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.restore_before_batch(pl_module)

    def first_at_train_end(self, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.begin_end(pl_module)

    def _remove_bars(self, trainer: Trainer) -> None:
        unwanted = (ProgressBar, ModelSummary) if self._quiet else ()
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, unwanted)]

    def _take_places(self, trainer: Trainer, *, resuming: bool) -> None:
        unwanted: list[type[Callback]] = [_FirstInLine, HPOCallback]
        if self._quiet:
            unwanted += [ProgressBar, ModelSummary]
        if resuming:
            skip_searches_at_start(trainer)
        others = [c for c in trainer.callbacks if not isinstance(c, tuple(unwanted))]
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = [_FirstInLine(self), *others, self]


class _FirstInLine(Callback):
    """Stands before all other callbacks, for the hooks in which :class:`HPOCallback` must come first."""

    def __init__(self, owner: HPOCallback) -> None:
        self._owner = owner

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner.first_at_fit_start(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner.first_at_train_start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner.first_in_epoch(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._owner.first_in_batch(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner.first_at_train_end(pl_module)


def _tell_of_further_fits(trainer: Trainer) -> None:
    """Once in a trial."""
    if HPOCallback._has_told_of_further_fits or not trainer.is_global_zero:
        return
    HPOCallback._has_told_of_further_fits = True
    note = (
        "another fit with HPOCallback begins, and a study takes only the first one of each trial: this one is neither "
        "reported nor paused nor stopped. Leave the callback out of Trainers that are not to be tuned; of the folds of "
        "a cross-validation tune one, or report their mean with Study.ask and Study.tell."
    )
    # A hint must not end a training: a script may have closed its stderr.
    with contextlib.suppress(Exception):
        print(note_for_the_log(note), end="", file=sys.stderr, flush=True)


class _NoTips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "Tip:" not in str(record.msg)


def _hide_tips() -> None:
    """Lightning advertises other packages once per Trainer, which is once per trial."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if not any(isinstance(f, _NoTips) for f in logger.filters):
        logger.addFilter(_NoTips())
