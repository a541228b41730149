"""Room on the disk: the trials that wait for some, and whether another one may be started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType


class Room:
    """What is known of it, told to people when it changes.

    Args:
        shortage: why there is no room for another trial's files; None: there is.
        say: tells people.
        warn: warns them.
        clock: monotonic clock, seconds.

    Attributes:
        waiting: trials that cannot write their checkpoints because the disk is full, and since when.
    """

    def __init__(
        self,
        shortage: Callable[[], str | None],
        say: Callable[[str], None],
        warn: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._shortage = shortage
        self._say = say
        self._warn = warn
        self._clock = clock
        self._is_short = False
        self._waiting: dict[int, float] = {}
        self.waiting: Mapping[int, float] = MappingProxyType(self._waiting)

    def wanted(self, trial_id: int, why: str) -> None:
        """A trial holds its state in memory until there is room for it."""
        if not self._waiting:
            self._warn(f"The study waits: {why}")
        self._waiting.setdefault(trial_id, self._clock())

    def not_wanted(self, trial_id: int) -> None:
        """The trial has written its state, or has ended."""
        if self._waiting.pop(trial_id, None) is not None and not self._waiting:
            self._say("No trial waits for room on the disk any more; the study goes on.")

    def is_lacking(self) -> bool:
        """Whether a trial would fail for nothing if it were started now."""
        why = self._shortage()
        if why is not None and not self._is_short:
            self._warn(f"Nothing is started while there is no room for a trial's files: {why}. Make room on it.")
        elif why is None and self._is_short:
            self._say("There is room for trials again; the study goes on.")
        self._is_short = why is not None
        return self._is_short
