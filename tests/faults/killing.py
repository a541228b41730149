"""Real studies and real SIGKILLs: of the launcher, of trials, of what trials start, in the middle of saving.

Used by ``tests/faults/test_kills.py`` with a tiny program and by ``benchmarks/chaos.py --kills`` with the recipe of the
handwritten digits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.core.events import AttemptEnded, AttemptStarted, Event, Reported, to_json
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.runtime import process_table
from lightning_hpo.runtime.failpoints import VARIABLE
from lightning_hpo.runtime.journal import Journal
from tests.faults.durable import stored_events, stored_state

MARK = "TEST_STUDY_MARK"
ENVIRONMENT = {VARIABLE: "checkpoint.written=sleep:0.15,checkpoint.renamed=sleep:0.1"}
"""Makes saving last long enough to be hit."""
KINDS = (
    "launcher",
    "launcher that starts",
    "launcher of a trial that saves",
    "trial",
    "trial that saves",
    "trial server",
    "loading process",
)
ORPHANS_S = 5.0
"""Promised time until everything of a killed launcher is gone."""
_PATIENCE_S = 120.0


class Launched(Protocol):
    """A launcher that runs, or ran."""

    pid: int

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""

    @property
    def output(self) -> str: ...


def leftovers(study: Path) -> list[str]:
    """Files that only a crash leaves behind."""
    ends = (".partial", ".tmp", ".new", "-journal")
    found = [f for f in study.rglob("*") if f.name.endswith(ends) or f.name.startswith(".write-test")]
    return sorted(str(f.relative_to(study)) for f in [*found, *study.glob(".channel")])


class KilledStudy:
    """One study that is killed and launched again until it has ended.

    Args:
        folder: the study folder.
        launch: starts the launcher; gets what continues a study (``hydra.launcher.study=...``), or nothing.
        mark: value of the environment variable :data:`MARK`, by which every process of the study is known.
        bystanders: processes with the mark that do not belong to the study.
        starting_s: a launcher that is killed while it starts lives so long, seconds.

    Attributes:
        kills: how often what was killed.
        orphans_s: after each kill of a launcher, seconds until everything was gone.
        noticed_s: after each kill of a trial, seconds until the journal says so.
        acknowledged: a file with lines of JSON ``[trial, resource]``: what trials were told is taken in.
    """

    def __init__(
        self,
        folder: Path,
        launch: Callable[[list[str]], Launched],
        mark: str,
        bystanders: tuple[int, ...] = (),
        starting_s: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.orphans_s: list[float] = []
        self.noticed_s: list[float] = []
        self.acknowledged: Path | None = None
        self._launch = launch
        self._mark = mark
        self._bystanders = bystanders
        self._starting_s = starting_s
        self._running: Launched | None = None
        self._seen: list[dict[str, Any]] = []

    # -- life

    def kill_until_it_ends(self, rng: random.Random, kinds: tuple[str, ...], pause_s: tuple[float, float]) -> None:
        """Kill now and then what ``kinds`` lists (each once, in this order), and see the study to its end."""
        left = list(kinds)
        self.ensure_launched()
        while left and self.running.poll() is None:
            time.sleep(rng.uniform(*pause_s))
            if self.kill(left[0], rng):
                left.pop(0)
        self.wait_for(lambda: self.running.poll() is not None, "the study ends")
        self.check_end()

    @property
    def running(self) -> Launched:
        assert self._running is not None
        return self._running

    def ensure_launched(self) -> None:
        if self._running is None or self._running.poll() is not None:
            self._running = self._launch(self._again)
            self.wait_for(lambda: self.trials() or self.running.poll() is not None, "the first trial runs")

    @property
    def _again(self) -> list[str]:
        """What continues the study."""
        return [f"hydra.launcher.study={self.folder}"] if Journal.exists(self.folder) else []

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill a process of this kind; False if there is none just now."""
        if "saves" in kind:
            saving = self._first_that_saves()
            if saving is None:
                return False
            trial_id, trial = saving
        else:
            trials = self.trials()
            if not trials:
                return False
            trial_id, trial = rng.choice(sorted(trials.items()))
        self.look()
        if "launcher" in kind:
            self._kill_launcher()
            if kind == "launcher that starts":
                self._running = self._launch(self._again)
                time.sleep(rng.uniform(*self._starting_s))
                self._kill_launcher()
            self.ensure_launched()
        elif kind == "trial server":
            server = _parent_of(trial)
            if server is None or not end_at_once(server):
                return False
        elif kind == "loading process":
            loading = [pid for pid, parent, _ in process_table.processes() if parent == trial]
            if not loading or not end_at_once(rng.choice(loading)):
                return False
        elif end_at_once(trial):
            self._wait_until_noticed(trial_id, trial)
        else:
            return False
        self.kills[kind] += 1
        return True

    def _kill_launcher(self) -> None:
        begun = time.monotonic()
        end_at_once(self.running.pid)
        self.wait_for(lambda: self.running.poll() is not None, "the launcher is gone")
        self.wait_for(lambda: not self.processes(), "its processes are gone", ORPHANS_S)
        self.orphans_s.append(time.monotonic() - begun)
        self.look()

    def _wait_until_noticed(self, trial_id: int, pid: int) -> None:
        begun = time.monotonic()
        self.wait_for(lambda: self.trials().get(trial_id) != pid, "the trial's end is in the journal")
        self.noticed_s.append(time.monotonic() - begun)

    def _first_that_saves(self) -> tuple[int, int] | None:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and self.running.poll() is None:
            saving = {int(f.parts[-3]) for f in self.folder.glob("*/checkpoints/.*.partial")}
            for trial_id, pid in self.trials().items() if saving else ():
                if trial_id in saving:
                    return trial_id, pid
            time.sleep(0.01)
        return None

    # -- looking

    def events(self) -> list[Event]:
        return stored_events(self.folder) if Journal.exists(self.folder) else []

    def state(self) -> StudyState:
        return stored_state(self.folder)

    def trials(self) -> dict[int, int]:
        """Trial -> process, of attempts that run according to the journal and to the system."""
        started: dict[int, int] = {}
        for event in self.events():
            if isinstance(event, AttemptStarted) and event.pid is not None:
                started[event.trial_id] = event.pid
            elif isinstance(event, AttemptEnded):
                started.pop(event.trial_id, None)
        return {trial_id: pid for trial_id, pid in started.items() if _has_mark(pid, self._mark)}

    def processes(self) -> list[int]:
        """Every living process of the study."""
        pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
        return [pid for pid in pids if pid not in self._bystanders and _has_mark(pid, self._mark)]

    def look(self) -> None:
        """What was in the journal once is there for ever."""
        now = [to_json(event) for event in self.events()]
        assert now[: len(self._seen)] == self._seen, "the journal has lost something"
        self._seen = now

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = _PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.running.output}"
            time.sleep(0.02)

    # -- what must be true

    def check_end(self) -> None:
        """The study has ended as one does that nobody has killed."""
        assert self.running.poll() == 0, self.running.output
        self.wait_for(lambda: not self.processes(), "no process is left", ORPHANS_S)
        assert leftovers(self.folder) == []
        self.look()
        state = self.state()
        assert state.ended is not None or len(state.trials) == state.options.n_trials
        assert list(state.trials) == list(range(state.options.n_trials or 0)), "other trials than there should be"
        assert len(state.taken) == len(state.trials), "two trials have one configuration"
        for trial in state.trials.values():
            assert trial.status.is_final or trial.status is TrialStatus.PAUSED, (trial.id, trial.status)
            assert trial.status is not TrialStatus.FAILED, trial.error
            assert list(trial.curve) == list(range(1, trial.resource + 1)), "an epoch is missing"
        attempts = [(e.trial_id, e.attempt) for e in self.events() if isinstance(e, AttemptStarted)]
        assert len(attempts) == len(set(attempts)), "an attempt was started twice"
        if self.acknowledged is not None and self.acknowledged.exists():
            for line in self.acknowledged.read_text().splitlines():
                trial_id, resource = json.loads(line)
                assert resource in state.trials[trial_id].curve, "an acknowledged result is lost"

    def repeated(self) -> tuple[int, int]:
        """How many epochs were trained again after a kill, and how many of them gave another value."""
        first: dict[tuple[int, int], float] = {}
        again = different = 0
        for event in self.events():
            if isinstance(event, Reported):
                key = (event.trial_id, event.resource)
                again += key in first
                different += first.setdefault(key, event.value) != event.value
        return again, different


def end_at_once(pid: int) -> bool:
    """SIGKILL; False if there is no such process any more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _parent_of(pid: int) -> int | None:
    """None if it has just ended."""
    return next((parent for found, parent, _ in process_table.processes() if found == pid), None)


def _has_mark(pid: int, mark: str) -> bool:
    # The environment a process began with survives forks; that of a zombie is empty.
    with contextlib.suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False
