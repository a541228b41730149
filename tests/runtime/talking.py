"""Talking over a real channel, by the rules and against them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.channel import TrialChannel
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.messages import Answer, Hello, Message, Problem, Report, Welcome
from lightning_hpo.runtime.wire import shake_hands

WELCOME = Welcome("val_acc", "max", max_t=27, from_resource=3, checkpoint_path="checkpoints/resource-3.ckpt",
                  checkpoint_sha256="0f" * 32, best=0.875)  # fmt: skip


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


def trial_of(server: ChannelServer, trial_id: int = 4, attempt: int = 2) -> TrialChannel:
    trial = TrialChannel.from_environment(server.environment(trial_id, attempt, Path("/study/4")))
    assert trial is not None
    return trial


def stranger_at(server: ChannelServer) -> socket.socket:
    """A connection without handshake."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server.address.removeprefix("unix:"))
    return connection


def admitted_at(server: ChannelServer) -> socket.socket:
    """A connection that knows the key, and may send anything now."""
    connection = stranger_at(server)
    shake_hands(connection, server.key)
    connection.settimeout(5.0)
    return connection
