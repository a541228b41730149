"""A study among enemies: real coordinator and channel, one well-behaved trial, and trials that send whatever they like.

Hostile trials know the study's key, as every trial does. They send malformed messages of many kinds, messages that are
well-formed and wrong, and, without the key, nonsense at the door; beside that they hold open connections that say
nothing, a byte now and then, or half a message. The well-behaved trial measures meanwhile how long its answers take.

Run as a program, this is a trial; which one, the environment says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import Outcome
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial
from lightning_hpo.runtime.backends.base import Exit, Job, Started
from lightning_hpo.runtime.channel import TrialChannel, trial_channel
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.coordinator import Coordinator, RunResult
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.messages import Report, encode
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.runtime.suggesting import InlineHost
from lightning_hpo.runtime.trial_folders import TrialFolders
from lightning_hpo.runtime.wire import Refused, frame, shake_hands
from lightning_hpo.searchers import make_searcher
from tests.faults.malformed import MALFORMED, is_refused, some_message

ROOT = Path(__file__).parents[2]
PLAN, ATTACKS, LATENCIES = "plan.json", "attacks.json", "latencies.json"

# --------------------------------------------------------------------------------- a hostile trial


class HostileTrial:
    """Sends what is planned, a bunch of connections at a time."""

    def __init__(self, channel: TrialChannel, plan: dict[str, Any]) -> None:
        self._path = channel.address.removeprefix("unix:")
        self._key = channel._key
        self._me = (channel.trial_id, channel.attempt)
        self._plan = plan
        self._rng = random.Random(f"{plan['seed']} {channel.trial_id}")
        self._loiterers: list[socket.socket] = []
        self._done = threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        # Longer after the other one has begun, so that it knows how it is without us.
        time.sleep(self._plan["quiet_s"])
        begun = time.monotonic()
        dripping = threading.Thread(target=self._loiter)
        dripping.start()
        while self.counts["messages"] < self._plan["messages"]:
            self._knock(self._plan["at_once"] // 4)
            self._insult(self._plan["at_once"])
            self._mislead(self._plan["at_once"] // 2)
        self._done.set()
        dripping.join()
        return {"begun": begun, "ended": time.monotonic(), **self.counts}

    def _open(self, *, with_key: bool) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30.0)
        connection.connect(self._path)
        if with_key:
            shake_hands(connection, self._key)
        self.counts["connections"] += 1
        return connection

    @contextlib.contextmanager
    def _connections(self, number: int, *, with_key: bool) -> Iterator[list[socket.socket]]:
        found: list[socket.socket] = []
        try:
            while len(found) < number:
                try:
                    found.append(self._open(with_key=with_key))
                except (OSError, Refused):  # turned away because of the crowd
                    self.counts["turned away"] += 1
            yield found
        finally:
            for connection in found:
                connection.close()

    def _knock(self, number: int) -> None:
        """At the door, without the key."""
        with self._connections(number, with_key=False) as connections:
            for connection in connections:
                self.counts["messages"] += 1
                self.counts["without key"] += 1
                nonsense = self._rng.choice([b"", bytes(64), b"\xff" * 3, b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
                with contextlib.suppress(OSError):  # the launcher may hang up first
                    connection.sendall(nonsense)

    def _insult(self, number: int) -> None:
        """Malformed messages, one on each connection; the launcher must hang up on every one of them."""
        with self._connections(number, with_key=True) as connections:
            expected = []
            for connection in connections:
                name = self._rng.choice(sorted(MALFORMED))
                data = MALFORMED[name](self._rng, some_message(self._rng, *self._me))
                self.counts["messages"] += 1
                self.counts[name] += 1
                with contextlib.suppress(OSError):
                    connection.sendall(data)
                if is_refused(data):
                    expected.append((name, connection))
            for name, connection in expected:
                self._expect_end(name, connection)

    def _expect_end(self, name: str, connection: socket.socket) -> None:
        try:
            while connection.recv(1 << 16):
                pass
        except TimeoutError:
            self.counts[f"NOT REFUSED {name}"] += 1
        except OSError:
            pass
        self.counts["refused"] += 1

    def _mislead(self, number: int) -> None:
        """Well-formed: late, repeated, of other trials, of trials that do not exist, of this one but impossible."""
        rng = self._rng
        for _ in range(number // 20):
            identity = rng.choice([self._me, (0, 7), (0, 2**53 - 1), (10**6, 1), (2**53 - 1, 1)])
            with self._connections(1, with_key=True) as (connection,):
                for _ in range(20):
                    data = frame(encode(some_message(rng, *identity)))
                    self.counts["messages"] += 1
                    self.counts["well-formed"] += 1
                    with contextlib.suppress(OSError):
                        connection.sendall(data * rng.choice([1, 1, 3]))
                    _drink(connection)

    def _loiter(self) -> None:
        """Strangers and trials that are silent, drip, leave messages unfinished, or never read their answers."""
        rng = random.Random(self._plan["seed"])
        flood = frame(encode(Report(*self._me, 1, 0.5)))
        while not self._done.wait(1.0):
            wanted = self._plan["loiterers"] - len(self._loiterers)
            for number in range(wanted):
                with contextlib.suppress(OSError, Refused):
                    connection = self._open(with_key=number % 2 == 0)
                    connection.setblocking(False)
                    if number % 2 == 0:
                        connection.send(rng.choice([b"", struct.pack("!I", 500_000) + bytes(1000), flood * 100]))
                    self._loiterers.append(connection)
            for connection in list(self._loiterers):
                try:
                    connection.send(b"\0")
                except OSError:
                    connection.close()
                    self._loiterers.remove(connection)
            self.counts["most loiterers"] = max(self.counts["most loiterers"], len(self._loiterers))
        for connection in self._loiterers:
            connection.close()


def _drink(connection: socket.socket) -> None:
    """Take what has arrived, so that there is room for more."""
    with contextlib.suppress(OSError):
        while select.select([connection], [], [], 0)[0] and connection.recv(1 << 16):
            pass


def well_behaved(channel: TrialChannel, plan: dict[str, Any], others: list[Path]) -> list[tuple[float, float]]:
    """Reports until the hostile trials are done; returns when it asked and how long the answer took, seconds."""
    channel.hello(None)
    times = []
    resource = 0
    while not all(path.exists() for path in others):
        resource += 1
        asked = time.monotonic()
        answer = channel.report(resource, 1.0 / resource, {"train_loss": 0.5}, cost=float(resource))
        times.append((asked, time.monotonic() - asked))
        assert answer.decision == "continue", answer
        time.sleep(plan["pause_s"])
    return times


def main() -> None:
    channel = trial_channel()
    assert channel is not None
    study = channel.directory.parent
    plan = json.loads((study / PLAN).read_text())
    if channel.trial_id == 0:
        times = well_behaved(channel, plan, [study / str(i) / ATTACKS for i in range(1, plan["trials"])])
        (study / LATENCIES).write_text(json.dumps(times))
    else:
        found = HostileTrial(channel, plan).run()
        partial = channel.directory / "attacks.partial"
        partial.write_text(json.dumps(found))
        os.replace(partial, channel.directory / ATTACKS)
    channel.ended(Outcome.COMPLETED)


# --------------------------------------------------------------------------------------- the study


class ProgramBackend:
    """Runs every attempt as a program of its own."""

    def __init__(self, slots: int) -> None:
        self.capacity = slots
        self._running: dict[tuple[int, int], tuple[subprocess.Popen[bytes], int]] = {}
        self._happened: list[Started | Exit] = []

    @property
    def free_slots(self) -> int:
        return self.capacity - len(self._running)

    def start(self, job: Job) -> None:
        job.folder.mkdir(exist_ok=True)
        with open(job.log, "ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | job.environment
            command = [sys.executable, "-m", __name__]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._running[job.trial_id, job.attempt] = process, os.pidfd_open(process.pid)
        self._happened.append(Started(job.trial_id, job.attempt, process.pid, "cpu"))

    def stop(self, trial_id: int, attempt: int, grace_s: float = 5.0) -> None:
        """A hostile trial that was told to end is let finish its plan: it ends by itself."""

    def waitables(self) -> Sequence[Any]:
        return [pidfd for _, pidfd in self._running.values()]

    def poll(self) -> list[Started | Exit]:
        happened, self._happened = self._happened, []
        for (trial_id, attempt), (process, pidfd) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                os.close(pidfd)
                del self._running[trial_id, attempt]
                exit_code, signal = (code, None) if code >= 0 else (None, -code)
                happened.append(Exit(trial_id, attempt, process.pid, exit_code, signal))
        return happened

    def close(self, grace_s: float = 5.0) -> None:
        for process, pidfd in self._running.values():
            process.kill()
            process.wait()
            os.close(pidfd)
        self._running.clear()


class _Jobs:
    def __init__(self, folder: Path) -> None:
        self._study = folder

    def folder(self, trial: Trial) -> Path:
        return self._study / str(trial.id)

    def job(self, decision: Any, folder: Path, environment: dict[str, str]) -> Job:
        return Job(decision.trial_id, decision.attempt, folder, folder / "trial.log", environment)


class _Watcher:
    """Counts warnings, and the longest time between two turns of the launcher's loop."""

    def __init__(self) -> None:
        self.warnings: Counter[str] = Counter()
        self.most_bytes = 0
        self.turns = 0
        self.longest_turn_s = 0.0
        self._last = time.monotonic()

    def event(self, event: Any, decisions: Any, state: StudyState) -> None:
        pass

    def say(self, message: str, warning: bool = False) -> None:
        self.warnings[message.partition(":")[0]] += warning

    def tick(self, state: StudyState) -> None:
        now = time.monotonic()
        self.longest_turn_s, self._last = max(self.longest_turn_s, now - self._last), now
        self.turns += 1
        if self.turns % 100 == 0:
            self.most_bytes = max(self.most_bytes, resident_bytes())


