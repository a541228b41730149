from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import AttemptEnded, CheckpointSaved, Outcome, PauseRequested, Reported
from lightning_hpo.core.space import choice, randint
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import StudyError
from lightning_hpo.report.results import (
    column_names,
    results_yaml,
    summary,
    trials_csv,
    write_results,
)
from lightning_hpo.report.writing import write_atomically
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Recommendation, Study
from tests.report.studies import OPTIONS, SPACE, Driver, new_state, small_study, state_of


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------- yaml


def test_the_results_name_the_best_at_full_resource_and_the_best_seen():
    found = yaml.safe_load(results_yaml(state_of(small_study()), "all 4 trials are done"))
    elapsed = found.pop("elapsed_seconds")
    assert 0 <= elapsed < 60
    params = {"model.lr": 0.01, "act": "gelu"}
    assert found == {
        "name": "lightning_hpo",
        "best_params": params,
        "best_value": 0.45,
        "metric": "val_loss",
        "mode": "min",
        "algorithm": "asha",
        "best_at_full_resource": {"trial": 1, "resource": 3, "value": 0.45, "params": params},
        "best_seen": {"trial": 1, "resource": 2, "value": 0.4, "params": params},
        "trials": {"total": 4, "paused": 2, "completed": 1, "failed": 1},
        "resource": {"trained": 5, "full_training": 9},
        "ended": "all 4 trials are done",
    }


def test_a_metric_to_be_maximised_keeps_its_sign():
    found = yaml.safe_load(results_yaml(state_of(small_study(mode="max")), "x"))
    assert found["mode"] == "max"
    assert found["best_value"] == pytest.approx(0.55)
    assert found["best_seen"]["value"] == pytest.approx(0.6)


def test_while_no_trial_got_to_the_end_the_best_seen_is_the_best():
    study = small_study(max_t=9)  # the rungs are 1 and 3: trial 1 pauses at 3
    found = yaml.safe_load(results_yaml(state_of(study), "interrupted"))
    assert found["best_at_full_resource"] is None
    assert (found["best_value"], found["best_params"]["model.lr"]) == (0.4, 0.01)


def test_a_study_without_trials_has_results_too():
    found = yaml.safe_load(results_yaml(new_state(), "interrupted"))
    assert found["best_params"] == {}
    assert found["best_value"] is None
    assert found["trials"] == {"total": 0}


def test_a_study_of_diverged_trials_has_no_best():
    driver = Driver(new_state())
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, math.nan))
    assert yaml.safe_load(results_yaml(driver.state, "x"))["best_value"] is None


def test_the_recommended_configuration_is_written():
    recommendation = Recommendation(1, {"model.lr": 0.01, "act": "gelu", "batch_size": 64}, 0.42, 0.03)
    found = yaml.safe_load(results_yaml(state_of(small_study()), "x", recommendation))
    assert found["recommended"] == {
        "trial": 1,
        "params": {"model.lr": 0.01, "act": "gelu"},
        "expected_value": 0.42,
        "standard_deviation": 0.03,
        "confirmations": 0,
    }


NOT_TEXT_IN_YAML = ["1e-3", "1e5", "0o7", "yes", "null", "~", "inf", "2026-01-01", ": a", "\x85", "\u2028", "a\nb"]


@settings(max_examples=50)
@given(st.one_of(st.text(max_size=8), st.sampled_from(NOT_TEXT_IN_YAML)))
def test_text_values_come_back_as_text_in_yaml(text: str):
    space = {"x": choice([text, "another"])}
    state = new_state(space, points_to_evaluate=[{"x": text}])
    driver = Driver(state)
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, 0.5))
    assert yaml.safe_load(results_yaml(state, "x"))["best_params"] == {"x": text}


def test_text_that_looks_like_a_number_to_omegaconf_is_quoted():
    from omegaconf import OmegaConf

    state = new_state({"x": choice(["1e-3", "2"])}, points_to_evaluate=[{"x": "1e-3"}])
    driver = Driver(state)
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, 0.5))
    assert OmegaConf.create(results_yaml(state, "x")).best_params.x == "1e-3"


