"""One trial's job: where it runs, what the script sees, and how its end is told."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import (
    ExecutionError,
    OptionError,
    ResourceMismatch,
    TrialError,
    TrialPaused,
    TrialStopped,
)
from lightning_hpo.integrations.batch import run_batch
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.integrations.job import HydraJob
from lightning_hpo.integrations.resource_and_seed import resolve_max_t

Plugins.instance()


@pytest.fixture
def make_job(compose_sweep, monkeypatch, tmp_path):
    """``make_job(task, *overrides)``: the job of a multirun with ``foo=10`` and ``bar=100`` in its configuration."""

    def make(task, *overrides):
        jobs = []
        module = SimpleNamespace(
            run_sweep=lambda context, task, config, _: jobs.append(HydraJob(context, config, task))
        )
        monkeypatch.setitem(sys.modules, "lightning_hpo.integrations.sweep", module)
        compose_sweep("hydra/sweeper=hpo", *overrides, folder=tmp_path / "study")
        # The runner hands over a wrapper of its own; a script's decorator hands over the function itself.
        return HydraJob(jobs[0].hydra_context, jobs[0].config, task)

    return make


class TestWhatTheScriptSees:
    def test_its_configuration_its_number_and_its_folder(self, make_job, tmp_path):
        def task(config):
            hydra = HydraConfig.get()
            return config.foo, config.bar, hydra.job.num, hydra.job.id, hydra.runtime.output_dir

        result = make_job(task).run(["bar=2.5"], 17)
        folder = tmp_path / "study" / "17"
        assert result.outcome is Outcome.COMPLETED
        assert result.value == (10, 2.5, 17, "a_module_17", str(folder))
        assert OmegaConf.load(folder / ".hydra" / "overrides.yaml") == ["bar=2.5"]

    def test_a_resumed_trial_enters_its_folder_again_and_its_log_goes_on(self, make_job, tmp_path):
        job = make_job(lambda config: logging.getLogger("train").info("hello"))
        job.run(["bar=2"], 3)
        (tmp_path / "study" / "3" / "model.ckpt").write_text("weights")
        job.run(["bar=2"], 3)
        assert (tmp_path / "study" / "3" / "model.ckpt").read_text() == "weights"
        assert (tmp_path / "study" / "3" / "a_module.log").read_text().count("hello") == 2

    def test_the_working_directory_is_the_folder_if_hydra_is_told_so(self, make_job, tmp_path):
        result = make_job(lambda config: Path.cwd(), "hydra.job.chdir=true").run(["bar=2"], 4)
        assert result.value == tmp_path / "study" / "4"
        assert Path.cwd() != tmp_path / "study" / "4"

    def test_of_several_ranks_the_first_writes_the_configuration(self, make_job, monkeypatch, tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert make_job(lambda config: config.bar).run(["bar=2"], 8).value == 2
        assert not (tmp_path / "study" / "8" / ".hydra").exists()

    def test_the_command_line_of_a_single_run(self, make_job, monkeypatch, tmp_path):
        monkeypatch.setattr(sys, "argv", ["train.py", "--multirun", "-cn", "compose", "bar=1,2"])
        job = make_job(lambda config: list(sys.argv), "hydra.launcher.metric=loss")
        assert job.run(["bar=2", "name='a b'"], 5).outcome is Outcome.FAILED  # there is no name in the configuration
        assert job.run(["bar=2", "+name='a b'"], 5).value == [
            "train.py",
            "--config-name",
            "compose",
            "hydra/sweeper=hpo",
            "hydra.launcher.metric=loss",
            f"hydra.sweep.dir={tmp_path}/study",
            "bar=2",
            "+name='a b'",
            "hydra.mode=RUN",
            "hydra.job.num=5",
            "hydra.job.id=a_module_5",
            f"hydra.run.dir='{tmp_path}/study/5'",
        ]
        assert sys.argv == ["train.py", "--multirun", "-cn", "compose", "bar=1,2"]


class TestHowItEnds:
    def test_an_exception_is_a_failure_told_in_one_line_and_in_the_jobs_own_log(self, make_job, tmp_path, capsys):
        def task(config):
            raise ValueError("boom\nand more")

        result = make_job(task).run(["bar=2"], 0)
        assert (result.outcome, result.value) == (Outcome.FAILED, None)
        assert result.error == "ValueError: boom"
        log = (tmp_path / "study" / "0" / "a_module.log").read_text()
        for text in (result.traceback, log, capsys.readouterr().err):
            assert "ValueError: boom" in text
            assert 'raise ValueError("boom\\nand more")' in text
        assert "run_job" not in result.traceback

    def test_an_override_that_does_not_fit_is_a_failure(self, make_job):
        result = make_job(lambda config: 1).run(["no_such_key=2"], 0)
        assert result.outcome is Outcome.FAILED
        assert "no_such_key" in result.error

    @pytest.mark.parametrize(
        ("interruption", "outcome"), [(TrialPaused, Outcome.PAUSED), (TrialStopped, Outcome.STOPPED)]
    )
    def test_a_pause_or_stop_leaves_the_script_past_its_handlers_of_exceptions(self, make_job, interruption, outcome):
        cleaned = []

        def task(config):
            try:
                raise interruption
            except Exception:
                return "swallowed"
            finally:
                cleaned.append(True)

        result = make_job(task).run(["bar=2"], 0)
        assert (result.outcome, result.value, result.error, cleaned) == (outcome, None, None, [True])

    @pytest.mark.parametrize("code", [None, 0])
    def test_a_script_may_exit_when_it_is_done(self, make_job, code):
        assert make_job(lambda config: sys.exit(code)).run(["bar=2"], 0).outcome is Outcome.COMPLETED

    @pytest.mark.parametrize("code", [3, "no data"])
    def test_exit_with_a_code_is_a_failure(self, make_job, code):
        result = make_job(lambda config: sys.exit(code)).run(["bar=2"], 0)
        assert result.outcome is Outcome.FAILED
        assert result.error.startswith(f"lightning_hpo.errors.TrialError: The script called sys.exit({code!r}).")

    def test_an_interrupt_by_the_user(self, make_job):
        def task(config):
            raise KeyboardInterrupt

        assert make_job(task).run(["bar=2"], 0).outcome is Outcome.INTERRUPTED


class TestFolders:
    def test_any_subdir_of_hydra_is_respected(self, make_job, tmp_path):
        job = make_job(
            lambda config: HydraConfig.get().runtime.output_dir, "hydra.sweep.subdir=${hydra:job.num}_${bar}"
        )
        folder = tmp_path / "study" / "6_2.5"
        assert job.folder(["bar=2.5"], 6) == folder
        assert job.run(["bar=2.5"], 6, folder).value == str(folder)

    @pytest.mark.parametrize(
        ("subdir", "name"),
        [
            ("${hydra.job.num}", "0"),
            ("run_${hydra:job.num}", "run_0"),
            ("same", "same"),
            ("${foo}_${hydra.job.num}", "${foo}_0"),
        ],
    )
    def test_the_first_folder_is_told_but_for_what_depends_on_the_trial(self, make_job, subdir, name):
        assert make_job(lambda config: 1, f"hydra.sweep.subdir={subdir}").folder_name(0) == name

    @pytest.mark.parametrize("subdir", ["..", ".", "/elsewhere", "a/../../b"])
    def test_a_folder_outside_of_the_study_is_refused(self, make_job, subdir):
        with pytest.raises(OptionError, match=r"hydra\.sweep\.subdir.*\$\{hydra\.job\.num\}"):
            make_job(lambda config: 1, f"hydra.sweep.subdir={subdir}").folder(["bar=2"], 0)


class TestMaxT:
    def resolve(self, config, searched=(), **options):
        composed = OmegaConf.create(config | {"hydra": HydraConf})
        return resolve_max_t(composed, LauncherOptions(metric="loss", **options), searched)

    def test_it_is_the_first_of_the_usual_keys(self):
        assert self.resolve({"trainer": {"max_epochs": 27}, "max_epochs": 9, "epochs": 3}) == 27
        assert self.resolve({"trainer": {"max_epochs": None}, "max_epochs": 9, "epochs": 3}) == 9
        assert self.resolve({"epochs": "${base}", "base": 3}) == 3

    def test_a_key_may_be_named(self):
        assert self.resolve({"train": {"n": 5}, "epochs": 3}, max_resource_attr="train.n") == 5

    def test_max_t_itself_comes_first(self):
        assert self.resolve({}, max_t=4) == 4
        assert self.resolve({"epochs": 3}, max_t=4) == 4
        assert self.resolve({"trainer": {"max_epochs": -1}}, max_t=4) == 4

    def test_nothing_to_be_found(self):
        assert self.resolve({"lr": 0.1}) is None

    def test_epochs_say_nothing_about_validations(self):
        assert self.resolve({"epochs": 3}, resource="validation") is None
        assert self.resolve({"epochs": 3, "checks": 40}, resource="validation", max_resource_attr="checks") == 40

    @pytest.mark.parametrize("value", [0, -1, 2.5, "many", True])
    def test_a_length_that_is_none(self, value):
        with pytest.raises(OptionError, match=r"trainer\.max_epochs is .*Set it"):
            self.resolve({"trainer": {"max_epochs": value}})

    def test_a_named_key_that_does_not_exist(self):
        with pytest.raises(OptionError, match=r"no trainer\.epochs.*hydra\.launcher\.max_t"):
            self.resolve({"epochs": 3}, max_resource_attr="trainer.epochs")

    def test_a_searched_length(self):
        with pytest.raises(OptionError, match="epochs is searched"):
            self.resolve({"epochs": 3}, searched=("epochs",))

    def test_two_lengths_that_differ(self):
        with pytest.raises(ResourceMismatch, match=r"max_t is 4, but trainer\.max_epochs is 27.*trainer\.max_epochs=4"):
            self.resolve({"trainer": {"max_epochs": 27}}, max_t=4)


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


class TestABatch:
    def run(self, make_job, task, *jobs):
        job = make_job(task, "hydra.launcher.n_workers=2")
        return run_batch(job.hydra_context, task, job.config, [list(overrides) for overrides in jobs], 4)

    def test_jobs_come_back_in_order_whoever_is_first(self, make_job):
        def task(config):
            import time

            time.sleep(0.3 if config.bar == 1 else 0)
            return config.bar

        returns = self.run(make_job, task, ["bar=1"], ["bar=2"], ["bar=3"])
        assert [r.return_value for r in returns] == [1, 2, 3]
        assert [r.hydra_cfg.hydra.job.num for r in returns] == [4, 5, 6]
        assert [list(r.overrides) for r in returns] == [["bar=1"], ["bar=2"], ["bar=3"]]

    def test_a_failed_job_takes_no_other_with_it(self, make_job, tmp_path):
        def task(config):
            import os

            if config.bar == 1:
                raise ValueError("boom")
            if config.bar == 2:
                os.kill(os.getpid(), 9)
            if config.bar == 3:
                raise Unpicklable("a", "b")
            return open(__file__) if config.bar == 4 else config.bar

        returns = self.run(make_job, task, *([f"bar={i}"] for i in (1, 2, 3, 4, 5)))
        assert [r.status for r in returns] == [JobStatus.FAILED] * 3 + [JobStatus.COMPLETED] * 2
        with pytest.raises(ValueError, match=r"^boom$"):
            _ = returns[0].return_value
        with pytest.raises(
            ExecutionError, match=rf"job 5 was lost: killed by SIGKILL.*{tmp_path}/study/5/trial\.log\."
        ):
            _ = returns[1].return_value
        with pytest.raises((TrialError, RuntimeError), match="Unpicklable: a b"):  # Hydra 1.4 has a stand-in of its own
            _ = returns[2].return_value
        assert [r.return_value for r in returns[3:]] == [None, 5]

    def test_another_backend_is_for_searches(self, make_job):
        from lightning_hpo.errors import BackendError

        job = make_job(lambda config: 1, "hydra.launcher.backend=ray")
        with pytest.raises(BackendError, match=r"hydra\.launcher\.backend=local"):
            run_batch(job.hydra_context, lambda config: 1, job.config, [["bar=1"]], 0)


SCRIPT = """
import json, sys
import hydra
from omegaconf import OmegaConf
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig

