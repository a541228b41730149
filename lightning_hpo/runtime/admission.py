"""Letting trials in: one thread shakes hands with every stranger at the launcher's door.

It is a thread of its own because the launcher's loop may be busy for a moment, and one for all strangers, so that
thousands of them cost neither threads nor time. No stranger is ever waited for: each has a deadline for the whole
handshake, however slowly it sends, and when there are too many the one that has hesitated longest has to leave.
Whoever knows the key is through within milliseconds, so it is not the one.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

from lightning_hpo.runtime.processes import refused
from lightning_hpo.runtime.wire import RESPONSE_BYTES, LauncherHandshake, Refused

MAX_STRANGERS = 64
"""Strangers that may be shaking hands at the same time."""
_ACCEPTED_IN_A_ROW = 16
_RETRY_ACCEPT_S = 0.05


class _Stranger:
    """Somebody who has not proved yet that it knows the key."""

    def __init__(self, connection: socket.socket, key: bytes, deadline: float) -> None:
        self.connection = connection
        self.handshake = LauncherHandshake(key)
        self.deadline = deadline
        self.response = b""


class Admission:
    """Accepts connections and shakes hands, in a daemon thread.

    Args:
        listener: a listening socket; closed by :meth:`close`.
        key: the study's key.
        timeout_s: for a whole handshake.
        admit: called in the thread with the connection of everybody who knows the key; it does not block.

    Raises:
        BackendError: if the system refuses the thread.
    """

    def __init__(
        self, listener: socket.socket, key: bytes, timeout_s: float, admit: Callable[[socket.socket], None]
    ) -> None:
        self._listener = listener
        self._key = key
        self._timeout_s = timeout_s
        self._admit = admit
        self._strangers: dict[_Stranger, None] = {}
        """In the order of their deadlines."""
        self._selector = selectors.DefaultSelector()
        self._closing, self._close_request = socket.socketpair()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._closing, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="lightning-hpo-admission", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as problem:
            raise refused(problem) from problem

    def close(self) -> None:
        """Turn everybody away."""
        self._close_request.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                for ready, _ in self._selector.select(self._seconds_to_deadline()):
                    if ready.fileobj is self._closing:
                        return
                    if ready.fileobj is self._listener:
                        self._accept()
                    elif ready.data in self._strangers:  # it may have been turned away a moment ago
                        self._hear(ready.data)
                self._turn_late_ones_away()
        finally:
            for stranger in list(self._strangers):
                self._turn_away(stranger)
            self._selector.close()
            self._listener.close()
            self._closing.close()

    def _seconds_to_deadline(self) -> float | None:
        first = next(iter(self._strangers), None)
        return None if first is None else max(first.deadline - time.monotonic(), 0.0)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_IN_A_ROW):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Out of file descriptors, or the stranger left before it was accepted.
                if not self._turn_oldest_away():
                    time.sleep(_RETRY_ACCEPT_S)
                return
            self._greet(connection)
            if len(self._strangers) > MAX_STRANGERS:
                self._turn_oldest_away()

    def _greet(self, connection: socket.socket) -> None:
        stranger = _Stranger(connection, self._key, time.monotonic() + self._timeout_s)
        try:
            connection.setblocking(False)
            connection.send(stranger.handshake.greeting)
            self._selector.register(connection, selectors.EVENT_READ, stranger)
        except OSError:
            connection.close()
        else:
            self._strangers[stranger] = None

    def _hear(self, stranger: _Stranger) -> None:
        try:
            chunk = stranger.connection.recv(RESPONSE_BYTES - len(stranger.response))
            stranger.response += chunk
            if not chunk:
                self._turn_away(stranger)
            elif len(stranger.response) == RESPONSE_BYTES:
                proof = stranger.handshake.proof(stranger.response)
                self._forget(stranger)
                # First, so that the loop knows of the client before the client can say anything and end. From here on
                # the connection is the loop's, which finds out by itself if nobody is there any more.
                self._admit(stranger.connection)
                with contextlib.suppress(OSError):
                    stranger.connection.send(proof)
        except BlockingIOError:
            return
        except (OSError, Refused):
            self._turn_away(stranger)

    def _turn_late_ones_away(self) -> None:
        now = time.monotonic()
        for stranger in list(self._strangers):
            if stranger.deadline > now:
                return
            self._turn_away(stranger)

    def _turn_oldest_away(self) -> bool:
        oldest = next(iter(self._strangers), None)
        if oldest is not None:
            self._turn_away(oldest)
        return oldest is not None

    def _turn_away(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        stranger.connection.close()

    def _forget(self, stranger: _Stranger) -> None:
        self._strangers.pop(stranger, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(stranger.connection)
