"""Signals interrupt a run, wake its loop and become urgent when they are repeated or time is over."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from lightning_hpo.runtime.interrupts import TERM_LIMIT_S, Interrupts


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def interrupts(clock: Clock) -> Iterator[Interrupts]:
    made = Interrupts(clock)
    yield made
    made.close()


def is_awake(interrupts: Interrupts) -> bool:
    return bool(select.select([interrupts.waitable], [], [], 0)[0])


def test_an_interruption_wakes_the_loop_once(interrupts: Interrupts) -> None:
    assert not is_awake(interrupts)
    interrupts.interrupt()
    assert is_awake(interrupts)
    interrupts.drain()
    assert not is_awake(interrupts)


def test_the_second_one_is_urgent(interrupts: Interrupts) -> None:
    interrupts.interrupt()
    assert not interrupts.is_urgent
    interrupts.interrupt()
    assert interrupts.is_urgent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_is_urgent_when_its_time_is_over_and_is_named(
    interrupts: Interrupts, clock: Clock, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    after_the_run = Interrupts(clock)
    with after_the_run.listening(), interrupts.listening():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert (interrupts.count, interrupts.by, after_the_run.count) == (1, number, 0)
    after_the_run.close()
    clock.now += TERM_LIMIT_S
    assert not interrupts.is_urgent
    clock.now += 0.1
    assert interrupts.is_urgent


def test_a_signal_that_the_script_uses_itself_is_left_to_it(interrupts: Interrupts) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with interrupts.listening():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] and interrupts.count == 0


def test_what_no_trial_can_bring_about_is_not_waited_for_longer_after_ctrl_c(
    interrupts: Interrupts, clock: Clock
) -> None:
    assert interrupts.left(since=0.0) == math.inf
    clock.now += 1000.0
    interrupts.interrupt()
    assert interrupts.left(since=0.0) == TERM_LIMIT_S, "who waited long before has time all the same"
    clock.now += 10.0
    assert interrupts.left(since=clock.now) == TERM_LIMIT_S
    assert interrupts.left(since=0.0) == TERM_LIMIT_S - 10.0
    clock.now += TERM_LIMIT_S
    assert interrupts.left(since=0.0) == 0.0 and not interrupts.is_urgent
    interrupts.interrupt()
    assert interrupts.left(since=clock.now) == 0.0


def test_under_nohup_a_closed_terminal_interrupts_nothing(interrupts: Interrupts) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.count == 0
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (interrupts.count, interrupts.by) == (1, signal.SIGTERM)


def test_ctrl_c_is_heard_without_an_exception(interrupts: Interrupts) -> None:
    with interrupts.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert (interrupts.count, interrupts.by, interrupts.is_urgent) == (1, signal.SIGINT, False)


def test_in_another_thread_signals_are_left_to_whoever_owns_them(interrupts: Interrupts) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def listen() -> None:
        with interrupts.listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_storm_of_signals_does_not_block(interrupts: Interrupts) -> None:
    for _ in range(100_000):  # more than a pipe holds
        interrupts.interrupt()
    assert interrupts.count == 100_000
