"""The trial's end of the channel: what a trial says to its launcher, and hears from it.

The launcher's end is in :mod:`~lightning_hpo.runtime.channel_server`, what both must agree on in
:mod:`~lightning_hpo.runtime.wire`. The trial speaks first.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
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
    decode_reply,
    encode,
)
from lightning_hpo.runtime.wire import (
    ADDRESS_VARIABLE,
    ATTEMPT_VARIABLE,
    DIRECTORY_VARIABLE,
    KEY_VARIABLE,
    MAX_MESSAGE_BYTES,
    TRIAL_VARIABLE,
    Refused,
    frame,
    read_frame,
    shake_hands,
)

_RETRY_AFTER_S = (0.1, 0.5, 2.0)
"""A launcher with a crowd at its door may turn away the right one."""


_MOST_CHARACTERS = 1 << 15
"""Of each text in the last message; written as JSON they may become six times as long."""
_MOST_RESULT_CHARACTERS = 1000
"""Of a result that cannot be told as it is."""


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
        self.fit_error: tuple[Outcome, str] | None = None
        """What the steered fit has come to by raising, and why, unless another one has begun since: a script may have
        caught the exception."""
        self._key = key
        self._connection: socket.socket | None = None

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
        """Announce the end of the script.

        However much it has to say must not keep it from being heard: long texts are cut, and of a result that is long
        or no JSON data the begin of its text is told.
        """
        error = None if error is None else error[:_MOST_CHARACTERS]
        traceback = None if traceback is None else traceback[-_MOST_CHARACTERS:]
        self._send(Ended(self.trial_id, self.attempt, outcome, error, traceback, _tellable(result)))

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

    def _connected(self) -> socket.socket:
        if self._connection is None:
            try:
                self._connection = _connect(self.address, self._key)
            except (OSError, Refused, ValueError) as problem:
                raise ChannelError(
                    f"This trial cannot reach its launcher at {self.address} ({problem!r}). "
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
            self._connected().sendall(frame(payload))
            failpoint("channel.sent")
        except OSError as problem:
            raise self._gone() from problem

    def _ask(self, message: Message) -> Welcome | Answer:
        self._send(message)
        try:
            reply = decode_reply(read_frame(self._connected()))
            failpoint("channel.answered")
            return reply
        except (EOFError, OSError) as problem:
            raise self._gone() from problem

    def _gone(self) -> ChannelError:
        self.close()
        return ChannelError(
            "The launcher is gone or has dropped this trial. Start the study again: it goes on where it stopped."
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


def _tellable(result: Any) -> Any:
    """The result if it is JSON data of moderate length, else the begin of its text."""
    try:
        if len(json.dumps(result, allow_nan=False)) <= _MOST_CHARACTERS:
            return result
        return str(result)[:_MOST_RESULT_CHARACTERS]
    except (TypeError, ValueError):
        return str(result)[:_MOST_RESULT_CHARACTERS]
    except RecursionError:
        return f"{type(result).__name__}, nested too deeply"


def _connect(address: str, key: bytes) -> socket.socket:
    """A connection to the launcher that has the key.

    Raises:
        OSError: if nobody listens there.
        Refused: if whoever listens does not know the key, or turns us away again and again.
        ValueError: if the address is none.
    """
    for wait_s in (*_RETRY_AFTER_S, None):
        connection = _reach(address)
        try:
            shake_hands(connection, key)
            return connection
        except BaseException as problem:
            connection.close()
            if wait_s is None or not isinstance(problem, (Refused, OSError)):
                raise
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _reach(address: str) -> socket.socket:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(rest)
        except BaseException:
            connection.close()
            raise
        return connection
    host, _, port = rest.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    # What is said without waiting for an answer must not wait for more to be said.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
