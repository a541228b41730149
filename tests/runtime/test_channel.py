"""The channel: what is sent arrives, and nobody can stall or break the launcher."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, wait
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime import channel as channel_module
from lightning_hpo.runtime.channel import MAX_MESSAGE_BYTES, ChannelServer, TrialChannel
from lightning_hpo.runtime.messages import (
    Answer,
    Ended,
    Hello,
    Message,
    Problem,
    Report,
    Saved,
    Welcome,
    decode,
    decode_reply,
    encode,
    encode_reply,
)

WELCOME = Welcome("val_acc", "max", max_t=27, from_resource=3, checkpoint_path="checkpoints/resource-3.ckpt",
                  checkpoint_sha256="0f" * 32, best=0.875)  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    with ChannelServer(tmp_path, handshake_timeout_s=0.3) as server:
        yield server


class Loop(threading.Thread):
    """A launcher's loop: answers with ``answer`` and keeps what it received."""

    def __init__(self, server: ChannelServer, answer: Callable[[Message], Any]) -> None:
        super().__init__(daemon=True)
        self.server, self.answer = server, answer
        self.received: list[Message] = []
        self.errors: list[ChannelError] = []
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.is_set():
            for ready in wait(self.server.waitables(), timeout=0.02):
                try:
                    for message in self.server.receive(ready):
                        self.received.append(message)
                        if (reply := self.answer(message)) is not None:
                            self.server.reply(ready, reply)
                except ChannelError as problem:
                    self.errors.append(problem)

    def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the launcher did not get there in time"
            time.sleep(0.005)


def polite(message: Message) -> Any:
    if isinstance(message, Hello):
        return WELCOME
    if isinstance(message, Report):
        return Answer("pause" if message.resource >= 3 else "continue", "because")
    return Answer("stop") if isinstance(message, Problem) else None


@pytest.fixture
def loop(server: ChannelServer) -> Iterator[Loop]:
    loop = Loop(server, polite)
    yield loop
    loop.done.set()
    loop.join()


def trial_of(server: ChannelServer, trial_id: int = 4, attempt: int = 2) -> TrialChannel:
    trial = TrialChannel.from_environment(server.environment(trial_id, attempt, Path("/study/4")))
    assert trial is not None
    return trial


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


def test_many_trials_at_once(server: ChannelServer, loop: Loop) -> None:
    trials = [trial_of(server, trial_id=i, attempt=1) for i in range(20)]
    assert [t.report(1, float(i)).decision for i, t in enumerate(trials)] == ["continue"] * 20
    assert sorted((m.trial_id, m.value) for m in loop.received if isinstance(m, Report)) == [
        (i, float(i)) for i in range(20)
    ]
    for trial in trials:
        trial.close()


def test_tcp_works_the_same(tmp_path: Path) -> None:
    with ChannelServer(tmp_path, interface="127.0.0.1") as server:
        assert server.address.startswith("tcp:127.0.0.1:")
        loop = Loop(server, polite)
        trial = trial_of(server)
        assert trial.report(1, 0.25) == Answer("continue", "because")
        trial.close()
        loop.done.set()
        loop.join()


def test_nothing_listens_on_the_network_unless_told(server: ChannelServer) -> None:
    assert server.address.startswith("unix:")


