"""The launcher's end of the channel: listens, lets trials in, reads and answers without ever waiting.

A client that is silent, slow, hostile or confused is dropped while the others go on. What clients can make the launcher
keep is limited: the length of a message, the bytes of unfinished messages, the number of connections. The trial's end
is in :mod:`~lightning_hpo.runtime.channel`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import ipaddress
import os
import resource
import secrets
import shutil
import socket
import stat
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.admission import MAX_STRANGERS, Admission
from lightning_hpo.runtime.messages import Answer, Message, Welcome, decode, encode_reply
from lightning_hpo.runtime.wire import (
    ADDRESS_VARIABLE,
    ATTEMPT_VARIABLE,
    DIRECTORY_VARIABLE,
    KEY_BYTES,
    KEY_VARIABLE,
    LENGTH,
    MAX_MESSAGE_BYTES,
    TRIAL_VARIABLE,
    frame,
)

HANDSHAKE_TIMEOUT_S = 10.0
MAX_CLIENTS = 1024
"""Connections at a time, if the process may open twice as many files; else half of those."""
MAX_UNREAD_BYTES = 32 << 20
"""Bytes of unfinished messages that all clients together may leave with the launcher."""
MAX_UNIX_PATH_BYTES = 100
"""Portable limit of ``sun_path``, 104 bytes on some systems with the closing zero."""

_READ_BYTES = 1 << 16
_OWN_FILES = 32
"""What the launcher opens besides: the study, the backend, the searcher, the script's own."""


