"""A running attempt as the launcher follows it, and how its end is to be understood."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.core.events import Outcome
from lightning_hpo.runtime.backends.base import Exit
from lightning_hpo.runtime.messages import Ended
from lightning_hpo.runtime.processes import EXIT_UNHEARD

_LAST_WORDS_BYTES = 4096


@dataclass(slots=True)
class Attempt:
    """What the launcher knows of a process that trains a trial. Times are on the launcher's listening clock."""

    trial_id: int
    attempt: int
    started_at: float
    heard_at: float
    ended: Ended | None = None
    """What it said last."""
    fate: tuple[Outcome, str] | None = None
    """How it ends whatever it still says, and why."""
    has_greeted: bool = False
    is_sent_away: bool = False
    """Its process was told to end from outside."""

    def overdue(
        self, now: float, epoch_timeout: float | None, trial_timeout: float | None
    ) -> tuple[Outcome, str] | None:
        """How and why it is to be ended if it has been silent or has run for too long; else None."""
        if epoch_timeout is not None and now - self.heard_at > epoch_timeout:
            return Outcome.LOST, f"no report for {epoch_timeout:g} s (epoch_timeout)"
        if trial_timeout is not None and now - self.started_at > trial_timeout:
            return Outcome.FAILED, f"it ran longer than {trial_timeout:g} s (trial_timeout)"
        return None

    def judge(self, end: Exit, log: Path, was_interrupted: bool) -> tuple[Outcome, str | None]:
        """How it ended, and the error if it failed.

        Args:
            end: of its process.
            log: what it printed.
            was_interrupted: has a signal ended the study?
        """
        if self.fate is not None:
            return self.fate
        if was_interrupted and end.signal is not None and self.ended is None:
            # Whoever ends the launcher (a batch system, a shell) may signal the trials too.
            return Outcome.INTERRUPTED, end.description
        if self.ended is not None and self.ended.outcome is Outcome.INTERRUPTED and not was_interrupted:
            # By itself: tried again as often as what is lost, not without end.
            return Outcome.LOST, "the script raised KeyboardInterrupt, though nobody had interrupted the study"
        if self.ended is not None and self.ended.outcome is not Outcome.FAILED:
            return self.ended.outcome, self.ended.error
        if self.ended is not None:
            told = (self.ended.error, self.ended.traceback)
            return Outcome.FAILED, next((text for text in told if text and not text.isspace()), end.description)
        if end.exit_code == EXIT_UNHEARD:
            return Outcome.LOST, last_words(log) or end.description
        if end.signal is None and end.exit_code not in (None, 0):
            return Outcome.FAILED, last_words(log) or end.description
        return Outcome.LOST, end.description


def last_words(log: Path) -> str | None:
    """The last line a process wrote to its log."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - _LAST_WORDS_BYTES, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else None
    return None
