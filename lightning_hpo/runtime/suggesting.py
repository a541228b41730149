"""The searcher as an effect: asked, it answers later.

:class:`InlineHost` computes in the launcher, for searchers that cost microseconds. :class:`ProcessHost` has a process
that follows the study's events and computes there, so that reports are answered while a model is fitted, and
the launcher imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.core.events import Event, limits_of, to_json
from lightning_hpo.core.searcher import Searcher, SearchView, Suggestion, SuggestRequest
from lightning_hpo.errors import HpoError, OptionError, SearcherFailed
from lightning_hpo.runtime import process_table, processes
from lightning_hpo.runtime.filesystems import open_own
from lightning_hpo.runtime.lines import Line

_CLOSE_S = 2.0
_TICK_S = 0.2
"""Between two looks at how much time is left."""
_DEATH_S = 0.5
"""Time between the end of a process's connection and its own."""
_MOST_UNSENT_BYTES = 128 * 2**20
"""Of events that the searcher does not read: half a million reports. Who is so far behind will not catch up."""
_MOST_IDLE_S = 300.0
"""For which a process may neither answer nor compute: it may have to import torch from a slow disk."""
_MOST_COMPUTING_S = 3600.0
_LONGER_THAN_EVER = 10.0
"""For which it may compute: so long, or so many times its longest computation, whichever is more."""
_LONGEST_GAP_S = 2.0
"""Between two looks at the process, longer ones do not count: this process was not there to listen."""
_MOST_LOG_BYTES = 1 << 16
_MOST_ERROR_CHARACTERS = 500
_LOOK = "Look at search.log in the study folder."


@dataclass(frozen=True, slots=True)
class Answered:
    """A searcher's answer."""

    request: SuggestRequest
    suggestion: Suggestion | None
    """None: nothing is left to propose."""
    seconds: float
    """What it took."""


class SearcherHost(Protocol):
    """Where the searcher lives. At most one request at a time."""

    @property
    def has_begun(self) -> bool:
        """It has found its options usable. Before that nothing is to be started: it might be for nothing."""

    @property
    def is_busy(self) -> bool:
        """A request was made and not answered yet."""

    def follow(self, events: Sequence[Event]) -> None:
        """These events were committed."""

    def ask(self, request: SuggestRequest) -> None:
        """Begin to compute; :meth:`poll` has the answer later."""

    def waitables(self) -> Sequence[Any]:
        """What becomes readable when :meth:`poll` has something."""

    def poll(self) -> Answered | None:
        """The answer, if it is there.

        Raises:
            SearcherFailed: if the searcher raised or its process died. It is of no use any more then.
            OptionError: if an option cannot be used here, as only the searcher could find out.
        """

    def close(self) -> None:
        """End it."""


class InlineHost:
    """Computes at once, in the launcher.

    Args:
        searcher: what computes.
        view: gives the study's present view.
    """

    def __init__(self, searcher: Searcher, view: Callable[[], SearchView]) -> None:
        self._searcher = searcher
        self._view = view
        self._answer: Answered | None = None

    @property
    def has_begun(self) -> bool:
        return True

    @property
    def is_busy(self) -> bool:
        return self._answer is not None

    def follow(self, events: Sequence[Event]) -> None:
        pass

    def ask(self, request: SuggestRequest) -> None:
        begun = time.monotonic()
        suggestion = self._searcher.suggest(self._view(), request)
        self._answer = Answered(request, suggestion, time.monotonic() - begun)

    def waitables(self) -> Sequence[Any]:
        return ()

    def poll(self) -> Answered | None:
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        pass


