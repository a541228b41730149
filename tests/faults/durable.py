"""The virtual cluster on a real disk: its journal is SQLite, its checkpoints are files, its launchers are processes.

Every launch is a fork that may end at a failpoint, and the next launch knows only what is on disk. Workers, channel and
clock are virtual as before; when a failpoint ends a worker, the launcher goes on.
"""

from __future__ import annotations

import json
import os
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from lightning_hpo.core.events import Event, Outcome, Reported, Suggested
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, TrialStatus
from lightning_hpo.errors import CheckpointError, HpoError
from lightning_hpo.runtime import failpoints
from lightning_hpo.runtime.checkpoint_store import CheckpointStore
from lightning_hpo.runtime.checkpoints import Written, checkpoint_path, measure, verify, write_durably
from lightning_hpo.runtime.failpoints import failpoint
from lightning_hpo.runtime.journal import Backups, Journal
from lightning_hpo.runtime.messages import Answer, Message, Problem, Saved, Welcome
from lightning_hpo.runtime.stored import state_from_header, study_header
from tests.faults import virtual
from tests.faults.virtual import Process, VirtualCluster, true_value

_RAISED = 1
"""Exit code of a launch that ended with an exception, as Python's own."""


class WorkerKilled(BaseException):
    """A failpoint has ended the virtual process that runs now."""


