"""Damaged files: a flipped bit and a truncation at each sixteenth, and what a study makes of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_hpo.core.events import AttemptStarted, Event, Reported, WorkerReady
from lightning_hpo.core.trial import Checkpoint, Trial, TrialStatus
from lightning_hpo.errors import CheckpointError, StudyCorrupt
from lightning_hpo.report.folder import read_study
from lightning_hpo.runtime.checkpoints import verify
from lightning_hpo.runtime.database import BACKUP_NAME, FILE_NAME, MARK_NAME
from lightning_hpo.runtime.journal import Journal
from tests.integrations.programs import PROGRAM, Ended, ProgramServer

PARTS = 16
LOG_NAME = f"{FILE_NAME}-wal"


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each damaged version."""
    for part in range(PARTS):
        place = len(content) * part // PARTS
        flipped = bytearray(content)
        flipped[place] ^= 1
        yield f"flipped at {part}/{PARTS}", bytes(flipped)
        yield f"truncated at {part}/{PARTS}", content[:place]


def unnoticed_in_checkpoint(path: Path, checkpoint: Checkpoint, spare: Path) -> list[str]:
    """Damages of a checkpoint that nobody would notice before it is loaded.

    Args:
        path: the checkpoint's file; not touched.
        spare: a file name for damaged copies.
    """
    verify(path, checkpoint.sha256)
    unnoticed = []
    for name, content in damages(path.read_bytes()):
        spare.write_bytes(content)
        try:
            verify(spare, checkpoint.sha256)
        except CheckpointError:
            continue
        unnoticed.append(name)
    return unnoticed


@dataclass
class Verdicts:
    """What became of the damaged versions of one file."""

    counts: Counter[str] = field(default_factory=Counter)
    """``noticed``; ``harmless``: everything is read as it was written; ``believed``: something else is read."""
    lost_by_backup: int = 0
    """Most events that were lost by following the advice to put the backup in place."""


def try_damages(study: Path, file: str, spare: Path) -> Verdicts:
    """Open copies of a study in which one file is damaged, and follow the advice if one is refused.

    Args:
        study: folder with a study; not touched.
        file: name of the file to be damaged.
        spare: a folder for the copies.
    """
    whole = _events(_copy(study, spare))
    found = Verdicts()
    for _, content in damages((study / file).read_bytes()):
        (_copy(study, spare) / file).write_bytes(content)
        try:
            events = _events(spare)
        except StudyCorrupt as problem:
            found.counts["noticed"] += 1
            if (study / BACKUP_NAME).exists():
                restored = _follow_advice(spare, str(problem))
                assert restored == whole[: len(restored)], "the backup tells another story"
                found.lost_by_backup = max(found.lost_by_backup, len(whole) - len(restored))
        else:
            found.counts["harmless" if events == whole else "believed"] += 1
    return found


def _copy(study: Path, spare: Path) -> Path:
    shutil.rmtree(spare, ignore_errors=True)
    spare.mkdir(mode=0o700)
    for name in (FILE_NAME, LOG_NAME, MARK_NAME, BACKUP_NAME):
        if (study / name).exists():
            shutil.copy(study / name, spare / name)
    return spare


def _events(study: Path) -> list[str]:
    with Journal.open(study) as journal:
        # As text, because NaN is not equal to itself.
        return [str(journal.header), *(str(event) for event in journal.events())]


def _follow_advice(study: Path, message: str) -> list[str]:
    command = message.rpartition("in its place: ")[2].partition(" To go on")[0]
    subprocess.run(["sh", "-c", command], check=True)
    return _events(study)


def killed_and_ended(folder: Path, commits: int = 100, backup_after: int = 80) -> tuple[Path, Path]:
    """The same study twice, with a backup that is a little older.

    Returns:
        The folder as a launcher that was killed leaves it, with a write-ahead log, and as one that has ended.
    """
    ended, killed = folder / "ended", folder / "killed"
    with Journal.create(ended, {"space": [], "options": {"metric": "loss"}}) as journal:
        for number in range(commits):
            journal.append(_commit(number))
            if number + 1 == backup_after:
                journal.backup()
        shutil.copytree(ended, killed)
    return killed, ended


def _commit(number: int) -> list[Event]:
    time = float(number)
    reported = Reported(time, number, 1, 1, 1.0 / (number + 1), {"train_loss": 0.5, "note": float("nan")}, 12.5)
    return [WorkerReady(time), AttemptStarted(time, number, 1, 4711, "cpu:0"), reported]


# ---------------------------------------------------------------------------------- a study of Lightning


class InterruptedStudy:
    """A study whose trials all wait, each with a checkpoint that Lightning's state was saved in.

    Args:
        programs: runs them.
        folder: where the program and the study lie.
        n_trials: all of them train at the same time.
    """

    max_epochs = 9

    def __init__(self, programs: ProgramServer, folder: Path, n_trials: int) -> None:
        self.folder = folder / "study"
        self._program = folder / "program.py"
        self._program.write_text(PROGRAM)
        self._command = [
            "-m", "hydra/launcher=hpo", "hydra.launcher.metric=val_loss", "hydra.launcher.algorithm=random",
            f"hydra.launcher.n_trials={n_trials}", f"hydra.launcher.n_workers={n_trials}",
            "hydra.launcher.random_seed=1", "model.lr=tag(log,interval(1e-4,1e-1))",
            f"trainer.max_epochs={self.max_epochs}",
        ]  # fmt: skip
        self._programs = programs
        running = programs.start(
            self._program, *self._command, "sleep=0.3", f"hydra.sweep.dir={self.folder}", folder=folder
        )
        deadline = time.monotonic() + 120
        while not (Journal.exists(self.folder) and sum(len(t.curve) > 0 for t in trials(self.folder)) == n_trials):
            assert time.monotonic() < deadline, running.output
            time.sleep(0.05)
        running.signal(signal.SIGINT)
        running.end()
        assert all(t.status is TrialStatus.WAITING and t.checkpoint is not None for t in trials(self.folder))

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder, folder)
        return folder

    def go_on(self, study: Path) -> Ended:
        """Give the same command again."""
        continued = f"hydra.launcher.study={study}"
        return self._programs.run(self._program, *self._command, continued, folder=self._program.parent)


def trials(study: Path) -> list[Trial]:
    """The study's trials as they are now."""
    return list(read_study(study).state.trials.values())


def damage_checkpoints(study: Path, numbers: list[int]) -> None:
    """Damage the checkpoint of each trial in one way: which, of :func:`damages`, ``numbers`` says."""
    for trial, number in zip(trials(study), numbers, strict=True):
        assert trial.checkpoint is not None
        path = study / trial.checkpoint.path
        path.write_bytes(list(damages(path.read_bytes()))[number][1])
