"""The channel between the launcher and its trials: JSON text over an authenticated socket.

Both ends prove that they know the study's key (the challenge of :mod:`multiprocessing.connection`), then
exchange length-prefixed JSON texts. Nothing is ever unpickled. The trial speaks first; the launcher never
waits for a trial: handshakes run in threads with a deadline, reads and writes do not block, and a client
that is silent, slow or hostile is dropped while the others go on. Both ends are in this file because they must agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import stat
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client as connect
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.messages import (
    Answer,
    Ended,
    Hello,
    Message,
    Problem,
    Report,
    Saved,
    Welcome,
    decode,
    decode_reply,
    encode,
    encode_reply,
)

ADDRESS_VARIABLE = "LIGHTNING_HPO_ADDRESS"
KEY_VARIABLE = "LIGHTNING_HPO_KEY"
TRIAL_VARIABLE = "LIGHTNING_HPO_TRIAL"
ATTEMPT_VARIABLE = "LIGHTNING_HPO_ATTEMPT"
DIRECTORY_VARIABLE = "LIGHTNING_HPO_DIR"

MAX_MESSAGE_BYTES = 1 << 20
"""Longest message that is sent or accepted."""
HANDSHAKE_TIMEOUT_S = 10.0
MAX_HANDSHAKES = 64
"""Strangers that may be shaking hands at the same time; more are turned away."""
MAX_UNIX_PATH_BYTES = 100
"""Portable limit of ``sun_path``, 104 bytes on some systems with the closing zero."""

# Wire format of multiprocessing.connection: length as big-endian signed 32 bits, then the bytes.
_LENGTH = struct.Struct("!i")
_READ_BYTES = 1 << 16


# -------------------------------------------------------------------------------------- trial's end


class TrialChannel:
    """The trial's end: identity of this attempt and the connection to the launcher.

    Connects when first used. A process forked from the trial (a DataLoader worker) loses its copy of the
    connection at once, so that the launcher sees the trial's death, and opens its own if it speaks.
    """

    def __init__(self, address: str, key: bytes, trial_id: int, attempt: int, directory: Path) -> None:
        self.address = address
        self.trial_id = trial_id
        self.attempt = attempt
        self.directory = directory
        """The trial's folder."""
        self.interrupted_as: Outcome | None = None
        """``PAUSED`` or ``STOPPED`` once the launcher has ended the training: what the script returns is no result."""
        self.callback_seen = False
        """A Trainer with an ``HPOCallback`` has begun to fit."""
        self.steered_by: object | None = None
        """The callback whose fit is steered; other fits of this process are left alone."""
        self._key = key
        self._connection: Connection[Any, Any] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> TrialChannel | None:
        """The channel named by the environment variables; None outside a trial.

        Raises:
            ChannelError: if the variables are incomplete or wrong.
        """
        environment = os.environ if environment is None else environment
        address = environment.get(ADDRESS_VARIABLE)
        if not address:
            return None
        try:
            return cls(
                address=address,
                key=bytes.fromhex(environment[KEY_VARIABLE]),
                trial_id=int(environment[TRIAL_VARIABLE]),
                attempt=int(environment[ATTEMPT_VARIABLE]),
                directory=Path(environment[DIRECTORY_VARIABLE]),
            )
        except (KeyError, ValueError) as problem:
            raise ChannelError(
                f"{ADDRESS_VARIABLE} is set, but the other variables of a trial are not usable: {problem}. "
                f"Unset {ADDRESS_VARIABLE} to run the script outside a study."
            ) from problem

    def hello(self, max_epochs: int | None) -> Welcome:
        """Announce the training.

        Raises:
            ChannelError: if the launcher is gone or answers something else.
        """
        reply = self._ask(Hello(self.trial_id, self.attempt, os.getpid(), max_epochs))
        if not isinstance(reply, Welcome):
            raise self._unexpected(reply)
        return reply

    def report(
        self, resource: int, value: float, metrics: Mapping[str, float] | None = None, cost: float | None = None
    ) -> Answer:
        """Report the metric after ``resource`` units and learn what to do.

        Raises:
            ChannelError: if the launcher is gone or answers something else.
        """
        reply = self._ask(Report(self.trial_id, self.attempt, resource, value, dict(metrics or {}), cost))
        if not isinstance(reply, Answer):
            raise self._unexpected(reply)
        return reply

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Announce a checkpoint that is on disk and verified; its path is relative to the trial's folder."""
        self._send(Saved(self.trial_id, self.attempt, checkpoint))

    def ended(
        self, outcome: Outcome, error: str | None = None, traceback: str | None = None, result: Any = None
    ) -> None:
        """Announce the end of the script."""
        try:
            json.dumps(result, allow_nan=False)
        except (TypeError, ValueError):
            result = str(result)[:1000]
        self._send(Ended(self.trial_id, self.attempt, outcome, error, traceback, result))

    def problem(self, kind: str, message: str) -> Answer:
        """Say that the script cannot be tuned as it is. ``kind``: name of an error class."""
        reply = self._ask(Problem(self.trial_id, self.attempt, kind, message))
        if not isinstance(reply, Answer):
            raise self._unexpected(reply)
        return reply

    def close(self) -> None:
        """Close the connection; the next message opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection[Any, Any]:
        if self._connection is None:
            try:
                self._connection = connect(_parse_address(self.address), authkey=self._key)
            except (OSError, EOFError, AuthenticationError) as problem:
                raise ChannelError(
                    f"Trial {self.trial_id} cannot reach its launcher at {self.address} ({problem!r}). "
                    "Start the study again: it goes on where it stopped."
                ) from problem
        return self._connection

    def _send(self, message: Message) -> None:
        payload = encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ChannelError(
                f"A message of {len(payload)} bytes is longer than the limit of {MAX_MESSAGE_BYTES}. "
                "Log fewer metrics or return a smaller result."
            )
        try:
            failpoint("channel.before_send")
            self._connected().send_bytes(payload)
            failpoint("channel.sent")
        except OSError as problem:
            raise self._gone() from problem

    def _ask(self, message: Message) -> Welcome | Answer:
        self._send(message)
        try:
            reply = decode_reply(self._connected().recv_bytes(MAX_MESSAGE_BYTES))
            failpoint("channel.answered")
            return reply
        except (EOFError, OSError) as problem:
            raise self._gone() from problem

    def _gone(self) -> ChannelError:
        self.close()
        return ChannelError(
            f"The launcher of trial {self.trial_id} is gone or has dropped this trial. "
            "Start the study again: it goes on where it stopped."
        )

    def _unexpected(self, reply: Welcome | Answer) -> ChannelError:
        return ChannelError(
            f"The launcher answered with {type(reply).__name__}, out of turn. "
            "Use the same version of lightning_hpo in the launcher and in the trials."
        )


_current: TrialChannel | None = None


def trial_channel() -> TrialChannel | None:
    """This process's channel, the same object for every caller; None outside a trial."""
    global _current
    if _current is None:
        _current = TrialChannel.from_environment()
    return _current