class DurableCluster(VirtualCluster):
    """A study in a folder. What :meth:`story` tells must not depend on what went wrong on the way.

    Args:
        folder: the study folder; files of the test are kept beside it.
        alone: a failpoint in a worker ends that worker; False: everything ends, as when the machine does.

    """

    backups = Backups

    def __init__(
        self, folder: Path, options: StudyOptions, space: SearchSpace, *, n_workers: int = 1, alone: bool = True
    ) -> None:
        super().__init__(options, space, n_workers=n_workers)
        self.folder = folder
        self.alone = alone
        self.disk = CheckpointStore(folder)  # type: ignore[assignment]
        self.jobs = Jobs(folder)
        self._hits = folder.parent / f"{folder.name}.hits"
        self._hits.mkdir()
        self._answers = folder.parent / f"{folder.name}.answers"
        self._worker: Process | None = None

    # -- launching

    def run_with(self, armed: str = "*=pass", most_launches: int = 5) -> Counter[str]:
        """Launch until the study has ended; failpoints count their hits over all launches.

        Returns:
            How often what happened: ``launches``, ``killed``, ``raised``.
        """
        happened: Counter[str] = Counter()
        for _ in range(most_launches):
            happened["launches"] += 1
            code = self._fork(armed)
            if code == 0:
                self.check()
                return happened
            happened["killed" if code == failpoints.KILLED else "raised"] += 1
        raise AssertionError(f"the study has not ended after {most_launches} launches: {happened}")

    @property
    def trace(self) -> dict[str, int]:
        """Hits of every failpoint so far."""
        return {file.name: file.stat().st_size for file in self._hits.iterdir()}

    def _fork(self, armed: str) -> int:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                failpoints._armed = failpoints.parse(armed, self._hits)
                code = self._launch_once()
            except AssertionError:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, _RAISED, failpoints.KILLED), "a promise was broken, see above"
        return code

    def _launch_once(self) -> int:
        real_exit = os._exit

        def end(code: int) -> None:
            if self._worker is not None and self.alone:
                raise WorkerKilled
            real_exit(code)

        try:
            with mock.patch.object(os, "_exit", end), self._opened_journal() as journal:
                self.journal = journal  # type: ignore[assignment]
                self.durable = state_from_header(journal.header)
                for event in journal.events():
                    self.durable.handle(event)
                self._launch()
        except (OSError, HpoError):
            return _RAISED
        return 0

    def _opened_journal(self) -> Journal:
        if Journal.exists(self.folder):
            journal = WatchedJournal.open(self.folder)
        else:
            journal = WatchedJournal.create(self.folder, study_header(self.space, self.options))
        assert isinstance(journal, WatchedJournal)
        journal.watch = self.after_commit
        return journal

    def sweep(self, state: StudyState) -> None:
        recorded = [t.checkpoint for t in state.trials.values() if t.checkpoint is not None]
        self.disk.sweep([self.jobs.folder(trial) for trial in state.trials.values()], recorded)

    # -- what a trial's process does; a failpoint on its side ends it alone

    def after(self, least: float, most: float, action: Callable[[], None]) -> None:
        worker = self._worker
        super().after(least, most, action if worker is None else lambda: self._as(worker, action))

    def _as(self, process: Process, action: Callable[[], None]) -> None:
        before, self._worker = self._worker, process
        try:
            action()
        except WorkerKilled:
            self._worker = None
            self._die(process, signal=9)
        finally:
            self._worker = before

    def _begin(self, process: Process) -> None:
        self._as(process, lambda: super(DurableCluster, self)._begin(process))

    def _hear(self, process: Process, reply: Welcome | Answer) -> None:
        def hear() -> None:
            failpoint("channel.answered")
            if isinstance(reply, Answer) and reply.decision == "pause":
                failpoint("callback.told_to_pause")
            super(DurableCluster, self)._hear(process, reply)

        self._as(process, hear)

    def _say(self, process: Process, message: Message) -> None:
        failpoint("channel.before_send")
        super()._say(process, message)
        failpoint("channel.sent")

    def _trained(self, process: Process) -> None:
        failpoint("callback.before_report")
        super()._trained(process)

    def _load(self, process: Process, welcome: Welcome) -> None:
        process.waits_for = None
        process.resource = welcome.from_resource
        if welcome.checkpoint_path is not None:
            path = self.folder / str(process.trial_id) / welcome.checkpoint_path
            verify(path, welcome.checkpoint_sha256 or "")
            with zipfile.ZipFile(path) as archive:
                kept = json.loads(archive.read("state"))
            assert kept == [process.trial_id, welcome.from_resource], "the checkpoint of another trial or epoch"
            failpoint("callback.resumed")
        self._train(process)

    def _save(self, process: Process) -> None:
        folder = self.jobs.study / str(process.trial_id)
        path = checkpoint_path(folder, process.resource)
        try:
            written = self._written(path, [process.trial_id, process.resource])
        except CheckpointError as problem:
            self._say(process, Problem(process.trial_id, process.attempt, "CheckpointError", str(problem)))
            self._die(process, signal=None, exit_code=1)
            return
        checkpoint = Checkpoint(process.resource, path.relative_to(folder).as_posix(), written.sha256, written.size)
        self._say(process, Saved(process.trial_id, process.attempt, checkpoint))
        failpoint("callback.saved")
        self._conclude(process, Outcome.PAUSED)

    def _written(self, path: Path, state: list[int]) -> Written:
        """In a process of its own: what is killed while it writes does not clean up."""

        def write(file: Any) -> None:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("state", json.dumps(state))

        pid = os.fork()
        if pid == 0:
            self._worker = None
            code = _RAISED
            try:
                write_durably(path, write)
                code = 0
            except CheckpointError:
                pass
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == failpoints.KILLED:
            os._exit(code)
        if code == _RAISED:
            raise CheckpointError(f"{path} cannot be written. Make room on the disk.")
        return measure(path)

    def _acknowledge(self, process: Process, reply: Answer) -> None:
        super()._acknowledge(process, reply)
        key = (process.trial_id, process.resource)
        if key in self.acknowledged:
            with open(self._answers, "a") as file:
                file.write(json.dumps([*key, self.acknowledged[key]]) + "\n")

    # -- what must be true

    def story(self) -> list[tuple[Any, ...]]:
        """What was decided and learned, in order; attempts, repeated epochs and times left out."""
        told: dict[tuple[Any, ...], None] = {}
        for event in self.events():
            if isinstance(event, Suggested):
                told["suggested", event.trial_id, json.dumps(event.config), json.dumps(event.searcher_state)] = None
            elif isinstance(event, Reported):
                told["reported", event.trial_id, event.resource, event.value] = None
        final = self.state()
        return [*told, *(("ended", i, str(t.status), t.bracket) for i, t in final.trials.items())]

    def events(self) -> list[Event]:
        return stored_events(self.folder)

    def state(self) -> StudyState:
        return stored_state(self.folder)

    def check(self) -> None:
        """Nothing acknowledged is lost, no file is left over, no recorded checkpoint is missing."""
        state = self.state()
        state.check_invariants()
        if self._answers.exists():
            for line in self._answers.read_text().splitlines():
                trial_id, resource, value = json.loads(line)
                assert state.trials[trial_id].curve[resource] == value, "an acknowledged result is lost"
        for trial in state.trials.values():
            assert list(trial.curve) == list(range(1, len(trial.curve) + 1)), "a report is missing"
            assert all(value == true_value(trial.config["x"], r) for r, value in trial.curve.items())
            assert trial.status.is_final or trial.status is TrialStatus.PAUSED
            if trial.checkpoint is not None:
                verify(self.disk.path(trial.checkpoint), trial.checkpoint.sha256)
        recorded = {t.checkpoint.path for t in state.trials.values() if t.checkpoint is not None}
        found = {f.relative_to(self.folder).as_posix() for f in self.folder.glob("*/checkpoints/*")}
        left = {f for f in found if f.rpartition("/")[2].startswith(".")}
        assert not left, f"temporary files are left: {left}"
        assert recorded <= found
        files = {f.name for f in self.folder.iterdir() if f.is_file()}
        assert files <= {
            "study.lock",
            "study.mark",
            "study.db",
            "study.db.bak",
            "study.db-wal",
            "study.db-shm",
        }


class Jobs(virtual.Jobs):
    """Jobs whose folders lie in the study folder."""

    def __init__(self, study: Path) -> None:
        self.study = study


def stored_events(folder: Path) -> list[Event]:
    """What the journal in the folder holds."""
    with Journal.read(folder) as journal:
        return list(journal.events())


def stored_state(folder: Path) -> StudyState:
    """The study that its events make."""
    with Journal.read(folder) as journal:
        state = state_from_header(journal.header)
        for event in journal.events():
            state.handle(event)
    return state


class WatchedJournal(Journal):
    """Tells of its commits."""

    watch: Callable[[Sequence[Event]], None]

    def append(self, events: Sequence[Event]) -> None:
        super().append(events)
        if events:
            self.watch(events)
