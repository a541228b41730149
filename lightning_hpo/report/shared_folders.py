"""Notices that trials write to one folder, which no trial can know by itself.

Each trial says in its log, when its training begins, where it writes outside of its own folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_hpo.core.events import AttemptEnded, Event, Reported

if TYPE_CHECKING:  # every script with the callback imports this module
    from lightning_hpo.core.study import StudyState
    from lightning_hpo.core.trial import Trial

_MARK = "Written to outside of this trial's folder: "
_READ_BYTES = 256 * 1024
_MOST_CHARACTERS = 500
"""Of a folder's name: a log may say anything."""
_MOST_LOGS = 20
"""So many trials are enough to see whether they share a folder."""


def lines_for_the_log(places: Mapping[str, str]) -> str:
    """What a trial prints when its training begins. ``places``: folder -> who writes there."""
    return "".join(f"{_MARK}{folder} ({writer})\n" for folder, writer in places.items())


class SharedFolders:
    """Looks into the logs of the first trials that begin in this run, once each.

    Args:
        log_of: where a trial's log is, if it can be told.
    """

    def __init__(self, log_of: Callable[[Trial], Path | None]) -> None:
        self._log_of = log_of
        self._seen: set[int] = set()
        self._first_at: dict[str, int] = {}
        """Folder and writer, as the log has them -> the trial that named them first."""
        self._is_done = False

    def warning(self, event: Event, state: StudyState) -> str | None:
        """One line at the event from which it is known that two trials share a folder, else None; one in all."""
        if self._is_done or not isinstance(event, (Reported, AttemptEnded)):
            return None
        # The log of a later attempt has what may have been set otherwise before the study was continued.
        if event.attempt > 1 or event.trial_id in self._seen:
            return None
        self._seen.add(event.trial_id)
        self._is_done = len(self._seen) >= _MOST_LOGS
        for place in _places(self._log_of(state.trials[event.trial_id])):
            first = self._first_at.setdefault(place, event.trial_id)
            if first != event.trial_id:
                self._is_done = True
                return (
                    f"Trials {first} and {event.trial_id} both write to {place} and may mix or overwrite each other's "
                    "files. Set hydra.job.chdir=true, or let the path begin with ${hydra:runtime.output_dir}."
                )
        return None


def _places(log: Path | None) -> list[str]:
    text = ""
    if log is not None:
        with contextlib.suppress(OSError), open(log, "rb") as file:
            text = file.read(_READ_BYTES).decode(errors="replace")
    return [line.partition(_MARK)[2][:_MOST_CHARACTERS] for line in text.splitlines() if _MARK in line]
