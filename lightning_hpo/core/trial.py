"""What is known of one trial."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


class TrialStatus(str, enum.Enum):
    """Where a trial stands.

    ``RUNNING``: handed to a worker. ``PAUSING`` / ``STOPPING``: told so, its process has not ended yet.
    ``PAUSED``: waits for a promotion. ``WAITING``: its process was lost, it waits for a worker to try again.
    ``COMPLETED``: trained to ``max_t`` or ended by itself. ``STOPPED`` and ``FAILED`` are final too.
    """

    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        return self in (TrialStatus.STOPPED, TrialStatus.COMPLETED, TrialStatus.FAILED)

    @property
    def occupies_worker(self) -> bool:
        return self in (TrialStatus.RUNNING, TrialStatus.PAUSING, TrialStatus.STOPPING)


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """A checkpoint file that was written, verified and recorded."""

    resource: int
    path: str
    """Relative to the study folder, with forward slashes."""
    sha256: str
    size: int
    """Bytes."""


@dataclass(slots=True)
class Trial:
    """A configuration and everything that was reported about it.

    Values are kept in the sign the user reported them.
    """

    id: int
    config: Config
    bracket: int
    milestone: int
    """Next resource level at which the scheduler judges the trial."""
    origin: str = "random"
    """Who proposed the configuration: ``initial``, ``random``, ``model``, ``attached``, ``confirm``, ..."""
    reason: str = ""
    confirms: int | None = None
    """The trial whose configuration this one trains again, with another seed."""
    replicate: int = 0
    """Which training of its configuration: 0 the search's own, 1, 2, ... those that confirm it."""
    status: TrialStatus = TrialStatus.RUNNING
    attempt: int = 1
    failures: int = 0
    """Attempts that ended without result."""
    resume_from: int = 0
    """Resource at which the running attempt began; reports up to it repeat what is known."""
    curve: dict[int, float] = field(default_factory=dict)
    """Resource -> reported value of the metric. Resources increase: a report that comes late is not taken in."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last report's other metrics."""
    cost: float = 0.0
    """Largest reported cost."""
    checkpoint: Checkpoint | None = None
    folder: str | None = None
    """Where it writes, relative to the study folder, with forward slashes; None if no attempt has told."""
    error: str | None = None
    started_at: float = 0.0
    ended_at: float | None = None

    @property
    def resource(self) -> int:
        """Largest resource reported so far, 0 before the first report."""
        return next(reversed(self.curve), 0)

    @property
    def last_value(self) -> float | None:
        """The value of the last report, None before the first one."""
        return next(reversed(self.curve.values()), None)