OmegaConf.register_new_resolver("twice", lambda x: 2 * int(x), replace=True)

@hydra.main(config_path=None, version_base=None)
def main(config):
    seen = {"x": config.x, "twice": config.twice, "num": HydraConfig.get().job.num, "argv": sys.argv}
    with open(HydraConfig.get().runtime.output_dir + "/seen.json", "w") as file:
        json.dump(seen, file)

if __name__ == "__main__":
    main()
"""


class TestPrograms:
    @pytest.fixture
    def script(self, tmp_path):
        path = tmp_path / "train.py"
        path.write_text(SCRIPT)
        return path

    def launch(self, script, *overrides):
        command = [sys.executable, str(script), "-m", "hydra/launcher=hpo", "hydra/sweeper=basic", *overrides]
        return subprocess.run(command, cwd=script.parent, capture_output=True, text=True)

    def seen(self, folder):
        return json.loads((folder / "seen.json").read_text())

    @pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
    def test_jobs_are_the_same_however_their_processes_begin(self, script, tmp_path, start_method):
        done = self.launch(
            script,
            "+x=1,2",
            "+twice='${twice:${x}}'",
            "hydra.sweep.dir=study",
            f"hydra.launcher.start_method={start_method}",
        )
        assert done.returncode == 0, done.stderr
        found = [self.seen(tmp_path / "study" / str(i)) for i in range(2)]
        assert [(s["x"], s["twice"], s["num"]) for s in found] == [(1, 2, 0), (2, 4, 1)]

    def test_the_rewritten_command_line_is_a_program_that_does_the_same_job(self, script, tmp_path):
        assert self.launch(script, "+x=3", "+twice=0", "hydra.sweep.dir=study").returncode == 0
        first = self.seen(tmp_path / "study" / "0")
        (tmp_path / "study" / "0" / "seen.json").unlink()
        subprocess.run([sys.executable, *first["argv"]], cwd=tmp_path, check=True)
        assert self.seen(tmp_path / "study" / "0")["x"] == 3
        assert not (tmp_path / "study" / "1").exists()
