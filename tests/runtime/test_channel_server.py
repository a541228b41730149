"""The launcher's end: everybody is heard, and nobody can stall or break it."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import stat
import struct
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime import channel_server
from lightning_hpo.runtime.channel_server import ChannelServer, refuse_too_many_trials
from lightning_hpo.runtime.messages import Answer, Message, Report, encode
from lightning_hpo.runtime.wire import MAX_MESSAGE_BYTES, frame, read_frame
from tests.runtime.talking import WELCOME, Loop, admitted_at, polite, trial_of


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
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


def test_wherever_it_lies_a_socket_left_by_a_killed_launcher_is_replaced(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with ChannelServer(deep) as server:
        path = Path(server.address.removeprefix("unix:"))
    path.parent.mkdir(mode=0o755)
    path.touch()
    with ChannelServer(deep) as server:
        assert server.address == f"unix:{path}"
        assert path.is_socket() and path.parent.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with ChannelServer(deep) as server:
        path = Path(server.address.removeprefix("unix:"))
    path.parent.symlink_to(tmp_path)
    try:
        with ChannelServer(deep) as server:
            assert Path(server.address.removeprefix("unix:")).parent.resolve() != tmp_path
        assert deep.exists()
    finally:
        path.parent.unlink()


def test_a_socket_left_by_a_killed_launcher_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (folder / ".channel").mkdir(parents=True)
    (folder / ".channel" / "socket").touch()
    with ChannelServer(folder) as server:
        assert Path(server.address.removeprefix("unix:")).is_socket()


@pytest.mark.parametrize("deleted", ["socket", "folder"])
def test_a_socket_that_was_deleted_is_made_again_and_nobody_is_dropped(
    server: ChannelServer, loop: Loop, deleted: str
) -> None:
    before = trial_of(server, 1)
    assert before.report(1, 0.5).decision == "continue"
    path = Path(server.address.removeprefix("unix:"))
    if deleted == "folder":
        shutil.rmtree(path.parent)
    else:
        path.unlink()
    server.keep_listening()
    inode = path.stat().st_ino
    after = trial_of(server, 2)
    assert after.report(1, 0.5).decision == before.report(2, 0.5).decision == "continue"
    server.keep_listening()
    assert path.stat().st_ino == inode, "it is made once"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for trial in (before, after):
        trial.close()


@pytest.mark.parametrize("instead", ["a link", "a file", "no study folder"])
def test_a_socket_that_cannot_be_made_again_is_an_error(tmp_path: Path, instead: str) -> None:
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    study.mkdir()
    elsewhere.mkdir()
    with ChannelServer(study) as server:
        folder = Path(server.address.removeprefix("unix:")).parent
        shutil.rmtree(folder if instead != "no study folder" else study)
        if instead == "a link":
            folder.symlink_to(elsewhere)
        elif instead == "a file":
            folder.touch()
        with pytest.raises(ChannelError, match=r"was deleted, .* give the same command again to continue\.$"):
            server.keep_listening()
    assert list(elsewhere.iterdir()) == []


def test_a_malformed_message_drops_its_sender_and_nobody_else(server: ChannelServer, loop: Loop) -> None:
    honest, broken = trial_of(server, 1), admitted_at(server)
    honest.hello(27)
    broken.sendall(frame(encode(Report(2, 1, 1, 0.5))))
    broken.sendall(frame(b'{"type": "report", "trial_id": "2"}'))
    loop.until(lambda: bool(loop.errors))
    assert "malformed message" in str(loop.errors[0])
    assert Report(2, 1, 1, 0.5) in loop.received
    assert honest.report(2, 0.5).decision == "continue"
    read_frame(broken)
    with pytest.raises((EOFError, ConnectionError)):
        read_frame(broken)


def test_messages_before_a_malformed_one_are_delivered(server: ChannelServer) -> None:
    client = admitted_at(server)
    good = encode(Report(2, 1, 1, 0.5))
    client.sendall(frame(good) + frame(b"junk"))
    received: list[Message] = []
    with pytest.raises(ChannelError, match="malformed"):
        while True:
            for ready in wait(server.waitables(), timeout=2.0):
                received += server.receive(ready)
    assert received == [Report(2, 1, 1, 0.5)]
    assert len(server.waitables()) == 1, "the broken client is still waited for"


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**31, 2**32 - 1])
def test_an_impossible_length_drops_the_client(server: ChannelServer, loop: Loop, length: int) -> None:
    client = admitted_at(server)
    client.sendall(struct.pack("!I", length))
    loop.until(lambda: bool(loop.errors))
    assert f"{length} bytes" in str(loop.errors[0])


def test_half_a_message_stalls_nobody(server: ChannelServer, loop: Loop) -> None:
    half, honest = admitted_at(server), trial_of(server, 1)
    whole = frame(encode(Report(2, 1, 1, 0.5)))
    half.sendall(whole[:20])
    assert honest.report(1, 0.5).decision == "continue"
    half.sendall(whole[20:])
    loop.until(lambda: Report(2, 1, 1, 0.5) in loop.received)


def test_a_client_may_not_speak_for_two_trials(server: ChannelServer, loop: Loop) -> None:
    client = admitted_at(server)
    client.sendall(frame(encode(Report(2, 1, 1, 0.5))))
    client.sendall(frame(encode(Report(3, 1, 1, 0.5))))
    loop.until(lambda: bool(loop.errors))
    assert "spoke for trial 2" in str(loop.errors[0])


def test_a_client_that_never_reads_is_dropped(server: ChannelServer) -> None:
    client = admitted_at(server)
    payload = encode(Report(2, 1, 1, 0.5))
    client.sendall(frame(payload))
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

    client = admitted_at(server)
    client.sendall(frame(pickle.dumps(Bomb())))
    loop.until(lambda: bool(loop.errors))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("interface", ["", "0.0.0.0", "::"])
def test_listening_on_every_interface_is_refused(interface: str) -> None:
    with pytest.raises(ChannelError, match=r"all of them\. Name the address .*\.$"):
        ChannelServer(interface=interface)


def test_what_all_clients_leave_unfinished_is_limited(
    server: ChannelServer, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is shorter than allowed. Who left most is dropped; the others are heard to their end."""
    monkeypatch.setattr(channel_server, "MAX_UNREAD_BYTES", 250_000)
    whole = frame(encode(Report(0, 1, 1, 0.5, {"x" * 90_000: 1.0})))
    honest, *greedy = (admitted_at(server) for _ in range(4))
    honest.sendall(whole[:50_000])
    for number, client in enumerate(greedy):
        client.sendall(struct.pack("!I", 500_000) + b"x" * (80_000 + number))
    loop.until(lambda: bool(loop.errors))
    assert "more than 250000 bytes" in str(loop.errors[0])
    honest.sendall(whole[50_000:])
    loop.until(lambda: len(loop.received) == 1)
    assert len(server.waitables()) == 1 + 3, "one was dropped"


