"""Where trials write: each in a folder of its own, which it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo.core.events import AttemptStarted, from_json, to_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, Trial
from lightning_hpo.runtime.trial_folders import TrialFolders

STUDY = Path("/study")


@pytest.fixture
def state():
    """A study of three trials that have begun."""
    made = StudyState(SearchSpace({"x": uniform(0, 1)}), StudyOptions(metric="loss", max_t=3, random_seed=0))
    made.trials = {i: Trial(i, {"x": i / 8}, 0, 1) for i in range(3)}
    return made


def names(folders: TrialFolders, state: StudyState) -> list[str]:
    return [folders.name(trial) for trial in state.trials.values()]


def test_a_trial_has_the_folder_that_it_wants(state):
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / "runs" / str(trial.id))
    assert names(folders, state) == ["runs/0", "runs/1", "runs/2"]
    assert folders.of(state.trials[1]) == STUDY / "runs" / "1"


def test_of_trials_that_want_the_same_folder_the_first_has_it_and_that_is_told_once(state):
    told: list[str] = []
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / "runs" / "same", told.append)
    assert names(folders, state) == ["runs/same", "runs/same_1", "runs/same_2"]
    assert len(told) == 1 and "Trials 0 and 1" in told[0] and "runs/same" in told[0]
    assert told[0].endswith("let hydra.sweep.subdir hold ${hydra.job.num}.")


def test_a_name_made_for_one_trial_is_not_given_to_another_that_wants_it(state):
    wanted = {0: "a", 1: "a", 2: "a_1"}
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / wanted[trial.id])
    assert names(folders, state) == ["a", "a_1", "a_1_2"]


def test_the_same_folder_written_in_two_ways_is_one(state):
    wanted = {0: "a/b", 1: "a/c/../b", 2: "a/./b"}
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / wanted[trial.id])
    assert names(folders, state) == ["a/b", "a/b_1", "a/b_2"]


def test_a_trial_that_has_begun_keeps_its_folder_whatever_it_would_get_now(state):
    state.trials[1].folder = "12-00_1"
    state.trials[2].folder = "same"
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / "same")
    assert names(folders, state) == ["same_0", "12-00_1", "same"]


def test_a_trial_of_an_earlier_version_goes_on_where_its_checkpoint_is(state):
    state.trials[1].checkpoint = Checkpoint(1, "old/1/checkpoints/resource-1.ckpt", "0" * 64, 1)
    folders = TrialFolders(STUDY, state, lambda trial: STUDY / str(trial.id))
    assert names(folders, state) == ["0", "old/1", "2"]


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "", "a\nb", "a\0b"])
def test_a_study_from_elsewhere_leads_no_trial_out_of_it(state, folder):
    state.trials[0].folder = folder
    assert names(TrialFolders(STUDY, state, lambda trial: STUDY / str(trial.id)), state) == ["0", "1", "2"]


def test_the_first_attempt_that_tells_the_folder_has_told_it(state):
    for attempt, folder in ((1, None), (1, "a"), (1, "b")):
        event = AttemptStarted(1.0, 0, attempt, folder=folder)
        assert from_json(to_json(event)) == event
        state.handle(event)
    assert state.trials[0].folder == "a"
