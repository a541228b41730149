"""What is shown never holds whoever shows it, and reaches whoever reads."""

from __future__ import annotations

import io
import os
import pty
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from lightning_hpo.report import screen
from lightning_hpo.report.screen import PatientStream, patient, show


@pytest.fixture(params=["pipe", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, TextIO]]:
    """Where it is read, and where it is written."""
    reads, writes = os.pipe() if request.param == "pipe" else pty.openpty()
    with open(writes, "w", encoding="utf-8") as stream:
        yield reads, stream
    os.close(reads)


def heard(reads: int) -> str:
    """What can be read now."""
    os.set_blocking(reads, False)
    found = b""
    try:
        while chunk := os.read(reads, 1 << 16):
            found += chunk
    except (BlockingIOError, OSError):
        pass
    return found.decode().replace("\r\n", "\n")


@pytest.mark.timeout(30)
def test_nobody_is_waited_for_and_the_rest_comes_when_somebody_reads(ends: tuple[int, TextIO]) -> None:
    reads, stream = ends
    target = patient(stream)
    assert isinstance(target, PatientStream) and target.encoding == "utf-8"
    lines = [f"line {number} \u2713\n" for number in range(20_000)]  # more than a pipe or a terminal holds
    for line in lines:
        target.write(line)
    text = heard(reads)
    assert text and len(text) < len("".join(lines)), "the pipe has taken everything: this test shows nothing"
    while len(text) < len("".join(lines)):
        target.flush()
        text += heard(reads)
    assert text == "".join(lines)
    target.close()
    stream.write("the stream itself is still open\n")
    stream.flush()
    assert heard(reads) == "the stream itself is still open\n"


@pytest.mark.timeout(30)
def test_nothing_is_kept_without_bound(ends: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_LAST_S", 0.1)
    target = patient(ends[1])
    assert isinstance(target, PatientStream)
    for _ in range(3000):
        target.write("x" * 1000)
    assert len(target._unwritten) < screen._MOST_UNWRITTEN_BYTES + 2000
    begun = time.monotonic()
    target.close()
    assert time.monotonic() - begun < 2.0


def test_a_reader_that_has_gone_is_told_to_who_writes_and_not_to_who_has_the_last_word() -> None:
    reads, writes = os.pipe()
    with open(writes, "w") as stream:
        target = patient(stream)
        os.close(reads)
        with pytest.raises(BrokenPipeError):
            target.write("anybody?")
        target.close()
        show("the last word", stream)


def test_a_file_is_written_as_ever(tmp_path: Path) -> None:
    """Its position is that of all who write to it."""
    with open(tmp_path / "log", "w") as stream:
        stream.write("before\n")
        assert patient(stream) is stream
        show("shown", stream)
        stream.write("after\n")
    assert (tmp_path / "log").read_text() == "before\nshown\nafter\n"


def test_so_is_what_is_no_file_at_all() -> None:
    stream = io.StringIO()
    assert patient(stream) is stream
    show("shown", stream)
    assert stream.getvalue() == "shown\n"


def test_a_program_that_has_no_standard_output_tells_nobody(tmp_path: Path) -> None:
    show("shown", None)
    with open(tmp_path / "log", "w") as stream:
        pass
    show("shown", stream)
