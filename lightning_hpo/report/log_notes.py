"""What a trial has to tell the person who watches the study, where no event of the study tells it.

The trial says it in its log, and the launcher looks there when the trial's script has ended.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_hpo.core.events import AttemptEnded, Event

if TYPE_CHECKING:  # every script with the callback imports this module
    from lightning_hpo.core.study import StudyState
    from lightning_hpo.core.trial import Trial

_MARK = "Note of lightning_hpo: "
_READ_BYTES = 1 << 20
"""Of a longer log, the end."""
_MOST_CHARACTERS = 500
"""Of a note: a log may say anything."""
_MOST_NOTES = 3
_MOST_LOGS = 20
"""So many trials that ended in the same way are enough to see what there is to be told."""


def note_for_the_log(note: str) -> str:
    """What a trial prints. ``note``: one line, whose end says what to do."""
    return f"{_MARK}{note}\n"


class LogNotes:
    """Looks into the logs of the first trials whose scripts end in this run, and tells each note once.

    Args:
        log_of: where a trial's log is, if it can be told.
    """

    def __init__(self, log_of: Callable[[Trial], Path | None]) -> None:
        self._log_of = log_of
        self._read: Counter[str] = Counter()
        """How the script ended -> logs that were read."""
        self._told: set[str] = set()

    def warnings(self, event: Event, state: StudyState) -> list[str]:
        """The notes of the trial whose script has ended with this event, without those that another trial had too."""
        if not isinstance(event, AttemptEnded) or self._read[event.outcome] >= _MOST_LOGS:
            return []
        self._read[event.outcome] += 1
        found: list[str] = []
        for note in _notes(self._log_of(state.trials[event.trial_id])):
            if note not in self._told and len(self._told) < _MOST_NOTES:
                self._told.add(note)
                found.append(f"Trial {event.trial_id}: {note}")
        return found


def _notes(log: Path | None) -> list[str]:
    text = ""
    if log is not None:
        with contextlib.suppress(OSError), open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _READ_BYTES))
            text = file.read(_READ_BYTES).decode(errors="replace")
    return [line.partition(_MARK)[2][:_MOST_CHARACTERS] for line in text.splitlines() if _MARK in line]
