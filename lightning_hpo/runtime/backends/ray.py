"""Trials on the nodes of a Ray cluster.

Every slot is a Ray actor, a *trial host*, which holds the CPUs and GPUs of one trial. It starts the same trial server
that the local backend starts (see :mod:`~lightning_hpo.runtime.backends.zygote`) and passes messages on. So Ray decides
where trials run and notices when a node is gone; what a trial's process is, and how it ends, is the same everywhere.
A host is kept for the next trial, which finds everything imported.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.errors import BackendError, OptionError
from lightning_hpo.runtime import process_table, processes
from lightning_hpo.runtime.backends.base import Entry, Exit, Job, Started, WarmUp
from lightning_hpo.runtime.backends.ray_cluster import Resources, describe, gist, import_ray, join, no_room, room_on
from lightning_hpo.runtime.backends.slots import VISIBLE_DEVICES, available_cores, check_share
from lightning_hpo.runtime.backends.trial_host import TrialHost
from lightning_hpo.runtime.script import ScriptImport, dump_entry, refuse_nested_sweep

_log = logging.getLogger(__name__)
_MAX_FAILED_HOSTS = 3
_ROOM_PERIOD_S = 2.0
"""Time between two looks at the nodes of the cluster."""
_CLOSE_S = 10.0
"""What closing a host may take beyond the grace."""
_EVENTS, _COMMANDS = "events", "commands"
"""Concurrency groups of a host: its methods wait in one thread and obey, in order, in another."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """An attempt that was started and has not ended, as the launcher sees it."""

    job: Job
    host: _Host | None = None
    pid: int | None = None
    requested: bool = False

    def exit(self, problem: str) -> Exit:
        identity = self.job.trial_id, self.job.attempt, self.pid
        return Exit(*identity, exit_code=None, requested=self.requested, problem=problem)


@dataclass(slots=True, eq=False)
class _Host:
    """A trial host, as the launcher sees it. ``number``: which of those ever made."""

    actor: Any
    number: int
    node: str = "?"
    devices: str = ""
    ready: bool = False
    attempt: _Attempt | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        return f"{self.node}/{f'gpu:{self.devices}' if self.devices else 'cpu'}"


class RayBackend:
    """Runs attempts on a Ray cluster, each in a slot of the node that Ray chooses.

    Joins the cluster that ``RAY_ADDRESS`` names or that runs on this node; without one, starts Ray on this machine,
    reachable from this machine only. The study folder must lie on storage that all nodes share, and every node must
    have the same packages and the script at the same path.

    Args:
        entry: runs one attempt in its process; must be picklable, as for the start method ``spawn``.
        n_workers: trials at a time; None for as many as fit.
        gpus_per_trial: 0, a share such as 0.25, or a whole number; None for one if any node has one.
        devices: not used, because Ray assigns devices; :attr:`note` says so.
        start_method: how a trial's process is made on its node: ``auto``, ``forkserver`` or ``spawn``.
        preload: modules imported once per slot, ahead of the trials.
        warm_up: called once per slot, after the imports, unless trials use GPUs.
        ranks_per_trial: processes of one trial; each takes one CPU of the cluster.
        threads_per_trial: for torch and OpenMP; None shares the cores among the trials, unless the user has set
            ``OMP_NUM_THREADS``.

    Raises:
        BackendError: if Ray is not installed, the cluster cannot be joined, or no node has room for a trial.
        OptionError: if an argument is not usable.
    """

    start_method = "ray"

    def __init__(
        self,
        entry: Entry,
        n_workers: int | None = None,
        gpus_per_trial: float | None = None,
        devices: Sequence[str | int] | None = None,
        start_method: str = "auto",
        preload: Sequence[str] = (),
        warm_up: WarmUp | None = None,
        ranks_per_trial: int = 1,
        threads_per_trial: int | None = None,
    ) -> None:
        refuse_nested_sweep()
        if start_method == "fork":
            raise OptionError(
                "start_method=fork makes trials from the launcher's own process, which is not on every node of a Ray "
                "cluster. Leave start_method out."
            )
        if gpus_per_trial is not None:
            check_share(gpus_per_trial)
        blobs = {"entry": _blob(entry), "warm_up": _blob(warm_up)}
        self._wanted = n_workers
        self._cpus = ranks_per_trial
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._hosts: list[_Host] = []
        self._made = self._failed = self._counted_up_to = 0
        self._news: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        """What Ray's threads have to say, to be called by :meth:`poll`."""
        self._pending: list[Started | Exit] = []
        self._lock = threading.Lock()
        self._closed = False
        self._ray = import_ray()
        self._joined, self._is_ours = join(self._ray, (n_workers or 1) * ranks_per_trial)
        self._wake_reader, self._wake_writer = os.pipe()
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        try:
            nodes = self._measure(gpus_per_trial)
        except BaseException:
            self.close()
            raise
        self.reason = describe(nodes, self._is_ours)
        """Where trials run, in one line."""
        self.note = self._notes(devices)
        """What the user should be told once; None if nothing."""
        self._threads = threads_per_trial or self._fair_threads(nodes)
        self._setup = _encoded(
            start_method="spawn" if start_method == "spawn" else "forkserver",
            reason="as asked",
            script=ScriptImport.describe(),
            preload=list(preload),
            uses_gpu=self._gpus > 0,
            **blobs,
        )

    # ---- the interface of a backend

    @property
    def free_slots(self) -> int:
        return max(0, self._room - len(self._attempts))

    @property
    def capacity(self) -> int:
        return self._room

    @property
    def interface(self) -> str | None:
        """Address at which the nodes of the cluster reach this process; None if it is the only node."""
        return None if self._is_ours else str(self._ray.util.get_node_ip_address())

    def start(self, job: Job) -> None:
        if self._closed:
            raise BackendError("The backend is closed. Create a new one to start more trials.")
        key = job.trial_id, job.attempt
        if key in self._attempts:
            raise BackendError(
                f"Attempt {job.attempt} of trial {job.trial_id} runs already. Start the next attempt instead."
            )
        if self.free_slots == 0:
            raise BackendError(f"All {self._room} slots are taken. Wait for a trial to end, or raise n_workers.")
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise BackendError(
                f"The trial's folder {job.folder} cannot be made: {problem.strerror}. "
                "Free space or correct the permissions, then continue the study."
            ) from problem
        self._attempts[key] = _Attempt(job)
        self._assign()

    def stop(self, trial_id: int, attempt: int, grace_s: float = 5.0) -> None:
        running = self._attempts.get((trial_id, attempt))
        if running is None:
            return
        running.requested = True
        if running.host is None:
            del self._attempts[trial_id, attempt]
            self._pending.append(running.exit("stopped before it was started"))
            self._wake()
        else:
            command = _encoded(op="stop", trial_id=trial_id, attempt=attempt, grace_s=grace_s)
            self._call(running.host, _COMMANDS, "send", command)

    def waitables(self) -> Sequence[Any]:
        return [self._wake_reader]

    def poll(self) -> list[Started | Exit]:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_reader, 4096):
                pass
        while self._news:
            take, arguments = self._news.popleft()
            take(*arguments)
        if time.monotonic() >= self._look_at:
            self._look()
        self._assign()
        happened, self._pending = self._pending, []
        return happened

    def close(self, grace_s: float = 5.0) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True  # from here on no thread of Ray's uses the pipe
            os.close(self._wake_reader)
            os.close(self._wake_writer)
        ends = [self._call(host, _COMMANDS, "close", grace_s) for host in self._hosts if host.ready]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=grace_s + _CLOSE_S)
        for host in self._hosts:
            self._kill(host)
        self._hosts.clear()
        self._attempts.clear()
        if self._joined:
            self._ray.shutdown()

    def __enter__(self) -> RayBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- hosts

    def _assign(self) -> None:
        """Give waiting attempts to idle hosts, and make the hosts that are missing."""
        waiting = [attempt for attempt in self._attempts.values() if attempt.host is None]
        for host in self._hosts:
            if waiting and host.ready and host.attempt is None:
                self._send(host, waiting.pop(0))
        # A host that waits for its node takes whatever waits when it is there: an attempt is not bound to it before.
        for _ in range(len(waiting) - sum(not host.ready for host in self._hosts)):
            self._make_host()

    def _send(self, host: _Host, attempt: _Attempt) -> None:
        host.attempt, attempt.host = attempt, host
        devices = {VISIBLE_DEVICES: host.devices} if self._gpus == 0 or host.devices else {}
        command = _encoded(
            op="start",
            job=attempt.job.to_json(),
            environment={**devices, process_table.MARK: host.mark},
            threads=self._threads,
        )
        self._listen(host, _COMMANDS, self._take_refusal, "start", command, str(attempt.job.folder))

    def _make_host(self) -> None:
        actor_class = self._ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={_EVENTS: 1, _COMMANDS: 1},
        )(TrialHost)
        self._made += 1
        host = _Host(actor_class.remote(self._setup), self._made)
        self._hosts.append(host)
        self._listen(host, _EVENTS, self._take_place, "place")
        self._listen(host, _EVENTS, self._take_events, "events")

    def _call(self, host: _Host, group: str, method: str, *arguments: Any) -> Any:
        return getattr(host.actor, method).options(concurrency_group=group).remote(*arguments)

    def _listen(self, host: _Host, group: str, take: Callable[..., None], method: str, *arguments: Any) -> None:
        """Call a method of the host; ``take`` gets the host and the answer, or the host is lost."""
        future = self._call(host, group, method, *arguments).future()

        def hear(future: Any) -> None:
            error = future.exception()
            self._news.append((self._lose, (host, error)) if error is not None else (take, (host, future.result())))
            self._wake()

        future.add_done_callback(hear)

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe is readable, which is all it is for
            if not self._closed:
                os.write(self._wake_writer, b".")

    def _kill(self, host: _Host) -> None:
        with contextlib.suppress(Exception):  # it may be gone with its node
            self._ray.kill(host.actor)

    # ---- what hosts say

    def _take_place(self, host: _Host, place: Mapping[str, str]) -> None:
        host.node, host.devices = place["node"], place["devices"] if self._gpus > 0 else ""

    def _take_refusal(self, host: _Host, refusal: str | None) -> None:
        if refusal is not None:
            raise BackendError(refusal)

    def _take_events(self, host: _Host, messages: Sequence[dict[str, Any]]) -> None:
        if host not in self._hosts:
            return
        if not messages:
            self._lose(host, "the process that starts trials died")
            return
        for message in messages:
            event = message.pop("event")
            if event == "ready":
                host.ready = True
                self._failed = 0
            elif event == "failed":
                raise BackendError(message["message"])
            elif host.attempt is not None:
                self._take_progress(host, host.attempt, event, message)
        self._listen(host, _EVENTS, self._take_events, "events")

    def _take_progress(self, host: _Host, attempt: _Attempt, event: str, message: dict[str, Any]) -> None:
        if event == "started":
            attempt.pid = message["pids"][0]
            self._pending.append(Started(attempt.job.trial_id, attempt.job.attempt, attempt.pid, host.name))
        elif event == "exited":
            host.attempt = None
            del self._attempts[attempt.job.trial_id, attempt.job.attempt]
            self._pending.append(Exit(**message))

    def _lose(self, host: _Host, why: object) -> None:
        """A host died, or cannot be reached: then its trial may go on for a while, but is not listened to any more.

        Raises:
            BackendError: if hosts keep dying before they can start a trial.
        """
        if host not in self._hosts:
            return
        self._hosts.remove(host)
        self._kill(host)
        self._look_at = 0.0
        if host.attempt is not None:
            job = host.attempt.job
            del self._attempts[job.trial_id, job.attempt]
            self._pending.append(host.attempt.exit(f"its Ray worker on {host.node} was lost ({gist(why)})"))
        elif not host.ready and host.number > self._counted_up_to:
            # Hosts that were made together and died together count once.
            self._counted_up_to = self._made
            self._failed += 1
            if self._failed >= _MAX_FAILED_HOSTS:
                raise BackendError(
                    f"{self._failed} Ray workers in a row died before they could start a trial, the last one with "
                    f"{gist(why)}. Look for the cause in Ray's logs, "
                    "and install the same versions of Python and of all packages on every node."
                )

    # ---- room

    def _measure(self, gpus_per_trial: float | None) -> list[dict[str, float]]:
        nodes = self._nodes()
        has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        self._gpus = float(has_gpus) if gpus_per_trial is None else gpus_per_trial
        self._look_at = time.monotonic() + _ROOM_PERIOD_S
        self._room = self._fitting(nodes)
        if self._room == 0:
            raise BackendError(no_room(self._cpus, self._gpus, nodes))
        return nodes

    def _nodes(self) -> list[dict[str, float]]:
        """Resources of each living node."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self, nodes: Sequence[Resources]) -> int:
        room = sum(room_on(node, self._cpus, self._gpus) for node in nodes)
        return room if self._wanted is None else min(room, self._wanted)

    def _look(self) -> None:
        """Nodes come and go."""
        before, self._room = self._room, self._fitting(self._nodes())
        self._look_at = time.monotonic() + _ROOM_PERIOD_S
        if before > 0 and self._room == 0:
            _log.warning("no node of the Ray cluster has room for a trial; the study waits for one")

    def _notes(self, devices: Sequence[str | int] | None) -> str | None:
        notes = []
        if devices is not None:
            notes.append("devices is not used: Ray assigns devices to trials. Leave it out with backend=ray.")
        if self._wanted is not None and self._room < self._wanted:
            notes.append(
                f"{self._room} instead of {self._wanted} trials run at a time: each takes {self._cpus} CPU and "
                f"{self._gpus:g} GPU, and the cluster has no more. Add nodes: they are used as soon as they join."
            )
        return " ".join(notes) or None

    def _fair_threads(self, nodes: Sequence[Resources]) -> int:
        wanted = processes.wanted_threads()
        if wanted is not None:
            return wanted
        cores = available_cores() if self._is_ours else int(sum(node.get("CPU", 0) for node in nodes))
        return max(1, cores // (self._room * self._cpus))


def _encoded(**message: Any) -> bytes:
    return json.dumps(message).encode()


def _blob(what: Entry | WarmUp | None) -> str:
    return base64.b64encode(dump_entry(what)).decode()
