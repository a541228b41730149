"""A launcher that obeys its standard input: run by the tests of the local backend, in a process of its own.

Commands and events are JSON lines. What the trials do is named in their payload.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait

from lightning_hpo.errors import HpoError, TrialPaused
from lightning_hpo.runtime.backends.base import Entry, Job
from lightning_hpo.runtime.backends.local import LocalBackend

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(120)"]


def entry(job: Job) -> None:
    todo = {name[3:]: function for name, function in globals().items() if name.startswith("do_")}
    todo[job.payload["do"]](job)


def do_describe(job: Job) -> None:
    facts = {
        "payload": job.payload,
        "rank": job.rank,
        "environment": dict(os.environ),
        "random": random.random(),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "leads_session": os.getsid(0) == os.getpid(),
    }
    (job.folder / f"facts{job.rank}.json").write_text(json.dumps(facts))
    print("written by print")
    subprocess.run(["sh", "-c", "echo written by a subprocess; echo and its stderr >&2"], check=True)


def do_raise(job: Job) -> None:
    raise ValueError("no such layer")


def do_pause(job: Job) -> None:
    raise TrialPaused


def do_exit(job: Job) -> None:
    sys.exit(job.payload["code"])


def do_kill_itself(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def do_sleep(job: Job) -> None:
    (job.folder / "runs").touch()
    time.sleep(120)


def do_ignore_sigterm(job: Job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    do_sleep(job)


def do_leave_processes(job: Job) -> None:
    """A child, a grandchild whose parent is gone, and a daemon in a session of its own; then end or sleep."""
    subprocess.Popen(SLEEPER)
    subprocess.run([sys.executable, "-S", "-c", f"import subprocess; subprocess.Popen({SLEEPER!r})"], check=True)
    daemon = f"import subprocess; subprocess.Popen({SLEEPER!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-S", "-c", daemon], check=True)
    (job.folder / "runs").touch()
    time.sleep(job.payload["seconds"])


def do_leave_a_forked_daemon(job: Job) -> None:
    """As the textbook has it, without another program: nothing tells whose it was. End when there is a file ``go``."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(120)
        os._exit(0)
    os.wait()
    (job.folder / "runs").touch()
    while not (job.folder / "go").exists():
        time.sleep(0.01)


def do_exit_handlers(job: Job) -> None:
    import atexit

    atexit.register(lambda: (job.folder / "own_handler").touch())
    folder = tempfile.TemporaryDirectory()
    (job.folder / "temporary").write_text(folder.name)
    globals()["keep"] = folder


def do_second_rank_fails(job: Job) -> None:
    if job.rank == 1:
        sys.exit(7)
    time.sleep(120)


def warm_up(path: str, fail: bool) -> None:
    with open(path, "a") as file:
        file.write(f"warm with CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}\n")
    if fail:
        raise RuntimeError("cold")


def main(entry: Entry) -> None:
    options = json.loads(sys.argv[1])
    if "warm_up" in options:
        options["warm_up"] = functools.partial(warm_up, *options["warm_up"])
    inherited = tempfile.TemporaryDirectory()
    say(event="temporary", path=inherited.name)
    signal.signal(signal.SIGTERM, lambda *_: None)
    backend = LocalBackend(entry, **options)
    say(event="made", server=backend._server.pid if backend._server else None)
    buffer = b""
    while True:
        if 0 in wait([0, *backend.waitables()]):
            chunk = os.read(0, 65536)
            if not chunk:
                backend.close(0)
                os._exit(0)  # without the interpreter's own end, which takes seconds once torch is imported
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                obey(backend, json.loads(line))
        for event in report(backend):
            say(event=type(event).__name__, **dataclasses.asdict(event))


def obey(backend: LocalBackend, command: dict) -> None:
    try:
        if command["op"] == "start":
            backend.start(Job.from_json(command["job"]))
        elif command["op"] == "stop":
            backend.stop(command["trial_id"], command["attempt"], command["grace_s"])
        elif command["op"] == "state":
            say(event="state", free=backend.free_slots, method=backend.start_method, reason=backend.reason)
        elif command["op"] == "close":
            backend.close(command["grace_s"])
            say(event="closed")
            sys.exit()
    except HpoError as problem:
        say(event="error", kind=type(problem).__name__, message=str(problem))


def report(backend: LocalBackend) -> list:
    try:
        return backend.poll()
    except HpoError as problem:
        say(event="error", kind=type(problem).__name__, message=str(problem))
        sys.exit(1)


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(entry)
