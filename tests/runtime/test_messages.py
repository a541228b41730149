"""Messages: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.messages import (
    MAX_INTEGER,
    Answer,
    Ended,
    Hello,
    Message,
    Problem,
    Report,
    Saved,
    decode,
    decode_reply,
    encode,
    encode_reply,
    legible,
)

floats = st.floats(allow_nan=False)
names = st.text(max_size=20).map(legible)
identity = {"trial_id": st.integers(0, 10**6), "attempt": st.integers(1, 100)}
checkpoints = st.builds(
    Checkpoint,
    st.integers(1, 10**6),
    st.just("checkpoints/resource-3.ckpt"),
    st.just("0a" * 32),
    st.integers(1, MAX_INTEGER),
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


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a\0b", "a\\b", "a\nb", "a\ud800b"])
def test_a_checkpoint_outside_the_trial_folder_is_refused(path: str) -> None:
    with pytest.raises(ChannelError):
        decode(encode(Saved(1, 1, Checkpoint(3, path, "0a" * 32, 5))))


@pytest.mark.parametrize("payload", [b'{"type":"report"', b"[" * 5000, b"\xff\xfe", b"null", b"3", b'{"type":["x"]}'])
def test_broken_json_is_refused(payload: bytes) -> None:
    with pytest.raises(ChannelError, match=r"\.$"):
        decode(payload)


def test_the_end_of_a_long_traceback_is_kept() -> None:
    message = decode(encode(Ended(1, 1, Outcome.FAILED, "boom", "a" * 3_000_000 + "last line")))
    assert isinstance(message, Ended)
    assert message.traceback is not None and message.traceback.endswith("last line")
    assert len(message.traceback) < 200_000


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("\x1b[1;31mValueError\x1b[0m: no", "ValueError: no"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b]0;new title\x07", "\ufffd]0;new title\ufffd"),
        ("\x9b2J\r\x00", "\ufffd2J\ufffd\ufffd"),
        ("half a character: \ud83d", "half a character: \ufffd"),
        ("käse 漢字 🎉", "käse 漢字 🎉"),
    ],
)
def test_what_people_read_cannot_steer_their_terminal(sent: str, read: str) -> None:
    problem = decode(encode(Problem(1, 1, "MetricMissing", sent)))
    ended = decode(encode(Ended(1, 1, Outcome.FAILED, sent, sent)))
    report = decode(encode(Report(1, 1, 1, 0.5, {sent: 1.0})))
    assert isinstance(problem, Problem) and isinstance(ended, Ended) and isinstance(report, Report)
    assert [problem.message, ended.error, ended.traceback, *report.metrics] == [read] * 4


@pytest.mark.parametrize("field", ["trial_id", "attempt", "resource"])
def test_integers_that_other_programs_could_not_read_are_refused(field: str) -> None:
    fields = json.loads(encode(Report(1, 1, 1, 0.5)))
    assert decode(json.dumps(fields | {field: MAX_INTEGER}).encode())
    for value in (MAX_INTEGER + 1, 10**400, 1.0, True, "1", None):
        with pytest.raises(ChannelError):
            decode(json.dumps(fields | {field: value}).encode())
