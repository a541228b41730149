"""Handshake and frames, as bytes."""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.runtime.wire import (
    GREETING_BYTES,
    MAX_MESSAGE_BYTES,
    RESPONSE_BYTES,
    LauncherHandshake,
    Refused,
    frame,
    read_exactly,
    read_frame,
    shake_hands,
)

KEY = b"k" * 32


def hands_shaken(launchers_key: bytes, trials_key: bytes) -> tuple[bytes, bytes, bool, bool]:
    """Greeting, response, and whether the launcher and the trial were content."""
    ours, theirs = socket.socketpair()
    content: list[bool] = []

    def trial() -> None:
        try:
            shake_hands(theirs, trials_key)
            content.append(True)
        except Refused:
            content.append(False)

    thread = threading.Thread(target=trial)
    thread.start()
    handshake = LauncherHandshake(launchers_key)
    ours.sendall(handshake.greeting)
    response = read_exactly(ours, RESPONSE_BYTES)
    try:
        ours.sendall(handshake.proof(response))
        launcher_content = True
    except Refused:
        launcher_content = False
    ours.close()
    thread.join()
    theirs.close()
    return handshake.greeting, response, launcher_content, content[0]


def test_both_ends_prove_that_they_know_the_key() -> None:
    greeting, response, launcher, trial = hands_shaken(KEY, KEY)
    assert launcher and trial
    assert len(greeting) == GREETING_BYTES and greeting.startswith(b"lightning-hpo 1\n")
    # The proof, by the definition of HMAC-SHA256 over protocol, role and both challenges.
    challenge = greeting[-32:]
    text = b"lightning-hpo 1\n" + b"trial" + challenge + response[:32]
    assert response[32:] == hmac.new(KEY, text, hashlib.sha256).digest()


def test_neither_end_is_content_with_another_key() -> None:
    _, _, launcher, trial = hands_shaken(KEY, b"another key")
    assert not launcher and not trial


def test_no_two_handshakes_are_alike_and_the_key_is_in_none() -> None:
    said = [hands_shaken(KEY, KEY)[:2] for _ in range(3)]
    assert len({part for parts in said for part in parts}) == 6
    assert not any(KEY in part for parts in said for part in parts)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(100), b"lightning-hpo 2\n" + bytes(32), b"x"])
def test_a_trial_turns_away_from_what_is_no_launcher_of_its_version(greeting: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(greeting)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(Refused):
        shake_hands(theirs, KEY)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):  # it has said nothing
        ours.recv(1)
    ours.close()
    theirs.close()


@given(st.binary(min_size=1, max_size=1000))
def test_a_message_is_read_as_it_was_framed(payload: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(frame(payload) + b"next")
    assert read_frame(theirs) == payload
    assert theirs.recv(100) == b"next"
    ours.close()
    theirs.close()


def test_frames_are_length_as_four_bytes_and_text() -> None:
    assert frame(b"{}") == b"\x00\x00\x00\x02{}"


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_a_trial_believes_no_impossible_length(length: int) -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(length.to_bytes(4, "big"))
    with pytest.raises(OSError, match=f"{length} bytes"):
        read_frame(theirs)
    ours.close()
    theirs.close()


def test_an_end_inside_a_message_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(frame(b"whole")[:-1])
    ours.close()
    with pytest.raises(EOFError):
        read_frame(theirs)
    theirs.close()