def forget_trial_channel() -> None:
    """Close this process's channel; the next :func:`trial_channel` reads the environment anew."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def _close_inherited_connection() -> None:
    if _current is not None:
        _current.close()


os.register_at_fork(after_in_child=_close_inherited_connection)


def _parse_address(address: str) -> str | tuple[str, int]:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return rest
    host, _, port = rest.rpartition(":")
    return host, int(port)


# ------------------------------------------------------------------------------------ launcher's end


class ClientConnection:
    """One trial's connection, as the launcher sees it. Never blocks."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        connection.close()
        self._socket.setblocking(False)
        self._unread = bytearray()
        self._error: ChannelError | None = None
        self.identity: tuple[int, int] | None = None
        """Trial id and attempt, after the first message."""
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[Message]:
        """Every whole message that has arrived. Messages before a malformed one are delivered first.

        Raises:
            ChannelError: if the client broke the protocol; it is closed then.
        """
        if self._error is not None:
            self.close()
            raise self._error
        try:
            chunk = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return []
        self._unread += chunk
        messages: list[Message] = []
        try:
            for payload in self._whole_payloads():
                messages.append(self._identified(decode(payload)))
        except ChannelError as problem:
            if not messages:
                self.close()
                raise
            self._error = problem
            # Makes the socket readable, so that the next wait() returns it and the error is raised.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
        return messages

    def _whole_payloads(self) -> Iterator[bytes]:
        start = 0
        try:
            while len(self._unread) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._unread, start)
                if not 0 < length <= MAX_MESSAGE_BYTES:
                    raise ChannelError(
                        f"A client announced a message of {length} bytes, the limit is {MAX_MESSAGE_BYTES}. "
                        "Let trials use HPOCallback only, with the same version of lightning_hpo as the launcher."
                    )
                end = start + _LENGTH.size + length
                if len(self._unread) < end:
                    break
                payload = bytes(self._unread[start + _LENGTH.size : end])
                start = end
                yield payload
        finally:
            del self._unread[:start]

    def _identified(self, message: Message) -> Message:
        identity = (message.trial_id, message.attempt)
        if self.identity is None:
            self.identity = identity
        elif identity != self.identity:
            raise ChannelError(
                f"A client that spoke for trial {self.identity[0]} (attempt {self.identity[1]}) now speaks for trial "
                f"{identity[0]} (attempt {identity[1]}). Let every trial use its own environment variables."
            )
        return message

    def send(self, payload: bytes) -> None:
        """
        Raises:
            ChannelError: if the client is gone or does not read; it is closed then.
        """
        frame = _LENGTH.pack(len(payload)) + payload
        try:
            sent = self._socket.send(frame)
        except OSError:
            sent = -1
        if sent != len(frame):
            self.close()
            raise ChannelError(
                f"Trial {self.identity[0] if self.identity else '?'} does not take its answer: it is gone or stuck. "
                "Look at its trial.log."
            )

    def close(self) -> None:
        self.closed = True
        self._socket.close()


