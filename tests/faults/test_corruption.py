"""Damaged files are noticed, said, and cost as little as possible."""

from __future__ import annotations

import subprocess

import pytest

from lightning_hpo.core.events import AttemptEnded, CheckpointRemoved, Outcome
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.runtime.database import BACKUP_NAME, FILE_NAME
from lightning_hpo.runtime.journal import Journal
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

TRIALS = 4


@pytest.fixture(scope="module")
def interrupted(programs, tmp_path_factory):
    return InterruptedStudy(programs, tmp_path_factory.mktemp("interrupted"), TRIALS)


def test_every_damage_of_a_checkpoint_is_noticed(interrupted, tmp_path):
    for trial in trials(interrupted.folder):
        path = interrupted.folder / trial.checkpoint.path
        assert unnoticed_in_checkpoint(path, trial.checkpoint, tmp_path / "damaged.ckpt") == []


def test_trials_with_damaged_checkpoints_begin_anew_and_say_so(interrupted, tmp_path):
    study = interrupted.copy(tmp_path / "study")
    before = trials(study)
    damage_checkpoints(study, [5, 14, 23, 30])  # flipped and truncated, in the first part and in the last
    ended = interrupted.go_on(study)
    assert ended.code == 0, ended.output
    after = trials(study)
    assert len(after) == TRIALS
    for trial in after:
        assert trial.status is TrialStatus.COMPLETED and list(trial.curve) == list(range(1, interrupted.max_epochs + 1))
        known = before[trial.id].curve
        assert {r: trial.curve[r] for r in known} == known, "what was acknowledged is lost"
        assert trial.failures == 1
    with Journal.read(study) as journal:
        events = list(journal.events())
    removed = [e for e in events if isinstance(e, CheckpointRemoved) and "SHA-256" in e.reason]
    assert sorted(e.trial_id for e in removed) == list(range(TRIALS))
    assert sum(isinstance(e, AttemptEnded) and e.outcome is Outcome.LOST for e in events) == TRIALS
    assert ended.output.count("is not the one that was saved") >= 1
    assert "let the trial start again from the beginning" in ended.output


def test_whole_checkpoints_are_gone_on_from(interrupted, tmp_path):
    """The same study without damage: the test above is not about trials that would have begun anew anyway."""
    study = interrupted.copy(tmp_path / "study")
    ended = interrupted.go_on(study)
    assert ended.code == 0, ended.output
    assert all(t.status is TrialStatus.COMPLETED and t.failures == 0 for t in trials(study))
    assert "is not the one that was saved" not in ended.output


def test_a_study_with_a_damaged_database_is_refused_with_advice_that_works(interrupted, tmp_path):
    study = interrupted.copy(tmp_path / "study")
    content = (study / FILE_NAME).read_bytes()
    (study / FILE_NAME).write_bytes(content[: len(content) // 2])
    refused = interrupted.go_on(study)
    assert refused.code != 0 and "cannot be read" in refused.output and "Traceback" not in refused.output
    advice = next(line for line in refused.output.splitlines() if "in its place: " in line)
    subprocess.run(["sh", "-c", advice.rpartition("in its place: ")[2]], check=True)
    ended = interrupted.go_on(study)
    assert ended.code == 0, ended.output
    assert [t.status for t in trials(study)] == [TrialStatus.COMPLETED] * TRIALS


@pytest.mark.parametrize("file", [FILE_NAME, LOG_NAME, BACKUP_NAME])
def test_no_damage_of_a_journal_is_believed(tmp_path, file):
    killed, ended = killed_and_ended(tmp_path)
    for study in (killed, ended) if file == FILE_NAME else (killed,):
        verdicts = try_damages(study, file, tmp_path / "spare")
        assert verdicts.counts["believed"] == 0
        if file == LOG_NAME:
            assert verdicts.counts["noticed"] == 2 * PARTS, "a commit is lost and nobody knows"
        if file == BACKUP_NAME:
            assert verdicts.counts["harmless"] == 2 * PARTS
        # The backup is 20 commits of 3 events older.
        assert verdicts.lost_by_backup in (0, 60)
