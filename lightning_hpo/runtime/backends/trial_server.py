"""The event loop of the process that makes the trials' processes.

It never runs user code. It waits for commands, for children that end and for deadlines, and it answers for what is
left of a trial: it is the "subreaper" (``prctl(2)``) of everything a trial starts, so that nothing escapes it.

Messages are JSON, in both directions.

=============  ===========  ==================================================================
to the server  ``start``    ``job``, ``environment``, ``threads``
..             ``stop``     ``trial_id``, ``attempt``, ``grace_s``
..             ``close``    ``grace_s``
from it        ``ready``    ``start_method``, ``reason``
..             ``unfit``    ``reason``: forking it is not safe (zygote only); it ends
..             ``failed``   ``message``: no trial can be started
..             ``started``  ``trial_id``, ``attempt``, ``pids`` by rank
..             ``exited``   the fields of :class:`~.base.Exit`
=============  ===========  ==================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime import process_table
from lightning_hpo.runtime.backends.base import Exit, Job
from lightning_hpo.runtime.filesystems import open_own
from lightning_hpo.runtime.processes import EXIT_NOT_BEGUN, EXIT_REFUSED, SCRATCH_VARIABLE, STACK_DUMP_SIGNAL, refused
from lightning_hpo.runtime.script import NO_MAIN_GUARD

_DUMP_TIME_S = 0.2
"""Time between the request for a stack dump and SIGTERM, which would overtake it."""
_RANK_GRACE_S = 5.0
"""How long the other ranks may live after one failed."""
_DRAIN_PERIOD_S = 0.02
_DRAIN_LIMIT_S = 5.0
"""A process that SIGKILL has not ended by then hangs in the kernel; its slot is not held for ever."""
_WATCH_PERIOD_S = 0.5
_STUDY_LENGTH = 12
_MARK_LENGTH = _STUDY_LENGTH + 5
"""Enough to be unique; the path of a socket must not be long."""
EXIT_NO_MAIN_GUARD = 78
"""Exit code of a new interpreter that found no main guard in the script (EX_CONFIG of sysexits.h)."""

Launch = Callable[[Job, "int | None"], int]


@dataclass(slots=True)
class _Attempt:
    """A running attempt, as the server sees it."""

    job: Job
    scratch: str | None
    """A folder that is deleted after the attempt's end, however it came."""
    groups: list[int] = field(default_factory=list)
    """Process ids of the ranks, by rank; each leads a session and a process group."""
    running: set[int] = field(default_factory=set)
    plan: list[tuple[float, int]] = field(default_factory=list)
    """Signals to be sent, with their times, soonest first."""
    failure: int | None = None
    """Wait status of the first rank that failed."""
    requested: bool = False
    drain_until: float | None = None
    peak_rss: int = 0
    cpu_s: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        return self.job.trial_id, self.job.attempt

    def delete_scratch(self) -> None:
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


