"""The part of the Ray backend that lives on the nodes. Nothing here imports Ray."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import time
from typing import Any

from lightning_hpo.runtime.backends import zygote
from lightning_hpo.runtime.backends.slots import VISIBLE_DEVICES

_EXIT_S = 5.0
_SHARED_FOLDER_S = 10.0
"""A network file system may show a new folder to other nodes a few seconds late."""


class TrialHost:
    """Body of the Ray actor: starts a trial server beside it and passes messages on.

    Args:
        setup: the first message to the trial server.
    """

    def __init__(self, setup: bytes) -> None:
        self._connection, there = multiprocessing.Pipe()
        with there:
            self._server = zygote.start_fresh(there)
        self._connection.send_bytes(setup)

    def place(self) -> dict[str, Any]:
        """Name of the node, and the devices that Ray has assigned."""
        return {"event": "placed", "node": socket.gethostname(), "devices": os.environ.get(VISIBLE_DEVICES, "")}

    def events(self) -> list[dict[str, Any]]:
        """What the trial server says next; waits for it. Empty once it is gone."""
        heard: list[dict[str, Any]] = []
        with contextlib.suppress(EOFError, OSError):
            while not heard or self._connection.poll():
                heard.append(json.loads(self._connection.recv_bytes()))
        return heard

    def start(self, command: bytes, folder: str) -> str | None:
        """Start an attempt; returns why that makes no sense on this node, None if it does."""
        deadline = time.monotonic() + _SHARED_FOLDER_S
        while not os.path.isdir(folder):
            if time.monotonic() > deadline:
                return (
                    f"The trial's folder {folder} cannot be seen on the node {socket.gethostname()}. "
                    "Put the study on storage that all nodes share, with hydra.sweep.dir=... ."
                )
            time.sleep(0.1)
        self.send(command)
        return None

    def send(self, command: bytes) -> None:
        """Pass a command on. A server that is gone is noticed by :meth:`events`."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(command)

    def close(self, grace_s: float) -> None:
        """End the trial and the trial server; returns when they are gone."""
        self.send(json.dumps({"op": "close", "grace_s": grace_s}).encode())
        try:
            self._server.wait(grace_s + _EXIT_S)
        except subprocess.TimeoutExpired:
            self._server.kill()  # its trial sees that and ends itself
