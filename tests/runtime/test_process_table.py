"""What can be seen of processes."""

from __future__ import annotations

import signal
import subprocess
import sys

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