# -------------------------------------------------------------------------------------------- csv


def test_one_row_per_trial():
    found = rows(trials_csv(state_of(small_study())))
    assert [row["trial"] for row in found] == ["0", "1", "2", "3"]
    assert [row["status"] for row in found] == ["paused", "completed", "paused", "failed"]
    best = found[1]
    assert (best["last_value"], best["best_value"], best["best_resource"], best["value_at_max_t"]) == (
        "0.45",
        "0.4",
        "2",
        "0.45",
    )
    assert (best["resource"], best["attempts"], best["bracket"], best["origin"]) == ("3", "2", "0", "initial")
    assert (best["model.lr"], best["act"]) == ("0.01", "gelu")
    assert found[3]["error"] == "RuntimeError: out of memory"
    assert (found[3]["last_value"], found[3]["best_resource"]) == ("", "")


def test_constants_are_no_columns():
    assert "batch_size" not in rows(trials_csv(state_of(small_study())))[0]


def test_a_diverged_value_is_told_apart_from_none():
    driver = Driver(new_state())
    driver.ready()
    driver.feed(Reported(2.0, 0, 1, 1, -math.inf))
    (row,) = rows(trials_csv(driver.state))
    assert (row["last_value"], row["best_value"]) == ("-inf", "")


def test_hyperparameters_with_odd_names_and_values_have_their_columns():
    space = {"status": choice(["a,b", 'c"d']), "größe λ": choice([[1, 2], [3]]), "flag": choice([True, False])}
    state = new_state(space, points_to_evaluate=[{"status": "a,b", "größe λ": [1, 2], "flag": True}])
    Driver(state).ready()
    (row,) = rows(trials_csv(state))
    assert (row["status"], row["config.status"]) == ("running", "a,b")
    assert (row["größe λ"], row["flag"]) == ("[1, 2]", "true")


@given(st.lists(st.sampled_from(["a", "b", "config.a", "config.config.a", "trial"]), unique=True))
def test_column_names_are_unique(names: list[str]):
    taken = ("a", "trial")
    columns = column_names(names, taken)
    assert len({*columns, *taken}) == len(columns) + len(taken)
    assert [c for c, n in zip(columns, names, strict=True) if n not in taken] == [n for n in names if n not in taken]


def test_a_table_without_trials_has_its_header():
    text = trials_csv(new_state())
    assert text.startswith("trial,status,bracket,origin,resource,")
    assert text.count("\n") == 1


# ------------------------------------------------------------------------------------------ files


def test_results_are_replaced_and_nothing_else_is_left(tmp_path: Path):
    """Not even what a launcher that was killed in the middle of writing has left."""
    study = small_study()
    (tmp_path / ".trials.csv.0123456789ab.partial").write_text("trial,sta")
    for reason in ("first", "second"):
        paths = write_results(tmp_path, state_of(study), reason=reason)
    assert yaml.safe_load(paths[0].read_text())["ended"] == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["optimization_results.yaml", "trials.csv"]


def test_what_cannot_be_written_leaves_the_old_file_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.yaml"
    write_atomically(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StudyError, match=r"No space left.*\. Make room on the disk, or choose a folder"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "a.yaml").symlink_to(outside)
    write_atomically(folder / "a.yaml", "new")
    assert outside.read_text() == "precious"
    assert not (folder / "a.yaml").is_symlink()


# ---------------------------------------------------------------------------------------- summary


def told(study: Study, **options: object) -> str:
    return summary(state_of(study), Path("multirun/x"), reason="all 4 trials are done", **options)  # type: ignore[arg-type]


def test_the_summary_tells_both_bests_what_was_saved_and_what_failed():
    lines = told(small_study()).splitlines()[1:]
    assert lines[0].startswith("The study ended after 0:00:0")
    assert lines[0].endswith(": all 4 trials are done.")
    by_name = {line[:23].strip(): line[23:].strip() for line in lines[1:6]}
    assert by_name["best at full resource"] == "val_loss=0.45  epoch 3  trial 1  lr=0.01 act=gelu"
    assert by_name["best seen"] == "val_loss=0.4  epoch 2  trial 1  lr=0.01 act=gelu"
    assert by_name["trials"] == "4: 2 paused, 1 completed, 1 failed"
    assert by_name["spent"] == "5 epochs instead of 9 for full training: 44 % saved"
    assert "  trial 3 failed: RuntimeError: out of memory" in lines
    assert lines[-1] == "  look  lightning-hpo status multirun/x"


