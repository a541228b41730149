"""Output that nobody waits for: a terminal that is held (Ctrl-S), or a pager that does not read, must not hold the run.

Writing to a terminal or a pipe blocks while nobody reads. So a second description of it is opened, which does not
block; the file that others write to, and inherit, stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from typing import Any, TextIO

_MOST_UNWRITTEN_BYTES = 1 << 20
"""Whoever is so far behind misses what comes then."""
_LAST_S = 2.0
"""Time for the rest, in the end."""


def patient(stream: TextIO) -> TextIO | PatientStream:
    """The stream, or one that writes to the same place without waiting, where that is a terminal or a pipe."""
    try:
        number = stream.fileno()
        kind = os.fstat(number).st_mode
        if not (stat.S_ISFIFO(kind) or os.isatty(number)):
            return stream  # a regular file takes everything, and has one position for all who write to it
        stream.flush()
        path = os.ttyname(number) if os.isatty(number) else f"/proc/self/fd/{number}"
        own = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (AttributeError, OSError, ValueError):  # no file at all, or a system that does not let it be opened again
        return stream
    return PatientStream(stream, own)


class PatientStream:
    """A text stream whose :meth:`write` keeps what cannot be written now, and tries again at the next one.

    Args:
        stream: gives encoding and size.
        number: file descriptor of the same place that does not block; closed by :meth:`close`.
    """

    def __init__(self, stream: TextIO, number: int) -> None:
        self._stream = stream
        self._number = number
        self._unwritten = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """
        Raises:
            OSError: if nobody will ever read it.
        """
        if len(self._unwritten) <= _MOST_UNWRITTEN_BYTES:
            self._unwritten += text.encode(self._stream.encoding or "utf-8", "replace")
        self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what can be written now."""
        with contextlib.suppress(BlockingIOError):
            while self._unwritten:
                del self._unwritten[: os.write(self._number, self._unwritten)]

    def close(self) -> None:
        """Write the rest, if somebody reads it soon. The stream itself stays open."""
        if self._number < 0:
            return
        deadline = time.monotonic() + _LAST_S
        try:
            self.flush()
            while self._unwritten and (left := deadline - time.monotonic()) > 0:
                select.select([], [self._number], [], left)
                self.flush()
        except OSError:
            pass  # the reader has gone
        finally:
            os.close(self._number)
            self._number = -1


def show(text: str, stream: TextIO | None) -> None:
    """Write a text and a line's end, if somebody reads it soon: what is told here can be read elsewhere too.

    Args:
        stream: None, or one that is closed, as in a program that was started without standard output: nobody reads.
    """
    if stream is None or stream.closed:
        return
    with contextlib.suppress(OSError):
        target = patient(stream)
        target.write(text + "\n")
        target.flush()
        if target is not stream:
            target.close()
