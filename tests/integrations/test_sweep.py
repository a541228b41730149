"""The main job, end to end: a user's program under ``-m hydra/launcher=hpo``."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lightning_hpo import choice, loguniform, randint
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Trial
from lightning_hpo.integrations.hydra_space import read_space
from lightning_hpo.integrations.sweep import HydraJobs
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Study
from tests.integrations.programs import PROGRAM, Ended, Gate, Running

LR = "model.lr=tag(log,interval(1e-4,1e-1))"
TUNE = ["-m", "hydra/launcher=hpo", "hydra.launcher.metric=val_loss", "hydra.launcher.algorithm=asha"]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def tune(programs, program, tmp_path):
    """Runs the program with these overrides behind ``-m hydra/launcher=hpo``."""

    def run(*overrides: str) -> Ended:
        defaults = ["hydra.launcher.n_trials=4", "hydra.launcher.n_workers=2", "hydra.launcher.random_seed=1"]
        return programs.run(program, *TUNE, *defaults, *overrides, folder=tmp_path)

    return run


@pytest.fixture
def start(programs, program, tmp_path):
    def run(*overrides: str) -> Running:
        return programs.start(program, *TUNE, *overrides, folder=tmp_path)

    return run


def rows(study: Path) -> list[dict[str, str]]:
    with open(study / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def last_sentence(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if "HYDRA_FULL_ERROR" not in line and line.strip()]
    return lines[-1]


class TestAStudy:
    def test_leaves_results_logs_and_a_summary(self, tune):
        ended = tune(LR, "model.act=choice(relu,gelu)", "hydra.launcher.type=promotion")
        assert ended.code == 0, ended.output
        results = yaml.safe_load((ended.study / "optimization_results.yaml").read_text())
        assert results["name"] == "lightning_hpo"
        assert set(results["best_params"]) == {"model.lr", "model.act"}
        # The first trial is the middle of the space, lr = sqrt(1e-4 * 1e-1), act = relu.
        first = rows(ended.study)[0]
        assert float(first["model.lr"]) == pytest.approx(10**-2.5)
        assert first["model.act"] == "relu"
        assert len(rows(ended.study)) == 4
        assert (ended.study / "multirun.yaml").exists()
        assert (ended.study / "0" / ".hydra" / "overrides.yaml").exists()
        assert (ended.study / "0" / "trial.log").stat().st_size > 0
        assert "best at full resource" in ended.output and "best seen" in ended.output

    def test_prints_no_trial_output_and_no_progress_bars(self, tune):
        ended = tune(LR)
        assert "the script's last line" not in ended.output
        assert "GPU available" not in ended.output
        assert "Epoch 0" not in ended.output
        log = (ended.study / "0" / "trial.log").read_text()
        assert "Epoch 0:" not in log

    def test_code_after_fit_runs_only_in_trials_that_reached_max_t(self, tune):
        ended = tune(LR, "hydra.launcher.type=promotion", "hydra.launcher.n_trials=5")
        statuses = {row["trial"]: row["status"] for row in rows(ended.study)}
        for trial, status in statuses.items():
            ran = "the script's last line" in (ended.study / trial / "trial.log").read_text()
            assert ran == (status == "completed"), (trial, status)

    def test_goes_on_with_the_same_command(self, tune):
        first = tune(LR)
        again = tune(LR, f"hydra.launcher.study={first.study}", "hydra.launcher.n_trials=6")
        assert again.code == 0, again.output
        assert [row["trial"] for row in rows(first.study)] == ["0", "1", "2", "3", "4", "5"]
        assert "There was no study" not in again.output
        finished = tune(LR, f"hydra.launcher.study={first.study}", "hydra.launcher.n_trials=6")
        assert finished.code == 0
        assert len(rows(first.study)) == 6

    def test_trials_whose_folders_have_one_name_do_not_share_one(self, tune):
        ended = tune(LR, "hydra.launcher.type=promotion", "hydra.launcher.n_trials=5", "hydra.sweep.subdir=same")
        assert ended.code == 0, ended.output
        assert {row["status"] for row in rows(ended.study)} == {"paused", "completed"}
        folders = sorted(folder.name for folder in ended.study.glob("same*"))
        assert folders == ["same", "same_1", "same_2", "same_3", "same_4"]
        assert ended.output.count("were both to write to same") == 1

    def test_a_resumed_trial_goes_on_in_its_folder_whatever_its_name_would_be_now(self, tune):
        named = "hydra.sweep.subdir=${now:%H-%M-%S-%f}_${hydra.job.num}"
        promotion = "hydra.launcher.type=promotion"
        tune(LR, promotion, "hydra.launcher.n_trials=2", named)
        ended = tune(LR, promotion, "hydra.launcher.n_trials=6", named)
        assert ended.code == 0, ended.output
        assert [int(row["attempts"]) for row in rows(ended.study)[:2]] == [1, 2]
        assert sorted(log.parent.name.split("_")[1] for log in ended.study.glob("*/trial.log")) == list("012345")

    def test_a_folder_without_a_study_begins_one_and_says_so(self, tune, tmp_path):
        ended = tune(LR, f"hydra.launcher.study={tmp_path}/new", "hydra.launcher.n_trials=1")
        assert ended.code == 0, ended.output
        assert f"There was no study in {tmp_path}/new to continue: this is a new one." in ended.output

    def test_takes_ranges_from_the_config_too(self, programs, tmp_path):
        program = tmp_path / "program.py"
        params = '"hydra": {"sweeper": {"params": {"model.units": "int(interval(4,16))"}}}, "model"'
        program.write_text(PROGRAM.replace('"model"', params, 1))
        ended = programs.run(program, *TUNE, "hydra.launcher.n_trials=3", "model.lr=0.02", folder=tmp_path)
        assert ended.code == 0, ended.output
        assert all(4 <= int(row["model.units"]) <= 16 for row in rows(ended.study))

    def test_tells_a_command_that_trains_once_even_if_the_config_asks_for_many_runs(self, programs, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.replace('"model"', '"hydra": {"mode": "MULTIRUN"}, "model"', 1))
        overrides = [*TUNE[1:], "hydra.launcher.n_trials=1", "+hydra.job.env_set.FOO=bar", LR]
        ended = programs.run(program, *overrides, folder=tmp_path)
        assert ended.code == 0, ended.output
        (command,) = [line for line in ended.output.splitlines() if line.startswith("  train trial 0")]
        python, script, *arguments = shlex.split(command)[3:]
        assert (python, script) == ("python", str(program))
        assert "+hydra.job.env_set.FOO=bar" in arguments
        again = programs.run(program, *arguments, folder=tmp_path)
        assert again.code == 0, again.output
        assert "the script's last line" in again.output
        assert len(list(tmp_path.glob("multirun/*/*"))) == 1

    def test_goes_on_by_the_command_that_it_prints_whatever_its_folder_is_called(self, programs, program, tmp_path):
        study = tmp_path / "lr=0.1,wd=(a) it's"
        quoted = str(study).replace("'", "\\'")
        limit = "hydra.launcher.n_trials"
        ended = programs.run(program, *TUNE, LR, f"{limit}=1", f"hydra.sweep.dir='{quoted}'", folder=tmp_path)
        assert ended.code == 0, ended.output
        command = next(line for line in ended.output.splitlines() if line.startswith("  continue"))
        arguments = [a.replace(f"{limit}=1", f"{limit}=2") for a in shlex.split(command)[3:]]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        again = programs.run(program, *arguments, folder=elsewhere)
        assert again.code == 0, again.output
        assert [row["trial"] for row in rows(study)] == ["0", "1"]

    def test_null_is_a_value_in_the_results_and_beside_values_to_begin_with(self, programs, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.replace('"units": 8', '"units": 8, "drop": None', 1))
        points = "hydra.launcher.points_to_evaluate=[{model.drop:null},{model.drop:0.1}]"
        arguments = [*TUNE, "model.drop=0.1,null", points, "hydra.launcher.n_workers=1"]
        ended = programs.run(program, *arguments, "hydra.launcher.n_trials=2", folder=tmp_path)
        assert ended.code == 0, ended.output
        overrides = [(ended.study / f"{i}" / ".hydra" / "overrides.yaml").read_text() for i in range(2)]
        assert overrides == ["- model.drop=null\n", "- model.drop=0.1\n"]
        results = yaml.safe_load((ended.study / "optimization_results.yaml").read_text())
        assert results["best_seen"]["params"] == {"model.drop": None}

    def test_a_study_that_began_with_null_as_a_text_goes_on(self, tune, tmp_path):
        begun = SearchSpace({"model.act": choice(["null", "relu"])})
        options = StudyOptions.from_mapping(
            {"metric": "val_loss", "algorithm": "asha", "max_t": 3, "n_trials": 1, "random_seed": 1}
        )
        Journal.create(tmp_path / "old", study_header(begun, options)).close()
        ended = tune("model.act=null,relu", f"hydra.launcher.study={tmp_path}/old", "hydra.launcher.n_trials=2")
        assert ended.code == 0, ended.output
        overrides = [(tmp_path / "old" / f"{i}" / ".hydra" / "overrides.yaml").read_text() for i in range(2)]
        assert sorted(overrides) == ["- model.act=null\n", "- model.act=relu\n"]

    def test_survives_a_trial_that_raises(self, tune):
        ended = tune(LR, "do=raise once", "hydra.launcher.algorithm=random")
        assert ended.code == 0, ended.output
        assert [row["status"] for row in rows(ended.study)] == ["completed", "failed", "completed", "completed"]
        assert "no such data set" in ended.output
        assert "no such data set" in (ended.study / "1" / "trial.log").read_text()

    def test_never_calls_a_nan_the_best(self, tune):
        ended = tune(LR, "do=nan", "hydra.launcher.n_trials=6", "hydra.launcher.algorithm=random")
        assert ended.code == 0, ended.output
        results = yaml.safe_load((ended.study / "optimization_results.yaml").read_text())
        assert results["best_params"]["model.lr"] <= 0.01
        assert results["best_value"] == results["best_value"]

    def test_trials_end_by_themselves_where_nobody_knows_how_long_they_train(self, programs, program, tmp_path):
        hidden = program.read_text().replace('"trainer": {"max_epochs"', '"fit": {"max_epochs"')
        program.write_text(hidden.replace("config.trainer.max_epochs", "config.fit.max_epochs"))
        options = ["hydra.launcher.metric=val_loss", "hydra.launcher.algorithm=random", "hydra.launcher.n_trials=2"]
        ended = programs.run(program, "-m", "hydra/launcher=hpo", *options, LR, "fit.max_epochs=2", folder=tmp_path)
        assert ended.code == 0, ended.output
        assert "every trial ends by itself" in ended.output
        assert [(row["status"], row["resource"]) for row in rows(ended.study)] == [("completed", "2")] * 2

    def test_starts_its_trials_without_a_fork_too(self, tune):
        ended = tune(LR, "hydra.launcher.start_method=forkserver", "hydra.launcher.n_trials=2")
        assert ended.code == 0, ended.output
        assert len(rows(ended.study)) == 2


class TestConfirmation:
    CONFIRM = ("hydra.launcher.n_trials=6", "hydra.launcher.confirm.top=1", "hydra.launcher.confirm.seeds=2")

    def test_trains_the_best_again_with_other_seeds(self, tune):
        ended = tune(LR, "+seed=40", "hydra.launcher.algorithm=random", *self.CONFIRM)
        assert ended.code == 0, ended.output
        found = rows(ended.study)
        assert [row["origin"] for row in found[4:]] == ["confirm", "confirm"]
        assert {row["status"] for row in found} == {"completed"}
        best = min(found[:4], key=lambda row: float(row["best_value"]))
        for row, seed in zip(found[4:], (41, 42), strict=True):
            assert row["model.lr"] == best["model.lr"]
            overrides = yaml.safe_load((ended.study / row["trial"] / ".hydra" / "overrides.yaml").read_text())
            assert overrides[-1] == f"seed={seed}"
        results = yaml.safe_load((ended.study / "optimization_results.yaml").read_text())
        assert results["recommended"]["confirmations"] == 2
        assert results["recommended"]["trial"] == int(best["trial"])
        assert "the mean of the best epochs of 2 other trainings" in ended.output
        assert results["ended"] == "the best one is confirmed"

    def test_a_key_of_the_seed_that_is_not_there(self, tune):
        ended = tune(LR, "hydra.launcher.confirm.seed_attr=model.seed", *self.CONFIRM)
        assert ended.code != 0 and "Name the key of the training seed" in last_sentence(ended.output)


class TestBadInput:
    """One clear error whose last sentence is the fix, before work is lost."""

    @pytest.mark.parametrize(
        ("overrides", "says", "fix"),
        [
            ([LR, "hydra.launcher.metrc=x"], "metrc is not an option", "Did you mean 'metric'?"),
            ([LR, "hydra.launcher.brackets=many"], "brackets='many' has the wrong type", "int"),
            ([LR, "hydra.launcher.mode=best"], "mode='best' is unknown", "Choose one of min, max."),
            ([LR, "hydra.launcher.searcher.modle=gp"], "modle is not an option", "Did you mean 'model'?"),
            (["model.lr=interval(0.1,0.01)"], "model.lr", "0.1"),
            (["model.lr=interval(0.1,0.1)"], "this range holds one value, 0.1", "move one of its ends."),
            (["model.lr=tag(log,interval(0,0.1))"], "model.lr", "0"),
            (["model.lr=0.1"], "Nothing is searched", "hydra/launcher=basic"),
            (
                ["model.act=tag(log,choice(a,b))"],
                "positive numbers in increasing order, not a, b",
                "without the tag",
            ),
            (["model.units=range(1,2)"], "this range has one value", "Give it at least two."),
            ([LR, "hydra.sweep.subdir=${nokey}"], "which cannot be resolved for trial 0", "numbered folders."),
            (
                [LR, f"hydra.sweep.subdir={'a' * 300}"],
                "a name may have 255 bytes",
                "Set hydra.sweep.subdir to something",
            ),
            ([LR, "hydra.launcher.max_t=9"], "max_t is 9, but trainer.max_epochs is 3", "trainer.max_epochs=9"),
            ([LR, "hydra.launcher.algorithm=mobstr"], "algorithm='mobstr' is unknown", "Did you mean 'mobster'?"),
        ],
    )
    def test_is_refused_before_anything_is_started(self, tune, tmp_path, overrides, says, fix):
        ended = tune(*overrides)
        assert ended.code == 1
        assert says in ended.output
        assert fix in ended.output
        assert "Traceback" not in ended.output
        assert not list(tmp_path.glob("multirun/*/*/0"))

    def test_a_metric_that_is_never_logged_lists_those_that_are(self, tune):
        ended = tune(LR, "hydra.launcher.metric=val_los")
        assert ended.code == 1
        assert "val_los" in ended.output and "val_loss" in ended.output
        assert "Traceback" not in ended.output

    def test_a_script_without_the_callback_is_told_the_line_to_add_before_it_trains(self, tune, tmp_path):
        ended = tune(LR, "do=forget", f"hydra.sweep.dir={tmp_path}/study")
        assert ended.code == 1
        assert "Trainer(callbacks=[HPOCallback()], ...)" in ended.output
        assert ended.output.count("make that one's HPOCallback before it.") == 2  # at the first trial, and at the end
        assert "Traceback" not in ended.output and "The study ended" not in ended.output
        assert "`Trainer.fit` stopped" not in (tmp_path / "study" / "0" / "trial.log").read_text()

    def test_a_script_that_trains_something_else_first_is_tuned(self, tune):
        ended = tune(LR, "do=prepare", "hydra.launcher.n_trials=2", "hydra.launcher.algorithm=random")
        assert ended.code == 0, ended.output
        assert [row["status"] for row in rows(ended.study)] == ["completed", "completed"]
        log = (ended.study / "0" / "trial.log").read_text()
        assert "`Trainer.fit` stopped: `max_epochs=2` reached." in log

    def test_a_script_without_a_trainer_is_told_the_line_to_add(self, tune):
        ended = tune(LR, "do=nothing")
        assert ended.code == 1
        assert "The script ended without training a Trainer that has the callback" in ended.output

    def test_a_bug_common_to_all_trials_ends_the_study_with_its_error(self, tune, tmp_path):
        ended = tune(LR, "do=raise", "hydra.launcher.n_trials=20", f"hydra.sweep.dir={tmp_path}/study")
        assert ended.code == 1
        assert "ValueError: no such data set" in ended.output
        assert "trial.log" in ended.output
        assert len(rows(tmp_path / "study")) <= 4

    def test_a_folder_that_cannot_be_written(self, tune, tmp_path):
        (tmp_path / "occupied").write_text("a file")
        ended = tune(LR, f"hydra.sweep.dir={tmp_path}/occupied/study")
        assert ended.code == 1
        assert "cannot be written" in ended.output

    def test_a_second_launcher_is_refused_and_told_who_is_first(self, tune, tmp_path):
        study = tune(LR).study
        with Journal.open(study):
            ended = tune(LR, f"hydra.launcher.study={study}", "hydra.launcher.n_trials=9")
        assert ended.code == 1
        assert f"process {os.getpid()}" in ended.output
        assert len(rows(study)) == 4

    def test_a_launcher_that_is_refused_leaves_the_files_of_the_study_alone(self, tune):
        study = tune(LR).study
        before = (study / "multirun.yaml").read_text()
        ended = tune(LR, f"hydra.launcher.study={study}", "hydra.launcher.max_t=2", "+other=setting")
        assert ended.code == 1 and "max_t" in ended.output
        assert (study / "multirun.yaml").read_text() == before

    def test_another_unit_of_resource_is_refused(self, tune):
        study = tune(LR).study
        units = ["hydra.launcher.resource=validation", "hydra.launcher.max_t=3"]
        ended = tune(LR, f"hydra.launcher.study={study}", *units)
        assert ended.code == 1
        assert "Set resource=epoch, or start a new study in another folder." in ended.output

    def test_what_else_was_set_otherwise_is_said(self, tune):
        study = tune(LR, "sleep=0.0").study
        ended = tune(LR, "sleep=0.01", f"hydra.launcher.study={study}", "hydra.launcher.n_trials=5")
        assert ended.code == 0, ended.output
        assert "not that with which the study began: sleep: 0.0 -> 0.01." in " ".join(ended.output.split())
        (alone,) = (line for line in ended.output.splitlines() if line.startswith("  train trial"))
        assert "sleep=0.01" in shlex.split(alone, comments=True)
        assert alone.endswith("  # with the settings of now; when the study began: sleep: 0.0")

    def test_also_what_was_changed_in_the_config_itself(self, tune, program):
        study = tune(LR).study
        program.write_text(PROGRAM.replace('"sleep": 0.0', '"sleep": 0.01, "depth": 2'))
        ended = tune(LR, f"hydra.launcher.study={study}", "hydra.launcher.n_trials=5")
        assert ended.code == 0, ended.output
        assert "sleep: 0.0 -> 0.01; depth: absent -> 2." in " ".join(ended.output.split())

    def test_options_that_nothing_reads_are_named(self, tune):
        ended = tune(LR, "hydra.launcher.searcher.opt_nstarts=7", "hydra.launcher.n_trials=1")
        assert ended.code == 0, ended.output
        assert "nothing reads searcher.opt_nstarts." in " ".join(ended.output.split())

    def test_a_changed_space_is_shown_as_a_difference(self, tune):
        study = tune(LR).study
        ended = tune("model.lr=tag(log,interval(1e-5,1e-1))", f"hydra.launcher.study={study}")
        assert ended.code == 1
        assert "space" in ended.output and "1e-05" in ended.output
        assert "start a new study in another folder" in ended.output

    def test_a_script_without_a_main_guard(self, programs, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.replace('if __name__ == "__main__":\n    main()', "main()"))
        few = ["hydra.launcher.n_workers=1", "hydra.launcher.max_failures_in_a_row=1"]
        ended = programs.run(program, *TUNE, LR, *few, "hydra.launcher.start_method=spawn", folder=tmp_path)
        assert ended.code == 1
        assert '__name__ == "__main__"' in ended.output


class TestInterruption:
    @pytest.fixture
    def gate(self, tmp_path):
        with Gate(tmp_path / "gate") as gate:
            yield gate

    @pytest.fixture
    def running(self, start, gate):
        """A study with two trials, both in the first of their epochs until the gate is opened."""
        running = start(
            LR, f"gate={gate.path}", "trainer.max_epochs=20", "hydra.launcher.n_workers=2", "hydra.launcher.n_trials=2"
        )
        gate.wait_for(2, running)
        return running

    def test_ctrl_c_pauses_what_runs_and_the_same_command_goes_on(self, running, gate):
        running.signal(signal.SIGINT)
        running.wait_for(lambda text: "Press Ctrl-C again" in text)
        gate.open()
        ended = running.end()
        assert ended.code == 128 + signal.SIGINT
        assert "Traceback" not in ended.output
        assert "interrupted" in ended.output
        assert "continue" in ended.output
        study = Study.load(ended.study)
        reached = {i: trial.resource for i, trial in study.trials.items()}
        study.close()
        assert reached == {0: 1, 1: 1}, "not at the next report"
        assert list(ended.study.glob("*/checkpoints/*.ckpt"))

    def test_ctrl_c_twice_stops_within_seconds(self, running):
        """It waits for no report: there will be none."""
        running.signal(signal.SIGINT)
        running.wait_for(lambda text: "Press Ctrl-C again" in text)
        pressed = time.monotonic()
        running.signal(signal.SIGINT)
        ended = running.end()
        assert ended.code == 128 + signal.SIGINT
        assert time.monotonic() - pressed < 25, "a notice is given more time than Ctrl-C twice"
        assert "interrupted" in ended.output


def test_a_space_can_be_read_back_from_the_study(tune):
    ended = tune(LR, "model.units=tag(log,int(interval(4,64)))")
    with Journal.read(ended.study) as journal:
        stored = SearchSpace.from_json(journal.header["space"])
    assert stored == SearchSpace({"model.lr": loguniform(1e-4, 1e-1), "model.units": _log_integers()})


def _log_integers():
    from lightning_hpo import lograndint

    assert randint(4, 64) != lograndint(4, 64)
    return lograndint(4, 64)


def test_the_seed_of_a_confirmation_is_among_the_overrides_that_name_its_folder():
    asked = []
    hydra_job = SimpleNamespace(folder=lambda overrides, job_num: asked.append((overrides, job_num)))
    jobs = HydraJobs(hydra_job, read_space(None, [LR]), StudyOptions(metric="loss"), 1, ("seed", 40))
    for replicate in (0, 2):
        jobs.folder(Trial(7, {"model.lr": 0.5}, 0, 1, replicate=replicate))
    assert asked == [(["model.lr=0.5"], 7), (["model.lr=0.5", "seed=42"], 7)]
