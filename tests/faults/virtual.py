"""A virtual cluster: the real coordinator and state machine, with workers, clock, channel and disk that are not.

Everything random comes from one seed, so every failure can be repeated. The cluster checks after each event, each
commit and each answer that what was promised holds; :meth:`VirtualCluster.run` starts the launcher again until the
study has ended.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lightning_hpo.core.events import Event, Finish, Limit, Outcome, WorkerReady, from_json, to_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Searcher, SearchView, Suggestion, SuggestRequest
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, Trial, TrialStatus
from lightning_hpo.errors import ChannelError, SearcherFailed, StudyError
from lightning_hpo.runtime import coordinator as coordinator_module
from lightning_hpo.runtime import writing as writing_module
from lightning_hpo.runtime.backends.base import Exit, Job, Started
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.coordinator import Coordinator, RunResult
from lightning_hpo.runtime.messages import Answer, Ended, Hello, Message, Problem, Report, Saved, Welcome
from lightning_hpo.runtime.stored import continued_state, study_header
from lightning_hpo.runtime.suggesting import Answered
from lightning_hpo.runtime.trial_folders import TrialFolders
from lightning_hpo.searchers import make_searcher


class LauncherCrash(BaseException):
    """The launcher is gone from one instruction to the next."""


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong. Probabilities are per occasion."""

    worker_dies: float = 0.0
    """At every step of a trial's process: killed without a word."""
    script_raises: float = 0.0
    """At every unit of resource."""
    message_repeated: float = 0.0
    message_lost: float = 0.0
    """The trial waits for ever then; needs ``epoch_timeout``."""
    message_delayed: float = 0.0
    """It arrives up to ten seconds later, perhaps behind later ones or after the end of its process."""
    message_malformed: float = 0.0
    checkpoint_damaged: float = 0.0
    no_room: float = 0.0
    """The disk is full for a checkpoint; the next try may succeed."""
    searcher_fails: float = 0.0
    journal_full: float = 0.0
    """The disk is full for a commit; the next try succeeds."""
    crash_at_commits: frozenset[int] = frozenset()
    """Numbers of the commits at which the launcher crashes: before an even one is on disk, after an odd one is."""
    interrupts_at: tuple[float, ...] = ()
    """Seconds at which the user presses Ctrl-C."""


NO_FAULTS = Faults()

PROBABILITIES: dict[str, list[float]] = {
    "worker_dies": [0.0, 0.02, 0.1],
    "script_raises": [0.0, 0.02],
    "message_repeated": [0.0, 0.2],
    "message_lost": [0.0, 0.02],
    "message_delayed": [0.0, 0.2],
    "message_malformed": [0.0, 0.02],
    "checkpoint_damaged": [0.0, 0.2],
    "no_room": [0.0, 0.2],
    "searcher_fails": [0.0, 0.1],
    "journal_full": [0.0, 0.05],
}
"""Field of :class:`Faults` -> what random studies try."""


def true_value(x: float, resource: int) -> float:
    """The learning curve of a configuration."""
    return round(abs(x - 0.3) + 1.0 / resource + 0.05 * ((x * 7919 + resource) % 1.0), 6)


# ------------------------------------------------------------------------------------------ the parts


class MemoryJournal:
    """Events as the texts that a real journal would hold; survives the launcher."""

    def __init__(self, cluster: VirtualCluster, header: dict[str, Any]) -> None:
        self._cluster = cluster
        self._header = json.dumps(header)
        self._texts: list[str] = []
        self.folder = Path("study")

    @property
    def header(self) -> dict[str, Any]:
        return json.loads(self._header)

    def __len__(self) -> int:
        return len(self._texts)

    def events(self, after: int = 0) -> list[Event]:
        return [from_json(json.loads(text)) for text in self._texts[after:]]

    def append(self, events: Sequence[Event]) -> None:
        if not events:
            return
        texts = [json.dumps(to_json(event), allow_nan=False) for event in events]
        self._cluster.before_commit()
        self._texts += texts
        self._cluster.after_commit([from_json(json.loads(text)) for text in texts])


