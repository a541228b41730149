"""The process that stands between the launcher and the trials, and how it comes about.

It has imported everything a trial needs, and a trial is a fork of it: ready within a few hundredths of a second. It is
itself either a fork of the launcher, which has the user's script in memory already (a *zygote*), or a new interpreter
that imported the script as a module (a *fork server*). If forking it turns out to be unsafe, it starts a new
interpreter for every trial instead.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import multiprocessing.spawn
import multiprocessing.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime import garbage, process_table, processes
from lightning_hpo.runtime.backends.base import Entry, Job, WarmUp
from lightning_hpo.runtime.backends.slots import VISIBLE_DEVICES
from lightning_hpo.runtime.backends.trial_server import EXIT_NO_MAIN_GUARD, TrialServer
from lightning_hpo.runtime.script import ScriptImport

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_WATCH_PERIOD_S = 0.5


def serve_forked(
    connection: Connection[Any, Any],
    launcher: int,
    entry: Entry,
    preload: Sequence[str],
    warm_up: WarmUp | None,
    uses_gpu: bool,
) -> None:
    """Body of a zygote: a fork of the launcher."""
    _become_server()
    with _dying_with(launcher):
        _prepare(preload, warm_up, uses_gpu)
    hazard = processes.fork_hazard() or processes.probe_fork(uses_gpu)
    if hazard is not None:
        _tell(connection, event="unfit", reason=hazard)
        return
    _tell(connection, event="ready", start_method="fork", reason="the script has imported what trials need")
    _serve_by_fork(connection, launcher, entry)


def start_fresh(connection: Connection[Any, Any]) -> subprocess.Popen[bytes]:
    """Start a server that is a new interpreter, with its end of the connection.

    What Ctrl-C or a batch system sends to everybody does not end it while it begins: signals wait until it ignores
    them.
    """
    with processes.signals_held():
        return subprocess.Popen(
            interpreter("serve_fresh", connection.fileno(), os.getpid()),
            pass_fds=[connection.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def serve_fresh(fd: int, launcher: int) -> NoReturn:
    """Body of a server that is a new interpreter; told what to be by the first message."""
    try:
        _serve_fresh(Connection(fd), launcher)
    except BaseException:
        traceback.print_exc()
    finally:
        # Without the interpreter's own end, which takes seconds once torch is imported.
        os._exit(0)


def _serve_fresh(connection: Connection[Any, Any], launcher: int) -> None:
    _become_server()
    setup = json.loads(connection.recv_bytes())
    blob, script, preload = setup["entry"], setup["script"], setup["preload"]
    reason = setup["reason"]
    if setup["start_method"] == "forkserver":
        with _dying_with(launcher):
            try:
                ScriptImport.run(script)
                entry: Entry = pickle.loads(base64.b64decode(blob))
                warm_up: WarmUp | None = pickle.loads(base64.b64decode(setup["warm_up"]))
            except Exception as problem:
                _tell(connection, event="failed", message=_message(problem))
                return
            _prepare(preload, warm_up, setup["uses_gpu"])
        hazard = processes.fork_hazard() or processes.probe_fork(setup["uses_gpu"])
        if hazard is None:
            _tell(connection, event="ready", start_method="forkserver", reason=reason)
            _serve_by_fork(connection, launcher, entry)
            return
        reason = f"imported as a module, {hazard}"
    _tell(connection, event="ready", start_method="spawn", reason=reason)
    common = {"entry": blob, "script": script, "preload": preload, "server": os.getpid()}

    def launch(job: Job, threads: int | None) -> int:
        return _spawn(json.dumps({**common, "job": job.to_json(), "threads": threads}).encode(), job, threads)

    TrialServer(connection, launcher, launch).serve()


def run_spawned(fd: int) -> NoReturn:
    """Body of a trial in a new interpreter; what to run is read from the file ``fd``."""
    with open(fd, "rb") as file:
        setup = json.load(file)
    job = Job.from_json(setup["job"])
    processes.become_trial(job, None, setup["server"])
    try:
        ScriptImport.run(setup["script"])
    except BackendError as problem:
        print(problem, file=sys.stderr, flush=True)
        os._exit(EXIT_NO_MAIN_GUARD if ScriptImport.nested else 1)

    def entry(job: Job) -> None:
        _preload(setup["preload"])
        entry: Entry = pickle.loads(base64.b64decode(setup["entry"]))
        # Again, for what was imported only now.
        processes.settle_libraries(job, setup["threads"])
        entry(job)

    processes.run_trial(entry, job)


def interpreter(function: str, *arguments: int) -> list[str]:
    """Command line of a new interpreter that calls one of the bodies above with numbers."""
    root = str(Path(__file__).parents[3])
    call = f"{function}({', '.join(map(str, arguments))})"
    code = f"import sys; sys.path.append({root!r}); from {__name__} import {function}; {call}"
    flags = multiprocessing.util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [os.fsdecode(multiprocessing.spawn.get_executable()), *flags, "-c", code]


def _serve_by_fork(connection: Connection[Any, Any], launcher: int, entry: Entry) -> None:
    # What exists now is shared with the trials' memory for good: no collection in a trial will touch and copy it.
    # Without a collection before: it takes longer than several trials take to start, and finds next to nothing.
    gc.freeze()
    me = os.getpid()

    def launch(job: Job, threads: int | None) -> int:
        def child() -> None:
            os.setsid()
            server.forget()
            processes.forget_parent()
            processes.become_trial(job, threads, me)
            processes.run_trial(entry, job)

        with processes.signals_held():
            return processes.fork(child)

    server = TrialServer(connection, launcher, launch)
    server.serve()


def _spawn(setup: bytes, job: Job, threads: int | None) -> int:
    """Start a new interpreter for one rank."""
    file = os.memfd_create("lightning_hpo")
    try:
        os.write(file, setup)
        os.lseek(file, 0, os.SEEK_SET)
        os.set_inheritable(file, True)
        command = interpreter("run_spawned", file)
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        environment = {**os.environ, **limit, **job.environment}

        def child() -> None:
            os.setsid()
            processes.reset_signals()
            os.execve(command[0], command, environment)

        with processes.signals_held():
            return processes.fork(child)
    finally:
        os.close(file)


def _become_server() -> None:
    with contextlib.suppress(PermissionError):  # a new interpreter has its session already
        os.setsid()
    for number in _IGNORED:
        # They are meant for the launcher, which tells the server what to do about them.
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    processes.fill_standard_files()  # what the launcher has at these numbers may be closed here
    process_table.adopt_orphans()


@contextlib.contextmanager
def _dying_with(launcher: int) -> Iterator[None]:
    """End this process if the launcher dies while it is busy and does not look."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_PERIOD_S):
            if os.getppid() != launcher:
                os.killpg(0, signal.SIGKILL)

    thread = threading.Thread(target=watch, name="launcher-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _prepare(preload: Iterable[str], warm_up: WarmUp | None, uses_gpu: bool) -> None:
    """Import and do once what every trial would import and do."""
    if not uses_gpu:
        # The trials see no device either. So torch finds none, and does not start CUDA in this process.
        os.environ[VISIBLE_DEVICES] = ""
    with garbage.no_collections():
        _preload(preload)
        if warm_up is not None and not uses_gpu:
            # It only saves time, so its failure is none.
            with contextlib.suppress(Exception):
                warm_up()


def _preload(modules: Iterable[str]) -> None:
    for module in modules:
        # A module that is missing or broken is the trial's to complain about, if it needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def _tell(connection: Connection[Any, Any], **message: Any) -> None:
    with contextlib.suppress(OSError):
        connection.send_bytes(json.dumps(message).encode())


def _message(problem: Exception) -> str:
    if isinstance(problem, BackendError):
        return str(problem)
    return (
        f"What the trials run cannot be loaded in a new process: {type(problem).__name__}: {problem}. "
        "Define the training function at the top level of a module that can be imported."
    )
