"""What runs in a trial's process, whoever brought the training script: Hydra or the Tuner."""

from __future__ import annotations

from collections.abc import Callable

from lightning_hpo.core.events import Outcome
from lightning_hpo.integrations.fit_guard import guarding_fits, never_trained
from lightning_hpo.integrations.job import JobResult
from lightning_hpo.integrations.root_folder import trainers_write_in
from lightning_hpo.integrations.trainer_classes import refusals_end_here
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.channel import forget_trial_channel, trial_channel


class TrialEntry:
    """Runs one attempt and tells the launcher how it ended.

    Args:
        run: runs the user's script for a job; never raises.
        callback_is_configured: the configuration names the callback, so that the script will make it from there.
    """

    def __init__(self, run: Callable[[Job], JobResult], callback_is_configured: bool = False) -> None:
        self._run = run
        self._callback_is_configured = callback_is_configured

    def __call__(self, job: Job) -> None:
        with trainers_write_in(job.folder):
            self._attempt(job)

    def _attempt(self, job: Job) -> None:
        channel = trial_channel()
        if channel is None or job.rank != 0:
            self._run(job)
            return
        with guarding_fits(channel, self._callback_is_configured), refusals_end_here():
            result = self._run(job)
        outcome, error = result.outcome, result.error
        if outcome is Outcome.COMPLETED and channel.interrupted_as is not None:
            # The script went on after the training was paused or stopped; what it returned is no result.
            outcome = channel.interrupted_as
        elif outcome is Outcome.COMPLETED and channel.fit_error is not None:
            # The script has caught what its training raised; a training that was cut short is no full one.
            outcome, error = channel.fit_error
        elif outcome is Outcome.COMPLETED and not channel.callback_seen:
            missing = never_trained()
            channel.problem(type(missing).__name__, str(missing))
            outcome, error = Outcome.FAILED, f"{type(missing).__name__}: {missing}"
        channel.ended(outcome, error, result.traceback, result.value)
        forget_trial_channel()