class ClientConnection:
    """One trial's connection, as the launcher sees it. Never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._unread = bytearray()
        self._error: ChannelError | None = None
        self.identity: tuple[int, int] | None = None
        """Trial id and attempt, after the first message."""
        self.closed = False

    @property
    def unread(self) -> int:
        """Bytes of a message that has not arrived as a whole."""
        return len(self._unread)

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
            self.refuse(problem)
        return messages

    def refuse(self, problem: ChannelError) -> None:
        """Listen no more; the next :meth:`receive` raises the error."""
        self._error = problem
        self._unread.clear()
        # Makes the socket readable, so that the next wait() returns it.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _whole_payloads(self) -> Iterator[bytes]:
        start = 0
        try:
            while len(self._unread) - start >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._unread, start)
                if not 0 < length <= MAX_MESSAGE_BYTES:
                    raise ChannelError(
                        f"A client announced a message of {length} bytes, the limit is {MAX_MESSAGE_BYTES}. "
                        "Let trials use HPOCallback only, with the same version of lightning_hpo as the launcher."
                    )
                end = start + LENGTH.size + length
                if len(self._unread) < end:
                    break
                payload = bytes(self._unread[start + LENGTH.size : end])
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
        data = frame(payload)
        try:
            sent = self._socket.send(data)
        except OSError:
            sent = -1
        if sent != len(data):
            self.close()
            raise ChannelError(
                f"{self.description[:1].upper()}{self.description[1:]} does not take its answer: it is gone or stuck. "
                "Look at its trial.log."
            )

    @property
    def description(self) -> str:
        """Who it is, as far as it has said so."""
        return f"trial {self.identity[0]}" if self.identity else "a client that has not said who it is"

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
        BackendError: if the system refuses the thread that lets trials in.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        interface: str | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self.key = secrets.token_bytes(KEY_BYTES)
        self._private_folder: Path | None = None
        self._listens_at: tuple[int, int] | None = None
        """Device and inode of the socket, if it is one of the file system."""
        self._clients: dict[ClientConnection, None] = {}
        """In the order of their arrival."""
        self._unread = 0
        """Bytes of unfinished messages of all clients."""
        self._most_clients = _most_clients()
        self._admitted: deque[socket.socket] = deque()
        # Wakes the launcher's loop when somebody was let in.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        try:
            listener, self.address = self._listen(folder, interface)
        except OSError as problem:
            self._wake_reader.close()
            self._wake_writer.close()
            raise ChannelError(
                f"The launcher cannot listen for its trials ({problem}). "
                "Set TMPDIR to a local folder with a short path, or correct the network interface."
            ) from problem
        self._admitting = functools.partial(Admission, key=self.key, timeout_s=handshake_timeout_s, admit=self._admit)
        self._admission = self._admitting(listener)

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
        if ready not in self._clients:
            return []  # dropped since somebody looked
        self._unread -= ready.unread
        try:
            messages: list[Message] = ready.receive()
        finally:
            self._unread += ready.unread
            if ready.closed:
                self._forget(ready)
        if self._unread > MAX_UNREAD_BYTES:
            self._refuse_longest()
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

    def keep_listening(self) -> None:
        """Listen anew under the same name if somebody has deleted the socket, as programs do that clean up ``/tmp``.

        Clients that were let in stay.

        Raises:
            ChannelError: if that cannot be done.
        """
        if self._private_folder is None or self._identity() == self._listens_at:
            return
        self._admission.close()
        try:
            with contextlib.suppress(FileExistsError):
                self._private_folder.mkdir(mode=0o700)
            found = self._private_folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise FileExistsError(errno.EEXIST, "somebody else has taken its place")
            (self._private_folder / "socket").unlink(missing_ok=True)
            listener, _ = self._bind(self._private_folder)
        except OSError as problem:
            raise ChannelError(
                f"The socket {self.address.removeprefix('unix:')} by which trials reach the launcher was deleted, and "
                f"cannot be made again ({problem}). Let nothing delete it, and give the same command again to continue."
            ) from problem
        self._admission = self._admitting(listener)

    def close(self) -> None:
        """Close every connection and remove the socket."""
        self._admission.close()
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
            _refuse_every_interface(interface)
            listener = socket.create_server((interface, 0), backlog=128)
            host, port = listener.getsockname()[:2]
            return listener, f"tcp:{host}:{port}"
        temporary = _short_temporary_folder()
        for private in () if folder is None else (folder / ".channel", _by_name(folder, temporary)):
            if len(os.fsencode(private / "socket")) <= MAX_UNIX_PATH_BYTES and not private.is_symlink():
                # A launcher that was killed leaves its socket behind; the study's lock makes it ours.
                shutil.rmtree(private, ignore_errors=True)
                with contextlib.suppress(OSError):
                    private.mkdir(mode=0o700)
                    return self._bind(private)
        return self._bind(Path(tempfile.mkdtemp(prefix="lhpo-", dir=temporary)))

    def _bind(self, private: Path) -> tuple[socket.socket, str]:
        self._private_folder = private
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            private.chmod(stat.S_IRWXU)
            path = private / "socket"
            listener.bind(str(path))
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(128)
            self._listens_at = self._identity()
        except OSError:
            listener.close()
            shutil.rmtree(private, ignore_errors=True)
            raise
        return listener, f"unix:{path}"

    def _identity(self) -> tuple[int, int] | None:
        """Of the socket that has the name now; None if nothing has it."""
        assert self._private_folder is not None
        try:
            found = os.lstat(self._private_folder / "socket")
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _admit(self, connection: socket.socket) -> None:
        """Called in the thread of the admission: the loop takes the client over when it has time."""
        if len(self._admitted) >= MAX_STRANGERS:
            connection.close()
            return
        self._admitted.append(connection)
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _take_admitted(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake_reader.recv(4096):
                pass
        while self._admitted:
            self._clients[ClientConnection(self._admitted.popleft())] = None
            if len(self._clients) > self._most_clients:
                self._drop_one()

    def _drop_one(self) -> None:
        """The oldest of those that have said nothing; if all have, the newest."""
        silent = (client for client in self._clients if client.identity is None)
        dropped = next(silent, None) or next(reversed(self._clients))
        dropped.close()
        self._forget(dropped)

    def _forget(self, client: ClientConnection) -> None:
        if client in self._clients:
            del self._clients[client]
            self._unread -= client.unread

    def _refuse_longest(self) -> None:
        longest = max(self._clients, key=lambda client: client.unread)
        self._unread -= longest.unread
        longest.refuse(
            ChannelError(
                f"Clients have sent more than {MAX_UNREAD_BYTES} bytes of messages that they do not end, most of them "
                f"{longest.description}. Let trials use HPOCallback only."
            )
        )


def _refuse_every_interface(interface: str) -> None:
    try:
        is_every = interface == "" or ipaddress.ip_address(interface).is_unspecified
    except ValueError:  # a name
        is_every = False
    if is_every:
        raise ChannelError(
            f"{interface!r} is not one network interface but all of them. "
            "Name the address at which the nodes of the cluster reach this one."
        )


def refuse_too_many_trials(n_workers: int) -> None:
    """
    Raises:
        ChannelError: if this process may not open a connection to each of so many trials: they would wait for ever.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_workers > MAX_CLIENTS:
        raise ChannelError(f"{n_workers} trials at a time are too many. Lower n_workers, to {MAX_CLIENTS} at most.")
    if n_workers > _most_clients() or (limit != resource.RLIM_INFINITY and n_workers + _OWN_FILES > limit):
        raise ChannelError(
            f"The launcher may open {limit} files, too few for {n_workers} trials at a time, each with a connection. "
            f"Raise the limit (ulimit -n {2 * n_workers + _OWN_FILES}), or lower n_workers."
        )


def _most_clients() -> int:
    """The launcher needs files for other things too: databases, logs, processes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CLIENTS if limit == resource.RLIM_INFINITY else min(MAX_CLIENTS, limit // 2)


def _short_temporary_folder() -> str:
    """A folder for temporary folders in which a socket's path is short enough."""
    default = tempfile.gettempdir()
    return default if len(os.fsencode(default)) <= MAX_UNIX_PATH_BYTES - 48 else "/tmp"


def _by_name(folder: Path, temporary: str) -> Path:
    """A temporary folder that the next launcher of the study finds again, should this one be killed."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(temporary) / f"lhpo-{os.getuid()}-{name}"
