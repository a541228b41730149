"""Strangers at the launcher's door."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime import admission, wire
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.wire import GREETING_BYTES, RESPONSE_BYTES
from tests.runtime.talking import WELCOME, Loop, admitted_at, polite, stranger_at, trial_of


@contextlib.contextmanager
def patient_launcher(folder: Path) -> Iterator[tuple[ChannelServer, Loop]]:
    """Turns nobody away for being slow."""
    with ChannelServer(folder, handshake_timeout_s=60.0) as server:
        loop = Loop(server, polite)
        yield server, loop
        loop.done.set()
        loop.join()


def is_turned_away(stranger: socket.socket, within_s: float = 20.0) -> bool:
    """Whether the launcher says no more than its greeting, and hangs up."""
    stranger.settimeout(within_s)
    heard = b""
    try:
        while chunk := stranger.recv(1000):
            heard += chunk
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    assert len(heard) <= GREETING_BYTES
    return True


def test_a_system_that_has_no_thread_for_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(BackendError, match=r"can't start new thread\. .* \(ulimit -u\)"):
        ChannelServer(tmp_path)


def test_silent_strangers_do_not_stall_the_launcher(tmp_path: Path) -> None:
    with patient_launcher(tmp_path) as (server, _):
        strangers = [stranger_at(server) for _ in range(5)]
        assert trial_of(server).hello(27) == WELCOME
        assert not any(is_turned_away(stranger, 0.01) for stranger in strangers), "an honest trial waited for them"


def test_silent_strangers_are_turned_away_when_their_time_is_over(server: ChannelServer) -> None:
    begin = time.monotonic()
    strangers = [stranger_at(server) for _ in range(5)]
    assert all(is_turned_away(stranger) for stranger in strangers)
    assert time.monotonic() - begin >= 0.3


def test_a_byte_now_and_then_does_not_lengthen_the_deadline(server: ChannelServer) -> None:
    begin = time.monotonic()
    stranger = stranger_at(server)
    with pytest.raises(ConnectionError):
        for _ in range(RESPONSE_BYTES - 1):  # for ten times as long as it has
            stranger.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("response", [bytes(RESPONSE_BYTES), b"\xff" * 10_000], ids=["zeros", "too long"])
def test_a_wrong_response_is_turned_away_at_once(tmp_path: Path, response: bytes) -> None:
    with ChannelServer(tmp_path, handshake_timeout_s=60.0) as server:
        stranger = stranger_at(server)
        stranger.sendall(response)
        assert is_turned_away(stranger)
        assert len(server.waitables()) == 1


def test_a_response_that_was_overheard_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChannelServer(tmp_path, handshake_timeout_s=60.0) as server:
        overheard: list[bytes] = []
        proof = wire.LauncherHandshake.proof
        monkeypatch.setattr(
            wire.LauncherHandshake,
            "proof",
            lambda self, response: (overheard.append(response), proof(self, response))[1],
        )
        admitted_at(server).close()
        stranger = stranger_at(server)
        stranger.sendall(overheard[0])
        assert is_turned_away(stranger)


def test_a_launcher_cannot_be_made_to_prove_itself_to_itself(tmp_path: Path) -> None:
    """Two handshakes side by side, each fed with what the other end says: a reflection."""
    with ChannelServer(tmp_path, handshake_timeout_s=60.0) as server:
        first, second = stranger_at(server), stranger_at(server)
        challenge = wire.read_exactly(first, GREETING_BYTES)[-32:]
        wire.read_exactly(second, GREETING_BYTES)
        second.sendall(challenge + bytes(32))  # asks the launcher for a proof over its own challenge
        first.sendall(challenge + bytes(32))
        assert is_turned_away(first) and is_turned_away(second)


def test_of_too_many_strangers_the_oldest_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_STRANGERS", 2)
    with ChannelServer(tmp_path, handshake_timeout_s=60.0) as server:
        oldest, second, third = (stranger_at(server) for _ in range(3))
        assert is_turned_away(oldest)
        assert not is_turned_away(second, 0.1) and not is_turned_away(third, 0.1)


def test_a_trial_gets_through_a_crowd(server: ChannelServer, loop: Loop) -> None:
    """Strangers keep coming, ten times as many as may shake hands, and say nothing."""
    done = threading.Event()
    crowd: list[socket.socket] = []

    def come() -> None:
        while not done.is_set():
            crowd.append(stranger_at(server))
            if len(crowd) > 10 * admission.MAX_STRANGERS:
                crowd.pop(0).close()

    thread = threading.Thread(target=come)
    thread.start()
    try:
        loop.until(lambda: len(crowd) > admission.MAX_STRANGERS)
        for trial_id in range(5):
            assert trial_of(server, trial_id).hello(27) == WELCOME
    finally:
        done.set()
        thread.join()
        for stranger in crowd:
            stranger.close()


def test_whoever_leaves_between_its_response_and_the_proof_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is killed at this moment, say."""
    responded, gone = threading.Event(), threading.Event()
    proof = wire.LauncherHandshake.proof

    def late(self: wire.LauncherHandshake, response: bytes) -> bytes:
        if not responded.is_set():
            responded.set()
            leaving.shutdown(socket.SHUT_RDWR)
            assert gone.wait(30.0)
        return proof(self, response)

    monkeypatch.setattr(wire.LauncherHandshake, "proof", late)
    with patient_launcher(tmp_path) as (server, loop):
        leaving = stranger_at(server)
        with pytest.raises(wire.Refused):
            wire.shake_hands(leaving, server.key)
        leaving.close()
        gone.set()
        assert responded.is_set()
        for trial_id in range(3):
            assert trial_of(server, trial_id).hello(27) == WELCOME
        assert loop.is_alive()


def test_a_launcher_without_free_files_lets_in_again_when_there_are_some(server: ChannelServer, loop: Loop) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    waiting = socket.socket(socket.AF_UNIX)
    filler = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                filler.append(os.dup(0))
        waiting.connect(server.address.removeprefix("unix:"))  # stays in the queue: it cannot be accepted
        assert not is_turned_away(waiting, 0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filler:
            os.close(descriptor)
        waiting.close()
    assert trial_of(server).hello(27) == WELCOME
