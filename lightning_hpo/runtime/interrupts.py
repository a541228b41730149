"""Signals that interrupt a run: Ctrl-C, and what batch systems and closed terminals send."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NOTICES = (signal.SIGUSR1, signal.SIGUSR2)
"""By which a batch system can be asked to tell everybody, long before the end, that it is near."""
TERM_LIMIT_S = 30.0
"""After SIGTERM and the like: time for running trials to pause before they are killed."""


class Interrupts:
    """Counts interruptions and wakes the loop that waits for :attr:`waitable`.

    Args:
        clock: monotonic clock, seconds.

    Attributes:
        count: how often the run was interrupted.
        by: the signal of the last time.
        waitable: ready to be read after an interruption; :meth:`drain` takes it up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.count = 0
        self.by = signal.SIGINT
        self._limit = math.inf
        self._heard_at = math.inf
        self.waitable, self._waker = os.pipe()
        os.set_blocking(self.waitable, False)
        os.set_blocking(self._waker, False)

    def interrupt(self, limit_s: float = math.inf, by: signal.Signals = signal.SIGINT) -> None:
        """Once more. Safe in a signal handler.

        Args:
            limit_s: after this time the interruption is urgent.
            by: what the run's result will name.
        """
        now = self._clock()
        self.count += 1
        self.by = by
        self._limit = min(self._limit, now + limit_s)
        self._heard_at = min(self._heard_at, now)
        with contextlib.suppress(OSError):
            os.write(self._waker, b"\0")

    @property
    def is_urgent(self) -> bool:
        """Twice, or the time limit is over: nothing is waited for any more."""
        return self.count > 1 or self._clock() > self._limit

    def left(self, since: float) -> float:
        """Seconds for which the run waits for what no trial can bring about, such as room on the disk.

        It has the time that SIGTERM gives also after Ctrl-C, by which trials may train on to their next report.

        Args:
            since: when it began to wait.
        """
        if self.is_urgent:
            return 0.0
        return max(min(self._limit, max(self._heard_at, since) + TERM_LIMIT_S) - self._clock(), 0.0)

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self.waitable, 4096)

    def close(self) -> None:
        """Whoever interrupts after this is counted, and wakes nobody."""
        waker, self._waker = self._waker, -1  # the number may soon be that of another file
        os.close(self.waitable)
        os.close(waker)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C interrupts; SIGTERM, SIGHUP and :data:`NOTICES` do so with a time limit. Only in the main thread.

        A SIGHUP that is ignored, as under ``nohup``, stays so, and notices that the script uses are left to it.
        """

        handlers: dict[signal.Signals, Any] = {}
        wanted = {signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._on_notice, signal.SIGHUP: self._on_notice}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del wanted[signal.SIGHUP]
        for number in NOTICES:
            present = signal.getsignal(number)
            if present is signal.SIG_DFL or isinstance(getattr(present, "__self__", None), Interrupts):
                wanted[number] = self._on_notice
        try:
            for number, handler in wanted.items():
                handlers[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: whoever owns it calls interrupt()
            handlers.clear()
        try:
            yield
        finally:
            for number, previous in handlers.items():
                signal.signal(number, previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupt()

    def _on_notice(self, number: int, frame: FrameType | None) -> None:
        self.interrupt(TERM_LIMIT_S, signal.Signals(number))
