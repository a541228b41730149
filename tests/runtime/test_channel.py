"""The trial's end: what is said arrives, and a launcher that is gone is noticed."""

from __future__ import annotations

import functools
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime import channel as channel_module
from lightning_hpo.runtime.channel import TrialChannel
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.messages import Answer, Ended, Hello, Problem, Report, Saved, decode
from lightning_hpo.runtime.wire import RESPONSE_BYTES, LauncherHandshake, read_exactly, read_frame
from tests.runtime.talking import WELCOME, Loop, polite, trial_of


def test_a_trial_says_everything_and_is_answered(server: ChannelServer, loop: Loop) -> None:
    trial = trial_of(server)
    assert trial.hello(max_epochs=27) == WELCOME
    assert trial.report(1, 0.5, {"train_loss": 1.25}, cost=3.5) == Answer("continue", "because")
    assert trial.report(3, float("nan")).decision == "pause"
    saved = Checkpoint(3, "checkpoints/resource-3.ckpt", "ab" * 32, 12345)
    trial.checkpoint(saved)
    assert trial.problem("MetricMissing", "no such metric") == Answer("stop")
    trial.ended(Outcome.PAUSED, result={"acc": 0.5})
    loop.until(lambda: len(loop.received) == 6)
    hello, first, second, checkpoint, problem, ended = loop.received
    assert hello == Hello(4, 2, os.getpid(), 27)
    assert first == Report(4, 2, 1, 0.5, {"train_loss": 1.25}, 3.5)
    assert isinstance(second, Report) and second.value != second.value
    assert checkpoint == Saved(4, 2, saved)
    assert problem == Problem(4, 2, "MetricMissing", "no such metric")
    assert ended == Ended(4, 2, Outcome.PAUSED, result={"acc": 0.5})
    trial.close()


def test_a_wrong_key_is_turned_away(server: ChannelServer, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "_RETRY_AFTER_S", ())
    environment = server.environment(1, 1, Path("/x")) | {"LIGHTNING_HPO_KEY": "00" * 32}
    stranger = TrialChannel.from_environment(environment)
    assert stranger is not None
    with pytest.raises(ChannelError, match="cannot reach its launcher"):
        stranger.hello(3)
    assert loop.received == []
    assert trial_of(server).hello(27) == WELCOME


def test_a_trial_learns_that_its_launcher_is_gone(tmp_path: Path) -> None:
    server = ChannelServer(tmp_path)
    loop = Loop(server, polite)
    trial = trial_of(server)
    trial.hello(27)
    loop.done.set()
    loop.join()
    server.close()
    with pytest.raises(ChannelError, match=r"gone.*Start the study again"):
        trial.report(1, 0.5)


def test_a_forked_child_lets_go_of_the_connection(server: ChannelServer, loop: Loop) -> None:
    trial = trial_of(server)
    trial.hello(27)
    channel_module._current = trial
    try:
        gone_reader, gone_writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gone_writer)
            os.read(gone_reader, 1)  # lives on, like a DataLoader worker whose parent was killed
            os._exit(0)
        os.close(gone_reader)
        trial.close()
        loop.until(lambda: len(server.waitables()) == 1)  # the launcher saw the end although the child lives
        os.close(gone_writer)
        os.waitpid(pid, 0)
    finally:
        channel_module._current = None


def test_outside_a_trial_there_is_no_channel() -> None:
    assert TrialChannel.from_environment({}) is None


def test_incomplete_variables_are_an_error() -> None:
    with pytest.raises(ChannelError, match=r"Unset LIGHTNING_HPO_ADDRESS .*\.$"):
        TrialChannel.from_environment({"LIGHTNING_HPO_ADDRESS": "unix:/x", "LIGHTNING_HPO_KEY": "00"})


def test_a_result_that_is_not_json_is_sent_as_text(server: ChannelServer, loop: Loop) -> None:
    trial = trial_of(server)
    trial.ended(Outcome.COMPLETED, result=object())
    trial.ended(Outcome.COMPLETED, result=float("nan"))
    loop.until(lambda: len(loop.received) == 2)
    first, second = loop.received
    assert isinstance(first, Ended) and str(first.result).startswith("<object object")
    assert isinstance(second, Ended) and second.result == "nan"


@pytest.mark.parametrize(
    ("error", "traceback", "result", "told"),
    [
        ("no", "Traceback", [0.5] * 100_000, "[0.5, 0.5, 0.5"),
        ("e" * 2_000_000, "é" * 2_000_000, "é" * 2_000_000, "éééé"),
        ("no", "Traceback", functools.reduce(lambda inner, _: [inner], range(100_000), 0), "list, nested too deeply"),
    ],
)
def test_a_trial_that_has_too_much_to_say_is_heard(server: ChannelServer, loop: Loop, error, traceback, result, told):
    trial_of(server).ended(Outcome.FAILED, error, f"{traceback}, line 9", result)
    loop.until(lambda: bool(loop.received))
    (ended,) = loop.received
    assert isinstance(ended, Ended) and ended.outcome is Outcome.FAILED
    assert error.startswith(str(ended.error)) and str(ended.traceback).endswith(", line 9")
    assert str(ended.result).startswith(told) and len(str(ended.result)) <= 1000


def test_a_trial_that_is_turned_away_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may have been a crowd at the launcher's door."""
    monkeypatch.setattr(channel_module, "_RETRY_AFTER_S", (0.01, 0.01))
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def let_the_third_in() -> None:
            for _ in range(2):
                listener.accept()[0].close()
            connection, _ = listener.accept()
            handshake = LauncherHandshake(b"the key")
            connection.sendall(handshake.greeting)
            connection.sendall(handshake.proof(read_exactly(connection, RESPONSE_BYTES)))
            heard.append(read_frame(connection))
            connection.close()

        thread = threading.Thread(target=let_the_third_in)
        thread.start()
        trial = TrialChannel(f"unix:{tmp_path / 'socket'}", b"the key", 0, 1, tmp_path)
        trial.ended(Outcome.COMPLETED)
        thread.join()
        trial.close()
    assert decode(heard[0]) == Ended(0, 1, Outcome.COMPLETED)


def test_nobody_at_the_address_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(channel_module, "time", SimpleNamespace(sleep=waits.append))
    trial = TrialChannel(f"unix:{tmp_path / 'nothing'}", b"the key", 0, 1, tmp_path)
    with pytest.raises(ChannelError, match=r"cannot reach its launcher .* Start the study again"):
        trial.hello(3)
    assert waits == []


def test_a_launcher_that_does_not_know_the_key_hears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else listens at the address: the trial says nothing but its challenge and a proof."""
    monkeypatch.setattr(channel_module, "_RETRY_AFTER_S", ())
    heard = bytearray()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()

    def pretend() -> None:
        connection, _ = listener.accept()
        connection.sendall(LauncherHandshake(b"another key").greeting)
        heard.extend(connection.recv(10_000))
        connection.sendall(bytes(32))
        while chunk := connection.recv(10_000):
            heard.extend(chunk)
        connection.close()

    thread = threading.Thread(target=pretend)
    thread.start()
    trial = TrialChannel(f"unix:{tmp_path / 'socket'}", b"the key", 0, 1, tmp_path)
    with pytest.raises(ChannelError, match="cannot reach its launcher"):
        trial.report(1, 0.5)
    thread.join()
    listener.close()
    assert len(heard) == 64