def test_the_summary_gives_the_commands_that_come_next():
    text = told(
        small_study(),
        retrain=lambda config: f"python train.py lr={config['model.lr']} batch_size={config['batch_size']}",
        continue_command="python train.py -m hydra.launcher.study=multirun/x",
        log_of=lambda trial_id: Path(f"multirun/x/{trial_id}/trial.log"),
    )
    assert "  train trial 1  python train.py lr=0.01 batch_size=64\n" in text
    assert "  continue       python train.py -m hydra.launcher.study=multirun/x\n" in text
    assert "(multirun/x/3/trial.log)" in text


def test_the_recommended_configuration_is_the_one_to_train():
    recommendation = Recommendation(2, {"model.lr": 0.001, "act": "relu", "batch_size": 64}, 0.42, 0.0304518)
    text = told(small_study(), recommendation=recommendation, retrain=lambda config: f"lr={config['model.lr']}")
    assert "recommended            expected 0.42 ± 0.03  trial 2  lr=0.001 act=relu" in text
    assert "train trial 2  lr=0.001" in text


def test_a_long_list_of_failures_is_cut():
    study = Study.create({"x": randint(0, 100)}, metric="m", algorithm="random", max_failures_in_a_row=100)
    for number in range(8):
        study.ask()
        study.fail(number, f"error {number}")
    text = told(study)
    assert "trial 4 failed: error 4" in text
    assert "error 5" not in text
    assert "3 more failed: lightning-hpo trials multirun/x --status failed" in text
    assert "no trial has reported a finite value" in text


def test_trials_with_the_same_error_share_a_line():
    study = Study.create({"x": randint(0, 100)}, metric="m", algorithm="random", max_failures_in_a_row=100)
    for number, error in enumerate(["out of memory", "no disk", "out of memory", "out of memory"]):
        study.ask()
        study.fail(number, error)
    lines = told(study).splitlines()
    assert "  trial 0 and 2 more failed: out of memory" in lines
    assert "  trial 1 failed: no disk" in lines


def journalled(folder: Path, ends: list[tuple[Outcome, str | None]]) -> StudyState:
    """A study on disk of one trial per end, each of which comes after a full training of one epoch."""
    points = [{"model.lr": 0.01 * number, "act": "relu"} for number in range(1, len(ends) + 1)]
    options = {"algorithm": "random", "type": None, "max_t": 1, "n_trials": len(ends)}
    driver = Driver(new_state(points_to_evaluate=points, **options))
    for trial, (outcome, error) in enumerate(ends):
        driver.ready()
        driver.feed(Reported(driver.time, trial, 1, 1, 0.5))
        driver.feed(AttemptEnded(driver.time, trial, 1, outcome, error))
    with Journal.create(folder, study_header(driver.state.space, driver.state.options)) as journal:
        journal.append([event for event, _ in driver.seen])
    return driver.state


def test_scripts_that_failed_after_their_training_are_counted_with_a_log(tmp_path: Path):
    ends = [(Outcome.COMPLETED, None), *[(Outcome.FAILED, "ValueError: after fit")] * 3, (Outcome.FAILED, "KeyError")]
    text = summary(journalled(tmp_path, ends), tmp_path, reason="x", log_of=lambda i: Path(f"multirun/{i}/trial.log"))
    assert "trials                 5: 5 completed" in text
    what = "failed after the training, still completed"
    assert f"  trial 1 and 2 more {what}: ValueError: after fit  (multirun/1/trial.log)" in text.splitlines()
    assert f"  trial 4 {what}: KeyError  (multirun/4/trial.log)" in text.splitlines()


def test_a_long_list_of_failures_after_the_training_is_cut(tmp_path: Path):
    text = summary(journalled(tmp_path, [(Outcome.FAILED, f"error {n}") for n in range(7)]), tmp_path, reason="x")
    assert "trial 4 failed after" in text and "error 5" not in text
    assert "  2 more failed after the training, still completed: the errors in trials.csv" in text.splitlines()