class TrialServer:
    """Makes the processes of attempts, stops them, and tells how they ended.

    Args:
        connection: to the launcher.
        launcher: its process id.
        launch: makes the process of one rank and returns its id.
    """

    def __init__(self, connection: Connection[Any, Any], launcher: int, launch: Launch) -> None:
        self._connection = connection
        self._launcher = launcher
        self._launch = launch
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._by_pid: dict[int, _Attempt] = {}
        self._closing = False
        self._wake, self._wake_end = os.pipe()
        for fd in (self._wake, self._wake_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Work until the launcher closes the connection, asks to close, or dies."""
        while not (self._closing and not self._attempts):
            ready = wait([self._connection, self._wake], self._patience())
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if os.getppid() != self._launcher or (self._connection in ready and not self._read_commands()):
                break
            self._reap()
            now = time.monotonic()
            for attempt in list(self._attempts.values()):
                self._follow_plan(attempt, now)
                if not attempt.running:
                    self._drain(attempt, now)
        self._kill_everything()

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the server."""
        self._connection.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._wake_end)

    # ---- commands

    def _read_commands(self) -> bool:
        """Obey what the launcher sent; False if it has gone."""
        try:
            while self._connection.poll():
                command = json.loads(self._connection.recv_bytes())
                operation = command.pop("op")
                if operation == "start":
                    self._start(Job.from_json(command["job"]), command["environment"], command["threads"])
                elif operation == "stop":
                    attempt = self._attempts.get((command["trial_id"], command["attempt"]))
                    if attempt is not None:
                        self._stop(attempt, command["grace_s"])
                elif operation == "close":
                    self._closing = True
                    for attempt in self._attempts.values():
                        self._stop(attempt, command["grace_s"])
        except (EOFError, OSError):
            return False
        return True

    def _send(self, **message: Any) -> None:
        # If the launcher is gone, the next turn of the loop sees it.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(message).encode())

    def _start(self, job: Job, environment: dict[str, str], threads: int | None) -> None:
        attempt = _Attempt(job, _new_scratch(environment.get(process_table.MARK, "")))
        try:
            self._launch_ranks(attempt, environment, threads)
        except (BackendError, OSError) as refusal:
            for started in attempt.running:
                _signal_group(started, signal.SIGKILL)
                self._by_pid.pop(started)
            attempt.delete_scratch()
            problem = str(refused(refusal) if isinstance(refusal, OSError) else refusal)
            ended = Exit(job.trial_id, job.attempt, None, None, problem=problem, refused=True)
            self._send(event="exited", **dataclasses.asdict(ended))
            return
        self._attempts[attempt.key] = attempt
        self._send(event="started", trial_id=job.trial_id, attempt=job.attempt, pids=attempt.groups)

    def _launch_ranks(self, attempt: _Attempt, environment: dict[str, str], threads: int | None) -> None:
        job = attempt.job
        port = str(_free_port()) if job.ranks > 1 else ""
        for rank in range(job.ranks):
            ranks = _rank_environment(rank, job.ranks, port) if job.ranks > 1 else {}
            identity = {
                "LIGHTNING_HPO_TRIAL": str(job.trial_id),
                "LIGHTNING_HPO_ATTEMPT": str(job.attempt),
                "LIGHTNING_HPO_DIR": str(job.folder),
                **({} if attempt.scratch is None else {SCRATCH_VARIABLE: attempt.scratch}),
            }
            own = dataclasses.replace(
                job, rank=rank, environment={**environment, **ranks, **identity, **job.environment}
            )
            pid = self._launch(own, threads)
            attempt.groups.append(pid)
            attempt.running.add(pid)
            self._by_pid[pid] = attempt

    def _stop(self, attempt: _Attempt, grace_s: float) -> None:
        now = time.monotonic()
        kill_at = now + max(0.0, grace_s)
        if attempt.requested:
            kill_at = min([kill_at, *(when for when, number in attempt.plan if number == signal.SIGKILL)])
            attempt.plan = [step for step in attempt.plan if step[1] != signal.SIGKILL]
        else:
            dump_time = min(_DUMP_TIME_S, grace_s / 4)
            attempt.plan = [(now, STACK_DUMP_SIGNAL), (now + dump_time, signal.SIGTERM)] if grace_s > 0 else []
        attempt.requested = True
        attempt.plan = [step for step in attempt.plan if step[0] < kill_at]
        attempt.plan.append((kill_at, signal.SIGKILL))

    # ---- what happens by itself

    def _patience(self) -> float:
        """Seconds until something must be done without being told."""
        now = time.monotonic()
        times = [_WATCH_PERIOD_S]
        for attempt in self._attempts.values():
            if attempt.plan:
                times.append(attempt.plan[0][0] - now)
            if attempt.drain_until is not None:
                times.append(_DRAIN_PERIOD_S)
        return max(0.0, min(times))

    def _follow_plan(self, attempt: _Attempt, now: float) -> None:
        while attempt.plan and attempt.plan[0][0] <= now:
            _, number = attempt.plan.pop(0)
            until = attempt.plan[0][0] if attempt.plan else now
            if number == signal.SIGTERM and now < until and any(map(_is_to_dump, attempt.running)):
                # Of two signals that wait the kernel delivers the lower number first, and nothing would be dumped.
                attempt.plan.insert(0, (min(now + _DUMP_TIME_S / 4, until), number))
                continue
            for pid in attempt.running:
                if number == signal.SIGKILL:
                    _signal_group(pid, number)
                else:
                    # To the rank alone: it may want its data loading workers while it writes a checkpoint.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            attempt = self._by_pid.pop(pid, None)
            if attempt is not None:
                attempt.peak_rss = max(attempt.peak_rss, usage.ru_maxrss * 1024)
                attempt.cpu_s += usage.ru_utime + usage.ru_stime
                self._rank_ended(attempt, pid, status)

    def _rank_ended(self, attempt: _Attempt, pid: int, status: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # the group outlives its leader
        attempt.running.discard(pid)
        if status != 0 and attempt.failure is None:
            attempt.failure = status
            if attempt.running and not attempt.requested:
                now = time.monotonic()
                attempt.plan = [(now, signal.SIGTERM), (now + _RANK_GRACE_S, signal.SIGKILL)]
        if not attempt.running:
            attempt.drain_until = time.monotonic() + _DRAIN_LIMIT_S

    def _drain(self, attempt: _Attempt, now: float) -> None:
        """Report the end of an attempt once nothing of it is left."""
        left = list(self._left_overs(attempt))
        process_table.kill(left)
        if left and attempt.drain_until is not None and now < attempt.drain_until:
            return
        del self._attempts[attempt.key]
        attempt.delete_scratch()
        status = attempt.failure or 0
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_NO_MAIN_GUARD:
            self._send(event="failed", message=NO_MAIN_GUARD)
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        problem = None
        if exit_code == EXIT_NOT_BEGUN:
            problem = why_no_log(attempt.job)
        elif exit_code == EXIT_REFUSED:
            problem = str(refused("no thread is left for it"))
        ended = Exit(
            attempt.job.trial_id,
            attempt.job.attempt,
            attempt.groups[0],
            exit_code=None if problem is not None else exit_code,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            requested=attempt.requested,
            peak_rss=attempt.peak_rss,
            cpu_s=attempt.cpu_s,
            problem=problem,
            refused=exit_code == EXIT_REFUSED,
        )
        self._send(event="exited", **dataclasses.asdict(ended))

    def _left_overs(self, attempt: _Attempt) -> Iterator[int]:
        """Living processes that the attempt started: of its sessions, or orphans that made a session of their own.

        While a trial's process lives it has its orphans itself: those that are here are of processes that have ended.
        """
        for pid, parent, session in process_table.processes():
            orphan = parent == os.getpid() and pid not in self._by_pid
            if session in attempt.groups or orphan:
                yield pid

    def _kill_everything(self) -> None:
        for pid in self._by_pid:
            _signal_group(pid, signal.SIGKILL)
        deadline = time.monotonic() + _DRAIN_LIMIT_S
        while time.monotonic() < deadline:
            sessions = {group for attempt in self._attempts.values() for group in attempt.groups}
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = [
                pid
                for pid, parent, session in process_table.processes()
                if parent == os.getpid() or session in sessions
            ]
            if not left:
                break
            process_table.kill(left)
            time.sleep(_DRAIN_PERIOD_S)
        for attempt in self._attempts.values():
            attempt.delete_scratch()


def why_no_log(job: Job) -> str:
    """What keeps a trial from its log. Without the log's path, so that trials with the same trouble say the same."""
    cause = "is the disk full?"
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        os.close(open_own(job.log, os.O_WRONLY | os.O_APPEND, 0o644))
    except OSError as problem:
        cause = problem.strerror or str(problem)
    return f"its {job.log.name} cannot be written: {cause}"


def new_mark(study: Path | None) -> str:
    """A word that nobody else has, and which begins alike for all runs of a study; see :func:`remove_scratch_of_study`.

    Args:
        study: its folder, which exists. Another study that has had the same path, or has it in another container, is
            another folder.
    """
    if study is None:
        return f"{uuid.uuid4().hex[:_STUDY_LENGTH]}-{uuid.uuid4().hex}"
    found = os.stat(study)
    identity = f"{found.st_dev} {found.st_ino} ".encode() + os.fsencode(study.resolve())
    return f"{hashlib.sha256(identity).hexdigest()[:_STUDY_LENGTH]}-{uuid.uuid4().hex}"


def remove_scratch_of_study(mark: str) -> None:
    """Delete what runs of the study to which the mark belongs have left, if launcher and server were killed.

    Call it while the study is locked and before its first trial begins.
    """
    remove_scratch(mark[:_STUDY_LENGTH])


def remove_scratch(mark: str) -> None:
    """Delete what a server that was killed has left of the trials with this mark."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_scratch_prefix(mark)}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid():  # anybody may use such a name there
                shutil.rmtree(folder, ignore_errors=True)


def _new_scratch(mark: str) -> str | None:
    """None if there can be none; the trial finds a folder for itself then, or says why not."""
    with contextlib.suppress(OSError):
        return tempfile.mkdtemp(prefix=_scratch_prefix(mark))
    return None


def _scratch_prefix(mark: str) -> str:
    return f"lhpo-{mark[:_MARK_LENGTH]}-"


def _rank_environment(rank: int, ranks: int, port: str) -> dict[str, str]:
    return {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_to_dump(pid: int) -> bool:
    """Whether a process on a busy machine has not come to its stacks yet."""
    return process_table.is_pending(pid, STACK_DUMP_SIGNAL)


def _signal_group(leader: int, number: int) -> None:
    """To the group that the process leads, and to itself in case it leads none yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, number)
