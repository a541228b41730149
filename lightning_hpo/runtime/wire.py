"""What both ends of the channel must agree on: how a trial finds its launcher, the handshake, the frames.

The handshake proves to each end that the other one knows the study's key, without sending it (challenge and
response with HMAC-SHA256, RFC 2104)::

    launcher -> trial    greeting: protocol and version, a random challenge
    trial -> launcher    a random challenge of its own, proof as ``trial``
    launcher -> trial    proof as ``launcher``

A proof covers the role and both challenges, so it can neither be replayed nor reflected. Everything has a fixed size:
nobody has to believe a stranger's length field. After it, each message is a frame: its length as 32 bits, big-endian,
then so many bytes of JSON text. Nothing is ever unpickled.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct

ADDRESS_VARIABLE = "LIGHTNING_HPO_ADDRESS"
KEY_VARIABLE = "LIGHTNING_HPO_KEY"
TRIAL_VARIABLE = "LIGHTNING_HPO_TRIAL"
ATTEMPT_VARIABLE = "LIGHTNING_HPO_ATTEMPT"
DIRECTORY_VARIABLE = "LIGHTNING_HPO_DIR"

MAX_MESSAGE_BYTES = 1 << 20
"""Longest message that is sent or accepted."""
KEY_BYTES = 32

_PROTOCOL = b"lightning-hpo 1\n"
_CHALLENGE_BYTES = 32
_PROOF_BYTES = 32
GREETING_BYTES = len(_PROTOCOL) + _CHALLENGE_BYTES
RESPONSE_BYTES = _CHALLENGE_BYTES + _PROOF_BYTES
"""What a trial sends to be let in."""

LENGTH = struct.Struct("!I")


class Refused(Exception):
    """The other end does not know the key, or is something else altogether."""


# ------------------------------------------------------------------------------------------ handshake


class LauncherHandshake:
    """The launcher's side: sends :attr:`greeting`, gets :data:`RESPONSE_BYTES` bytes, sends :meth:`proof`."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._challenge = secrets.token_bytes(_CHALLENGE_BYTES)
        self.greeting = _PROTOCOL + self._challenge

    def proof(self, response: bytes) -> bytes:
        """What to answer to a response.

        Raises:
            Refused: if it is not the response of somebody who knows the key.
        """
        theirs, shown = response[:_CHALLENGE_BYTES], response[_CHALLENGE_BYTES:]
        if not hmac.compare_digest(shown, _proof(self._key, b"trial", self._challenge, theirs)):
            raise Refused
        return _proof(self._key, b"launcher", self._challenge, theirs)


def shake_hands(connection: socket.socket, key: bytes) -> None:
    """The trial's side. Waits for the launcher.

    Raises:
        Refused: if the launcher hangs up or is not the one that made the key.
        OSError: if the connection breaks.
    """
    greeting = _read(connection, GREETING_BYTES)
    protocol, challenge = greeting[: len(_PROTOCOL)], greeting[len(_PROTOCOL) :]
    if protocol != _PROTOCOL:
        raise Refused
    ours = secrets.token_bytes(_CHALLENGE_BYTES)
    connection.sendall(ours + _proof(key, b"trial", challenge, ours))
    if not hmac.compare_digest(_read(connection, _PROOF_BYTES), _proof(key, b"launcher", challenge, ours)):
        raise Refused


def _proof(key: bytes, role: bytes, launchers_challenge: bytes, trials_challenge: bytes) -> bytes:
    return hmac.digest(key, _PROTOCOL + role + launchers_challenge + trials_challenge, "sha256")


def _read(connection: socket.socket, size: int) -> bytes:
    try:
        return read_exactly(connection, size)
    except EOFError:
        raise Refused from None


# --------------------------------------------------------------------------------------------- frames


def frame(payload: bytes) -> bytes:
    """The message as it travels."""
    return LENGTH.pack(len(payload)) + payload


def read_frame(connection: socket.socket) -> bytes:
    """The next message. Waits for it.

    Raises:
        EOFError: if the other end has closed the connection.
        OSError: if the connection breaks, or the message is longer than allowed.
    """
    (length,) = LENGTH.unpack(read_exactly(connection, LENGTH.size))
    if not 0 < length <= MAX_MESSAGE_BYTES:
        raise OSError(f"a message of {length} bytes was announced")
    return read_exactly(connection, length)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes. Waits for them.

    Raises:
        EOFError: if the other end has closed the connection.
        OSError: if it breaks.
    """
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
