"""Whatever bytes arrive, the launcher goes on, answers the others in time, and keeps nothing of it."""

from __future__ import annotations

import random
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.channel_server import ClientConnection
from lightning_hpo.runtime.messages import Message, Report, encode
from lightning_hpo.runtime.wire import frame
from tests.faults.hostile import Fuzzed, fuzz
from tests.faults.malformed import MALFORMED, is_refused, some_message

GOOD = frame(encode(Report(1, 1, 1, 0.5)))


def heard(pieces: list[bytes]) -> tuple[list[Message], bool]:
    """What the launcher takes from a client that sends these pieces, and whether it hangs up on it."""
    ours, theirs = socket.socketpair()
    client = ClientConnection(ours)
    messages: list[Message] = []
    try:
        for piece in pieces:
            theirs.sendall(piece)
            messages += client.receive()
        theirs.shutdown(socket.SHUT_WR)
        while not client.closed:
            messages += client.receive()
        return messages, False
    except ChannelError as problem:
        assert str(problem).endswith(".") and client.closed
        return messages, True
    except BrokenPipeError:  # it has hung up before the next piece
        with pytest.raises(ChannelError):
            client.receive()
        return messages, True
    finally:
        theirs.close()
        client.close()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


@settings(max_examples=500)
@given(st.sampled_from(sorted(MALFORMED)), st.integers(0, 10**9), st.lists(st.integers(0, 10**6), max_size=4))
def test_a_malformed_message_is_refused_however_it_is_cut(name: str, seed: int, places: list[int]) -> None:
    rng = random.Random(seed)
    data = MALFORMED[name](rng, some_message(rng, 1, 1))[:60_000]
    messages, is_dropped = heard(cut(data, places))
    assert is_dropped == is_refused(data)
    # As text, because NaN is not equal to itself.
    assert str((messages, is_dropped)) == str(heard([data])), "it depends on how the bytes were cut"


@settings(max_examples=300)
@given(st.binary(max_size=300), st.lists(st.integers(0, 10**6), max_size=4))
def test_good_messages_before_nonsense_are_heard(nonsense: bytes, places: list[int]) -> None:
    messages, _ = heard(cut(GOOD * 2 + nonsense, places))
    assert [str(m) for m in messages[:2]] == [str(Report(1, 1, 1, 0.5))] * 2


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    return fuzz(tmp_path_factory.mktemp("study"), messages=3000, at_once=30, loiterers=60)


def test_every_malformed_message_is_refused(fuzzed: Fuzzed) -> None:
    assert fuzzed.attacks["messages"] >= 3000
    assert fuzzed.attacks["refused"] > 1000
    assert not [name for name in fuzzed.attacks if name.startswith("NOT REFUSED")]
    assert all(fuzzed.attacks[name] > 20 for name in MALFORMED)
    assert fuzzed.warnings["A client was dropped"] >= fuzzed.attacks["refused"]


def test_the_study_among_enemies_ends_like_any_other(fuzzed: Fuzzed) -> None:
    assert fuzzed.result.problem is None and fuzzed.result.reason == "all 2 trials are done"
    trial = fuzzed.state.trials[0]
    assert trial.status is TrialStatus.COMPLETED
    assert trial.curve == {r: 1.0 / r for r in range(1, len(trial.curve) + 1)}, "somebody else has reported for it"
    assert fuzzed.replayed, "the journal tells another story"


def test_a_well_behaved_trial_is_answered_in_time(fuzzed: Fuzzed) -> None:
    """Without enemies it is some milliseconds. A loaded machine may stand still now and then, but not all the time."""
    assert len(fuzzed.under_attack_s) > 20
    assert fuzzed.under_attack_s[len(fuzzed.under_attack_s) * 9 // 10] < 2.0
    assert fuzzed.under_attack_s[-1] < 30.0


def test_nothing_is_kept_of_an_attack(fuzzed: Fuzzed) -> None:
    assert fuzzed.files_after == fuzzed.files_before
    assert fuzzed.most_bytes - fuzzed.bytes_before < 100 << 20


def test_nothing_was_executed(fuzzed: Fuzzed) -> None:
    """One kind of malformed message is a pickle that would make a file."""
    assert fuzzed.attacks["pickled"] > 20
    assert not (Path(__file__).parents[2] / "executed").exists() and not Path("executed").exists()
