"""A searcher as a process: it follows the events of a study and answers requests.

Started by the launcher (:class:`lightning_hpo.runtime.suggesting.ProcessHost`), as a fork of it or by
``python -m lightning_hpo.searchers.server FD``. It holds its own copy of the study, folded from the same events, so
no view of the study ever has to be sent.
"""

from __future__ import annotations

import dataclasses
import importlib.util
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
from lightning_hpo.core.searcher import Slot, SuggestRequest
from lightning_hpo.core.searcher_options import DEFAULT_MODELS
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.recommend import recommend

log = logging.getLogger(__name__)
_WATCH_PERIOD_S = 0.5
_PACKAGES = ("torch", "gpytorch", "linear_operator", "scipy", "threadpoolctl")


def serve(connection: socket.socket) -> None:
    """Answer requests until the launcher, whose child this process is, closes the connection or dies.

    Messages are lines of JSON, both ways. The header, which comes first, is answered, too: with ``begun``, or with the
    error for which there will be no searcher.
    """
    _end_with(os.getppid())
    study: _Study | None = None
    for message in _messages(connection):
        try:
            if "header" in message:
                study = _Study(message["header"])
                answer: dict[str, Any] | None = {"begun": True}
            else:
                assert study is not None, "the header comes first"
                answer = study.take(message)
        except Exception as problem:
            traceback.print_exc()
            answer = _described(problem)
        if answer is None:
            continue
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return  # the launcher is gone
        if "error" in answer and "request" not in message and "recommend" not in message:
            return  # there is no searcher, or it does not know any more what has happened


def _described(problem: Exception) -> dict[str, Any]:
    if isinstance(problem, OptionError):
        return {"error": str(problem), "kind": OptionError.__name__}
    return {"error": f"{type(problem).__name__}: {problem}"}


class _Study:
    """The study, as far as this process has been told.

    Raises:
        OptionError: if an option cannot be used, at least not here.
    """

    def __init__(self, header: dict[str, Any]) -> None:
        options = StudyOptions.from_json(header["options"])
        check_surroundings(options)
        self._state = StudyState(SearchSpace.from_json(header["space"]), options)
        self._searcher = make_searcher(options.searcher_name, options.searcher)

    def take(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Learn what has happened; returns the answer if one is wanted."""
        for event in message.get("events", ()):
            self._state.handle(from_json(event))
        if "recommend" in message:
            return {"recommendation": list(recommend(self._state.view(), self._state.options.searcher))}
        if "request" in message:
            suggestion = self._searcher.suggest(self._state.view(), _request(message["request"]))
            return {"suggestion": None if suggestion is None else dataclasses.asdict(suggestion)}
        return None


def check_surroundings(options: StudyOptions) -> None:
    """Whether this process has what a searcher that fits models will need: not at once, but after the first trials.

    Raises:
        OptionError: if a package is missing, or the GPU that ``searcher.device`` names.
    """
    if options.searcher_name not in DEFAULT_MODELS:
        return
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            f"algorithm={options.algorithm} fits models and needs {' and '.join(missing)}, not to be found by "
            f"{sys.executable}. Install what is missing, or choose an algorithm that fits none, such as asha."
        )
    if options.searcher.device not in ("auto", "cpu"):
        # Only now, as torch takes seconds to import.
        from lightning_hpo.searchers.gp_model import choose_device

        choose_device(options.searcher, 0)


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


def _request(data: dict[str, Any]) -> SuggestRequest:
    slot = data.pop("slot")
    if slot is not None:
        slot = Slot(slot["level"], slot["target"], tuple(slot["parents"]))
    return SuggestRequest(**data, slot=slot)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # no library's clean-up may delay the end of the study