@dataclasses.dataclass
class Fuzzed:
    """What became of the study."""

    result: RunResult
    state: StudyState
    attacks: Counter[str]
    quiet_s: list[float]
    """Latencies of the well-behaved trial before the attack began, sorted."""
    under_attack_s: list[float]
    warnings: Counter[str]
    longest_turn_s: float
    seconds: float
    bytes_before: int
    """Resident memory of the launcher."""
    most_bytes: int
    files_before: int
    files_after: int
    replayed: bool
    """Does the journal lead to the same study?"""


def fuzz(
    folder: Path,
    messages: int,
    *,
    hostile: int = 1,
    seed: int = 0,
    quiet_s: float = 0.3,
    at_once: int = 40,
    loiterers: int = 100,
) -> Fuzzed:
    """Run a study with one well-behaved and some hostile trials.

    Args:
        folder: the study folder; empty.
        messages: malformed or misleading messages of all hostile trials together, at least.
        quiet_s: how long the hostile trials wait.
        at_once: connections that a hostile trial opens at a time.
        loiterers: connections that each hostile trial keeps open beside these.
    """
    plan = {
        "messages": -(-messages // hostile),
        "trials": 1 + hostile,
        "seed": seed,
        "quiet_s": quiet_s,
        "pause_s": 0.005,
        "at_once": at_once,
        "loiterers": loiterers,
    }
    (folder / PLAN).write_text(json.dumps(plan))
    options = StudyOptions.from_mapping(
        {"metric": "loss", "algorithm": "random", "max_t": 10**6, "n_trials": 1 + hostile, "max_retries": 0}
    )
    space = SearchSpace({"x": uniform(0.0, 1.0)})
    state = StudyState(space, options)
    watcher = _Watcher()
    files_before, bytes_before = _open_files(), resident_bytes()
    backend = ProgramBackend(1 + hostile)
    try:
        with Journal.create(folder, study_header(space, options)) as journal, ChannelServer(folder) as server:
            result = Coordinator(
                state=state,
                journal=journal,
                backend=backend,
                server=server,
                host=InlineHost(make_searcher("random", {}), state.view),
                fallback=lambda: InlineHost(make_searcher("random", {}), state.view),
                store=CheckpointStore(folder),
                jobs=_Jobs(folder),
                folders=TrialFolders(folder, state, _Jobs(folder).folder),
                observer=watcher,
            ).run()
            replayed = StudyState(space, options)
            for event in journal.events():
                replayed.handle(event)
    finally:
        backend.close()
    attacks: Counter[str] = Counter()
    found = [json.loads((folder / str(i) / ATTACKS).read_text()) for i in range(1, 1 + hostile)]
    first, last = min(one.pop("begun") for one in found), max(one.pop("ended") for one in found)
    for one in found:
        attacks.update(one)
    times = json.loads((folder / LATENCIES).read_text())
    return Fuzzed(
        result,
        state,
        attacks,
        sorted(took for asked, took in times if asked + took < first),
        sorted(took for asked, took in times if first <= asked < last),
        watcher.warnings,
        watcher.longest_turn_s,
        last - first,
        bytes_before,
        max(watcher.most_bytes, resident_bytes()),
        files_before,
        _open_files(),
        str({i: (t.curve, t.status) for i, t in replayed.trials.items()})
        == str({i: (t.curve, t.status) for i, t in state.trials.items()}),
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
