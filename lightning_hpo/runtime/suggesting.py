"""The searcher as an effect: asked, it answers later.

:class:`InlineHost` computes in the launcher, for searchers that cost microseconds. :class:`ProcessHost` has a process
that follows the study's events and computes there, so that reports are answered while a model is fitted, and
the launcher imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.core.events import Event, to_json
from lightning_hpo.core.searcher import Searcher, SearchView, Suggestion, SuggestRequest
from lightning_hpo.errors import SearcherFailed
from lightning_hpo.runtime import processes

_CLOSE_S = 2.0
_MOST_UNSENT_BYTES = 128 * 2**20
"""Of events that the searcher does not read: half a million reports. Who is so far behind will not catch up."""
_READ_BYTES = 1 << 16


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
    and :meth:`close`, as long as they say.

    Create it before the launcher has threads, if ``serve`` is given: the process is forked then.

    Args:
        module: program that serves a searcher on the file descriptor that is its argument (``python -m module FD``).
        log: gets what the process writes to its standard output and error.
        serve: the same as a function of the socket, run in a fork of this process; None: a new interpreter.
    """

    def __init__(self, module: str, log: Path, serve: Callable[[socket.socket], None] | None = None) -> None:
        ours, theirs = socket.socketpair()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pid = _forked(serve, ours, theirs, output) if serve is not None else None
        self._process = None if serve is not None else _spawned(module, theirs, output)
        os.close(output)
        theirs.close()
        self._line = _Line(ours)
        self._most_unsent = _MOST_UNSENT_BYTES
        self._request: SuggestRequest | None = None
        self._asked_at = 0.0
        self._failure: SearcherFailed | None = None

    def begin(self, header: dict[str, Any], events: Sequence[Event]) -> None:
        """Tell it which study it works for, and what has happened so far."""
        self._send({"header": header})
        self._send_events(events)
        self._most_unsent += self._line.unsent

    @property
    def is_busy(self) -> bool:
        return self._request is not None

    def follow(self, events: Sequence[Event]) -> None:
        self._send_events(events)
        if self._line.unsent > self._most_unsent:
            self._line.close()
            self._failure = SearcherFailed(
                f"The searcher has left {self._most_unsent >> 20} MiB of events unread: its process hangs. "
                "Look at search.log in the study folder."
            )

    def ask(self, request: SuggestRequest) -> None:
        self._request = request
        self._asked_at = time.monotonic()
        self._send({"request": dataclasses.asdict(request)})

    def recommend(self, timeout_s: float) -> tuple[int, dict[str, Any], float, float, int] | None:
        """Trial, configuration, expected value (to be minimised), its standard deviation, and the number of
        confirmations it comes from; None if it cannot tell.

        What was asked before and has not been answered yet is dropped.
        """
        self._send({"recommend": True})
        deadline = time.monotonic() + timeout_s
        try:
            while (left := deadline - time.monotonic()) > 0:
                answer = self._heard()
                if answer is None:
                    self._line.wait(left)
                elif "recommendation" in answer:
                    trial_id, config, mean, std, confirmations = answer["recommendation"]
                    return int(trial_id), dict(config), float(mean), float(std), int(confirmations)
                elif self._request is None:
                    return None
                else:
                    self._request = None
        except SearcherFailed:
            pass
        return None

    def waitables(self) -> Sequence[Any]:
        return (self._line,) if self._line.is_open else ()

    def poll(self) -> Answered | None:
        answer = self._heard()
        if answer is None:
            return None
        if "error" in answer:
            raised = str(answer["error"]).removesuffix(".")
            raise SearcherFailed(f"The searcher raised: {raised}. Look at search.log in the study folder.")
        request, self._request = self._request, None
        if request is None:
            raise SearcherFailed("The searcher answered without being asked. Look at search.log in the study folder.")
        return Answered(request, suggestion_from_json(answer["suggestion"]), time.monotonic() - self._asked_at)

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
        except (EOFError, TypeError, ValueError) as problem:
            self._line.close()
            self._failure = SearcherFailed(
                f"The searcher process died ({problem!r}). Look at search.log in the study folder."
            )
            raise self._failure from problem

    def close(self) -> None:
        """Close its connection, which ends it; a process that is in the middle of a fit is killed."""
        self._line.close()
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._pid is not None:
            _reap(self._pid)
            self._pid = None


class _Line:
    """The launcher's end of a connection to a process: lines of bytes both ways, and neither way waits.

    What the process does not take is kept and sent bit by bit, whenever there is room: each :meth:`read` does it, and
    for ``wait`` the object becomes readable as soon as there is something to read or room for what is kept.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        # An epoll or kqueue object, which is readable itself when something that it watches is ready.
        self._selector = selectors.DefaultSelector()
        self._selector.register(end, selectors.EVENT_READ)
        self.is_open = True
        self._is_deaf = False
        """It takes nothing any more, but what it said last is still to be read."""
        self._unsent = bytearray()
        self._unread = bytearray()

    def fileno(self) -> int:
        return self._selector.fileno()

    @property
    def unsent(self) -> int:
        """Bytes that are kept."""
        return len(self._unsent)

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to do for :meth:`read`."""
        self._selector.select(timeout_s)

    def write(self, line: bytes) -> None:
        """Send a line, now or later; to a process that is gone, never."""
        if self.is_open and not self._is_deaf:
            self._unsent += line + b"\n"
            self._flush()

    def read(self) -> bytes | None:
        """The next line, if it has come.

        Raises:
            EOFError: if there will be no other one.
        """
        self._flush()
        if b"\n" not in self._unread and self.is_open:
            self._receive()
        line, end, rest = self._unread.partition(b"\n")
        if end:
            self._unread = rest
            return bytes(line)
        if not self.is_open:
            raise EOFError
        return None

    def close(self) -> None:
        """Send nothing any more, not even the rest of a line. What has been received can be read."""
        if self.is_open:
            self.is_open = False
            self._selector.close()
            self._socket.close()
            self._unsent.clear()

    def _flush(self) -> None:
        if not self._unsent:
            return
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            # It is gone. Should it be there all the same, it must not take the rest of a line for a line.
            self._is_deaf = True
            self._unsent.clear()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._socket, events)

    def _receive(self) -> None:
        try:
            received = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received:
            self._unread += received
        else:
            self.close()


def suggestion_from_json(data: dict[str, Any] | None) -> Suggestion | None:
    """The suggestion in a server's answer."""
    if data is None:
        return None
    weights = data.pop("bracket_weights")
    return Suggestion(**data, bracket_weights=None if weights is None else tuple(weights))


def _forked(serve: Callable[[socket.socket], None], ours: socket.socket, theirs: socket.socket, output: int) -> int:
    def child() -> None:
        os.setsid()  # the launcher's Ctrl-C is not meant for it
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        processes.forget_parent()
        processes.limit_threads(_threads())
        ours.close()
        serve(theirs)

    return processes.fork(child)


def _spawned(module: str, theirs: socket.socket, output: int) -> subprocess.Popen[bytes]:
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
    return int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])


def _reap(pid: int) -> None:
    deadline = time.monotonic() + _CLOSE_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