def test_of_too_many_clients_the_oldest_that_said_nothing_leaves(
    server: ChannelServer, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_most_clients", 3)
    trial = trial_of(server)
    assert trial.hello(27) == WELCOME
    silent = [admitted_at(server) for _ in range(3)]
    loop.until(lambda: len(server.waitables()) == 1 + 3)
    assert silent[0].recv(1) == b""
    assert trial.report(1, 0.5).decision == "continue"


def test_the_launcher_keeps_half_of_its_files_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((256, 128), (1 << 20, 1024), (channel_server.resource.RLIM_INFINITY, 1024)):
        monkeypatch.setattr(channel_server.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert channel_server._most_clients() == most


@pytest.mark.parametrize(
    ("limit", "n_workers", "fits"),
    [(1024, 512, True), (1024, 513, False), (64, 32, True), (24, 2, False), (1 << 20, 1024, True), (-1, 1025, False)],
)
def test_more_trials_than_it_can_be_connected_to_are_refused_before_they_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, limit: int, n_workers: int, fits: bool
) -> None:
    monkeypatch.setattr(channel_server.resource, "getrlimit", lambda _: (limit, limit))
    told = (
        contextlib.nullcontext()
        if fits
        else pytest.raises(ChannelError, match=rf"{n_workers} trials at a time.* n_workers")
    )
    with told:
        refuse_too_many_trials(n_workers)
