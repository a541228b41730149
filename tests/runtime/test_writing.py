"""Commits wait for a disk that is full, and an interrupted run does not wait for ever."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_hpo.core.events import Event, WorkerReady
from lightning_hpo.errors import StudyError, StudyNotFound
from lightning_hpo.runtime import writing
from lightning_hpo.runtime.interrupts import TERM_LIMIT_S, Interrupts
from lightning_hpo.runtime.writing import GivenUp, Writer

EVENTS = [WorkerReady(1.0)]


class Disk:
    """A journal on a disk that has room when the test says so; time passes only while somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.has_room_at = float("inf")
        self.written: list[Event] = []
        self.said: list[tuple[str, bool]] = []
        self.at: list[tuple[float, Callable[[], None]]] = []
        self.interrupts = Interrupts(lambda: self.now)
        self.writer = Writer(self, self.interrupts, lambda *said: self.said.append(said), lambda: self.now)
        monkeypatch.setattr(writing, "wait", self._wait)

    def append(self, events: Sequence[Event]) -> None:
        if self.now < self.has_room_at:
            raise StudyError("The study cannot be written: disk full. Make room on the disk.")
        self.written += events

    def _wait(self, waitables: Any, timeout: float) -> None:
        until = self.now + timeout
        for entry in [e for e in self.at if e[0] <= until]:
            self.at.remove(entry)
            self.now = entry[0]
            entry[1]()
            return  # woken
        self.now = until


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Disk(monkeypatch)
    yield made
    made.interrupts.close()


def test_a_commit_waits_until_there_is_room(disk: Disk) -> None:
    disk.has_room_at = 5000.0
    disk.writer.append(EVENTS)
    assert disk.written == EVENTS and 5000.0 <= disk.now < 5003.0
    assert disk.said == [
        ("The study waits: The study cannot be written: disk full. Make room on the disk.", True),
        ("The study can be written again and goes on.", False),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_is_answered_at_once_and_ends_the_wait_in_time(disk: Disk, number: signal.Signals) -> None:
    limit = {} if number is signal.SIGINT else {"limit_s": TERM_LIMIT_S}
    answered: list[float] = []
    disk.at = [(150.0, lambda: disk.interrupts.interrupt(by=number, **limit))]
    say = disk.writer._say
    disk.writer._say = lambda *said: (answered.append(disk.now), say(*said))[0]
    with pytest.raises(GivenUp, match="disk full"):
        disk.writer.append(EVENTS)
    assert answered == [100.0, 150.0]
    assert disk.said[1][0].startswith("Interrupted, but the study cannot be written. It tries for 30 s more")
    assert disk.now == pytest.approx(150.0 + TERM_LIMIT_S)


def test_two_end_it_at_once(disk: Disk) -> None:
    disk.at = [(150.0, disk.interrupts.interrupt), (153.0, disk.interrupts.interrupt)]
    with pytest.raises(GivenUp):
        disk.writer.append(EVENTS)
    assert disk.now == 153.0


def test_room_that_comes_in_time_is_used(disk: Disk) -> None:
    disk.at = [(150.0, disk.interrupts.interrupt)]
    disk.has_room_at = 150.0 + TERM_LIMIT_S - 1.0
    disk.writer.append(EVENTS)
    assert disk.written == EVENTS


def test_trials_that_train_on_after_ctrl_c_do_not_use_up_the_time_for_the_disk(disk: Disk) -> None:
    disk.interrupts.interrupt()
    disk.now += 3600.0
    disk.has_room_at = disk.now + TERM_LIMIT_S - 1.0
    disk.writer.append(EVENTS)
    assert disk.written == EVENTS


def test_nobody_waits_for_a_study_that_was_deleted(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(events: Sequence[Event]) -> None:
        raise StudyNotFound("The study is gone. Put it back.")

    monkeypatch.setattr(disk, "append", append)
    with pytest.raises(StudyNotFound):
        disk.writer.append(EVENTS)
    assert disk.said == []


def test_what_is_not_of_the_journal_is_not_waited_for(disk: Disk) -> None:
    def fail(events: Sequence[Event]) -> None:
        raise ZeroDivisionError

    disk.append = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        disk.writer.append(EVENTS)