class NoBackups:
    """There is no file to copy."""

    def __init__(self, journal: MemoryJournal, every_s: float, clock: Callable[[], float]) -> None:
        pass

    def tick(self) -> None:
        return None

    def finish(self) -> None:
        return None


@dataclass
class Client:
    """The launcher's end of a trial's connection."""

    process: Process
    inbox: deque[Message | Exception] = field(default_factory=deque)


@dataclass
class Process:
    """A trial's process: it trains, reports, and obeys."""

    trial_id: int
    attempt: int
    config: dict[str, Any]
    client: Client = field(init=False)
    resource: int = 0
    is_alive: bool = True
    waits_for: str | None = None

    def __post_init__(self) -> None:
        self.client = Client(self)


class Server:
    """The launcher's end of the channel."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self._cluster = cluster

    def waitables(self) -> list[Any]:
        return list(self._cluster.clients)

    def keep_listening(self) -> None:
        pass

    def owns(self, ready: object) -> bool:
        return isinstance(ready, Client)

    def environment(self, trial_id: int, attempt: int, folder: Path) -> dict[str, str]:
        return {}

    def receive(self, client: Client) -> list[Message]:
        return self._cluster.receive(client)

    def reply(self, client: Client, reply: Welcome | Answer) -> None:
        self._cluster.reply(client, reply)


class Disk(CheckpointStore):
    """Checkpoint files that exist in memory only: path -> (trial, resource)."""

    def __init__(self, max_disk: int | None) -> None:
        super().__init__(Path("study"), max_disk)
        self.files: dict[str, tuple[int, int]] = {}

    def remove(self, checkpoint: Checkpoint) -> bool:
        return self.files.pop(checkpoint.path, None) is not None


class LedByLot:
    """Leads the study in place of a model: any paused trial goes on to any rung, any new one begins at any, and running
    ones are stopped with any value."""

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        lot = generator(view.seed, Stream.CONFIGURATION, request.trial_id, len(view.observations))
        milestone = int(lot.choice([*view.rung_levels, view.max_t]))
        if view.paused and lot.uniform() < 0.6:
            trial = int(lot.choice(list(view.paused)))
            return Suggestion(dict(view.configs[trial]), "EI by lot", "model", resumes=trial, milestone=milestone)
        config = view.space.draw(lot, view.taken)
        limits = tuple(Limit(trial, rung, float(lot.uniform())) for trial, rung in view.pending)
        limits = limits if request.wants_limits else None
        return None if config is None else Suggestion(config, "EI by lot", "model", milestone=milestone, limits=limits)


def searcher_of(options: StudyOptions) -> Searcher:
    """The searcher of a study; where a model leads, one that needs no torch."""
    led = options.promotion_rule == "searcher"
    return LedByLot() if led else make_searcher(options.searcher_name, options.searcher)


class Host:
    """A searcher that takes its time, and may fail."""

    has_begun = True

    def __init__(self, cluster: VirtualCluster, state: StudyState, searcher: Searcher, *, may_fail: bool) -> None:
        self._cluster = cluster
        self._state = state
        self._searcher = searcher
        self._may_fail = may_fail
        self._request: SuggestRequest | None = None
        self._answer: Answered | None = None
        self._is_broken = False

    @property
    def is_ready(self) -> bool:
        return self._answer is not None or self._is_broken

    @property
    def is_busy(self) -> bool:
        return self._request is not None

    def follow(self, events: Sequence[Event]) -> None:
        pass

    def ask(self, request: SuggestRequest) -> None:
        assert self._request is None, "one request at a time"
        self._request = request
        suggestion = self._searcher.suggest(self._state.view(), request)
        self._cluster.after(*self._cluster.thinking_s, lambda: self._respond(Answered(request, suggestion, 1.0)))

    def _respond(self, answer: Answered) -> None:
        if self._may_fail and self._cluster.happens(self._cluster.faults.searcher_fails):
            self._is_broken = True
        else:
            self._answer = answer

    def waitables(self) -> list[Any]:
        return [self]

    def poll(self) -> Answered | None:
        if self._is_broken:
            raise SearcherFailed("The searcher process died. Look at search.log.")
        answer, self._answer = self._answer, None
        if answer is not None:
            self._request = None
        return answer

    def close(self) -> None:
        pass


class Jobs:
    """Jobs of trials whose folders are numbers."""

    study = Path("study")

    def folder(self, trial: Trial) -> Path:
        return self.study / str(trial.id)

    def job(self, decision: Any, folder: Path, environment: dict[str, str]) -> Job:
        payload = {"config": decision.config}
        return Job(decision.trial_id, decision.attempt, folder, folder / "trial.log", environment, payload)


# ---------------------------------------------------------------------------------------- the cluster


class VirtualCluster:
    """Backend, channel, disk, clock and observer of a study, all in one: they share workers and time.

    Attributes:
        counts: how often what happened.
        acknowledged: (trial, resource) -> value, for every report that was answered.
    """

    backups: type[Any] = NoBackups

    def __init__(
        self,
        options: StudyOptions,
        space: SearchSpace,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        n_workers: int = 2,
        max_disk: int | None = None,
        epoch_timeout: float | None = 60.0,
    ) -> None:
        self.options = options
        self.space = space
        self.faults = faults
        self.n_workers = n_workers
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.acknowledged: dict[tuple[int, int], float] = {}
        self.disk = Disk(max_disk)
        self.jobs = Jobs()
        self.journal = MemoryJournal(self, study_header(space, options))
        self.durable = StudyState(space, options)
        """Folded from what is on disk, as a launcher started now would see it."""
        self._random = random.Random(seed)
        self._epoch_timeout = epoch_timeout
        self.trial_timeout: float | None = None
        self.shortage: Callable[[], str | None] = lambda: None
        """Why trials cannot be started."""
        self.may_refuse = False
        """May a report be answered without being taken in?"""
        self.thinking_s = (0.0, 3.0)
        """Least and most seconds a suggestion takes."""
        self.on_answer: Callable[[SuggestRequest], None] | None = None
        """Called with the request of every answer that is used."""
        self.last_coordinator: Coordinator | None = None
        self._commits = 0
        self._is_full = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._processes: dict[tuple[int, int], Process] = {}
        self._started: set[tuple[int, int]] = set()
        self._happened: list[Started | Exit] = []
        self._closing: tuple[Client, ...] = ()
        self._coordinator: Coordinator | None = None
        self._interrupts = list(faults.interrupts_at)

    # -- time and chance

    def happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def after(self, least: float, most: float, action: Callable[[], None]) -> None:
        moment = self.now + self._random.uniform(least, most)
        heapq.heappush(self._heap, (moment, next(self._number), action))

    def wait(self, waitables: Sequence[Any], timeout: float) -> list[Any]:
        """Stands in for ``multiprocessing.connection.wait``: time passes only here."""
        deadline = self.now + timeout
        while not (ready := [w for w in waitables if self._is_ready(w)]):
            if self._interrupts and self._interrupts[0] <= self.now and self._coordinator is not None:
                self._interrupts.pop(0)
                self.counts["interrupts"] += 1
                self._coordinator.interrupt()
            if not self._heap or self._heap[0][0] > deadline:
                self.now = deadline
                break
            # What became due while the launcher slept happens now: no clock goes back.
            self.now = max(self.now, self._heap[0][0])
            while self._heap and self._heap[0][0] <= self.now:
                heapq.heappop(self._heap)[2]()
        return ready

    def _is_ready(self, waitable: Any) -> bool:
        if isinstance(waitable, Client):
            return bool(waitable.inbox)
        if isinstance(waitable, Host):
            return waitable.is_ready
        return waitable is self._happened and bool(self._happened)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    # -- the launcher's life

    def run(self, most_launches: int = 200) -> RunResult:
        """Launch, and launch again after crashes and interrupts, until the study ends."""
        for _ in range(most_launches):
            self.counts["launches"] += 1
            try:
                result = self._launch()
            except LauncherCrash:
                self.counts["crashes"] += 1
                self._forget_processes()
                continue
            except StudyError as problem:
                # Full at the very start: the launcher says so and ends.
                assert "disk full" in str(problem)
                self._forget_processes()
                continue
            if self._is_full and result.is_interrupted:
                self._forget_processes()  # nobody waits for them any more: they end when the backend is closed
            assert not self._processes, "the launcher left processes behind"
            if not result.is_interrupted:
                self._check_end()
                return result
        raise AssertionError(f"the study has not ended after {most_launches} launches")

    def _launch(self) -> RunResult:
        state, _ = continued_state(self.journal, self.options)  # type: ignore[arg-type]
        self.sweep(state)
        parts = {
            "state": state,
            "journal": self.journal,
            "backend": self,
            "server": Server(self),
            "host": Host(self, state, searcher_of(self.options), may_fail=True),
            "fallback": lambda: Host(self, state, make_searcher("random"), may_fail=False),
            "store": self.disk,
            "jobs": self.jobs,
            "folders": TrialFolders(self.jobs.study, state, self.jobs.folder),
            "observer": self,
            "epoch_timeout": self._epoch_timeout,
            "trial_timeout": self.trial_timeout,
            "shortage": self.shortage,
            "clock": lambda: self.now,
        }
        with (
            mock.patch.object(coordinator_module, "wait", self.wait),
            mock.patch.object(writing_module, "wait", lambda waitables, timeout: self.sleep(timeout)),
            mock.patch.object(coordinator_module, "Backups", self.backups),
        ):
            self._coordinator = self.last_coordinator = Coordinator(**parts)
            self._watch_answers(self._coordinator)
            try:
                return self._coordinator.run()
            finally:
                self._coordinator = None

    def sweep(self, state: StudyState) -> None:
        """What a launcher does with files that a crash left behind."""
        recorded = {t.checkpoint.path for t in state.trials.values() if t.checkpoint is not None}
        self.disk.files = {path: kept for path, kept in self.disk.files.items() if path in recorded}

    def _watch_answers(self, coordinator: Coordinator) -> None:
        use = coordinator._use

        def watched(answer: Answered) -> None:
            if self.on_answer is not None:
                self.on_answer(answer.request)
            use(answer)

        coordinator._use = watched  # type: ignore[method-assign]

    def _forget_processes(self) -> None:
        """Trials end with their launcher; what they said on the way is lost with it."""
        for process in self._processes.values():
            process.is_alive = False
        self._processes.clear()
        self._happened.clear()
        self._heap.clear()

    # -- the journal's commits

    def before_commit(self) -> None:
        if not self._is_full and self.happens(self.faults.journal_full):
            self._is_full = True
            self.counts["disk full"] += 1
            raise StudyError("The study cannot be written: disk full. Make room on the disk.")
        self._is_full = False
        self._commits += 1
        if self._commits in self.faults.crash_at_commits and self._commits % 2 == 0:
            raise LauncherCrash

    def after_commit(self, events: Sequence[Event]) -> None:
        for event in events:
            self.durable.handle(event)
        self.durable.check_invariants()
        if self._commits in self.faults.crash_at_commits:
            raise LauncherCrash

    # -- observer

    def event(self, event: Event, decisions: Sequence[Any], state: StudyState) -> None:
        self.counts["events"] += 1
        state.check_invariants()
        assert len(state.live) <= self.n_workers, "more trials than workers"
        assert not any(isinstance(d, Finish) for d in decisions)
        if isinstance(event, WorkerReady) and self.last_coordinator is not None:
            assert not self.last_coordinator._room.waiting, "more work while the disk is full"

    def say(self, message: str, warning: bool = False) -> None:
        self.counts["warnings"] += warning

    def tick(self, state: StudyState) -> None:
        pass

    # -- backend

    @property
    def capacity(self) -> int:
        return self.n_workers

    @property
    def free_slots(self) -> int:
        # A slot is free again when the launcher has heard of the end.
        ended = sum(isinstance(h, Exit) for h in self._happened)
        return self.n_workers - len(self._processes) - ended

    def start(self, job: Job) -> None:
        assert self.free_slots > 0, "no free slot"
        known = self.durable.trials[job.trial_id]
        assert (known.attempt, known.status) == (job.attempt, TrialStatus.RUNNING), "started before it was on disk"
        key = (job.trial_id, job.attempt)
        assert key not in self._started, "an attempt's number was given twice"
        self._started.add(key)
        process = self._processes[key] = Process(*key, job.payload["config"])
        self.counts["attempts"] += 1
        self.after(0.0, 2.0, lambda: self._begin(process))

    def stop(self, trial_id: int, attempt: int, grace_s: float = 5.0) -> None:
        process = self._processes.get((trial_id, attempt))
        if process is not None:
            self.after(0.0, grace_s, lambda: self._die(process, signal=15, requested=True))

    def waitables(self) -> list[Any]:
        return [self._happened]

    def poll(self) -> list[Started | Exit]:
        happened, self._happened = self._happened, []
        return happened

    # -- channel

    @property
    def clients(self) -> list[Client]:
        """Of running processes, and of ended ones that said something the launcher has not heard yet."""
        return [*[p.client for p in self._processes.values()], *[client for client in self._closing if client.inbox]]

    def receive(self, client: Client) -> list[Message]:
        messages: list[Message] = []
        while client.inbox:
            message = client.inbox.popleft()
            if isinstance(message, Exception):
                raise message
            messages.append(message)
        return messages

    def reply(self, client: Client, reply: Welcome | Answer) -> None:
        process = client.process
        if isinstance(reply, Answer) and process.waits_for == "answer":
            self._acknowledge(process, reply)
        if not process.is_alive:
            raise ChannelError("The client is gone. Nothing to be done.")
        if self.happens(self.faults.message_lost):
            self.counts["messages lost"] += 1
            return
        self.after(0.0, 0.5, lambda: self._hear(process, reply))

    def _acknowledge(self, process: Process, reply: Answer) -> None:
        trial = self.durable.trials[process.trial_id]
        if trial.attempt == process.attempt and reply.reason != "this attempt was given up":
            value = trial.curve.get(process.resource)
            if value is None and self.may_refuse:
                return
            assert value is not None, "a report was answered before it was on disk"
            self.acknowledged[process.trial_id, process.resource] = value

    # -- what a trial's process does

    def _begin(self, process: Process) -> None:
        if not process.is_alive:
            return
        self._happened.append(Started(process.trial_id, process.attempt, 4711, "virtual"))
        process.waits_for = "welcome"
        self._say(process, Hello(process.trial_id, process.attempt, 4711, None))

    def _say(self, process: Process, message: Message) -> None:
        if not process.is_alive or self._may_die(process):
            return
        if self.happens(self.faults.message_lost):
            self.counts["messages lost"] += 1
            return
        inbox = process.client.inbox
        if self.happens(self.faults.message_delayed):
            self.counts["messages delayed"] += 1
            self.after(0.0, 10.0, lambda: inbox.append(message))
            return
        inbox.append(message)
        if self.happens(self.faults.message_repeated):
            self.counts["messages repeated"] += 1
            inbox.append(message)
        if self.happens(self.faults.message_malformed):
            self.counts["messages malformed"] += 1
            inbox.append(ChannelError("A trial sent a malformed message. Let trials use HPOCallback only."))
            self._die(process, signal=None, exit_code=1)

    def _may_die(self, process: Process) -> bool:
        if self.happens(self.faults.worker_dies):
            self.counts["workers killed"] += 1
            self._die(process, signal=9)
        return not process.is_alive

    def _hear(self, process: Process, reply: Welcome | Answer) -> None:
        if not process.is_alive or self._may_die(process):
            return
        if isinstance(reply, Welcome):
            if process.waits_for == "welcome":
                self._load(process, reply)
            return
        if process.waits_for == "room":
            process.waits_for = None
            if reply.decision == "continue":
                self.after(2.0, 2.0, lambda: self._save(process))
            else:
                self._conclude(process, Outcome.FAILED)
            return
        if process.waits_for != "answer":
            return  # the answer to a repeated message
        process.waits_for = None
        if reply.decision == "continue":
            self._train(process)
        elif reply.decision == "pause":
            self.after(0.1, 1.0, lambda: self._save(process))
        else:
            outcome = Outcome.COMPLETED if reply.decision == "complete" else Outcome.STOPPED
            self._conclude(process, outcome)

    def _load(self, process: Process, welcome: Welcome) -> None:
        process.waits_for = None
        process.resource = welcome.from_resource
        if welcome.from_resource:
            path = f"{process.trial_id}/{welcome.checkpoint_path}"
            kept = self.disk.files.get(path)
            assert kept is not None, f"{path} was deleted though it is needed"
            if kept != (process.trial_id, welcome.from_resource):
                self.counts["damaged checkpoints found"] += 1
                message = f"{path} is damaged. Train again."
                self._say(process, Problem(process.trial_id, process.attempt, "CheckpointError", message))
                self.after(0.1, 1.0, lambda: self._die(process, signal=None, exit_code=1))
                return
        self._train(process)

    def _train(self, process: Process) -> None:
        self.after(1.0, 5.0, lambda: self._trained(process))

    def _trained(self, process: Process) -> None:
        if not process.is_alive or self._may_die(process):
            return
        if self.happens(self.faults.script_raises):
            self.counts["scripts raised"] += 1
            error = f"ValueError: {self._random.random()}"
            self._say(process, Ended(process.trial_id, process.attempt, Outcome.FAILED, error))
            self._die(process, signal=None, exit_code=1)
            return
        process.resource += 1
        value = true_value(process.config["x"], process.resource)
        process.waits_for = "answer"
        self._say(process, Report(process.trial_id, process.attempt, process.resource, value))

    def _save(self, process: Process) -> None:
        if not process.is_alive or self._may_die(process):
            return
        if self.happens(self.faults.no_room):
            self.counts["saves without room"] += 1
            process.waits_for = "room"
            message = "The disk is full. Make room on it."
            self._say(process, Problem(process.trial_id, process.attempt, "DiskFull", message))
            return
        path = f"hpo/epoch={process.resource}"
        is_damaged = self.happens(self.faults.checkpoint_damaged)
        kept = (process.trial_id, -1 if is_damaged else process.resource)
        self.disk.files[f"{process.trial_id}/{path}"] = kept
        if self._may_die(process):
            return
        checkpoint = Checkpoint(process.resource, path, "0" * 64, 10)
        self._say(process, Saved(process.trial_id, process.attempt, checkpoint))
        self._conclude(process, Outcome.PAUSED)

    def _conclude(self, process: Process, outcome: Outcome) -> None:
        self._say(process, Ended(process.trial_id, process.attempt, outcome))
        self.after(0.0, 1.0, lambda: self._die(process, signal=None, exit_code=0))

    def _die(self, process: Process, signal: int | None, exit_code: int | None = None, requested: bool = False) -> None:
        if not process.is_alive:
            return
        process.is_alive = False
        key = (process.trial_id, process.attempt)
        if self._processes.pop(key, None) is not None:
            self._closing = (*[c for c in self._closing if c.inbox], process.client)
            self._happened.append(Exit(*key, 4711, exit_code, signal, requested))

    # -- the end

    def _check_end(self) -> None:
        """Nothing acknowledged is lost, every value is the right one, and nobody was promoted twice."""
        trials = self.durable.trials
        for (trial_id, resource), value in self.acknowledged.items():
            assert trials[trial_id].curve[resource] == value
        for trial in trials.values():
            assert list(trial.curve) == list(range(1, len(trial.curve) + 1)), "a report is missing"
            assert all(value == true_value(trial.config["x"], r) for r, value in trial.curve.items())
            assert trial.status.is_final or trial.status in (TrialStatus.PAUSED, TrialStatus.WAITING)
            if trial.checkpoint is not None:
                assert trial.checkpoint.path in self.disk.files, "a checkpoint is recorded that is gone"
