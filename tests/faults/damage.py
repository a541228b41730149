"""Damaged files: a flipped bit and a truncation at each sixteenth, and what a study makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_hpo.core.events import AttemptStarted, Event, Reported, WorkerReady
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import CheckpointError, StudyCorrupt
from lightning_hpo.runtime.checkpoints import verify
from lightning_hpo.runtime.database import BACKUP_NAME, FILE_NAME, MARK_NAME
from lightning_hpo.runtime.journal import Journal

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
    whole = _events(study)
    found = Verdicts()
    for _, content in damages((study / file).read_bytes()):
        shutil.rmtree(spare, ignore_errors=True)
        spare.mkdir(mode=0o700)
        for name in (FILE_NAME, LOG_NAME, MARK_NAME, BACKUP_NAME):
            if (study / name).exists():
                shutil.copy(study / name, spare / name)
        (spare / file).write_bytes(content)
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


def _events(study: Path) -> list[str]:
    with Journal.open(study) as journal:
        # As text, because NaN is not equal to itself.
        return [str(journal.header), *(str(event) for event in journal.events())]


def _follow_advice(study: Path, message: str) -> list[str]:
    command = message.rpartition("in its place: ")[2].partition(" To go on")[0]
    subprocess.run(["sh", "-c", command], check=True)
    return _events(study)


def killed_study(folder: Path, commits: int = 100, backup_after: int = 80) -> Path:
    """A study whose launcher was killed, so that its write-ahead log is there; with a backup that is a little older."""
    live = folder / "live"
    with Journal.create(live, {"space": [], "options": {"metric": "loss"}}) as journal:
        for number in range(commits):
            journal.append(_commit(number))
            if number + 1 == backup_after:
                journal.backup()
        study = folder / "killed"
        shutil.copytree(live, study)
    return study


def _commit(number: int) -> list[Event]:
    time = float(number)
    reported = Reported(time, number, 1, 1, 1.0 / (number + 1), {"train_loss": 0.5, "note": float("nan")}, 12.5)
    return [WorkerReady(time), AttemptStarted(time, number, 1, 4711, "cpu:0"), reported]
