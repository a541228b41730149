"""Promises of the local backend, each with real processes.

The launcher runs in a process of its own (``scripted_launcher.py``), so that it can be killed and so that the threads
of the test run do not decide how trials are started.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_hpo.errors import BackendError, OptionError
from lightning_hpo.runtime import processes
from lightning_hpo.runtime.backends.base import Exit, Job
from lightning_hpo.runtime.backends.local import LocalBackend
from lightning_hpo.runtime.backends.trial_server import TrialServer, _new_scratch
from tests.runtime.launching import Launcher, wait_until

METHODS = ("fork", "forkserver", "spawn")
MakeLauncher = Callable[..., Launcher]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[MakeLauncher]:
    launchers: list[Launcher] = []

    def make(**options: Any) -> Launcher:
        launchers.append(Launcher(tmp_path, **{"start_method": "fork", "n_workers": 2, "gpus_per_trial": 0, **options}))
        return launchers[-1]

    yield make
    for launcher in launchers:
        launcher.end()


def facts(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"facts{rank}.json").read_text())


# ------------------------------------------------------------------------- what every start method does


@pytest.mark.parametrize("method", METHODS)
def test_an_attempt_runs_the_entry_and_its_end_is_told(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folder = launcher.start(17, attempt=2, do="describe", overrides=["model.lr=0.1"])
    started = launcher.next("Started")
    ended = launcher.next("Exit")

    assert (started["trial_id"], started["attempt"], started["worker"]) == (17, 2, "cpu:0")
    assert (ended["trial_id"], ended["attempt"], ended["pid"]) == (17, 2, started["pid"])
    assert (ended["exit_code"], ended["signal"], ended["requested"], ended["problem"]) == (0, None, False, None)
    assert 1e6 < ended["peak_rss"] < 1e9 and 0 < ended["cpu_s"] < 10
    seen = facts(folder)
    assert seen["payload"] == {"do": "describe", "overrides": ["model.lr=0.1"]}
    environment = seen["environment"]
    assert environment["OF_THE_JOB"] == "yes"
    assert environment["LIGHTNING_HPO_TRIAL"] == "17" and environment["LIGHTNING_HPO_ATTEMPT"] == "2"
    assert environment["LIGHTNING_HPO_DIR"] == str(folder)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "LOCAL_RANK" not in environment
    assert seen["leads_session"] and seen["sigint"] and seen["sigterm"]
    assert seen["start_method"] in (None, "fork")
    log = (folder / "trial.log").read_text().splitlines()
    assert log == ["written by print", "written by a subprocess", "and its stderr"]


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_end_is_told_as_it_was(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folder, ended = launcher.run(0, do="raise")
    assert ended["exit_code"] == 1
    assert (folder / "trial.log").read_text().splitlines()[-1] == "ValueError: no such layer"
    assert launcher.run(1, do="exit", code=3)[1]["exit_code"] == 3
    assert launcher.run(2, do="exit", code=None)[1]["exit_code"] == 0
    assert launcher.run(3, do="pause")[1]["exit_code"] == 0
    ended = launcher.run(4, do="kill_itself")[1]
    assert (ended["exit_code"], ended["signal"], ended["requested"]) == (None, signal.SIGKILL, False)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_random_stream(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folders = [launcher.run(i, do="describe", seed=seed)[0] for i, seed in enumerate((5, 6, 5))]
    first, other, same = (facts(folder)["random"] for folder in folders)
    assert first == same != other
    import random

    assert first == random.Random(5).random()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_when_the_launcher_is_killed(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folders = [launcher.start(0, do="leave_processes", seconds=120), launcher.start(1, do="ignore_sigterm")]
    wait_until(lambda: all((folder / "runs").exists() for folder in folders))
    assert len(launcher.processes()) == 7  # launcher, server, two trials, three processes that one of them left
    launcher.kill()
    wait_until(lambda: not launcher.processes(), timeout_s=5)


@pytest.mark.parametrize("method", METHODS)
def test_close_ends_everything(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folders = [launcher.start(0, do="leave_processes", seconds=120), launcher.start(1, do="ignore_sigterm")]
    wait_until(lambda: all((folder / "runs").exists() for folder in folders))
    before = time.monotonic()
    launcher.send(op="close", grace_s=0.5)
    launcher.next("closed")
    assert time.monotonic() - before < 3
    launcher.process.wait(5)
    assert launcher.processes() == []


# ------------------------------------------------------------------------------------- slots and devices


def test_a_slot_is_given_again_after_the_exit(launch: MakeLauncher) -> None:
    launcher = launch(n_workers=1)
    launcher.start(0, do="sleep")
    launcher.next("Started")
    launcher.start(1, do="describe")
    error = launcher.next("error")
    assert error["kind"] == "BackendError" and error["message"].endswith("raise n_workers.")
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=0.0)
    launcher.next("Exit", trial_id=0)
    launcher.send(op="state")
    assert launcher.next("state")["free"] == 1
    assert launcher.run(1, do="describe")[1]["exit_code"] == 0


def test_each_trial_sees_its_own_devices(launch: MakeLauncher) -> None:
    launcher = launch(gpus_per_trial=0.5, n_workers=3, devices=["GPU-a", "GPU-b"])
    for trial_id in range(3):
        launcher.start(trial_id, do="sleep")
    workers = [launcher.next("Started")["worker"] for _ in range(3)]
    assert workers == ["gpu:0/0", "gpu:1/0", "gpu:0/1"]
    launcher.send(op="stop", trial_id=1, attempt=1, grace_s=0)
    launcher.next("Exit")
    folder, _ = launcher.run(3, do="describe")
    assert facts(folder)["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_cores_are_shared_among_the_trials_unless_the_user_decides(launch: MakeLauncher, tmp_path: Path) -> None:
    from lightning_hpo.runtime.backends.slots import available_cores

    launcher = launch(n_workers=1, environment={"OMP_NUM_THREADS": "5"})
    assert facts(launcher.run(0, do="describe")[0])["environment"]["OMP_NUM_THREADS"] == "5"
    launcher = launch(n_workers=1, threads_per_trial=3)
    assert facts(launcher.run(0, do="describe")[0])["environment"]["OMP_NUM_THREADS"] == "3"
    without = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    os.environ.pop("OMP_NUM_THREADS", None)
    try:
        launcher = launch(n_workers=available_cores())
        assert facts(launcher.run(0, do="describe")[0])["environment"]["OMP_NUM_THREADS"] == "1"
    finally:
        os.environ.update(without)


# -------------------------------------------------------------------------------------------- stopping


def test_stop_writes_the_stacks_then_asks_then_ends(launch: MakeLauncher) -> None:
    launcher = launch()
    folder = launcher.start(0, do="sleep")
    wait_until((folder / "runs").exists)
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=60.0)
    ended = launcher.next("Exit")
    assert (ended["signal"], ended["requested"]) == (signal.SIGTERM, True)
    assert "in do_sleep" in (folder / "trial.log").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_is_stopped_even_while_it_starts(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    for trial_id in range(5):
        launcher.start(trial_id, do="sleep")
        launcher.send(op="stop", trial_id=trial_id, attempt=1, grace_s=0.04)
        assert launcher.next("Exit", trial_id=trial_id, timeout_s=5)["requested"]


def test_a_signal_that_comes_while_a_trial_starts_is_not_lost(launch: MakeLauncher) -> None:
    launcher = launch()
    for trial_id in range(5):
        launcher.start(trial_id, do="sleep")
        os.kill(launcher.next("Started")["pid"], signal.SIGTERM)
        assert launcher.next("Exit", timeout_s=5)["signal"] == signal.SIGTERM


def test_a_trial_that_ignores_sigterm_is_killed_after_the_grace_time(launch: MakeLauncher) -> None:
    launcher = launch()
    folder = launcher.start(0, do="ignore_sigterm")
    wait_until((folder / "runs").exists)
    before = time.monotonic()
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=0.6)
    ended = launcher.next("Exit")
    assert 0.5 < time.monotonic() - before < 2
    assert (ended["signal"], ended["requested"]) == (signal.SIGKILL, True)


def test_a_second_stop_can_only_shorten_the_grace_time(launch: MakeLauncher) -> None:
    launcher = launch()
    folder = launcher.start(0, do="ignore_sigterm")
    wait_until((folder / "runs").exists)
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=60)
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=0)
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=60)
    assert launcher.next("Exit", timeout_s=5)["signal"] == signal.SIGKILL


def test_stopping_what_does_not_run_is_ignored(launch: MakeLauncher) -> None:
    launcher = launch()
    launcher.send(op="stop", trial_id=9, attempt=1, grace_s=0)
    launcher.run(0, do="describe")
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=0)
    launcher.send(op="state")
    assert launcher.next("state")["free"] == 2


def test_ctrl_c_in_the_terminal_does_not_reach_trials(launch: MakeLauncher) -> None:
    launcher = launch()
    folder = launcher.start(0, do="sleep")
    wait_until((folder / "runs").exists)
    for pid in launcher.processes():
        if pid != launcher.process.pid:
            assert os.getpgid(pid) != os.getpgid(launcher.process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", METHODS)
def test_nor_does_it_end_the_server_that_has_just_been_started(
    launch: MakeLauncher, method: str, number: signal.Signals
) -> None:
    launcher = launch(start_method=method)
    server = launcher.next("made")["server"]
    os.kill(server, number)
    launcher.run(0, do="describe")
    assert server in launcher.processes(), "it has died, and another one has taken its place"


# ------------------------------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("ending", ["by itself", "killed", "stopped"])
def test_an_exit_is_told_when_everything_the_trial_started_is_gone(launch: MakeLauncher, ending: str) -> None:
    launcher = launch(n_workers=1)
    folder = launcher.start(0, do="leave_processes", seconds=0.2 if ending == "by itself" else 120)
    pid = launcher.next("Started")["pid"]
    wait_until((folder / "runs").exists)
    if ending == "killed":
        os.kill(pid, signal.SIGKILL)
    elif ending == "stopped":
        launcher.send(op="stop", trial_id=0, attempt=1, grace_s=1.0)
    launcher.next("Exit", timeout_s=5)
    assert len(launcher.processes()) == 2  # the launcher and its server


def test_the_daemons_of_a_trial_go_with_it_and_those_of_others_stay(launch: MakeLauncher) -> None:
    launcher = launch(n_workers=2)
    folders = [launcher.start(i, do="leave_processes", seconds=120) for i in range(2)]
    wait_until(lambda: all((folder / "runs").exists() for folder in folders))
    assert len(launcher.processes()) == 10
    launcher.send(op="stop", trial_id=0, attempt=1, grace_s=0.0)
    launcher.next("Exit", timeout_s=5)
    assert len(launcher.processes()) == 6


def test_so_does_a_daemon_that_was_merely_forked_while_another_trial_goes_on(launch: MakeLauncher) -> None:
    launcher = launch(n_workers=2)
    folders = [launcher.start(i, do="leave_a_forked_daemon") for i in range(2)]
    wait_until(lambda: all((folder / "runs").exists() for folder in folders))
    assert len(launcher.processes()) == 6
    (folders[0] / "go").touch()
    assert launcher.next("Exit", timeout_s=10)["trial_id"] == 0
    assert len(launcher.processes()) == 4, "launcher, server, the other trial and its daemon"


def test_a_trial_that_can_have_no_log_is_told_apart_from_one_whose_script_fails(launch: MakeLauncher) -> None:
    launcher = launch(n_workers=1)
    folder = launcher.folder / "0"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()  # a file, where its folder should be
    launcher.start(0, do="describe")
    ended = launcher.next("Exit")
    assert (ended["exit_code"], ended["signal"]) == (None, None)
    assert ended["problem"] == "its trial.log cannot be written: File exists"


@pytest.mark.parametrize("do", ["leave_processes", "leave_a_forked_daemon"])
def test_trials_die_with_the_server_and_the_next_trial_runs(launch: MakeLauncher, do: str) -> None:
    launcher = launch()
    server = launcher.next("made")["server"]
    folder = launcher.start(0, do=do, seconds=120)
    wait_until((folder / "runs").exists)
    os.kill(server, signal.SIGKILL)
    ended = launcher.next("Exit", timeout_s=5)
    assert (ended["trial_id"], ended["exit_code"]) == (0, None)
    assert ended["problem"] == "the process that starts trials died"
    assert launcher.processes() == [launcher.process.pid]
    assert launcher.run(0, attempt=2, do="describe")[1]["exit_code"] == 0
    launcher.send(op="state")
    state = launcher.next("state")
    assert (state["free"], state["method"]) == (2, "forkserver")


@pytest.mark.parametrize("do", ["leave_processes", "leave_a_forked_daemon"])
def test_nothing_is_left_when_launcher_and_server_are_killed_together(launch: MakeLauncher, do: str) -> None:
    launcher = launch()
    server = launcher.next("made")["server"]
    folder = launcher.start(0, do=do, seconds=120)
    wait_until((folder / "runs").exists)
    os.kill(launcher.process.pid, signal.SIGSTOP)  # so that it cannot clean up after the server
    os.kill(server, signal.SIGKILL)
    launcher.kill()
    wait_until(lambda: not launcher.processes(), timeout_s=5)


# --------------------------------------------------------------------------------- what is inherited


def test_exit_handlers_of_the_launcher_do_not_run_in_trials(launch: MakeLauncher) -> None:
    launcher = launch()
    inherited = Path(launcher.next("temporary")["path"])
    folder, ended = launcher.run(0, do="exit_handlers")
    assert ended["exit_code"] == 0
    assert inherited.is_dir(), "the trial deleted the launcher's temporary folder"
    assert (folder / "own_handler").exists(), "the trial's own exit handler did not run"
    assert not Path((folder / "temporary").read_text()).exists(), "the trial's own temporary folder was left"


def test_the_log_is_continued_by_the_next_attempt(launch: MakeLauncher) -> None:
    launcher = launch()
    folder, _ = launcher.run(0, do="describe")
    launcher.run(0, attempt=2, do="describe")
    assert (folder / "trial.log").read_text().count("written by print") == 2


def test_lightning_does_not_take_a_trial_for_a_slurm_task(launch: MakeLauncher) -> None:
    launcher = launch(environment={"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"})
    folder, _ = launcher.run(0, do="describe")
    assert facts(folder)["environment"]["SLURM_JOB_NAME"] == "interactive"


# ---------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_warm_up_is_done_once_for_all_trials(
    launch: MakeLauncher, tmp_path: Path, method: str, fails: bool
) -> None:
    launcher = launch(start_method=method, warm_up=[str(tmp_path / "warm"), fails])
    for trial_id in range(2):
        assert launcher.run(trial_id, do="describe")[1]["exit_code"] == 0
    assert (tmp_path / "warm").read_text() == "warm with CUDA_VISIBLE_DEVICES=''\n"


def test_a_process_that_forks_trials_on_gpus_is_not_warmed_up(launch: MakeLauncher, tmp_path: Path) -> None:
    launcher = launch(gpus_per_trial=1, devices=["GPU-a"], warm_up=[str(tmp_path / "warm"), False])
    assert launcher.run(0, do="describe")[1]["exit_code"] == 0
    assert not (tmp_path / "warm").exists()


# ------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("method", METHODS)
def test_each_rank_is_a_process_with_its_number(launch: MakeLauncher, method: str) -> None:
    launcher = launch(start_method=method)
    folder, ended = launcher.run(0, do="describe", ranks=2)
    assert ended["exit_code"] == 0
    environments = [facts(folder, rank)["environment"] for rank in range(2)]
    assert [e["LOCAL_RANK"] for e in environments] == ["0", "1"]
    assert {e["WORLD_SIZE"] for e in environments} == {"2"}
    assert {e["NODE_RANK"] for e in environments} == {"0"}
    assert {e["MASTER_ADDR"] for e in environments} == {"127.0.0.1"}
    (port,) = {e["MASTER_PORT"] for e in environments}
    assert 1024 <= int(port) <= 65535
    for name in ("trial.log", "trial.rank1.log"):
        assert "written by print" in (folder / name).read_text()


def test_when_one_rank_fails_the_others_are_ended(launch: MakeLauncher) -> None:
    launcher = launch()
    before = time.monotonic()
    _, ended = launcher.run(0, do="second_rank_fails", ranks=3)
    assert time.monotonic() - before < 4
    assert (ended["exit_code"], ended["requested"]) == (7, False)
    assert len(launcher.processes()) == 2


# ------------------------------------------------------------------------------- choice of the start method

SCRIPT = """
import sys, threading, time
from pathlib import Path
from multiprocessing.connection import wait
from lightning_hpo.runtime.backends.base import Exit, Job
from lightning_hpo.runtime.backends.local import LocalBackend
{top}
def entry(job):
    print("trained")

