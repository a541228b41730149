"""What the launcher and its trials say to each other, as JSON text.

=================  ==========================================  ===================
trial says         meaning                                     launcher answers
=================  ==========================================  ===================
:class:`Hello`     training is about to begin                  :class:`Welcome`
:class:`Report`    the metric after some units of resource     :class:`Answer`
:class:`Saved`     a checkpoint is on disk and verified        --
:class:`Ended`     the script is over                          --
:class:`Problem`   the script cannot be tuned as it is         :class:`Answer`
=================  ==========================================  ===================

Numbers that JSON lacks travel as the texts ``nan``, ``inf`` and ``-inf``. Paths of checkpoints are relative
to the trial's folder. What arrives is checked field by field: it may come from anybody who runs code in a trial.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError

MAX_TEXT = 100_000
"""Longest text sent, characters; of a longer one the end is kept."""

MAX_PATH = 1000
"""Longest path of a checkpoint, characters."""
MAX_INTEGER = 2**53 - 1
"""Largest integer accepted: the largest up to which every program that reads JSON agrees."""

_DECISIONS = frozenset({"continue", "pause", "stop", "complete"})


@dataclass(frozen=True, slots=True)
class Hello:
    """Training is about to begin."""

    trial_id: int
    attempt: int
    pid: int
    max_epochs: int | None
    """The Trainer's ``max_epochs``; None if unknown, -1 for no limit."""


@dataclass(frozen=True, slots=True)
class Report:
    """The metric after ``resource`` units."""

    trial_id: int
    attempt: int
    resource: int
    value: float
    metrics: dict[str, float] = field(default_factory=dict)
    """Other metrics logged since the last report."""
    cost: float | None = None
    """Seconds of training so far, over all attempts."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint was written and verified. Its path is relative to the trial's folder."""

    trial_id: int
    attempt: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Ended:
    """The script is over."""

    trial_id: int
    attempt: int
    outcome: Outcome
    error: str | None = None
    traceback: str | None = None
    result: Any = None
    """What the script returned, if it is JSON data and not too long."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The script cannot be tuned as it is."""

    trial_id: int
    attempt: int
    kind: str
    """Name of a class of :mod:`lightning_hpo.errors`."""
    message: str


Message: TypeAlias = Hello | Report | Saved | Ended | Problem


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a trial needs to know."""

    metric: str
    mode: str
    max_t: int | None
    """Resource of a full training; None: the script's own end is the trial's."""
    resource: str = "epoch"
    """Unit of resource: ``epoch`` or ``validation``."""
    from_resource: int = 0
    """Resource of the checkpoint to go on from, 0 to train from scratch."""
    checkpoint_path: str | None = None
    """Relative to the trial's folder."""
    checkpoint_sha256: str | None = None
    best: float | None = None
    """Best value of the study so far."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do after a report."""

    decision: str
    """``continue``, ``pause``, ``stop`` or ``complete``: ``max_t`` is reached, go on to the end by yourself."""
    reason: str = ""


# ------------------------------------------------------------------------------------ JSON both ways


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _dumps(data: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as problem:
        raise ChannelError(f"A message cannot be written as JSON: {problem}. Send numbers and texts only.") from problem


def encode(message: Message) -> bytes:
    """The message as JSON text.

    Raises:
        ChannelError: if it holds something that JSON cannot hold.
    """
    data: dict[str, Any] = {"trial_id": message.trial_id, "attempt": message.attempt}
    match message:
        case Hello():
            data |= {"type": "hello", "pid": message.pid, "max_epochs": message.max_epochs}
        case Report():
            data |= {
                "type": "report",
                "resource": message.resource,
                "value": _number(message.value),
                "metrics": {name: _number(value) for name, value in message.metrics.items()},
                "cost": message.cost,
            }
        case Saved(checkpoint=checkpoint):
            data |= {
                "type": "checkpoint",
                "resource": checkpoint.resource,
                "path": checkpoint.path,
                "sha256": checkpoint.sha256,
                "size": checkpoint.size,
            }
        case Ended():
            data |= {
                "type": "ended",
                "outcome": message.outcome.value,
                "error": _cut(message.error),
                "traceback": _cut(message.traceback),
                "result": message.result,
            }
        case Problem():
            data |= {"type": "problem", "kind": message.kind, "message": _cut(message.message)}
    return _dumps(data)


_TERMINAL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_NOT_FOR_PEOPLE = re.compile(r"[^\t\n -~\u00a0-\ud7ff\ue000-\U0010ffff]")


def legible(text: str) -> str:
    """The text without what would steer a terminal (ECMA-48) or cannot be written as UTF-8."""
    return _NOT_FOR_PEOPLE.sub("\ufffd", _TERMINAL_SEQUENCE.sub("", text))


def _cut(text: str | None) -> str | None:
    """The end of a text tells most: a traceback's last lines."""
    return text if text is None or len(text) <= MAX_TEXT else "[...] " + text[-MAX_TEXT:]


def decode(payload: bytes) -> Message:
    """The message of a JSON text.

    Raises:
        ChannelError: if the text is not one of the messages above, to the letter.
    """
    try:
        data = json.loads(payload)
        return _DECODERS[data["type"]](data, _natural(data, "trial_id", 0), _natural(data, "attempt", 1))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as problem:
        raise ChannelError(
            f"A trial sent a malformed message: {payload[:80]!r} ({type(problem).__name__}: {problem}). "
            "Let trials use HPOCallback only, with the same version of lightning_hpo as the launcher."
        ) from problem


def _natural(data: Mapping[str, Any], name: str, at_least: int) -> int:
    value = data[name]
    if type(value) is not int or not at_least <= value <= MAX_INTEGER:
        raise ValueError(f"{name} must be an integer from {at_least} to {MAX_INTEGER}")
    return value


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data[name]
    if type(value) is not str:
        raise ValueError(f"{name} must be a text")
    return value


def _legible_text(data: Mapping[str, Any], name: str) -> str:
    return legible(_text(data, name))


def _optional_text(data: Mapping[str, Any], name: str) -> str | None:
    return None if data.get(name) is None else _legible_text(data, name)


def _real(value: Any) -> float:
    if type(value) is float or (type(value) is int):
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"{str(value)[:40]!r} is not a number")


