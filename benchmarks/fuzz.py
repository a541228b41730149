"""What becomes of malformed messages and of damaged files: ``python benchmarks/fuzz.py --fuzz 100000``.

``--fuzz N``: N messages that are malformed, misleading or without the key, thrown at the channel of a running study by
hostile trials (``tests/faults/hostile.py``), while a well-behaved trial beside them measures how long its answers take.

``--corruption``: a flipped bit and a truncation at each sixteenth of a checkpoint that Lightning wrote, of a study's
database and of its write-ahead log (``tests/faults/damage.py``): is it noticed, and what is lost?

The exit status is 1 if something was not noticed, not refused or not answered.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.runtime.database import BACKUP_NAME, FILE_NAME
from tests.faults.damage import (
    LOG_NAME,
    PARTS,
    InterruptedStudy,
    damage_checkpoints,
    killed_and_ended,
    trials,
    try_damages,
    unnoticed_in_checkpoint,
)
from tests.faults.hostile import Fuzzed, fuzz
from tests.faults.malformed import MALFORMED
from tests.integrations.programs import ProgramServer


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds, of sorted seconds."""
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * seconds[min(int(q * len(seconds)), len(seconds) - 1)], 1) for name, q in at.items()}


def figures(found: Fuzzed) -> dict[str, Any]:
    attacks = dict(found.attacks)
    missed = {name: attacks.pop(name) for name in list(attacks) if name.startswith("NOT REFUSED")}
    return {
        "messages": attacks["messages"],
        "kinds": {name: attacks[name] for name in (*MALFORMED, "well-formed", "without key")},
        "refused": attacks["refused"],
        "not refused": missed,
        "connections": attacks["connections"],
        "loitering connections at a time": attacks.get("most loiterers", 0),
        "seconds": round(found.seconds, 1),
        "answers before the attack": len(found.quiet_s),
        "latency before the attack, ms": quantiles(found.quiet_s),
        "answers under attack": len(found.under_attack_s),
        "latency under attack, ms": quantiles(found.under_attack_s),
        "launcher's memory before, MB": round(found.bytes_before / 1e6, 1),
        "launcher's memory at most, MB": round(found.most_bytes / 1e6, 1),
        "open files before and after": [found.files_before, found.files_after],
        "ended": found.result.reason,
        "journal tells the same study": found.replayed,
    }


def corrupted_journals(folder: Path) -> dict[str, Any]:
    """Each damage of each file of a study of 300 events, with a backup of its first 240."""
    killed, ended = killed_and_ended(folder)
    found = {}
    for name, study, file in (
        ("database, launcher killed", killed, FILE_NAME),
        ("write-ahead log, launcher killed", killed, LOG_NAME),
        ("database, study ended", ended, FILE_NAME),
        ("backup", ended, BACKUP_NAME),
    ):
        verdicts = try_damages(study, file, folder / "spare")
        lost = verdicts.lost_by_backup
        found[name] = {"damages": 2 * PARTS, **verdicts.counts, "events lost at most with the backup": lost}
    return found


def corrupted_checkpoints(folder: Path) -> dict[str, Any]:
    """Each damage of a trial's checkpoint, and what the continued study makes of it."""
    n_trials = 4
    programs = ProgramServer()
    try:
        study = InterruptedStudy(programs, folder, n_trials)
        of_files = [(study.folder / t.checkpoint.path, t.checkpoint) for t in trials(study.folder) if t.checkpoint]
        unnoticed = [name for file in of_files for name in unnoticed_in_checkpoint(*file, folder / "damaged.ckpt")]
        begun_anew = completed = lost = 0
        for first in range(0, 2 * PARTS, n_trials):
            copy = study.copy(folder / f"copy-{first}")
            before = trials(copy)
            damage_checkpoints(copy, list(range(first, first + n_trials)))
            study.go_on(copy)
            for old, new in zip(before, trials(copy), strict=True):
                begun_anew += new.failures == 1
                completed += new.status is TrialStatus.COMPLETED and len(new.curve) == study.max_epochs
                lost += sum(new.curve.get(resource) != value for resource, value in old.curve.items())
    finally:
        programs.close()
    return {
        "damages": 2 * PARTS,
        "checkpoints": n_trials,
        "bytes": of_files[0][1].size,
        "not noticed": unnoticed,
        "trials gone on with": 2 * PARTS,
        "begun anew": begun_anew,
        "completed": completed,
        "reports lost": lost,
    }


def is_sound_after_damage(found: dict[str, Any]) -> bool:
    journals, checkpoints = found["journals"], found["checkpoints"]
    all_trials = checkpoints["trials gone on with"] == checkpoints["begun anew"] == checkpoints["completed"]
    return not (
        any(file.get("believed") for file in journals.values())
        or checkpoints["not noticed"]
        or checkpoints["reports lost"]
    ) and bool(all_trials)


def is_sound(found: dict[str, Any]) -> bool:
    before, after = found["open files before and after"]
    return not found["not refused"] and found["journal tells the same study"] and before == after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="messages thrown at the channel")
    parser.add_argument("--hostile", type=int, default=2, metavar="N", help="hostile trials")
    parser.add_argument("--corruption", action="store_true", help="damage checkpoints and journals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    found: dict[str, Any] = {"seed": given.seed}
    good = True
    if given.fuzz:
        with tempfile.TemporaryDirectory(prefix="hpo-fuzz-") as folder:
            found["fuzz"] = figures(
                fuzz(Path(folder), given.fuzz, hostile=given.hostile, seed=given.seed, quiet_s=5.0, loiterers=200)
            )
        good &= is_sound(found["fuzz"])
    if given.corruption:
        with tempfile.TemporaryDirectory(prefix="hpo-damage-") as folder:
            Path(folder, "trials").mkdir()
            found["corruption"] = {
                "journals": corrupted_journals(Path(folder)),
                "checkpoints": corrupted_checkpoints(Path(folder, "trials")),
            }
        good &= is_sound_after_damage(found["corruption"])
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
