from __future__ import annotations

import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core import events
from lightning_hpo.core.events import Event, Reported, StudyContinued, Suggested, WorkerReady, from_json, to_json
from lightning_hpo.errors import StudyCorrupt

TEXT = st.text(max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(dict, lambda t: st.dictionaries(TEXT, st.floats() if "float" in str(t) else JSON, max_size=3))
EVENTS = st.one_of([st.from_type(cls) for cls in typing.get_args(Event)])


@given(EVENTS)
def test_every_event_survives_being_written_as_json(event):
    text = json.dumps(to_json(event), allow_nan=False)
    assert repr(from_json(json.loads(text))) == repr(event)  # NaN is not equal to itself


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_travel_as_text(value):
    event = Reported(1.0, 0, 1, 1, value, {"other": value}, value)
    data = to_json(event)
    assert data["value"] == data["cost"] == data["metrics"]["other"] == str(value)
    assert repr(from_json(data)) == repr(event)


def test_what_has_its_default_is_left_out():
    assert to_json(WorkerReady(2.5)) == {"event": "WorkerReady", "time": 2.5}
    assert to_json(StudyContinued(1.0)) == {"event": "StudyContinued", "time": 1.0}


def test_fields_of_a_newer_version_are_passed_over():
    assert from_json({"event": "WorkerReady", "time": 1.0, "mood": "good"}) == WorkerReady(1.0)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"event": "Nonsense", "time": 1.0},
        {"event": "WorkerReady"},
        {"event": "AttemptEnded", "time": 1.0, "trial_id": 0, "attempt": 1, "outcome": "vanished"},
        {"event": "Suggested", "time": 1.0, "trial_id": 0, "origin": "model", "reason": "", "limits": [[0, 1]]},
        {"event": "Suggested", "time": 1.0, "trial_id": 0, "origin": "model", "reason": "", "limits": 3},
        {"event": "AttemptEnded", "time": 1.0, "trial_id": 0, "attempt": 1, "outcome": "lost", "error": 3},
        {"event": "AttemptStarted", "time": 1.0, "trial_id": [0], "attempt": 1},
        {"event": "AttemptStarted", "time": 1.0, "trial_id": 0, "attempt": 1, "folder": ["0"]},
        {"event": "Reported", "time": 1.0, "trial_id": 0, "attempt": 1, "resource": 1, "value": "high"},
        {"event": "Reported", "time": 1.0, "trial_id": 0, "attempt": 1, "resource": 1, "value": 1, "metrics": [1]},
        {"event": "CheckpointSaved", "time": 1.0, "trial_id": 0, "attempt": 1, "checkpoint": {"path": "x"}},
    ],
)
def test_what_is_no_event_is_corrupt(data):
    with pytest.raises(StudyCorrupt, match=r"not an event of a study.*restore its backup\.$"):
        from_json(data)


def test_what_a_searcher_remembers_becomes_json_data():
    remembered = {"parameters": (1.0, 2.0), 3: math.nan}
    data = to_json(Suggested(0.0, 0, {"x": 1}, "model", "EI 0.03", searcher_state=remembered))
    assert data["searcher_state"] == {"parameters": [1.0, 2.0], "3": "nan"}


def test_every_class_of_the_union_can_be_read():
    assert {cls.__name__ for cls in typing.get_args(Event)} == set(events._EVENTS)