class ChannelServer:
    """The launcher's end: listens, admits clients that know the key, reads and answers without ever blocking.

    ::

        for ready in wait(server.waitables() + sentinels, timeout):
            if server.owns(ready):
                for message in server.receive(ready):
                    ...
                    server.reply(ready, Answer("continue"))

    Args:
        folder: where the socket may lie; a private temporary folder is used if the path would be too long
            or the file system has no sockets.
        interface: address of a network interface. Given, the server listens there with TCP, for trials on
            other nodes. The traffic is authenticated but not encrypted.

    Raises:
        ChannelError: if the server cannot listen.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        interface: str | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self.key = secrets.token_bytes(32)
        self._handshake_timeout_s = handshake_timeout_s
        self._private_folder: Path | None = None
        self._clients: list[ClientConnection] = []
        self._admitted: deque[Connection[Any, Any]] = deque()
        self._handshakes = threading.Semaphore(MAX_HANDSHAKES)
        self._closing = False
        # Wakes the launcher's loop when a handshake thread has admitted a client.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        try:
            self._listener, self.address = self._listen(folder, interface)
        except OSError as problem:
            raise ChannelError(
                f"The launcher cannot listen for its trials ({problem}). "
                "Set TMPDIR to a local folder with a short path, or correct the network interface."
            ) from problem
        self._thread = threading.Thread(target=self._accept_forever, name="lightning-hpo-accept", daemon=True)
        self._thread.start()

    def environment(self, trial_id: int, attempt: int, directory: Path) -> dict[str, str]:
        """The variables by which a trial finds this server. ``directory``: the trial's folder."""
        return {
            ADDRESS_VARIABLE: self.address,
            KEY_VARIABLE: self.key.hex(),
            TRIAL_VARIABLE: str(trial_id),
            ATTEMPT_VARIABLE: str(attempt),
            DIRECTORY_VARIABLE: str(directory),
        }

    def waitables(self) -> list[Any]:
        """What to wait for: objects for ``multiprocessing.connection.wait`` or ``selectors``."""
        return [self._wake_reader, *self._clients]

    def owns(self, ready: object) -> bool:
        """Whether ``ready`` is one of :meth:`waitables`."""
        return ready is self._wake_reader or isinstance(ready, ClientConnection)

    def receive(self, ready: Any) -> list[Message]:
        """The messages of a waitable that is ready; none if a client was admitted or has left.

        Raises:
            ChannelError: if this client broke the protocol. It is dropped, the others are not affected.
        """
        if ready is self._wake_reader:
            self._take_admitted()
            return []
        try:
            messages: list[Message] = ready.receive()
        finally:
            if ready.closed:
                self._forget(ready)
        return messages

    def reply(self, client: ClientConnection, reply: Welcome | Answer) -> None:
        """Answer a client's message.

        Raises:
            ChannelError: if the client is gone or does not read. It is dropped.
        """
        try:
            client.send(encode_reply(reply))
        finally:
            if client.closed:
                self._forget(client)

    def close(self) -> None:
        """Close every connection and remove the socket."""
        self._closing = True
        # Closing a listening socket does not wake a thread in accept(); shutting it down does.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=1.0)
        self._take_admitted()
        for client in list(self._clients):
            client.close()
        self._clients.clear()
        self._wake_reader.close()
        self._wake_writer.close()
        if self._private_folder is not None:
            shutil.rmtree(self._private_folder, ignore_errors=True)

    def __enter__(self) -> ChannelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, folder: Path | None, interface: str | None) -> tuple[socket.socket, str]:
        if interface is not None:
            listener = socket.create_server((interface, 0), backlog=128)
            host, port = listener.getsockname()[:2]
            return listener, f"tcp:{host}:{port}"
        if folder is not None:
            private = folder / ".channel"
            if len(os.fsencode(private / "socket")) <= MAX_UNIX_PATH_BYTES and not private.is_symlink():
                # A launcher that was killed leaves its socket behind; the study's lock makes it ours.
                shutil.rmtree(private, ignore_errors=True)
                with contextlib.suppress(OSError):
                    private.mkdir(mode=0o700)
                    return self._bind(private)
        return self._bind(Path(tempfile.mkdtemp(prefix="lhpo-", dir=_short_temporary_folder())))

    def _bind(self, private: Path) -> tuple[socket.socket, str]:
        self._private_folder = private
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            private.chmod(stat.S_IRWXU)
            path = private / "socket"
            listener.bind(str(path))
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(128)
        except OSError:
            listener.close()
            shutil.rmtree(private, ignore_errors=True)
            raise
        return listener, f"unix:{path}"

    def _accept_forever(self) -> None:
        while not self._closing:
            try:
                stranger, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                # Out of file descriptors, or the stranger left before it was accepted: others may still come.
                threading.Event().wait(0.05)
                continue
            if not self._handshakes.acquire(blocking=False):
                stranger.close()
                continue
            threading.Thread(target=self._shake_hands, args=(stranger,), daemon=True).start()

    def _shake_hands(self, stranger: socket.socket) -> None:
        # A stranger may send one byte now and then, so the deadline is for the whole handshake.
        deadline = threading.Timer(self._handshake_timeout_s, _hang_up, args=(stranger,))
        deadline.daemon = True
        deadline.start()
        connection: Connection[Any, Any] = Connection(os.dup(stranger.fileno()))
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
        except Exception:  # whatever bytes a stranger sends, it is turned away
            connection.close()
        else:
            self._admitted.append(connection)
            with contextlib.suppress(OSError):
                self._wake_writer.send(b"\0")
        finally:
            deadline.cancel()
            stranger.close()
            self._handshakes.release()

    def _take_admitted(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake_reader.recv(4096):
                pass
        while self._admitted:
            self._clients.append(ClientConnection(self._admitted.popleft()))

    def _forget(self, client: ClientConnection) -> None:
        if client in self._clients:
            self._clients.remove(client)


def _hang_up(stranger: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stranger.shutdown(socket.SHUT_RDWR)


def _short_temporary_folder() -> str | None:
    """A folder for temporary folders in which a socket's path is short enough; None for the default one."""
    if len(os.fsencode(tempfile.gettempdir())) <= MAX_UNIX_PATH_BYTES - 32:
        return None
    return "/tmp"
