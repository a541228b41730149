"""What every backend offers: start attempts, stop them, tell what became of them.

An **attempt** is one process (or one group of rank processes) that trains a trial. A backend knows nothing of
metrics or schedulers; it is told to start and to stop, and it tells that an attempt started or ended. Nothing here
imports more than the standard library, so the launcher stays light.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to be run."""

    trial_id: int
    attempt: int
    folder: Path
    """The trial's folder; made if it does not exist."""
    log: Path
    """Gets all that the processes write to stdout and stderr, appended. Rank r > 0: ``<stem>.rank<r><suffix>``."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set in the child before any user code runs; wins over what the backend sets."""
    payload: dict[str, Any] = field(default_factory=dict)
    """JSON data for the entry."""
    ranks: int = 1
    """Processes that train together: each gets ``LOCAL_RANK``, ``WORLD_SIZE`` and the master's address."""
    seed: int | None = None
    """Seeds the generators of ``random``, ``numpy`` and ``torch`` before user code runs; None leaves them alone."""
    rank: int = 0
    """Which of the ranks this process is; set by the backend."""

    def to_json(self) -> dict[str, Any]:
        return {
            f.name: str(value) if isinstance(value := getattr(self, f.name), Path) else value
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "folder": Path(data["folder"]), "log": Path(data["log"])})

    def log_of_rank(self, rank: int) -> Path:
        return self.log if rank == 0 else self.log.with_name(f"{self.log.stem}.rank{rank}{self.log.suffix}")


Entry: TypeAlias = Callable[[Job], None]
"""Runs the user's training in the child. What it raises goes to the log and ends the attempt with exit code 1."""

WarmUp: TypeAlias = Callable[[], None]
"""Done once in the process from which trials are forked, so that they find it done."""


@dataclass(frozen=True, slots=True)
class Started:
    """The processes of an attempt exist."""

    trial_id: int
    attempt: int
    pid: int | None
    """Of rank 0."""
    worker: str
    """Where it runs, for people: ``cpu:0``, ``gpu:1``, ..."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Every process of an attempt is gone, those that it started itself included."""

    trial_id: int
    attempt: int
    pid: int | None
    exit_code: int | None
    """Of the first rank that failed, else 0; None if a signal ended it or if it never started."""
    signal: int | None = None
    """Number of the signal that ended it."""
    requested: bool = False
    """:meth:`Backend.stop` or :meth:`Backend.close` was called before it ended."""
    peak_rss: int = 0
    """Largest resident memory of one process, bytes."""
    cpu_s: float = 0.0
    """CPU time of all ranks and of the children they waited for, seconds."""
    problem: str | None = None
    """Why it could not be started, or how the backend lost it."""
    refused: bool = False
    """It has not begun: the system had no process or thread left for it."""

    @property
    def description(self) -> str:
        """One line for the user, such as ``killed by SIGKILL (out of memory?), peak memory 3.1 GiB``."""
        if self.problem is not None:
            return self.problem
        if self.signal is None:
            return f"ended with exit code {self.exit_code}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        guess = " (out of memory?)" if self.signal == signal.SIGKILL and not self.requested else ""
        return f"killed by {name}{guess}, peak memory {self.peak_rss / 2**30:.1f} GiB"


class Backend(Protocol):
    """Where attempts run. Used by one thread."""

    @property
    def free_slots(self) -> int:
        """How many attempts could be started now."""

    @property
    def capacity(self) -> int:
        """How many attempts can run at a time."""

    def start(self, job: Job) -> None:
        """Start an attempt; :class:`Started` and :class:`Exit` follow from :meth:`poll`.

        Raises:
            BackendError: if no slot is free, or if no process can be started any more.
        """

    def stop(self, trial_id: int, attempt: int, grace_s: float = 5.0) -> None:
        """End an attempt: dump its stacks to its log, SIGTERM, and SIGKILL after ``grace_s`` seconds.

        Returns at once. An attempt that is unknown or gone is ignored.
        """

    def waitables(self) -> Sequence[Any]:
        """What becomes readable when :meth:`poll` has something: for ``multiprocessing.connection.wait``.

        Ask again after each :meth:`poll` and :meth:`start`, which may replace them.
        """

    def poll(self) -> list[Started | Exit]:
        """What happened since the last call; never waits.

        Raises:
            BackendError: if no process can be started any more.
        """

    def close(self, grace_s: float = 5.0) -> None:
        """End everything that runs and wait until it is gone. May be called twice."""
