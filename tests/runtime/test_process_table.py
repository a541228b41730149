"""What can be seen of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lightning_hpo.runtime import process_table

# One thread alone: a signal to a process may be taken by any of its threads that does not block it.
BLOCKING = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
print("blocked", flush=True)
sys.stdin.readline()
signal.sigwait({signal.SIGURG})
print("delivered", flush=True)
sys.stdin.readline()
"""

# Its first thread ends (the system call ``exit``, not ``exit_group``), the second prints and waits.
HEADLESS = """
import ctypes, os, sys, threading, time
def second():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    print("alone", flush=True)
    sys.stdin.readline()
    os._exit(0)
threading.Thread(target=second).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""


def test_a_process_whose_first_thread_has_ended_still_runs() -> None:
    # So is a trial that is killed, for a moment: its daemons are still its children then, and no orphans.
    arguments = [sys.executable, "-S", "-c", HEADLESS]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        assert process.pid in {pid for pid, _, _ in process_table.processes()}
        process.stdin.write("\n")
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in {pid for pid, _, _ in process_table.processes()}


def test_the_processes_of_another_container_are_taken_for_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers are not those by which signals are sent here: who is killed would be somebody else."""
    monkeypatch.setattr(os, "getpid", lambda: 1 << 22)  # as ``unshare --pid`` has it without ``--mount-proc``
    assert list(process_table.processes()) == []


def test_a_signal_is_pending_until_it_is_delivered() -> None:
    arguments = [sys.executable, "-S", "-c", BLOCKING]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "blocked\n"
        assert not process_table.is_pending(process.pid, signal.SIGURG)
        process.send_signal(signal.SIGURG)
        assert process_table.is_pending(process.pid, signal.SIGURG)
        assert not process_table.is_pending(process.pid, signal.SIGTERM)
        process.stdin.write("\n")
        assert process.stdout.readline() == "delivered\n"
        assert not process_table.is_pending(process.pid, signal.SIGURG)
    assert not process_table.is_pending(2**22 + 1, signal.SIGURG)
