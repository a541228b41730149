"""What has to be put right in a process that was made to train a trial.

A trial's process is forked from a process which has imported everything already, or it is a new interpreter that was
told to run the user's script as a module. Either way it has inherited things that are not its own: signal handlers,
exit handlers, children, random generators, the terminal. :func:`become_trial` settles all of it before user code runs.

Nothing here imports torch: what concerns torch is done only if the process has imported it already.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import faulthandler
import logging
import multiprocessing.process
import multiprocessing.util
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from lightning_hpo.errors import BackendError, ChannelError, TrialInterrupted
from lightning_hpo.runtime import process_table
from lightning_hpo.runtime.backends.base import Entry, Job
from lightning_hpo.runtime.filesystems import open_own
from lightning_hpo.runtime.interrupts import NOTICES

STACK_DUMP_SIGNAL = signal.SIGURG
"""Makes a trial write the stacks of its threads to its log. A signal that does nothing in a process which has not
registered for it yet, and which neither schedulers nor Lightning use."""

SCRATCH_VARIABLE = "LIGHTNING_HPO_SCRATCH"
"""Names the attempt's own temporary folder, which the trial server deletes."""

EXIT_NOT_BEGUN = 75
"""Exit code of a trial's process that has no folder or no log (EX_TEMPFAIL of sysexits.h)."""

EXIT_REFUSED = 71
"""Exit code of a trial's process that was refused a thread (EX_OSERR of sysexits.h)."""

EXIT_UNHEARD = 76
"""Exit code of a trial that could not tell its launcher how it ended (EX_PROTOCOL of sysexits.h)."""

_STACK_BYTES = 64 * 2**20
_WATCH_PERIOD_S = 0.5
_PROBE_TIMEOUT_S = 10.0
_INHERITED_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip


# ------------------------------------------------------------------------------------------- fork


def fork(child: Callable[[], object]) -> int:
    """Fork; the new process runs ``child`` and never returns from here.

    The fork happens in a fresh thread. OpenMP (libgomp) keeps its pool of threads in the thread that used it, and
    after a fork it waits for ever for threads which the new process does not have. A fresh thread has no pool, and it
    is the main thread of the new process.

    Returns:
        Process id of the child.

    Raises:
        BackendError: if the system refuses another process, or the thread to fork it.
    """
    context = contextvars.copy_context()
    outcome: list[int | BaseException] = []

    def run() -> None:
        try:
            with warnings.catch_warnings():
                # Python warns of any fork beside other threads: the one that waits for this one holds no lock.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as problem:
            outcome.append(problem)
            return
        if pid == 0:
            status = 1
            try:
                context.run(child)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        outcome.append(pid)

    for stream in (sys.stdout, sys.stderr):
        # What waits in a buffer would be written by both processes.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="MainThread")
        thread.start()
    except RuntimeError as problem:
        raise refused(problem) from problem
    finally:
        threading.stack_size(before)
    thread.join()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise refused(result) from result
    return result


def refused(problem: BaseException | str) -> BackendError:
    """What it means for a user that a process cannot be made."""
    return BackendError(
        f"The system refuses a new process: {problem}. "
        "Lower n_workers, or raise the limit of processes (ulimit -u), of open files (ulimit -n) or of memory."
    )


def hold_signals() -> set[int]:
    """Let signals wait from now on, in this thread and in children that are forked here until :func:`reset_signals`.

    Returns:
        What waited before.
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, _INHERITED_SIGNALS)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait meanwhile, see :func:`hold_signals`.

    A signal sent to a child that still has its parent's dispositions would be lost.
    """
    before = hold_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fork_hazard() -> str | None:
    """Why forking trials from this very process would not be safe; None if nothing speaks against it."""
    if not sys.platform.startswith("linux"):
        return "fork is used on Linux only"
    others = sorted(t.name for t in threading.enumerate() if t is not threading.current_thread())
    if others:
        return f"other threads run in the script ({', '.join(others[:3])})"
    if cuda_initialised():
        return "the script has initialised CUDA"
    return None


