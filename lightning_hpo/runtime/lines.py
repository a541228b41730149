"""Lines of bytes to and from a process that may not read for a long time: nobody here ever waits for it."""

from __future__ import annotations

import contextlib
import selectors
import socket

_READ_BYTES = 1 << 16


class Line:
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
