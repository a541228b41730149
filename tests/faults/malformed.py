"""Messages that no trial would send: malformed ones of many kinds, and well-formed ones that are wrong."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.messages import Ended, Hello, Message, Problem, Report, Saved, decode, encode
from lightning_hpo.runtime.wire import MAX_MESSAGE_BYTES, frame


def random_bytes(rng: random.Random, message: Message) -> bytes:
    return frame(rng.randbytes(rng.choice([1, 7, 100, 5000])))


def impossible_length(rng: random.Random, message: Message) -> bytes:
    length = rng.choice([0, MAX_MESSAGE_BYTES + 1, 2**31 - 1, 2**31, 2**32 - 1])
    return struct.pack("!I", length) + rng.randbytes(rng.choice([0, 10, 1000]))


def truncated_frame(rng: random.Random, message: Message) -> bytes:
    whole = frame(encode(message))
    return whole[: rng.randrange(len(whole))]


def truncated_text(rng: random.Random, message: Message) -> bytes:
    whole = encode(message)
    return frame(whole[: rng.randrange(1, len(whole))])


def flipped_bytes(rng: random.Random, message: Message) -> bytes:
    data = bytearray(encode(message))
    for _ in range(rng.choice([1, 2, 10])):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return frame(bytes(data))


def deep_nesting(rng: random.Random, message: Message) -> bytes:
    depth = rng.choice([50, 900, 5000, 100_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opening * depth + b"1" + closing * depth
    return frame(b'{"type":"ended","trial_id":1,"attempt":1,"outcome":"completed","result":' + inner + b"}")


def odd_number(rng: random.Random, message: Message) -> bytes:
    number = rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"1" * 400, b"9" * 5000, b"0x10", b"1.5"])
    field = rng.choice([b'"resource":', b'"trial_id":', b'"attempt":', b'"value":'])
    before, found, after = encode(message).partition(field)
    rest = after[after.find(b",") :] if b"," in after else b"}"
    return frame(before + found + number + rest if found else b"{" + field + number + b"}")


_ODD_VALUES: list[Any] = [
    None, True, 1.5, -1, 2**53, 10**400, "", "nan", "x" * 5000, "\ud800", "\0", [], {}, [[]], {"a": {}}, "../../x",
]  # fmt: skip


def wrong_type(rng: random.Random, message: Message) -> bytes:
    data = json.loads(encode(message))
    data[rng.choice(sorted(data))] = rng.choice(_ODD_VALUES)
    return frame(json.dumps(data).encode())


def missing_field(rng: random.Random, message: Message) -> bytes:
    data = json.loads(encode(message))
    del data[rng.choice(sorted(data))]
    return frame(json.dumps(data).encode())


def no_object(rng: random.Random, message: Message) -> bytes:
    return frame(
        rng.choice([b"null", b"3", b'"text"', b"[1,2]", b"\xef\xbb\xbf{}", b"{}{}", b"", b" ", b"\xff\xfe{\0}\0"])
    )


def pickled(rng: random.Random, message: Message) -> bytes:
    return frame(b"cposix\nsystem\n(S'touch executed'\ntR.")


MALFORMED: dict[str, Callable[[random.Random, Message], bytes]] = {
    function.__name__: function
    for function in (
        random_bytes, impossible_length, truncated_frame, truncated_text, flipped_bytes, deep_nesting, odd_number,
        wrong_type, missing_field, no_object, pickled,
    )
}  # fmt: skip
"""Name -> what makes the bytes of one malformed message, out of a well-formed one."""


def some_message(rng: random.Random, trial_id: int, attempt: int) -> Message:
    """Well-formed; not what a trial would say."""
    resource = rng.choice([1, 2, 3, rng.randrange(1, 100), 2**53 - 1])
    metrics = {"\x1b[2J": 1.0, "x" * 1000: rng.random()}
    value = rng.choice([0.5, float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 5e-324])
    path = rng.choice(["checkpoints/resource-3.ckpt", "trial.log", "no/such/file", "a" * 500, "checkpoints"])
    kind = rng.choice(["MetricMissing", "CheckpointError", "did_you_mean", "TrialPaused", "\ud800", ""])
    return rng.choice(
        [
            Hello(trial_id, attempt, rng.choice([1, 2**40]), rng.choice([None, -1, 0, 2**53 - 1])),
            Report(trial_id, attempt, resource, value, metrics, rng.choice([None, 0.0, 1e300])),
            Saved(trial_id, attempt, Checkpoint(resource, path, "0" * 64, rng.choice([1, 2**53 - 1]))),
            Ended(trial_id, attempt, rng.choice(list(Outcome)), rng.choice([None, "", "x" * 90_000, "\x1b[2J\ud800"])),
            Problem(trial_id, attempt, kind, rng.choice(["", "\x1b]0;x\x07", "x" * 90_000])),
        ]
    )


def is_refused(data: bytes) -> bool:
    """Whether the launcher must hang up on these bytes, by what was promised of messages."""
    if len(data) < 4:
        return False
    (length,) = struct.unpack_from("!I", data)
    if not 0 < length <= MAX_MESSAGE_BYTES:
        return True
    if len(data) < 4 + length:
        return False
    try:
        decode(data[4 : 4 + length])
    except ChannelError:
        return True
    return False
