from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightning_hpo
from lightning_hpo.errors import OptionError
from lightning_hpo.runtime import failpoints
from lightning_hpo.runtime.failpoints import NAMES, failpoint, parse

PACKAGE = Path(lightning_hpo.__file__).parent


@pytest.fixture
def arm(monkeypatch):
    def arm(text: str, folder: Path | None = None) -> None:
        monkeypatch.setattr(failpoints, "_armed", parse(text, folder))

    return arm


def test_every_call_is_listed_and_every_name_is_called_once():
    called = []
    for file in PACKAGE.rglob("*.py"):
        called += re.findall(r"^\s+failpoint\(\"([a-z_.]+)\"\)$", file.read_text(), re.MULTILINE)
    assert sorted(called) == sorted(NAMES)


def test_nothing_happens_unless_the_variable_is_set():
    assert failpoints._armed is None
    failpoint("journal.committed")


def test_a_failpoint_that_is_off_costs_less_than_a_microsecond():
    begun = time.process_time()
    for _ in range(100_000):
        failpoint("journal.committed")
    assert time.process_time() - begun < 0.1


class TestActions:
    def test_raise_is_an_error_of_the_system(self, arm):
        arm("journal.committed=raise:ENOSPC")
        with pytest.raises(OSError, match=r"failpoint journal\.committed") as caught:
            failpoint("journal.committed")
        assert caught.value.errno == errno.ENOSPC
        failpoint("journal.before_commit")

    def test_only_the_nth_hit_acts(self, arm):
        arm("checkpoint.renamed=raise@3")
        outcomes = []
        for _ in range(5):
            try:
                failpoint("checkpoint.renamed")
                outcomes.append("passed")
            except OSError:
                outcomes.append("raised")
        assert outcomes == ["passed", "passed", "raised", "passed", "passed"]

    def test_sleep_takes_its_time(self, arm):
        arm("checkpoint.renamed=sleep:0.05")
        begun = time.perf_counter()
        failpoint("checkpoint.renamed")
        assert time.perf_counter() - begun >= 0.05

    @pytest.mark.parametrize(("action", "code"), [("exit", 137), ("exit:3", 3)])
    def test_exit_ends_the_process_without_a_word(self, action, code):
        program = (
            "import atexit; from lightning_hpo.runtime.failpoints import failpoint\n"
            "atexit.register(print, 'exit handlers ran')\n"
            "try: failpoint('channel.sent')\n"
            "finally: print('finally ran')"
        )
        environment = {**os.environ, failpoints.VARIABLE: f"channel.sent={action}"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")

    def test_a_star_stands_for_all_that_are_not_listed(self, arm, tmp_path):
        arm("*=pass,channel.sent=raise", tmp_path)
        for _ in range(3):
            failpoint("channel.answered")
        with pytest.raises(OSError, match="failpoint"):
            failpoint("channel.sent")
        assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {
            "channel.answered": 3,
            "channel.sent": 1,
        }


def test_hits_of_all_processes_are_counted_together(arm, tmp_path):
    """So a worker that is started again is not killed again."""
    arm("channel.sent=exit@3", tmp_path)
    codes = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            failpoint("channel.sent")
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert codes == [0, 0, 137, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("journal.comitted=exit", "Did you mean 'journal.committed'?"),
        ("journal.committed", "name=action"),
        ("journal.committed=explode", "exit, raise, sleep, pass"),
        ("journal.committed=exit@0", "name=action@n"),
        ("journal.committed=raise:ENOTHING", "ENOSPC"),
        ("journal.committed=sleep:long", "seconds to sleep"),
        ("journal.committed=exit:1.5", "exit code"),
    ],
)
def test_a_mistake_is_refused_with_the_fix(text, message):
    with pytest.raises(OptionError) as caught:
        parse(text)
    assert message in str(caught.value)
