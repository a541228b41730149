"""Trials as processes of this machine."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_hpo.errors import BackendError, OptionError, did_you_mean
from lightning_hpo.runtime import process_table, processes
from lightning_hpo.runtime.backends import zygote
from lightning_hpo.runtime.backends.base import Entry, Exit, Job, Started, WarmUp
from lightning_hpo.runtime.backends.slots import Slot, SlotPool, available_cores
from lightning_hpo.runtime.backends.trial_server import new_mark, remove_scratch, remove_scratch_of_study
from lightning_hpo.runtime.script import ScriptImport, dump_entry, refuse_nested_sweep

StartMethod = Literal["auto", "fork", "forkserver", "spawn"]

DEFAULT_PRELOAD = ("torch", "lightning.pytorch")

_log = logging.getLogger(__name__)
_MAX_SERVERS = 5
_SERVER_EXIT_S = 5.0


@dataclass(slots=True)
class _Running:
    """An attempt that was started and has not ended, as the launcher sees it."""

    job: Job
    slot: Slot
    command: bytes
    """What the server was or will be told."""
    sent: bool = False
    requested: bool = False
    pids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Server:
    """The process that makes the trials' processes."""

    connection: Connection[Any, Any]
    pid: int
    ended: Callable[[], bool]
    """Whether it has exited; takes its status from the system."""
    ready: bool = False

    def send(self, message: bytes) -> bool:
        try:
            self.connection.send_bytes(message)
        except OSError:
            return False  # it died: its end of the connection says so to poll()
        return True

    def tell(self, **message: Any) -> bool:
        return self.send(json.dumps(message).encode())