def sweep(entry=entry, method=sys.argv[1]):
    folder = Path(sys.argv[2])
    with LocalBackend(entry, n_workers=1, gpus_per_trial=0, start_method=method, preload=()) as backend:
        backend.start(Job(0, 1, folder, folder / "trial.log"))
        events = []
        while not any(isinstance(event, Exit) for event in events):
            wait(backend.waitables())
            events += backend.poll()
        print("START METHOD", backend.start_method, "BECAUSE", backend.reason)
        print("EXIT", events[-1].exit_code)

{bottom}
"""
GUARDED = 'if __name__ == "__main__":\n    '


def run_script(
    folder: Path, method: str, top: str = "", bottom: str = GUARDED + "sweep()"
) -> subprocess.CompletedProcess[str]:
    path = folder / "train.py"
    path.write_text(SCRIPT.format(top=top, bottom=bottom))
    return subprocess.run(
        [sys.executable, str(path), method, str(folder / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_plain_script_is_forked(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "auto")
    assert "START METHOD fork BECAUSE the script has imported what trials need\nEXIT 0" in answer.stdout


@pytest.mark.parametrize(
    "top", ["", "kept = [open(__file__) for _ in range(3)]"], ids=["", "others have their numbers"]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_script_that_was_started_without_standard_input_and_output_trains(
    tmp_path: Path, method: str, top: str
) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(top=top, bottom=GUARDED + "sweep()"))
    command = shlex.join([sys.executable, str(path), method, str(tmp_path / "out")])
    subprocess.run(f"exec {command} <&- >&- 2>&-", shell=True, timeout=60, check=True)
    assert (tmp_path / "out" / "trial.log").read_text() == "trained\n"


def test_a_script_without_main_guard_can_be_forked(tmp_path: Path) -> None:
    assert "START METHOD fork" in run_script(tmp_path, "auto", bottom="sweep()").stdout


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_without_main_guard_a_new_interpreter_is_refused_with_the_fix(tmp_path: Path, method: str) -> None:
    answer = run_script(tmp_path, method, bottom="sweep()")
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("lightning_hpo.errors.BackendError: The script starts the sweep when it is imported")
    assert last.endswith('Put the call that starts the sweep into `if __name__ == "__main__":`.')


THREAD = "    threading.Thread(target=time.sleep, args=(60,), daemon=True, name='logger').start()\n"


def test_a_script_with_threads_is_not_forked_itself(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "auto", bottom=GUARDED + THREAD.strip() + "\n    sweep()")
    assert "START METHOD forkserver BECAUSE other threads run in the script (logger)\nEXIT 0" in answer.stdout


def test_a_script_that_starts_threads_when_imported_is_spawned(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "auto", top=THREAD.strip())
    assert "START METHOD spawn BECAUSE imported as a module, other threads run" in answer.stdout
    assert "EXIT 0" in answer.stdout


def test_asked_to_fork_a_script_with_threads_it_says_why_not(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "fork", top=THREAD.strip())
    assert answer.stderr.strip().endswith(
        "Trials cannot be forked: other threads run in the script (logger). Use start_method=auto, or remove the cause."
    )


def test_a_script_that_cannot_be_imported_again_is_named(tmp_path: Path) -> None:
    answer = run_script(tmp_path, "forkserver", top="if __name__ != '__main__': raise KeyError('DATA')")
    assert "failed with KeyError: 'DATA'" in answer.stderr.strip().splitlines()[-1]


def test_a_local_function_is_sent_by_value(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    answer = run_script(tmp_path, "forkserver", bottom=GUARDED + "sweep(lambda job: print(job.trial_id))")
    assert "EXIT 0" in answer.stdout
    assert (tmp_path / "out" / "trial.log").read_text() == "0\n"


def test_what_cannot_be_sent_is_refused_with_the_fix(tmp_path: Path) -> None:
    bottom = GUARDED + "lock = threading.Lock(); sweep(lambda job: lock)"
    last = run_script(tmp_path, "forkserver", bottom=bottom).stderr.strip().splitlines()[-1]
    assert "BackendError: What the trials run cannot be sent to a new process" in last
    assert last.endswith("keep open files, locks and lambdas out of it.")


# ------------------------------------------------------------------------------------------- small print


def test_an_unknown_start_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="Did you mean 'forkserver'"):
        LocalBackend(print, start_method="forkserve")  # type: ignore[arg-type]


def test_a_trial_whose_process_is_refused_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    def refuse(job: Job, threads: int | None) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    here, there = multiprocessing.Pipe()
    me = os.getpid()

    def serve() -> None:
        here.close()
        TrialServer(there, me, refuse).serve()

    server = processes.fork(serve)
    there.close()
    for trial_id in (3, 4):
        job = Job(trial_id, 1, tmp_path, tmp_path / "trial.log", ranks=2)
        here.send_bytes(json.dumps({"op": "start", "job": job.to_json(), "environment": {}, "threads": None}).encode())
        ended = json.loads(here.recv_bytes())
        assert (ended["event"], ended["trial_id"]) == ("exited", trial_id)
        assert ended["problem"].startswith("The system refuses a new process: [Errno 24] Too many open files.")
    here.close()
    assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0


@pytest.mark.parametrize("call", ["multiprocessing.Pipe", "subprocess.Popen"])
def test_a_system_that_has_no_files_left_for_another_interpreter_is_named(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(call, refuse)
    with pytest.raises(BackendError, match=r"refuses a new process: .*Too many open files. .* \(ulimit -n\)"):
        LocalBackend(print, n_workers=1, gpus_per_trial=0, start_method="spawn", preload=())


def test_what_a_run_left_that_was_killed_as_a_whole_is_deleted_by_the_next_one_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def backend(study: Path | None) -> LocalBackend:
        return LocalBackend(print, n_workers=1, gpus_per_trial=0, start_method="spawn", preload=(), study=study)

    left = {}
    for name in ("mine", "other", None):
        if name is not None:
            (tmp_path / name).mkdir()
        with backend(None if name is None else tmp_path / name) as killed:
            mark = killed._mark
        left[name] = Path(_new_scratch(mark) or "")
        (left[name] / "socket").touch()
    with backend(tmp_path / "mine") as next_one:
        next_one.remove_left_over()
    assert [name for name, folder in left.items() if folder.exists()] == ["other", None]
    (tmp_path / "other").rename(tmp_path / "kept")
    (tmp_path / "other").mkdir()
    with backend(tmp_path / "other") as of_another_study_with_its_name:
        of_another_study_with_its_name.remove_left_over()
    assert left["other"].exists()


def test_a_closed_backend_starts_nothing(tmp_path: Path) -> None:
    backend = LocalBackend(print, n_workers=1, gpus_per_trial=0, start_method="spawn", preload=())
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.start(Job(0, 1, tmp_path, tmp_path / "log"))


def test_a_job_travels_as_json(tmp_path: Path) -> None:
    job = Job(3, 2, tmp_path, tmp_path / "trial.log", {"A": "b"}, {"x": [1, None]}, ranks=2, seed=7, rank=1)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert job.log_of_rank(0) == tmp_path / "trial.log"
    assert job.log_of_rank(1) == tmp_path / "trial.rank1.log"


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (Exit(0, 1, 5, 3), "ended with exit code 3"),
        (Exit(0, 1, 5, None, 9, peak_rss=3 * 2**30), "killed by SIGKILL (out of memory?), peak memory 3.0 GiB"),
        (Exit(0, 1, 5, None, 9, requested=True), "killed by SIGKILL, peak memory 0.0 GiB"),
        (Exit(0, 1, 5, None, 11), "killed by SIGSEGV, peak memory 0.0 GiB"),
        (Exit(0, 1, None, None, problem="no memory"), "no memory"),
    ],
)
def test_an_exit_is_described_in_one_line(ended: Exit, text: str) -> None:
    assert ended.description == text
