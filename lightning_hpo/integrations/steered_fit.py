"""One fit of a trial: asks the launcher, obeys, saves and restores.

Where things happen, and why there:

==========================  ===========================================================================
setup                       handshake; have our checkpoint loaded
on_fit_start                first of all callbacks: note the weights, before other hooks of the start change them
on_train_start              first of all callbacks: note learning rates and the like; last: go on inside an epoch, if
                            that is where the pause was
on_train_epoch_start        first of all callbacks: restore random numbers, before anybody draws, and what hooks of
                            the start change: weights, learning rates, frozen parameters, metrics
on_train_batch_start        first of all callbacks: the latter, if the pause was inside an epoch, which does not start
                            again
on_validation_end           note that there was a validation
after the validation loop   when the module's hooks have run and its training mode is back: decide, if validations are
                            counted, and save
on_train_epoch_end          last of all, after the module, so that its metrics are fresh: decide
on_train_end                first of all: save, after Lightning has stepped epoch-wise schedulers and before
                            callbacks that replace the weights (weight averaging) do so
==========================  ===========================================================================
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_hpo import errors
from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import (
    ChannelError,
    DiskFull,
    HpoError,
    OptionError,
    ResourceMismatch,
    TrialInterrupted,
    TrialPaused,
    TrialStopped,
)
from lightning_hpo.integrations import lightning_internals as internals
from lightning_hpo.integrations import trainer_files
from lightning_hpo.integrations.earlier_files import logged_rows, put_rows_back
from lightning_hpo.integrations.metrics import as_number, freshly_logged, missing_metric, numbers
from lightning_hpo.integrations.rank_state import RankState
from lightning_hpo.integrations.saving import check_unpicklable, without_odd_hyperparameters, write_checkpoint
from lightning_hpo.integrations.start_hooks import weights_of_others
from lightning_hpo.integrations.trainer_classes import refuse_trainers
from lightning_hpo.report.log_notes import note_for_the_log
from lightning_hpo.report.shared_folders import lines_for_the_log
from lightning_hpo.runtime.channel import TrialChannel
from lightning_hpo.runtime.checkpoints import Written, checkpoint_path, publish, temporary_path, verify
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.messages import Answer

STATE_KEY = "lightning_hpo"
"""Our entry in the checkpoints we write."""

_TRY_TO_SAVE_AGAIN_S = 2.0
_T = TypeVar("_T")


class SteeredFit:
    """A fit that is steered by the launcher. Made in ``setup``, when the ranks can talk to each other.

    Args:
        callback: whose hooks call this fit.
        asked_metric: the callback's ``monitor``.

    Raises:
        OptionError, ResourceMismatch, StrategyUnsupported, CheckpointError, ChannelError: as ``HPOCallback`` says.
    """

    def __init__(self, callback: Callback, channel: TrialChannel, trainer: Trainer, asked_metric: str | None) -> None:
        self.has_begun = False
        self.restored: dict[str, Any] | None = None
        """Our entry of the checkpoint, until it is used."""
        self._callback = callback
        self._channel = channel
        self._trainer = trainer
        self._began_at = 0.0
        self._seconds_before = 0.0
        """Seconds of training in earlier attempts."""
        self._validations = 0
        """Validations done, sanity checks aside."""
        self._steps_before = 0
        """Optimizer steps of earlier attempts."""
        self._epoch_has_validation = False
        self._validation_is_new = False
        """There was one since the validation loop was run last. A search inside the fit runs it too, without us."""
        self._leave_validations = contextlib.ExitStack()
        """Closed when the fit is over."""
        self._decided_at = 0
        """Largest resource that was reported in this attempt."""
        self._stale: dict[str, Any] = {}
        """Metrics as they were before what is to be reported was logged."""
        self._interruption: Outcome | None = None
        self._would_stop = False
        """Early stopping has spoken, and waited for ``min_epochs`` or ``min_steps`` when we interrupted the fit."""
        self._pause_at: int | None = None
        """Resource of the pause, from the end of the epoch to the end of the fit."""
        self._closing: internals.ClosingEpoch | None = None

        channel.callback_seen = True
        internals.warn_if_untested()
        self._welcome = self._on_rank_zero(lambda: channel.hello(trainer.max_epochs))
        self._counts_validations = self._welcome.resource == "validation"
        self.resumes = self._welcome.checkpoint_path is not None
        with self._announcing_errors():
            self._metric = self._agreed_metric(asked_metric)
            self._check_epochs()
            self._check_pauses()
            internals.refuse_child_processes(trainer)
            self._have_checkpoint_loaded()
        self._rank_state = RankState(trainer, resumes=self.resumes, inside_epochs=self._counts_validations)

    # --------------------------------------------------------------------------- called by the hooks

    def take_up(self, checkpoint: dict[str, Any]) -> None:
        """Our checkpoint is about to be restored."""
        self.restored = checkpoint[STATE_KEY]
        self._steps_before = checkpoint["global_step"]
        self._rank_state.take_up(self.restored["ranks"], checkpoint, self.restored.get("weights_of_others", ()))
        then, saving = self.restored.get("folders"), self.restored.get("saving")
        trainer_files.keep_checkpoint_folders(self._trainer, checkpoint, self._channel.directory, then, saving)
        put_rows_back(self._trainer, self._channel.directory, self.restored.get("rows", ()))

    def begin_fit(self, pl_module: LightningModule) -> None:
        """Before the other hooks of the start; what Lightning restores is restored, but for optimizers and loops."""
        self._rank_state.note_weights(pl_module)

    def begin_training(self) -> None:
        """Before the other hooks of the training's start; optimizers are restored too."""
        self._rank_state.note_options()

    def begin(self, pl_module: LightningModule) -> None:
        """The loaders exist, everything is restored, the first epoch comes next."""
        self.has_begun = True
        self._began_at = time.monotonic()
        with self._announcing_errors():
            self._check_validations()
            self._check_loaders()
        self._say_where_it_writes()
        self._say_how_to_start_faster()
        restored, self.restored = self.restored, None
        if self.resumes:
            self._check_restored(restored)
        if self._channel.attempt > 1 and (kept := (restored or {"files": []}).get("files")) is not None:
            trainer_files.replace_files_of_lost_attempts(self._trainer, self._channel.directory, kept)
        if self._counts_validations:
            self._leave_validations.enter_context(internals.after_validations(self._trainer, self._end_validation))
        inside_epoch = restored is not None and restored["inside_epoch"]
        if restored is not None:
            failpoint("callback.resumed")
            self._validations = restored["validations"]
            self._seconds_before = restored["seconds"]
            self._trainer.should_stop = restored.get("should_stop", False)
        self._rank_state.begin(pl_module, inside_epoch=inside_epoch)
        if inside_epoch:
            self._stale = dict(self._trainer.callback_metrics)

    def begin_epoch(self) -> None:
        self._stale = dict(self._trainer.callback_metrics)
        self._epoch_has_validation = False

    def note_validation(self) -> None:
        self._epoch_has_validation = self._validation_is_new = True
        self._validations += 1

    def _end_validation(self) -> None:
        is_new, self._validation_is_new = self._validation_is_new, False
        if not is_new or internals.is_last_batch_of_epoch(self._trainer):
            # A validation that ends its epoch is decided at the epoch's end, where a pause costs nothing.
            return
        if self._decide(self._validations, epochs=self._trainer.current_epoch) is Outcome.PAUSED:
            self._save(self._trainer.lightning_module, self._validations, inside_epoch=True)
        self._stale = dict(self._trainer.callback_metrics)
        if self._interruption is not None:
            self._closing = internals.ClosingEpoch(self._trainer, self._callback)

    def end_epoch(self) -> None:
        if self._closing is not None:
            self._closing.end_epoch()
            return
        internals.step_schedulers_as_ever(self._trainer)
        epochs = self._trainer.current_epoch + 1
        if not self._counts_validations:
            resource = epochs
        elif self._epoch_has_validation:
            resource = self._validations
        else:
            return
        if self._decide(resource, epochs) is Outcome.PAUSED:
            self._pause_at = resource
            self._rank_state.note_pause()

    def begin_end(self, pl_module: LightningModule) -> None:
        """Before the other callbacks' ``on_train_end``."""
        if self._closing is not None:
            self._closing.end()
        if self._pause_at is not None:
            self._save(pl_module, self._pause_at, inside_epoch=False)
            self._pause_at = None
        if self._interruption is Outcome.PAUSED:
            trainer_files.keep_last_as_it_is(self._trainer)

    def restore_between_epochs(self, pl_module: LightningModule) -> None:
        """In the first epoch after a pause between epochs."""
        self._rank_state.restore_between_epochs(pl_module)

    def restore_before_batch(self, pl_module: LightningModule) -> None:
        """Before the first batch after a pause inside an epoch."""
        self._rank_state.restore_before_batch(pl_module)

    def end(self) -> None:
        """
        Raises:
            MetricMissing: if the fit ends and the metric was never seen.
        """
        if self._interruption is None and self._decided_at == 0 and not self.resumes:
            with self._announcing_errors():
                raise missing_metric(self._metric, self._trainer.callback_metrics, "during the whole fit")

    def check_trained(self) -> None:
        """The fit is over.

        Raises:
            ResourceMismatch: if Lightning has left it out, as there was nothing to train on.
        """
        self.leave_alone()
        if self.has_begun:
            return
        why = "The Trainer had nothing to train on: "
        if self._trainer.limit_train_batches == 0:
            with self._announcing_errors():
                raise ResourceMismatch(f"{why}limit_train_batches=0. Give it 1.0, or leave it out.")
        if self._trainer.num_training_batches == 0:
            # Not announced as a fault of the script: another configuration's batches may be smaller.
            raise ResourceMismatch(
                f"{why}its training DataLoader is empty. Give it data: with drop_last=True a whole batch at least."
            )

    def leave_alone(self) -> None:
        """What else the Trainer and its loaders are used for is no longer ours."""
        self._leave_validations.close()
        self._rank_state.end()

    # ---------------------------------------------------------------------------- checks at the start

    def _agreed_metric(self, asked: str | None) -> str:
        metric = self._welcome.metric
        if asked and metric and asked != metric:
            raise OptionError(
                f"HPOCallback(monitor={asked!r}), but the study's metric is {metric!r}. "
                f"Remove monitor=, or set hydra.launcher.metric={asked}."
            )
        return metric or asked or ""

    def _check_epochs(self) -> None:
        max_t, max_epochs = self._welcome.max_t, self._trainer.max_epochs
        if self._counts_validations or max_t in (None, max_epochs):
            return
        trains = "without limit" if max_epochs in (None, -1) else f"{max_epochs} epochs"
        raise ResourceMismatch(
            f"The Trainer trains {trains} (max_epochs={max_epochs}), but the study's max_t is {max_t}: "
            "learning rate schedules and rungs would not fit together. "
            f"Pass Trainer(max_epochs={max_t}), or set hydra.launcher.max_t to the Trainer's max_epochs."
        )

    def _check_validations(self) -> None:
        trainer, max_t = self._trainer, self._welcome.max_t
        expected = internals.expected_validations(trainer) if self._counts_validations else None
        if expected is not None and max_t is not None and expected < max_t:
            raise ResourceMismatch(
                f"The Trainer validates {expected} times in all (max_epochs={trainer.max_epochs}, "
                f"val_check_interval={trainer.val_check_interval}), but the study's max_t is {max_t} validations. "
                f"Set hydra.launcher.max_t={expected}, or let the Trainer train longer or validate more often."
            )

    def _check_pauses(self) -> None:
        changing = internals.cannot_pause_inside_epochs(self._trainer) if self._counts_validations else None
        if changing is not None:
            raise ResourceMismatch(
                f"{changing} changes schedulers at the start of an epoch, and with resource=validation a trial may be "
                "paused inside one. Set hydra.launcher.resource=epoch, or take EMAWeightAveraging."
            )

    def _check_loaders(self) -> None:
        if self._counts_validations and self._rank_state.cannot_pause_inside_epochs():
            raise ResourceMismatch(
                "Some of the training loaders keep a state (state_dict, load_state_dict) and others do not, and with "
                "resource=validation a trial may be paused inside an epoch, where they would not go on together. "
                "Set hydra.launcher.resource=epoch, or take loaders that all keep a state, or none."
            )

    def _check_restored(self, restored: dict[str, Any] | None) -> None:
        """Better no trial than one that goes on from weights which another training has left."""
        if restored is None or self._trainer.global_step != self._steps_before:
            with self._announcing_errors():
                raise ResourceMismatch(
                    f"The trial was paused after {self._steps_before} steps, and this fit begins at step "
                    f"{self._trainer.global_step}: something has reset the Trainer after the checkpoint was loaded. "
                    "Remove the callback that does so, or take an algorithm that does not pause."
                )

    def _say_where_it_writes(self) -> None:
        """In the trial's log, if it is not in the trial's folder; the launcher looks there."""
        if self._trainer.is_global_zero:
            # A hint must not end a training: a logger may raise when it is asked, a script may have closed its stderr.
            with contextlib.suppress(Exception):
                places = trainer_files.places_outside(self._trainer, self._channel.directory)
                print(lines_for_the_log(places), end="", file=sys.stderr, flush=True)

    def _say_how_to_start_faster(self) -> None:
        if self._trainer.is_global_zero and (ranks := internals.ranks_it_started(self._trainer)) > 1:
            note = (
                f"Lightning starts {ranks - 1} of this trial's {ranks} processes as new interpreters, at each start "
                "and resume, which takes long. "
                f"Set hydra.launcher.ranks_per_trial={ranks}: then the launcher starts them."
            )
            with contextlib.suppress(Exception):
                print(note_for_the_log(note), end="", file=sys.stderr, flush=True)

    def _have_checkpoint_loaded(self) -> None:
        if self._welcome.checkpoint_path is None:
            return
        path = self._channel.directory / self._welcome.checkpoint_path
        verify(path, self._welcome.checkpoint_sha256 or "")
        internals.load_at_start(self._trainer, path, self._refuse_to_unpickle)

    def _refuse_to_unpickle(self, path: Path) -> None:
        """Unpickling executes what the file says: only what nobody but the user can have written may do that."""
        with self._announcing_errors():
            check_unpicklable(path)

    # -------------------------------------------------------------------------------------- decision

    def _decide(self, resource: int, epochs: int) -> Outcome | None:
        """Report and obey. Returns how the training is interrupted, None if it goes on.

        All ranks must call it: reading metrics may synchronise them.

        Args:
            epochs: whole epochs done, the one that ends now included.
        """
        metrics = freshly_logged(self._trainer.callback_metrics, self._stale)
        max_t = self._welcome.max_t
        is_beyond = max_t is not None and resource > max_t
        if self._interruption is not None or resource <= self._decided_at or is_beyond:
            return self._interruption
        answer = self._on_rank_zero(lambda: self._report(resource, metrics))
        if answer is None:
            return None
        self._decided_at = resource
        if answer.decision == "stop":
            self._interrupt(Outcome.STOPPED)
            self._refuse_further_use(Outcome.STOPPED)
        elif answer.decision == "pause" and not internals.ends_by_itself(self._trainer, epochs):
            failpoint("callback.told_to_pause")
            self._interrupt(Outcome.PAUSED)
        return self._interruption

    def _report(self, resource: int, metrics: dict[str, Any]) -> Answer | None:
        """None: the metric was not due."""
        if self._metric not in metrics:
            seen_before = self._decided_at > 0 or self._metric in self._stale
            if seen_before or (self._trainer.enable_validation and not self._epoch_has_validation):
                return None
            where = f"in epoch {self._trainer.current_epoch + 1}"
            raise missing_metric(self._metric, self._trainer.callback_metrics, where)
        value = as_number(self._metric, metrics.pop(self._metric))
        failpoint("callback.before_report")
        return self._channel.report(resource, value, numbers(metrics), self._seconds())

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began_at

    def _interrupt(self, outcome: Outcome) -> None:
        self._interruption = outcome
        self._would_stop = bool(self._trainer.should_stop)
        internals.stop_after_this(self._trainer)

    def _refuse_further_use(self, outcome: Outcome) -> None:
        """From here on the script's own code may run, but not train or test a model that is not finished."""
        self._channel.interrupted_as = outcome
        refuse_trainers(lambda: interruption(outcome))

    # -------------------------------------------------------------------------------------- saving

    def _save(self, pl_module: LightningModule, resource: int, *, inside_epoch: bool) -> None:
        """Write the checkpoint of a pause. All ranks must call it."""
        trainer = self._trainer
        ranks = self._rank_state.of_all_ranks(pl_module, inside_epoch=inside_epoch)
        checkpoint = without_odd_hyperparameters(internals.dump_checkpoint(trainer))
        weights = checkpoint.get("state_dict", {}) if internals.has_whole_module(trainer) else {}
        checkpoint[STATE_KEY] = {
            "ranks": ranks,
            "weights_of_others": weights_of_others(pl_module, weights),
            "inside_epoch": inside_epoch,
            "validations": self._validations,
            "should_stop": self._would_stop,
            "seconds": self._seconds(),
            "folders": trainer_files.folders_now(self._channel.directory),
            "saving": trainer_files.saving_state(trainer),
            "files": trainer_files.files_of_checkpoint_callbacks(trainer, self._channel.directory),
            "rows": logged_rows(trainer, self._channel.directory),
        }
        path = checkpoint_path(self._channel.directory, resource)
        shards = None
        if internals.strategy_writes_itself(trainer):
            shards = trainer.strategy.broadcast(temporary_path(path))
            trainer.strategy.save_checkpoint(checkpoint, shards)
            trainer.strategy.barrier("HPOCallback")

        def write() -> None:
            written = self._when_there_is_room(
                lambda: publish(shards, path) if shards else write_checkpoint(path, checkpoint)
            )
            relative = path.relative_to(self._channel.directory).as_posix()
            self._channel.checkpoint(Checkpoint(resource, relative, written.sha256, written.size))
            failpoint("callback.saved")

        self._on_rank_zero(write)
        self._refuse_further_use(Outcome.PAUSED)

    def _when_there_is_room(self, write: Callable[[], Written]) -> Written:
        """The training is worth waiting for; the launcher tells the user, and whether there is still reason to wait."""
        while True:
            try:
                return write()
            except DiskFull as problem:
                if self._channel.problem(DiskFull.__name__, str(problem)).decision != "continue":
                    raise
                time.sleep(_TRY_TO_SAVE_AGAIN_S)

    # ----------------------------------------------------------------------------------------- ranks

    def _on_rank_zero(self, function: Callable[[], _T]) -> _T:
        """Call ``function`` on global rank 0; every rank gets its result, or raises its error."""
        result: Any = None
        failure: tuple[str, str] | None = None
        if self._trainer.is_global_zero:
            try:
                with self._announcing_errors():
                    result = function()
            except HpoError as error:
                if self._trainer.world_size == 1:
                    raise
                failure = (type(error).__name__, str(error))
        result, failure = self._trainer.strategy.broadcast((result, failure), src=0)
        if failure is not None:
            raise getattr(errors, failure[0])(failure[1])
        return result  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _announcing_errors(self) -> Any:
        """Tell the launcher of an error, so that it need not wait for other trials to fail in the same way."""
        try:
            yield
        except HpoError as error:
            if self._trainer.is_global_zero and not isinstance(error, ChannelError):
                with contextlib.suppress(ChannelError):
                    self._channel.problem(type(error).__name__, str(error))
            raise


def interruption(outcome: Outcome) -> TrialInterrupted:
    """The exception that ends a script whose trial was paused or stopped."""
    if outcome is Outcome.PAUSED:
        return TrialPaused("The trial is paused and its checkpoint is written. Let this exception pass.")
    return TrialStopped("The trial is stopped, others are more promising. Let this exception pass.")