class LocalBackend:
    """Runs attempts as processes on this machine, each in a slot.

    Create it before the launcher has threads, sockets or databases: if nothing speaks against it, the trials are
    forked from a fork of the launcher itself, which has the user's script in memory, so that a trial trains within a
    tenth of a second. Otherwise a new interpreter imports the script once and is forked for each trial; if even that
    is not safe, each trial is a new interpreter.

    Args:
        entry: runs one attempt in its process. With ``forkserver`` and ``spawn`` it must be picklable, by reference
            (:class:`~lightning_hpo.runtime.script.FunctionReference`) or by cloudpickle.
        n_workers: trials at a time; None for as many as fit.
        gpus_per_trial: 0, a share such as 0.25, or a whole number; None for one if there is one.
        devices: ids of the GPUs to use; None looks for them.
        start_method: how the trials' processes are made; ``auto`` takes the fastest that is safe.
        preload: modules imported once, ahead of the trials. One that does not exist is left out.
        warm_up: called once, after the imports, in the process from which trials are forked. Not called for trials on
            GPUs, because a process that has touched CUDA cannot be forked.
        threads_per_trial: for torch and OpenMP; None shares the cores among the trials, unless the user has set
            ``OMP_NUM_THREADS``.
        study: folder of the study whose trials these are, for :meth:`remove_left_over`.

    Raises:
        BackendError: if this process only imports the script to run trials, or cannot do what was asked.
        OptionError: if an argument is not usable.
    """

    def __init__(
        self,
        entry: Entry,
        n_workers: int | None = None,
        gpus_per_trial: float | None = None,
        devices: Sequence[str | int] | None = None,
        start_method: StartMethod = "auto",
        preload: Sequence[str] = DEFAULT_PRELOAD,
        threads_per_trial: int | None = None,
        warm_up: WarmUp | None = None,
        study: Path | None = None,
    ) -> None:
        refuse_nested_sweep()
        processes.fill_standard_files()
        if start_method not in get_args(StartMethod):
            raise OptionError(
                f"start_method cannot be {start_method!r}.{did_you_mean(str(start_method), get_args(StartMethod))} "
                "Use auto, fork, forkserver or spawn."
            )
        self._slots = SlotPool(n_workers, gpus_per_trial, devices)
        self._entry = entry
        self._preload = tuple(preload)
        self._threads = threads_per_trial
        self._warm_up = warm_up
        self._running: dict[tuple[int, int], _Running] = {}
        self._pending: list[Started | Exit] = []
        self._mark = new_mark(study)
        self._doorbell, self._doorbell_end = os.pipe()
        self._servers = 0
        self._closed = False
        self._wanted: StartMethod = start_method
        self.start_method: str = start_method
        """How trials are started; what ``auto`` chose."""
        self.reason: str = "as asked"
        """Why, in one line."""
        self._server: _Server | None = self._first_server()

    # ---- the interface of a backend

    @property
    def free_slots(self) -> int:
        return self._slots.free

    @property
    def capacity(self) -> int:
        return self._slots.capacity

    @property
    def note(self) -> str | None:
        """Set if fewer trials than wanted can run at a time: why, and what to do."""
        return self._slots.note

    def start(self, job: Job) -> None:
        if self._closed:
            raise BackendError("The backend is closed. Create a new one to start more trials.")
        key = job.trial_id, job.attempt
        if key in self._running:
            raise BackendError(
                f"Attempt {job.attempt} of trial {job.trial_id} runs already. Start the next attempt instead."
            )
        slot = self._slots.acquire()
        if slot is None:
            raise BackendError(
                f"All {self._slots.capacity} slots are taken. Wait for a trial to end, or raise n_workers."
            )
        try:
            command = {
                "op": "start",
                "job": job.to_json(),
                "environment": {**slot.environment, process_table.MARK: self._mark},
                "threads": self._threads_of(job),
            }
            self._running[key] = _Running(job, slot, json.dumps(command).encode())
            if self._server is None:
                self._server = self._fresh_server("forkserver", "the process that started trials died")
        except BaseException:
            self._running.pop(key, None)
            self._slots.release(slot)
            raise
        self._send_waiting()

    def stop(self, trial_id: int, attempt: int, grace_s: float = 5.0) -> None:
        running = self._running.get((trial_id, attempt))
        if running is None:
            return
        running.requested = True
        if running.sent and self._server is not None:
            self._server.tell(op="stop", trial_id=trial_id, attempt=attempt, grace_s=grace_s)
        elif not running.sent:
            self._announce(self._ended(running, problem="stopped before it was started"))

    def waitables(self) -> Sequence[Any]:
        return [self._doorbell] if self._server is None else [self._doorbell, self._server.connection]

    def poll(self) -> list[Started | Exit]:
        happened, self._pending = self._pending, []
        if happened:
            os.read(self._doorbell, len(happened))
        server = self._server
        try:
            while server is not None and server is self._server and server.connection.poll():
                self._hear(json.loads(server.connection.recv_bytes()), happened)
        except (EOFError, OSError):
            self._mourn(happened)
        return happened

    def close(self, grace_s: float = 5.0) -> None:
        if self._closed:
            return
        self._closed = True
        server = self._server
        if server is not None:
            server.tell(op="close", grace_s=grace_s)
            # While it still imports, it does not listen, but it has no trials either.
            patience = grace_s + _SERVER_EXIT_S if server.ready else 0.0
            if not _wait_for(server.ended, patience):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(server.pid, signal.SIGKILL)
                self._kill_all()
                _wait_for(server.ended, _SERVER_EXIT_S)
                remove_scratch(self._mark)
            self._server = None
            server.connection.close()
        self._running.clear()
        os.close(self._doorbell)
        os.close(self._doorbell_end)

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remove_left_over(self) -> None:
        """Delete temporary files of earlier runs of the study, if they were killed as a whole.

        Call it while the study is locked and before the first trial begins.
        """
        remove_scratch_of_study(self._mark)

    # ---- what the server says

    def _hear(self, message: dict[str, Any], happened: list[Started | Exit]) -> None:
        event = message.pop("event")
        if event == "started":
            running = self._running.get((message["trial_id"], message["attempt"]))
            if running is not None:
                running.pids = tuple(message["pids"])
                happened.append(Started(running.job.trial_id, running.job.attempt, running.pids[0], running.slot.name))
        elif event == "exited":
            running = self._running.get((message["trial_id"], message["attempt"]))
            if running is not None:
                self._ended(running)
                happened.append(Exit(**message))
        elif event == "ready":
            self.start_method, self.reason = message["start_method"], message["reason"]
            _log.debug("trials are started by %s: %s", self.start_method, self.reason)
            if self._server is not None:
                self._server.ready = True
            self._send_waiting()
        elif event == "unfit":
            self._replace_unfit(message["reason"])
        elif event == "failed":
            self._retire()
            raise BackendError(message["message"])

    def _replace_unfit(self, reason: str) -> None:
        """The zygote found out that forking it would not be safe."""
        if self._wanted == "fork":
            raise BackendError(_no_fork(reason))
        self._retire()
        self._server = self._fresh_server("forkserver", reason)

    def _mourn(self, happened: list[Started | Exit]) -> None:
        """The server died: so did or will its trials; the next start makes a new server."""
        _log.warning("the process that starts trials died; %d trials died with it", len(self._running))
        self._kill_all()
        self._retire()
        remove_scratch(self._mark)
        for running in list(self._running.values()):
            if running.sent:
                happened.append(self._ended(running, problem="the process that starts trials died"))
        if self._running:
            self._server = self._fresh_server("forkserver", "the process that started trials died")

    def _retire(self) -> None:
        if self._server is not None:
            self._server.connection.close()
            _wait_for(self._server.ended, _SERVER_EXIT_S)
            self._server = None

    def _kill_all(self) -> None:
        """Without a server: kill the groups of all trials that are known, and what has left them."""
        left = process_table.descendants(pid for running in self._running.values() for pid in running.pids)
        for running in self._running.values():
            for pid in running.pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        process_table.kill(left)
        for running in self._running.values():
            for pid in running.pids:
                _wait_for(functools.partial(_group_is_gone, pid), 1.0)
        _wait_for(lambda: left.isdisjoint(p.pid for p in process_table.processes()), 1.0)
        process_table.kill_marked(self._mark)

    # ---- bookkeeping

    def _send_waiting(self) -> None:
        server = self._server
        if server is None or not server.ready:
            return
        for running in self._running.values():
            if not running.sent:
                running.sent = server.send(running.command)

    def _ended(self, running: _Running, problem: str | None = None) -> Exit:
        del self._running[running.job.trial_id, running.job.attempt]
        self._slots.release(running.slot)
        return Exit(
            running.job.trial_id,
            running.job.attempt,
            running.pids[0] if running.pids else None,
            exit_code=None,
            requested=running.requested,
            problem=problem,
        )

    def _announce(self, event: Started | Exit) -> None:
        self._pending.append(event)
        os.write(self._doorbell_end, b".")

    def _threads_of(self, job: Job) -> int | None:
        if self._threads is not None:
            return self._threads
        if processes.wanted_threads() is not None:
            return None
        return max(1, available_cores() // (self.capacity * job.ranks))

    @property
    def _uses_gpu(self) -> bool:
        return self._slots.gpus_per_trial > 0

    # ---- servers

    def _first_server(self) -> _Server:
        if self._wanted in ("auto", "fork"):
            hazard = processes.fork_hazard()
            if hazard is None:
                return self._zygote()
            if self._wanted == "fork":
                raise BackendError(_no_fork(hazard))
            return self._fresh_server("forkserver", hazard)
        return self._fresh_server(self._wanted, "as asked")

    def _zygote(self) -> _Server:
        """A fork of this process."""
        self._servers += 1
        self.start_method, self.reason = "fork", "the script has imported what trials need"
        launcher = os.getpid()
        here, there = multiprocessing.Pipe()

        def child() -> None:
            here.close()
            zygote.serve_forked(there, launcher, self._entry, self._preload, self._warm_up, self._uses_gpu)

        with processes.signals_held():
            pid = processes.fork(child)
        there.close()
        return _Server(here, pid, lambda: _reaped(pid))

    def _fresh_server(self, start_method: str, reason: str) -> _Server:
        """A new interpreter.

        Raises:
            BackendError: if the entry cannot be sent to it, the system refuses it, or servers keep dying.
        """
        self._servers += 1
        if self._servers > _MAX_SERVERS:
            raise BackendError(
                f"The process that starts trials died {self._servers - 1} times. "
                "Look for what kills it (memory, batch system), then continue the study."
            )
        blob = base64.b64encode(dump_entry(self._entry)).decode()
        self.start_method, self.reason = start_method, reason
        try:
            here, there = multiprocessing.Pipe()
            with there:
                process = zygote.start_fresh(there)
        except OSError as problem:
            raise processes.refused(problem) from problem
        server = _Server(here, process.pid, lambda: process.poll() is not None)
        server.tell(
            start_method=start_method,
            reason=reason,
            entry=blob,
            warm_up=base64.b64encode(dump_entry(self._warm_up)).decode(),
            script=ScriptImport.describe(),
            preload=self._preload,
            uses_gpu=self._uses_gpu,
        )
        return server


def _no_fork(reason: str) -> str:
    return f"Trials cannot be forked: {reason}. Use start_method=auto, or remove the cause."


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _group_is_gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True