def cuda_initialised() -> bool:
    """Whether torch was imported here and holds a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())


_CUDA_UNUSABLE = 3
_PROBE_ANSWERS = {
    0: None,
    _CUDA_UNUSABLE: "the script has asked CUDA for its devices, which makes CUDA unusable in forked processes",
}


def probe_fork(uses_gpu: bool, timeout_s: float = _PROBE_TIMEOUT_S) -> str | None:
    """Fork once and compute something with several threads and with autograd in the child.

    Returns:
        Why forked children cannot train, None if they can or if torch is not imported here.
    """
    if "torch" not in sys.modules:
        return None
    pid = fork(lambda: _compute(uses_gpu, timeout_s))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return _PROBE_ANSWERS.get(code, "a forked process could not compute with torch")
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"a forked process hung for {timeout_s:g} s when it computed with torch"


def _compute(uses_gpu: bool, timeout_s: float) -> None:
    torch = sys.modules["torch"]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s + 1)  # ends it even if the parent is killed meanwhile
    redirect_output(os.devnull)
    if uses_gpu and torch.cuda._is_in_bad_fork():
        os._exit(_CUDA_UNUSABLE)
    x = torch.ones(256, 256, requires_grad=True)
    (x @ x).exp().neg().sum().backward()


# ------------------------------------------------------------------------------------ in the child


def become_trial(job: Job, threads: int | None, server: int) -> None:
    """Settle what a new process has inherited. Called once, before any user code runs in it.

    The order matters: output first, so that everything later is in the trial's log; environment before generators and
    threads, which may read it.

    Args:
        job: with its ``rank`` set.
        threads: torch's and OpenMP's threads; None leaves them.
        server: process id of the parent, whose end is the end of this process.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        redirect_output(str(job.log_of_rank(job.rank)))
    except OSError:
        os._exit(EXIT_NOT_BEGUN)
    process_table.adopt_orphans()
    faulthandler.enable()
    faulthandler.register(STACK_DUMP_SIGNAL, all_threads=True)
    for number in NOTICES:  # the launcher hears them too, and lets the trial pause
        signal.signal(number, signal.SIG_IGN)
    try:
        threading.Thread(target=_watch, args=(server,), name="parent-watch", daemon=True).start()
    except RuntimeError:
        os._exit(EXIT_REFUSED)
    if any(name.startswith("SLURM_") for name in os.environ):
        # Otherwise Lightning takes the trial for a task that SLURM started, and the ranks for tasks it must find.
        os.environ["SLURM_JOB_NAME"] = "interactive"
    os.environ.update(job.environment)
    scratch = os.environ.get(SCRATCH_VARIABLE)
    if scratch is not None:
        # Processes that load data exchange tensors by sockets in a folder, and who is killed does not delete it.
        multiprocessing.process.current_process()._config["tempdir"] = scratch  # type: ignore[attr-defined]
    settle_libraries(job, threads)


def settle_libraries(job: Job, threads: int | None) -> None:
    """Threads, generators and rank, for the libraries that are imported by now."""
    if threads is not None:
        limit_threads(threads)
    if job.seed is not None:
        seed_everything(job.seed)
    _tell_rank(job.rank)


def run_trial(entry: Entry, job: Job) -> NoReturn:
    """Run the entry and end the process, like an interpreter would at the end of a script.

    Exit codes: 0 if the entry returned or the trial was paused or stopped, that of ``SystemExit``,
    :data:`EXIT_UNHEARD` if its launcher could not be reached, else 1.
    """
    code = 1
    try:
        try:
            entry(job)
            code = 0
        except TrialInterrupted:
            code = 0
        except SystemExit as request:
            code = _exit_code(request.code)
        except BaseException as problem:
            code = EXIT_UNHEARD if isinstance(problem, ChannelError) else 1
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def forget_parent() -> None:
    """After a fork: drop signal handlers, exit handlers and children that belong to the parent.

    Without this the child would run the parent's exit handlers, which delete the parent's temporary folders and end
    the parent's processes.
    """
    reset_signals()
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    multiprocessing.util._run_after_forkers()  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def reset_signals() -> None:
    """Give signals their default meaning again, ``KeyboardInterrupt`` for SIGINT included."""
    signal.set_wakeup_fd(-1)
    for number in _INHERITED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in every Python program: BrokenPipeError instead
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def fill_standard_files() -> None:
    """Open what is closed of standard input, output and error, on nothing.

    In a program that was started without them (``<&- >&-``) other files and sockets get their numbers, and are taken
    for them by whoever is started from here.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def redirect_output(path: str) -> None:
    """Append stdout and stderr to a file, at the level of file descriptors: C++ and subprocesses write there too."""
    target = open_own(path, os.O_WRONLY | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(nothing)
    os.close(target)
    old = (sys.stdout, sys.stderr)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = _line_writer(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _line_writer(2)  # type: ignore[misc]
    new = (sys.stdout, sys.stderr)
    # Libraries keep the stream that was stderr when they were imported, which in a notebook or a test is no file.
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream in old:
            handler.stream = new[old.index(handler.stream)]


def wanted_threads() -> int | None:
    """Threads of one process as the user set them with ``OMP_NUM_THREADS``; None if that says nothing."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def limit_threads(threads: int) -> None:
    """Let torch, OpenMP and the libraries loaded from here on use this many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def seed_everything(seed: int) -> None:
    """Seed the generators of ``random``, numpy and torch: trials that do not seed must not share one stream.

    Forked processes would all go on with the parent's state, and torch starts every interpreter with the same seed.
    """
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed % 2**63)


def _watch(parent: int) -> None:
    """Kill this process, its group and what has left it once the process that started it is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH_PERIOD_S)
    process_table.kill(process_table.descendants([os.getpid()]))
    word = os.environ.get(process_table.MARK)
    if word:
        process_table.kill_marked(word)
    os.killpg(0, signal.SIGKILL)


def _tell_rank(rank: int) -> None:
    """Lightning reads the rank once, when it is imported: in a forked process that was too early."""
    module = sys.modules.get("lightning_utilities.core.rank_zero")
    if module is not None:
        module.rank_zero_only.rank = rank


def _line_writer(fd: int) -> Any:
    return os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1
