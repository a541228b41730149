"""What can be seen of processes."""

from __future__ import annotations

import os
import signal

from lightning_hpo.runtime import process_table


def test_a_signal_is_pending_until_it_is_delivered() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        assert not process_table.is_pending(os.getpid(), signal.SIGURG)
        os.kill(os.getpid(), signal.SIGURG)
        assert process_table.is_pending(os.getpid(), signal.SIGURG)
        assert not process_table.is_pending(os.getpid(), signal.SIGTERM)
        signal.sigwait({signal.SIGURG})
        assert not process_table.is_pending(os.getpid(), signal.SIGURG)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not process_table.is_pending(2**22 + 1, signal.SIGURG)
