"""A searcher as a process: it follows the events of a study and answers requests.

Started by the launcher (:class:`lightning_hpo.runtime.suggesting.ProcessHost`), as a fork of it or by
``python -m lightning_hpo.searchers.server FD``. It holds its own copy of the study, folded from the same events, so
no view of the study ever has to be sent.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from lightning_hpo.core.events import from_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Searcher, Slot, SuggestRequest
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.recommend import recommend

log = logging.getLogger(__name__)
_WATCH_PERIOD_S = 0.5


def serve(connection: socket.socket) -> None:
    """Answer requests until the launcher, whose child this process is, closes the connection or dies.

    Messages are lines of JSON, both ways.
    """
    _end_with(os.getppid())
    state: StudyState | None = None
    searcher = None
    for message in _messages(connection):
        if "header" in message:
            options = StudyOptions.from_json(message["header"]["options"])
            state = StudyState(SearchSpace.from_json(message["header"]["space"]), options)
            searcher = make_searcher(options.searcher_name, options.searcher)
        assert state is not None and searcher is not None, "the header comes first"
        for event in message.get("events", ()):
            state.handle(from_json(event))
        if "request" in message or "recommend" in message:
            try:
                answer = _answer(message, state, searcher)
            except Exception as problem:
                traceback.print_exc()
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            connection.sendall(json.dumps(answer).encode() + b"\n")


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile("rb") as lines:
        while True:
            try:
                line = lines.readline()
            except OSError:
                return
            if not line.endswith(b"\n"):
                return  # the launcher is gone, perhaps in the middle of a message
            yield json.loads(line)


def _end_with(launcher: int) -> None:
    """In the middle of a fit nobody reads the connection, whose end tells that the launcher is gone."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_PERIOD_S)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _answer(message: dict[str, Any], state: StudyState, searcher: Searcher) -> dict[str, Any]:
    if "recommend" in message:
        return {"recommendation": list(recommend(state.view(), state.options.searcher))}
    suggestion = searcher.suggest(state.view(), _request(message["request"]))
    return {"suggestion": None if suggestion is None else dataclasses.asdict(suggestion)}


def _request(data: dict[str, Any]) -> SuggestRequest:
    slot = data.pop("slot")
    if slot is not None:
        slot = Slot(slot["level"], slot["target"], tuple(slot["parents"]))
    return SuggestRequest(**data, slot=slot)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # no library's clean-up may delay the end of the study