def test_a_process_that_was_lost_is_no_failure_of_the_script(tmp_path: Path):
    state = journalled(tmp_path, [(Outcome.LOST, "killed by signal 9")])
    assert state.trials[0].error == "killed by signal 9"
    assert "killed" not in summary(state, tmp_path, reason="x")


def test_a_script_that_failed_at_a_pause_and_ended_well_is_forgotten(tmp_path: Path):
    driver = Driver(new_state(algorithm="random", type=None, max_t=None, n_trials=1))
    for attempt, (resource, outcome) in enumerate([(1, Outcome.FAILED), (2, Outcome.COMPLETED)], 1):
        driver.ready()
        if attempt == 1:
            driver.feed(PauseRequested(driver.time, 0, "the study was interrupted"))
        driver.feed(Reported(driver.time, 0, attempt, resource, 0.5))
        if attempt == 1:
            driver.feed(CheckpointSaved(driver.time, 0, 1, Checkpoint(1, "checkpoints/1.ckpt", "0" * 64, 1)))
        driver.feed(AttemptEnded(driver.time, 0, attempt, outcome, "KeyError" if attempt == 1 else None))
        assert driver.state.trials[0].attempt == attempt
        events = [event for event, _ in driver.seen]
        folder = tmp_path / str(attempt)
        with Journal.create(folder, study_header(driver.state.space, driver.state.options)) as journal:
            journal.append(events)
        told_of = "KeyError" in summary(driver.state, folder, reason="x")
        assert told_of == (attempt == 1)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        # Rungs at 1, 3, 9: a third of the trials passes each of them, one in 27 all three.
        ({"n_trials": 2}, "Continue the study with n_trials=27 or more, or begin another one with type=stopping."),
        ({"n_trials": 27, "stop": {"max_num_evaluations": 1}}, "Continue the study with more time or trials."),
        (
            {"stop": {"max_metric_value": 0.15}},
            "Continue the study without the goal that it has reached, or with one that is harder to reach.",
        ),
        ({"n_trials": None, "stop": {"max_num_evaluations": 1}}, "Continue the study with more time or trials."),
    ],
)
def test_a_study_in_which_no_trial_got_to_the_end_says_what_to_do(options: dict[str, Any], fix: str):
    study = Study.create(SPACE, **{**OPTIONS, "max_t": 27, "points_to_evaluate": None, **options})
    for value in (0.1, 0.2):
        job = study.ask()
        assert job is not None
        study.tell(job.trial_id, 1, value)
    assert "No trial was trained to the end" not in told(study), "it has not ended yet"
    assert study.ask() is None
    (line,) = (line.strip() for line in told(study).splitlines() if "No trial was trained to the end" in line)
    assert "27 epochs: with rungs at 1, 3, 9, about one trial in 27 gets there." in line
    assert line.endswith(fix)


def test_a_study_that_has_a_full_training_gives_no_such_advice():
    assert "No trial was trained to the end" not in told(small_study())


@pytest.mark.parametrize("noise, is_told", [(0.0, True), (0.01, False)])
def test_confirmations_that_confirm_nothing_are_noticed(noise: float, is_told: bool):
    options = {"algorithm": "random", "max_t": 2, "n_trials": 4, "confirm": {"top": 1, "seeds": 2}}
    study = Study.create(SPACE, metric="val_loss", **options)
    while (job := study.ask()) is not None:
        for epoch in (1, 2):
            study.tell(job.trial_id, epoch, 0.5 + noise * job.replicate)
    text = told(study)
    assert ("The confirmations (2, 3) reported the very values" in text) == is_told
    assert study.recommend().confirmations == 2


def test_a_folder_with_a_blank_is_quoted_where_it_is_typed():
    text = summary(state_of(small_study()), Path("my runs"), reason="x")
    assert text.endswith("lightning-hpo status 'my runs'")


def test_validations_are_called_so():
    assert "5 validations instead of 9" in told(small_study(), unit="validation")
