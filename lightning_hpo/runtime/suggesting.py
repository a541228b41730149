"""The searcher as an effect: asked, it answers later.

:class:`InlineHost` computes in the launcher, for searchers that cost microseconds. :class:`ProcessHost` has a process
that follows the study's events and computes there, so that reports are answered while a model is fitted, and
the launcher imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.core.events import Event, to_json
from lightning_hpo.core.searcher import Searcher, SearchView, Suggestion, SuggestRequest
from lightning_hpo.errors import SearcherFailed
from lightning_hpo.runtime import processes

_CLOSE_S = 2.0


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

    Create it before the launcher has threads, if ``serve`` is given: the process is forked then.

    Args:
        module: program that serves a searcher on the file descriptor that is its argument (``python -m module FD``).
        log: gets what the process writes to its standard output and error.
        serve: the same as a function of the connection, run in a fork of this process; None: a new interpreter.
    """

    def __init__(self, module: str, log: Path, serve: Callable[[Connection[Any, Any]], None] | None = None) -> None:
        ours, theirs = socket.socketpair()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pid = _forked(serve, ours, theirs, output) if serve is not None else None
        self._process = None if serve is not None else _spawned(module, theirs, output)
        os.close(output)
        theirs.close()
        self._connection: Connection[Any, Any] = Connection(os.dup(ours.fileno()))
        ours.close()
        self._request: SuggestRequest | None = None
        self._asked_at = 0.0
        self._failure: str | None = None

    def begin(self, header: dict[str, Any], events: Sequence[Event]) -> None:
        """Tell it which study it works for, and what has happened so far."""
        self._send({"header": header, "events": [to_json(event) for event in events]})

    @property
    def is_busy(self) -> bool:
        return self._request is not None

    def follow(self, events: Sequence[Event]) -> None:
        if events:
            self._send({"events": [to_json(event) for event in events]})

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
            while self._failure is None and self._connection.poll(max(deadline - time.monotonic(), 0.0)):
                answer = json.loads(self._connection.recv_bytes())
                if "recommendation" in answer:
                    trial_id, config, mean, std, confirmations = answer["recommendation"]
                    return int(trial_id), dict(config), float(mean), float(std), int(confirmations)
                if self._request is None:
                    return None
                self._request = None
        except (EOFError, OSError, ValueError):
            pass
        return None

    def waitables(self) -> Sequence[Any]:
        return (self._connection,)

    def poll(self) -> Answered | None:
        if self._failure is None and not self._connection.poll():
            return None
        try:
            if self._failure is not None:
                raise SearcherFailed(self._failure)
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError, ValueError) as problem:
            raise SearcherFailed(
                f"The searcher process died ({problem!r}). Look at search.log in the study folder."
            ) from problem
        if "error" in answer:
            raised = str(answer["error"]).removesuffix(".")
            raise SearcherFailed(f"The searcher raised: {raised}. Look at search.log in the study folder.")
        request, self._request = self._request, None
        if request is None:
            raise SearcherFailed("The searcher answered without being asked. Look at search.log in the study folder.")
        return Answered(request, suggestion_from_json(answer["suggestion"]), time.monotonic() - self._asked_at)

    def close(self) -> None:
        """Close its connection, which ends it; a process that is in the middle of a fit is killed."""
        self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._pid is not None:
            _reap(self._pid)
            self._pid = None

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as problem:
            self._failure = f"The searcher process died ({problem}). Look at search.log in the study folder."


def suggestion_from_json(data: dict[str, Any] | None) -> Suggestion | None:
    """The suggestion in a server's answer."""
    if data is None:
        return None
    weights = data.pop("bracket_weights")
    return Suggestion(**data, bracket_weights=None if weights is None else tuple(weights))


def _forked(
    serve: Callable[[Connection[Any, Any]], None], ours: socket.socket, theirs: socket.socket, output: int
) -> int:
    def child() -> None:
        os.setsid()  # the launcher's Ctrl-C is not meant for it
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        processes.forget_parent()
        processes.limit_threads(_threads())
        ours.close()
        serve(Connection(os.dup(theirs.fileno())))

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