def _decode_hello(data: dict[str, Any], trial_id: int, attempt: int) -> Hello:
    max_epochs = None if data["max_epochs"] is None else _natural(data, "max_epochs", -1)
    return Hello(trial_id, attempt, _natural(data, "pid", 1), max_epochs)


def _decode_report(data: dict[str, Any], trial_id: int, attempt: int) -> Report:
    cost = data["cost"]
    if cost is not None:
        cost = _real(cost)
        if not cost >= 0.0:
            raise ValueError("cost must not be negative")
    metrics = {legible(name): _real(value) for name, value in data["metrics"].items()}
    return Report(trial_id, attempt, _natural(data, "resource", 1), _real(data["value"]), metrics, cost)


def _decode_saved(data: dict[str, Any], trial_id: int, attempt: int) -> Saved:
    path, sha256 = _text(data, "path"), _text(data, "sha256")
    parts = PurePosixPath(path).parts
    if not parts or len(path) > MAX_PATH or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError("path must lie inside the trial's folder")
    if not path.isprintable():
        raise ValueError("path must be printable")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError("sha256 must have 64 hexadecimal digits")
    checkpoint = Checkpoint(_natural(data, "resource", 1), path, sha256, _natural(data, "size", 1))
    return Saved(trial_id, attempt, checkpoint)


def _decode_ended(data: dict[str, Any], trial_id: int, attempt: int) -> Ended:
    error, traceback = _optional_text(data, "error"), _optional_text(data, "traceback")
    return Ended(trial_id, attempt, Outcome(_text(data, "outcome")), error, traceback, data.get("result"))


def _decode_problem(data: dict[str, Any], trial_id: int, attempt: int) -> Problem:
    return Problem(trial_id, attempt, _legible_text(data, "kind"), _legible_text(data, "message"))


_DECODERS: dict[str, Callable[[dict[str, Any], int, int], Message]] = {
    "hello": _decode_hello,
    "report": _decode_report,
    "checkpoint": _decode_saved,
    "ended": _decode_ended,
    "problem": _decode_problem,
}


def encode_reply(reply: Welcome | Answer) -> bytes:
    """The launcher's answer as JSON text."""
    if isinstance(reply, Answer):
        return _dumps({"type": "decision", "decision": reply.decision, "reason": reply.reason})
    checkpoint = None
    if reply.checkpoint_path is not None:
        checkpoint = {"path": reply.checkpoint_path, "sha256": reply.checkpoint_sha256}
    return _dumps(
        {
            "type": "welcome",
            "metric": reply.metric,
            "mode": reply.mode,
            "max_t": reply.max_t,
            "resource": reply.resource,
            "from_resource": reply.from_resource,
            "checkpoint": checkpoint,
            "best": None if reply.best is None else _number(reply.best),
        }
    )


def decode_reply(payload: bytes) -> Welcome | Answer:
    """The launcher's answer of a JSON text.

    Raises:
        ChannelError: if the text is not an answer.
    """
    try:
        data = json.loads(payload)
        if data["type"] == "decision":
            if data["decision"] not in _DECISIONS:
                raise ValueError(f"unknown decision {data['decision']!r}")
            return Answer(data["decision"], _text(data, "reason"))
        if data["type"] != "welcome" or data["resource"] not in ("epoch", "validation"):
            raise ValueError(f"unknown answer {data['type']!r}")
        checkpoint = data["checkpoint"]
        return Welcome(
            metric=_text(data, "metric"),
            mode=_text(data, "mode"),
            max_t=None if data["max_t"] is None else _natural(data, "max_t", 1),
            resource=data["resource"],
            from_resource=_natural(data, "from_resource", 0),
            checkpoint_path=None if checkpoint is None else _text(checkpoint, "path"),
            checkpoint_sha256=None if checkpoint is None else _text(checkpoint, "sha256"),
            best=None if data["best"] is None else _real(data["best"]),
        )
    except (ValueError, TypeError, KeyError) as problem:
        raise ChannelError(
            f"The launcher sent a malformed answer: {payload[:80]!r} ({problem}). "
            "Use the same version of lightning_hpo in the launcher and in the trials."
        ) from problem
