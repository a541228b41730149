"""What the system knows of processes (``/proc``), to find those that a trial has left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MARK = "LIGHTNING_HPO_MARK"
"""Variable with a word that only the processes of one backend's trials have in their environment."""

_ROUNDS = 20
_PR_SET_CHILD_SUBREAPER = 36


class ProcessInfo(NamedTuple):
    pid: int
    parent: int
    session: int


def processes() -> Iterator[ProcessInfo]:
    """Every process that runs: all but zombies.

    One whose first thread has ended and another has not yet is called a zombie by the system too. It runs, and what it
    has started is still its own: who takes it for gone finds its children neither as orphans nor through it.

    None at all in a container that has kept the ``/proc`` of the machine: there other processes have these numbers.
    """
    if os.readlink("/proc/self") != str(os.getpid()):
        return
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the command's name, which may contain anything: state, parent, group, session, ..., threads.
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X") or int(fields[17]) > 1:
                    yield ProcessInfo(int(entry.name), int(fields[1]), int(fields[3]))


def processor_seconds(pid: int) -> float | None:
    """Processor time of all threads of a process, to hundredths of a second; None if it cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process and not delivered yet; False if that cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, mask = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(mask, 16) >> (number - 1) & 1:
                return True
    return False


def environment_of(pid: int) -> set[str]:
    """``NAME=value`` of the environment with which the program was started; empty if it may not be read."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def adopt_orphans() -> None:
    """Let this process, not that which the system starts with, be the parent of what its children leave behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pids: Iterable[int]) -> set[int]:
    """What these processes have started, what that has started, and so on, as far as it runs.

    A process that has lost its parent counts as its next ancestor's that adopts orphans, see :func:`adopt_orphans`.
    """
    children: dict[int, list[int]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    unseen = list(pids)
    while unseen:
        new = set(children.get(unseen.pop(), ())) - found
        found |= new
        unseen += new
    return found


def kill(pids: Collection[int]) -> None:
    """SIGKILL to each that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def kill_marked(word: str) -> None:
    """Kill every program that was started with this mark, wherever it went, except the caller.

    A process that left its session and lost its parents can be found in no other way. One that was merely forked is
    not found: its environment, as the system knows it, is that of an ancestor. :func:`descendants` has it as long as
    an ancestor that adopts orphans lives.
    """
    for _ in range(_ROUNDS):  # they may start others while they are looked for
        found = [p.pid for p in processes() if p.pid != os.getpid() and f"{MARK}={word}" in environment_of(p.pid)]
        if not found:
            return
        kill(found)
