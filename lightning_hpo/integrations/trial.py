"""What runs in a trial's process, whoever brought the training script: Hydra or the Tuner."""

from __future__ import annotations

from collections.abc import Callable

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import CallbackMissing
from lightning_hpo.integrations.job import JobResult
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.channel import forget_trial_channel, trial_channel


class TrialEntry:
    """Runs one attempt and tells the launcher how it ended.

    Args:
        run: runs the user's script for a job; never raises.
    """

    def __init__(self, run: Callable[[Job], JobResult]) -> None:
        self._run = run

    def __call__(self, job: Job) -> None:
        result = self._run(job)
        channel = trial_channel()
        if channel is None or job.rank != 0:
            return
        outcome, error = result.outcome, result.error
        if outcome is Outcome.COMPLETED and channel.interrupted_as is not None:
            # The script went on after the training was paused or stopped; what it returned is no result.
            outcome = channel.interrupted_as
        elif outcome is Outcome.COMPLETED and not channel.callback_seen:
            message = (
                "The script ended without training a Trainer that has the callback of this package, so nothing "
                "was reported. "
                "Add it to the Trainer's list: from lightning_hpo import HPOCallback; "
                "Trainer(callbacks=[HPOCallback()], ...)"
            )
            channel.problem(CallbackMissing.__name__, message)
            outcome, error = Outcome.FAILED, f"{CallbackMissing.__name__}: {message}"
        channel.ended(outcome, error, result.traceback, result.value)
        forget_trial_channel()
