"""Both ends of a channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_hpo.runtime.channel_server import ChannelServer
from tests.runtime.talking import Loop, polite


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    with ChannelServer(tmp_path, handshake_timeout_s=0.3) as server:
        yield server


@pytest.fixture
def loop(server: ChannelServer) -> Iterator[Loop]:
    loop = Loop(server, polite)
    yield loop
    loop.done.set()
    loop.join()
