from __future__ import annotations

import contextvars
import errno
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_hpo.errors import BackendError, ChannelError, TrialStopped
from lightning_hpo.runtime import processes
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.processes import EXIT_REFUSED, EXIT_UNHEARD


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(0, 1, tmp_path, tmp_path / "trial.log")


def exit_code(child: Callable[[], object]) -> int:
    """What a forked process that ran ``child`` ended with; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(processes.fork(child), 0)[1])


def in_child(tmp_path: Path, function: Callable[[], Any]) -> Any:
    """What ``function`` returns in a forked process."""
    answer = tmp_path / "answer.json"
    assert exit_code(lambda: answer.write_text(json.dumps(function()))) == 0
    return json.loads(answer.read_text())


# --------------------------------------------------------------------------------------------- fork


def test_the_child_has_one_thread_and_it_is_the_main_thread(tmp_path: Path) -> None:
    def look() -> dict[str, Any]:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # raises outside of the main thread
        return {
            "main": threading.current_thread() is threading.main_thread(),
            "threads": threading.active_count(),
            "tasks": os.listdir("/proc/self/task") == [str(os.getpid())],
        }

    assert in_child(tmp_path, look) == {"main": True, "threads": 1, "tasks": True}


def test_the_child_sees_the_context_variables(tmp_path: Path) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(3)
    assert in_child(tmp_path, variable.get) == 3


def test_a_deep_recursion_fits_into_the_childs_stack(tmp_path: Path) -> None:
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + max(map(depth, [n - 1]))  # through C, so that the C stack is used

    assert in_child(tmp_path, lambda: depth(250)) == 250


def test_an_exception_in_the_child_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("in the child")

    assert exit_code(fail) == 1
    assert "ValueError: in the child" in capfd.readouterr().err


def test_what_waits_in_a_buffer_is_written_once(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom lightning_hpo.runtime import processes\nprint('once')\n"
        "os.waitpid(processes.fork(lambda: sys.stdout.flush()), 0)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "once\n"


def test_the_stack_size_of_the_users_threads_is_left_alone() -> None:
    before = threading.stack_size()
    exit_code(lambda: None)
    assert threading.stack_size() == before


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        ("os.fork", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
)
def test_a_system_that_refuses_a_process_or_its_first_thread_is_named(
    call: str, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(call, refuse)
    with pytest.raises(BackendError, match=r"refuses a new process: .*(unavailable|new thread)\. .* \(ulimit -u\)"):
        processes.fork(lambda: None)


def test_a_trial_for_which_no_thread_is_left_has_not_begun(job: Job) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def begin() -> None:
        threading.Thread.start = refuse  # type: ignore[method-assign]
        processes.become_trial(job, None, os.getppid())

    assert exit_code(begin) == EXIT_REFUSED


# --------------------------------------------------------------------------------- when not to fork


def fake_torch(**cuda: Any) -> Any:
    return SimpleNamespace(cuda=SimpleNamespace(**cuda))


def test_a_script_that_holds_a_cuda_context_must_not_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_initialized=lambda: False))
    assert processes.fork_hazard() is None
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_initialized=lambda: True))
    assert processes.fork_hazard() == "the script has initialised CUDA"


def test_a_script_with_threads_must_not_be_forked() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="uploader")
    thread.start()
    try:
        hazard = processes.fork_hazard()
        assert hazard is not None and "uploader" in hazard
    finally:
        release.set()
        thread.join()


def test_where_torch_is_not_imported_there_is_nothing_to_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert processes.probe_fork(uses_gpu=True) is None


def test_a_forked_process_that_hangs_in_torch_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = fake_torch(_is_in_bad_fork=lambda: False)
    hanging.ones = lambda *_, **__: time.sleep(60)
    monkeypatch.setitem(sys.modules, "torch", hanging)
    before = time.monotonic()
    assert processes.probe_fork(False, timeout_s=0.2) == "a forked process hung for 0.2 s when it computed with torch"
    assert time.monotonic() - before < 5


def test_a_forked_process_that_cannot_compute_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(_is_in_bad_fork=lambda: False))
    assert processes.probe_fork(False) == "a forked process could not compute with torch"


def test_having_counted_the_gpus_matters_to_trials_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = fake_torch(_is_in_bad_fork=lambda: True)
    counted.ones = lambda *_, **__: np.ones((2, 2)).view(_Tensor)
    monkeypatch.setitem(sys.modules, "torch", counted)
    assert processes.probe_fork(uses_gpu=False) is None
    reason = processes.probe_fork(uses_gpu=True)
    assert reason is not None and reason.startswith("the script has asked CUDA for its devices")


class _Tensor(np.ndarray):
    def exp(self) -> _Tensor:
        return self

    neg = sum = exp  # type: ignore[assignment]

    def backward(self) -> None:
        pass


# ------------------------------------------------------------------------------------ how trials end


@pytest.mark.parametrize(
    ("request_", "code"),
    [(SystemExit(), 0), (SystemExit(0), 0), (SystemExit(3), 3), (SystemExit("no data"), 1), (SystemExit(True), 1)],
)
def test_the_exit_code_is_that_of_a_script(job: Job, request_: SystemExit, code: int) -> None:
    def entry(job: Job) -> None:
        raise request_

    def child() -> None:
        processes.redirect_output(str(job.log))
        processes.run_trial(entry, job)

    assert exit_code(child) == code
    assert job.log.read_text() == ("no data\n" if request_.code == "no data" else "")


@pytest.mark.parametrize(
    ("problem", "code"),
    [(TrialStopped(), 0), (KeyboardInterrupt(), 1), (ValueError("bad"), 1), (ChannelError("gone"), EXIT_UNHEARD)],
)
def test_a_stopped_trial_is_no_failure_and_an_exception_is(job: Job, problem: BaseException, code: int) -> None:
    def entry(job: Job) -> None:
        raise problem

    def child() -> None:
        processes.redirect_output(str(job.log))
        processes.run_trial(entry, job)

    assert exit_code(child) == code
    assert ("Traceback" in job.log.read_text()) == (code != 0)


def test_threads_that_are_no_daemons_finish_first(job: Job) -> None:
    def entry(job: Job) -> None:
        def work() -> None:
            time.sleep(0.2)
            (job.folder / "finished").touch()

        threading.Thread(target=work).start()

    assert exit_code(lambda: processes.run_trial(entry, job)) == 0
    assert (job.folder / "finished").exists()


# ---------------------------------------------------------------------------------- what is put right


def test_all_output_goes_to_the_file_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("of.a.library")
    logger.addHandler(handler)

    def child() -> None:
        processes.redirect_output(str(path))
        print("print")
        print("warning", file=sys.stderr)
        logger.warning("logging")
        os.write(1, b"descriptor\n")
        print("\udcff unprintable")
        assert sys.stdin.read() == ""

    try:
        assert exit_code(child) == 0
    finally:
        logger.removeHandler(handler)
    assert path.read_text().splitlines() == [
        "before",
        "print",
        "warning",
        "logging",
        "descriptor",
        "\\udcff unprintable",
    ]


def test_a_notebooks_stream_is_replaced_in_the_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("of.a.notebook")
    logger.addHandler(handler)
    path = tmp_path / "log"

    def child() -> None:
        processes.redirect_output(str(path))
        logger.warning("seen")

    try:
        assert exit_code(child) == 0
    finally:
        logger.removeHandler(handler)
    assert path.read_text() == "seen\n"


def test_one_seed_gives_one_stream_in_every_library(tmp_path: Path) -> None:
    seed = 2**40 + 7

    def draw() -> list[float]:
        processes.seed_everything(seed)
        return [random.random(), float(np.random.random())]

    expected = [random.Random(seed).random(), float(np.random.RandomState(seed % 2**32).random_sample())]
    assert in_child(tmp_path, draw) == expected


@pytest.mark.parametrize(
    ("value", "threads"), [("4", 4), ("4,2", 4), (" 3 ", 3), ("", None), ("0", None), ("-1", None), ("many", None)]
)
def test_the_users_number_of_threads_is_the_first_of_what_openmp_takes(
    value: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert processes.wanted_threads() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert processes.wanted_threads() is None


def test_torch_is_told_seed_and_threads_if_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, int] = {}
    torch = SimpleNamespace(
        manual_seed=lambda seed: told.update(seed=seed), set_num_threads=lambda n: told.update(threads=n)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)

    def settle() -> dict[str, int]:
        processes.settle_libraries(Job(0, 1, tmp_path, tmp_path / "log", seed=2**63 + 5), threads=3)
        return {**told, "openmp": int(os.environ["OMP_NUM_THREADS"])}

    assert in_child(tmp_path, settle) == {"seed": 5, "threads": 3, "openmp": 3}


def test_a_process_whose_parent_is_gone_ends_with_its_group(tmp_path: Path) -> None:
    def parent() -> None:
        def trial() -> None:
            os.setsid()
            me = os.getppid()
            (tmp_path / "pid").write_text(str(os.getpid()))
            processes.become_trial(Job(0, 1, tmp_path, tmp_path / "log"), None, me)
            subprocess.run(["sleep", "60"], check=False)

        processes.fork(trial)
        while not (tmp_path / "log").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(parent) == -signal.SIGKILL
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while any_alive(group):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def any_alive(session: int) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                return True
    return False