def test_socket_and_folder_belong_to_the_user_alone(server: ChannelServer) -> None:
    path = Path(server.address.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_closing_leaves_no_files(tmp_path: Path) -> None:
    ChannelServer(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_study_folder_with_a_long_path_is_no_problem(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with ChannelServer(deep) as server:
        path = Path(server.address.removeprefix("unix:"))
        assert deep not in path.parents
    assert not path.parent.exists()


def test_a_socket_left_by_a_killed_launcher_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (folder / ".channel").mkdir(parents=True)
    (folder / ".channel" / "socket").touch()
    with ChannelServer(folder) as server:
        assert Path(server.address.removeprefix("unix:")).is_socket()


def test_a_wrong_key_is_turned_away(server: ChannelServer, loop: Loop) -> None:
    environment = server.environment(1, 1, Path("/x")) | {"LIGHTNING_HPO_KEY": "00" * 32}
    stranger = TrialChannel.from_environment(environment)
    assert stranger is not None
    with pytest.raises(ChannelError, match="cannot reach its launcher"):
        stranger.hello(3)
    assert loop.received == []
    assert trial_of(server).hello(27) == WELCOME


def test_silent_and_dripping_strangers_do_not_stall_the_launcher(server: ChannelServer, loop: Loop) -> None:
    path = server.address.removeprefix("unix:")
    strangers = []
    for _ in range(5):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(path)
        strangers.append(stranger)
    begin = time.monotonic()
    assert trial_of(server).hello(27) == WELCOME
    assert time.monotonic() - begin < 0.3, "an honest trial waited for the strangers"
    strangers[0].settimeout(2.0)
    while strangers[0].recv(64):  # the challenge, then the launcher hangs up
        pass
    assert 0.2 < time.monotonic() - begin < 2.0
    for stranger in strangers:
        stranger.close()


def test_more_strangers_than_handshakes_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_HANDSHAKES", 2)
    with ChannelServer(tmp_path, handshake_timeout_s=5.0) as server:
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for stranger in strangers:
            stranger.connect(server.address.removeprefix("unix:"))
        strangers[2].settimeout(2.0)
        assert strangers[2].recv(64) == b""
        for stranger in strangers:
            stranger.close()


def frame(payload: bytes) -> bytes:
    return struct.pack("!i", len(payload)) + payload


def raw_client(server: ChannelServer) -> Any:
    return Client(server.address.removeprefix("unix:"), authkey=server.key)


def test_a_malformed_message_drops_its_sender_and_nobody_else(server: ChannelServer, loop: Loop) -> None:
    honest, broken = trial_of(server, 1), raw_client(server)
    honest.hello(27)
    broken.send_bytes(encode(Report(2, 1, 1, 0.5)))
    broken.send_bytes(b'{"type": "report", "trial_id": "2"}')
    loop.until(lambda: bool(loop.errors))
    assert "malformed message" in str(loop.errors[0])
    assert Report(2, 1, 1, 0.5) in loop.received
    assert honest.report(2, 0.5).decision == "continue"
    broken.recv_bytes()
    with pytest.raises((EOFError, ConnectionError)):
        broken.recv_bytes()


def test_messages_before_a_malformed_one_are_delivered(server: ChannelServer) -> None:
    client = raw_client(server)
    good = encode(Report(2, 1, 1, 0.5))
    os.write(client.fileno(), frame(good) + frame(b"junk"))
    received: list[Message] = []
    with pytest.raises(ChannelError, match="malformed"):
        while True:
            for ready in wait(server.waitables(), timeout=2.0):
                received += server.receive(ready)
    assert received == [Report(2, 1, 1, 0.5)]
    assert len(server.waitables()) == 1, "the broken client is still waited for"


@pytest.mark.parametrize("length", [0, -1, MAX_MESSAGE_BYTES + 1, 2**31 - 1])
def test_an_impossible_length_drops_the_client(server: ChannelServer, loop: Loop, length: int) -> None:
    client = raw_client(server)
    os.write(client.fileno(), struct.pack("!i", length))
    loop.until(lambda: bool(loop.errors))
    assert f"{length} bytes" in str(loop.errors[0])


def test_half_a_message_stalls_nobody(server: ChannelServer, loop: Loop) -> None:
    half, honest = raw_client(server), trial_of(server, 1)
    whole = frame(encode(Report(2, 1, 1, 0.5)))
    os.write(half.fileno(), whole[:20])
    assert honest.report(1, 0.5).decision == "continue"
    os.write(half.fileno(), whole[20:])
    loop.until(lambda: Report(2, 1, 1, 0.5) in loop.received)


def test_a_client_may_not_speak_for_two_trials(server: ChannelServer, loop: Loop) -> None:
    client = raw_client(server)
    client.send_bytes(encode(Report(2, 1, 1, 0.5)))
    client.send_bytes(encode(Report(3, 1, 1, 0.5)))
    loop.until(lambda: bool(loop.errors))
    assert "spoke for trial 2" in str(loop.errors[0])


def test_a_client_that_never_reads_is_dropped(server: ChannelServer) -> None:
    client = raw_client(server)
    payload = encode(Report(2, 1, 1, 0.5))
    client.send_bytes(payload)
    connection = None
    while connection is None:
        for ready in wait(server.waitables(), timeout=2.0):
            if server.receive(ready):
                connection = ready
    begin = time.monotonic()
    with pytest.raises(ChannelError, match="does not take its answer"):
        for _ in range(100_000):
            server.reply(connection, Answer("continue", "x" * 100))
    assert time.monotonic() - begin < 5.0


def test_a_pickle_is_not_executed(server: ChannelServer, loop: Loop, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "boom"),))

    client = raw_client(server)
    client.send_bytes(pickle.dumps(Bomb()))
    loop.until(lambda: bool(loop.errors))
    assert not (tmp_path / "boom").exists()


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


def test_the_end_of_a_long_traceback_is_kept() -> None:
    message = decode(encode(Ended(1, 1, Outcome.FAILED, "boom", "a" * 3_000_000 + "last line")))
    assert isinstance(message, Ended)
    assert message.traceback is not None and message.traceback.endswith("last line")
    assert len(message.traceback) < 200_000


floats = st.floats(allow_nan=False)
names = st.text(max_size=20)
identity = {"trial_id": st.integers(0, 10**6), "attempt": st.integers(1, 100)}
checkpoints = st.builds(
    Checkpoint, st.integers(1, 10**6), st.just("checkpoints/resource-3.ckpt"), st.just("0a" * 32), st.integers(1)
)
messages = st.one_of(
    st.builds(Hello, **identity, pid=st.integers(1, 4 * 10**6), max_epochs=st.none() | st.integers(-1, 10**6)),
    st.builds(
        Report,
        **identity,
        resource=st.integers(1, 10**6),
        value=floats,
        metrics=st.dictionaries(names, floats, max_size=5),
        cost=st.none() | st.floats(0, 1e9),
    ),
    st.builds(Saved, **identity, checkpoint=checkpoints),
    st.builds(Ended, **identity, outcome=st.sampled_from(Outcome), error=st.none() | names, result=st.none() | names),
    st.builds(Problem, **identity, kind=names, message=names),
)


@given(messages)
def test_every_message_survives_the_way(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.builds(Answer, st.sampled_from(["continue", "pause", "stop", "complete"]), names))
def test_every_answer_survives_the_way(answer: Answer) -> None:
    assert decode_reply(encode_reply(answer)) == answer


@given(st.binary(max_size=200))
def test_random_bytes_are_a_channel_error(payload: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(messages, st.data())
def test_a_message_with_one_field_replaced_is_refused_or_well_typed(message: Message, data: st.DataObject) -> None:
    fields = json.loads(encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(json_values)
    try:
        read = decode(json.dumps(fields).encode())
    except ChannelError:
        return
    assert type(read.trial_id) is int and type(read.attempt) is int
    if isinstance(read, Report):
        assert type(read.resource) is int and read.resource >= 1 and type(read.value) is float
        assert all(type(value) is float for value in read.metrics.values())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a\0b", "a\\b"])
def test_a_checkpoint_outside_the_trial_folder_is_refused(path: str) -> None:
    with pytest.raises(ChannelError):
        decode(encode(Saved(1, 1, Checkpoint(3, path, "0a" * 32, 5))))


@pytest.mark.parametrize("payload", [b'{"type":"report"', b"[" * 5000, b"\xff\xfe", b"null", b"3", b'{"type":["x"]}'])
def test_broken_json_is_refused(payload: bytes) -> None:
    with pytest.raises(ChannelError, match=r"\.$"):
        decode(payload)