class ProcessHost:
    """A searcher in its own process.

    The process may fit a model for minutes and read nothing meanwhile. No method waits for it, but :meth:`recommend`
    and :meth:`close`, as long as they say. Signals by which a batch system ends everybody are held there: at the end
    the launcher wants a recommendation, and then closes the connection.

    Create it before the launcher has threads, if ``serve`` is given: the process is forked then.

    Args:
        module: program that serves a searcher on the file descriptor that is its argument (``python -m module FD``).
        log: gets what the process writes to its standard output and error.
        serve: the same as a function of the socket, run in a fork of this process; None: a new interpreter.
    """

    def __init__(self, module: str, log: Path, serve: Callable[[socket.socket], None] | None = None) -> None:
        ours, theirs = socket.socketpair()
        output = open_own(log, os.O_WRONLY | os.O_APPEND)
        self._log, self._log_begins = log, os.fstat(output).st_size
        self._process: subprocess.Popen[bytes] | _Fork = (
            _spawned(module, theirs, output) if serve is None else _forked(serve, ours, theirs, output)
        )
        os.close(output)
        theirs.close()
        self._line = Line(ours)
        self._most_unsent = _MOST_UNSENT_BYTES
        self._request: SuggestRequest | None = None
        self._asked_at = 0.0
        self._has_begun = False
        self._failure: HpoError | None = None
        self._looked_at = time.monotonic()
        self._silence = self._idleness = 0.0
        """Seconds for which it has been waited for, and the last of them in which it did not even compute."""
        self._longest_silence = 0.0
        self._processor_s: float | None = None

    def begin(self, header: dict[str, Any], events: Sequence[Event]) -> None:
        """Tell it which study it works for, and what has happened so far."""
        self._send({"header": header})
        self._send_events(events)
        self._most_unsent += self._line.unsent

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    @property
    def is_busy(self) -> bool:
        return self._request is not None

    def follow(self, events: Sequence[Event]) -> None:
        self._send_events(events)
        if self._line.unsent > self._most_unsent:
            self._failed(
                SearcherFailed(
                    f"The searcher has left {self._most_unsent >> 20} MiB of events unread: its process hangs. {_LOOK}"
                )
            )

    def ask(self, request: SuggestRequest) -> None:
        self._request = request
        self._asked_at = time.monotonic()
        self._send({"request": dataclasses.asdict(request)})

    def recommend(self, seconds_left: Callable[[], float]) -> tuple[int, dict[str, Any], float, float, int] | None:
        """Trial, configuration, expected value (to be minimised), its standard deviation, and the number of
        confirmations it comes from; None if it cannot tell.

        What was asked before and has not been answered yet is dropped.

        Args:
            seconds_left: how long it may take from now; asked again and again.
        """
        self._send({"recommend": True})
        try:
            while (left := seconds_left()) > 0:
                answer = self._heard()
                if answer is None:
                    self._line.wait(min(left, _TICK_S))
                elif "begun" in answer:
                    continue
                elif "recommendation" in answer:
                    trial_id, config, mean, std, confirmations = answer["recommendation"]
                    return int(trial_id), dict(config), float(mean), float(std), int(confirmations)
                elif self._request is None:
                    return None
                else:
                    self._request = None
        except HpoError:
            pass
        return None

    def waitables(self) -> Sequence[Any]:
        return (self._line,) if self._line.is_open else ()

    def poll(self) -> Answered | None:
        self._notice_silence()
        while (answer := self._heard()) is not None:
            self._longest_silence = max(self._longest_silence, self._silence)
            self._silence = self._idleness = 0.0
            if "begun" in answer:
                self._has_begun = True
            elif "error" in answer:
                raise self._failed(_raised(str(answer["error"]), answer.get("kind")))
            elif self._request is None:
                raise self._failed(SearcherFailed(f"The searcher answered without being asked. {_LOOK}"))
            else:
                request, self._request = self._request, None
                suggestion = suggestion_from_json(answer["suggestion"])
                return Answered(request, suggestion, time.monotonic() - self._asked_at)
        return None

    def _notice_silence(self) -> None:
        """End a process that has been waited for too long; :meth:`_heard` raises then."""
        now = time.monotonic()
        gap, self._looked_at = min(now - self._looked_at, _LONGEST_GAP_S), now
        if self._failure is not None or (self._has_begun and not self.is_busy):
            self._silence = self._idleness = 0.0
            return
        before, self._processor_s = self._processor_s, process_table.processor_seconds(self._process.pid)
        self._silence += gap
        self._idleness = self._idleness + gap if self._processor_s == before else 0.0
        longest = max(_MOST_COMPUTING_S, _LONGER_THAN_EVER * self._longest_silence)
        if self._idleness > _MOST_IDLE_S or self._silence > longest:
            self._process.kill()
            self._failed(
                SearcherFailed(f"The searcher's process has not answered for {self._silence:.0f} s: it hangs. {_LOOK}")
            )

    def _send(self, message: dict[str, Any]) -> None:
        self._line.write(json.dumps(message).encode())

    def _send_events(self, events: Sequence[Event]) -> None:
        if events:
            self._send({"events": [to_json(event) for event in events]})

    def _heard(self) -> dict[str, Any] | None:
        """What the process has said, if it has said anything.

        Raises:
            SearcherFailed: if it will not say anything any more.
        """
        if self._failure is not None:
            raise self._failure
        try:
            line = self._line.read()
            return None if line is None else dict(json.loads(line))
        except EOFError:
            raise self._failed(
                SearcherFailed(f"The searcher process died ({self._cause_of_death()}). {_LOOK}")
            ) from None
        except (TypeError, ValueError) as problem:
            raise self._failed(SearcherFailed(f"The searcher process talks nonsense ({problem}). {_LOOK}")) from problem

    def _failed(self, failure: HpoError) -> HpoError:
        """There will be no other answer, and no other error."""
        self._line.close()
        self._failure = failure
        return failure

    def _cause_of_death(self) -> str:
        status = self._ended(_DEATH_S)
        if not status:
            return "its connection has ended"
        if status == -signal.SIGKILL:
            return "killed by SIGKILL (out of memory?)"
        how = f"exit code {status}" if status > 0 else f"killed by signal {-status}"
        last = last_error(self._log, self._log_begins)
        return f"{how}: {last}" if last else how

    def _ended(self, timeout_s: float) -> int | None:
        """Exit status, negative for a signal; None if it still runs after the time."""
        deadline = time.monotonic() + timeout_s
        while (status := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return status

    def close(self) -> None:
        """Close its connection, which ends it; a process that is in the middle of a fit is killed."""
        self._line.close()
        if self._ended(0.0 if self.is_busy else _CLOSE_S) is None:
            self._process.kill()
            self._ended(_CLOSE_S)


def suggestion_from_json(data: dict[str, Any] | None) -> Suggestion | None:
    """The suggestion in a server's answer."""
    if data is None:
        return None
    weights, limits = data.pop("bracket_weights"), data.pop("limits", None)
    return Suggestion(
        **data,
        bracket_weights=None if weights is None else tuple(weights),
        limits=None if limits is None else limits_of(limits),
    )


def _raised(error: str, kind: str | None) -> HpoError:
    """What an error that the process has told of means for the study."""
    if kind == OptionError.__name__:
        return OptionError(error)
    return SearcherFailed(f"The searcher raised: {error.rstrip(' .:')}. {_LOOK}")


def last_error(log: Path, begin: int = 0) -> str | None:
    """The error of the last traceback in a log, or its last line if there is none; None if nothing was said.

    Args:
        begin: bytes at its begin that do not count.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _MOST_LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    _, found, last = text.rpartition("Traceback (most recent call last):\n")
    # The frames of a traceback are indented, its error is not, and may have several lines.
    lines = [line.strip() for line in last.splitlines() if line.strip() and not (found and line.startswith(" "))]
    return (lines[0] if found else lines[-1])[:_MOST_ERROR_CHARACTERS].rstrip(".") if lines else None


class _Fork:
    """A process that was forked, with as much of ``subprocess.Popen`` as is needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it, and knows how it ended
                pid, status = self.pid, 0
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _forked(serve: Callable[[socket.socket], None], ours: socket.socket, theirs: socket.socket, output: int) -> _Fork:
    def child() -> None:
        os.setsid()  # the launcher's Ctrl-C is not meant for it
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        processes.forget_parent()
        processes.limit_threads(_threads())
        ours.close()
        processes.hold_signals()
        serve(theirs)

    return _Fork(processes.fork(child))


def _spawned(module: str, theirs: socket.socket, output: int) -> subprocess.Popen[bytes]:
    with processes.signals_held():  # the program inherits that
        return subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(_threads())},
        )


def _threads() -> int:
    """One, as the processors are busy with trials and the matrices are small; the user may say otherwise."""
    return processes.wanted_threads() or 1
