"""What a run shows while it runs: one table on a terminal, else one line per decision.

Nothing here may disturb the run: what fails is shown no more. :meth:`RunObserver.event` only takes notes;
:meth:`RunObserver.tick` draws, a few times per second, without a thread, as trials may be forked from this process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lightning_hpo.core.error_texts import without_numbers
from lightning_hpo.core.events import Decision, Event
from lightning_hpo.core.study import StudyState
from lightning_hpo.report import formats
from lightning_hpo.report.afterwards import warning_of_failure_afterwards
from lightning_hpo.report.decisions import DecisionLines
from lightning_hpo.report.folder import trial_log
from lightning_hpo.report.goals import Goals
from lightning_hpo.report.header import header_text
from lightning_hpo.report.live_table import live_table
from lightning_hpo.report.log_notes import LogNotes
from lightning_hpo.report.screen import PatientStream, patient
from lightning_hpo.report.shared_folders import SharedFolders

_log = logging.getLogger(__name__)

_FRAME_S = 0.25
"""Shortest time between two drawings."""
_DRAWING_SHARE = 0.05
"""Largest part of the launcher's time that drawing may take."""
_KEPT_MESSAGES = 3
_MAX_KINDS = 100
"""Kinds of warnings that are shown: a trial that sends nonsense without end must not fill the screen and the memory."""


def make_observer(
    folder: str | os.PathLike[str],
    *,
    unit: str = "epoch",
    stream: TextIO | None = None,
    live: bool | None = None,
) -> RunObserver:
    """The observer that suits the output. Use it in a ``with`` statement: leaving it restores the terminal.

    Args:
        folder: the study folder, as the user named it.
        unit: of resource: ``epoch`` or ``validation``.
        stream: where to write; default: standard output.
        live: draw a table (True) or write lines (False); default: a table on a terminal, lines elsewhere.
    """
    target = sys.stdout if stream is None else stream
    if live is None:
        live = _is_terminal(target)
    return LiveObserver(Path(folder), unit, target) if live else LineObserver(Path(folder), unit, target)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except (AttributeError, ValueError):  # a notebook's stream, or a closed one
        return False


class RunObserver(ABC):
    """Shows a run; implements :class:`lightning_hpo.runtime.coordinator.Observer`.

    Args:
        folder: the study folder, as the user named it.
        unit: of resource.
        stream: where to write.
        clock: monotonic clock, seconds.
    """

    def __init__(self, folder: Path, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._unit = unit
        self._given_stream = stream
        self._stream: TextIO | PatientStream = patient(stream)
        self._clock = clock
        self._lines: DecisionLines | None = None
        self._shared_folders = SharedFolders(lambda trial: trial_log(folder, trial))
        self._goals = Goals()
        self._log_notes = LogNotes(lambda trial: trial_log(folder, trial))
        self._warnings: dict[str, int] = {}
        self._first_of: dict[str, str] = {}
        self._not_shown = 0
        """Warnings of kinds beyond the first :data:`_MAX_KINDS`."""
        self._is_broken = False

    # ------------------------------------------------------------------------ what the launcher calls

    def header(
        self,
        state: StudyState,
        *,
        workers: int,
        start_method: str = "",
        continue_command: str | None = None,
        first_folder: str = "0",
    ) -> None:
        """Say what is about to happen; see :func:`lightning_hpo.report.header.header_text`."""
        text = header_text(
            state,
            self._folder,
            workers=workers,
            start_method=start_method,
            unit=self._unit,
            continue_command=continue_command,
            first_folder=first_folder,
        )
        self._safely(lambda: self._print(text + "\n"))
        # What is known before the first event tells news from repetition.
        self._decision_lines(state)

    def event(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        """An event was handled."""
        self._safely(lambda: self._note(event, decisions, state))
        self._safely(lambda: self._warn(warning_of_failure_afterwards(event, state, self._folder)))
        self._safely(lambda: self._warn(self._goals.warning(event, state)))
        self._safely(lambda: self._warn(self._shared_folders.warning(event, state)))
        self._safely(lambda: self._warn(*self._log_notes.warnings(event, state)))

    def _warn(self, *messages: str | None) -> None:
        for message in messages:
            if message is not None:
                self.say(message, warning=True)

    def say(self, message: str, warning: bool = False) -> None:
        """Show a message now. Of warnings that differ in numbers only, the first is shown and the rest are counted."""
        # A message may quote what a trial has sent.
        text = "\n".join(formats.plain(line) for line in message.splitlines())
        if warning and self._is_repetition(text):
            return
        self._safely(lambda: self._show_message(text, warning))
        if warning and self._lines is not None:
            self._lines.warned(text)

    def _is_repetition(self, warning: str) -> bool:
        kind = without_numbers(warning)
        if kind not in self._warnings:
            if len(self._warnings) >= _MAX_KINDS:
                self._not_shown += 1
                return True
            self._warnings[kind] = 0
            self._first_of[kind] = warning
        self._warnings[kind] += 1
        return self._warnings[kind] > 1

    def tick(self, state: StudyState) -> None:
        """A moment has passed."""
        self._safely(lambda: self._refresh(state))

    def close(self) -> None:
        """Restore the terminal and write what is not written yet. May be called more than once."""
        self._safely(self._finish)
        for kind, count in self._warnings.items():
            if count > 1:
                text = f"{count - 1} more like: {self._first_of[kind]}"
                self._safely(lambda text=text: self._print(text))  # type: ignore[misc]
        if self._not_shown:
            self._safely(lambda: self._print(f"{self._not_shown} other warnings were not shown."))
        self._warnings.clear()
        self._not_shown = 0
        if self._stream is not self._given_stream:
            self._stream.close()
            self._stream = self._given_stream

    def __enter__(self) -> RunObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- details

    def _safely(self, action: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            action()
        except Exception as problem:
            self._is_broken = True
            _log.debug("The run is not shown any more", exc_info=problem)

    def _decision_lines(self, state: StudyState) -> DecisionLines:
        if self._lines is None:
            self._lines = DecisionLines(state, self._folder, self._unit)
        return self._lines

    def _print(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()

    @abstractmethod
    def _note(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        """Remember what is to be shown of an event; must be quick."""

    @abstractmethod
    def _show_message(self, message: str, warning: bool) -> None:
        """Show a message at once."""

    @abstractmethod
    def _refresh(self, state: StudyState) -> None:
        """Bring the screen up to date, if it is time."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is not written yet, and leave the terminal as it was."""


class LineObserver(RunObserver):
    """One line per decision."""

    def __init__(self, folder: Path, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(folder, unit, stream, clock)
        self._unwritten: list[str] = []

    def _note(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        self._unwritten += [line for line, _ in self._decision_lines(state).of(event, decisions, state)]

    def _show_message(self, message: str, warning: bool) -> None:
        self._unwritten.append(f"Warning: {message}" if warning else message)
        self._finish()

    def _refresh(self, state: StudyState) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._unwritten:
            text, self._unwritten = "\n".join(self._unwritten), []
            self._print(text)


class LiveObserver(RunObserver):
    """One table that is drawn anew, with warnings and failures as lines above it."""

    def __init__(self, folder: Path, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(folder, unit, stream, clock)
        self._console = Console(
            file=cast(TextIO, self._stream), force_terminal=True, markup=False, highlight=False, emoji=False
        )
        self._live: Live | None = None
        self._messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self._above: list[Text] = []
        self._next_frame = 0.0
        self._zero: float | None = None
        """When the study began, on this process's clock."""

    def _note(self, event: Event, decisions: Sequence[Decision], state: StudyState) -> None:
        lines = self._decision_lines(state).of(event, decisions, state)
        self._zero = self._clock() - event.time
        self._above += [Text(line, style="red") for line, is_failure in lines if is_failure]

    def _show_message(self, message: str, warning: bool) -> None:
        if warning:
            self._above.append(Text(f"Warning: {message}", style="yellow"))
            self._draw_above()
        else:
            self._messages.append(message)
        self._next_frame = 0.0

    def _refresh(self, state: StudyState) -> None:
        now = self._clock()
        if now < self._next_frame:
            return
        tally = self._decision_lines(state).tally
        elapsed = state.progress.time if self._zero is None else now - self._zero
        frame = live_table(state, tally, self._folder, self._unit, self._messages, self._console.size, elapsed)
        self._draw_above()
        self._draw(frame)
        self._next_frame = now + max(_FRAME_S, (self._clock() - now) / _DRAWING_SHARE)

    def _draw(self, frame: Text) -> None:
        if self._live is None:
            # Nothing is redirected: processes forked from this one would inherit it.
            self._live = Live(
                frame,
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)
            self._console.show_cursor(True)  # a launcher that is killed leaves a usable terminal
        else:
            self._live.update(frame, refresh=True)

    def _draw_above(self) -> None:
        if self._above:
            lines, self._above = self._above, []
            self._console.print(Text("\n").join(lines), soft_wrap=True)

    def _finish(self) -> None:
        self._draw_above()
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
