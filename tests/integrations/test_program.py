"""The printed commands are valid wherever they are typed, and do what they say."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipapp
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lightning_hpo.errors import OptionError
from lightning_hpo.integrations.hidden import refuse_hidden, without_secret
from lightning_hpo.integrations.program import Program, start_of
from lightning_hpo.report.folder import STUDY_OPTION

ROOT = Path(__file__).parents[2]
TELL = (
    "import sys; from lightning_hpo.integrations.program import start_of; "
    "print(*[x.replace(sys.executable, 'PYTHON') for x in start_of(sys.argv[0])], sep='|')\n"
)


def program(*argv: str, hydra: tuple[str, ...] = ("hydra.mode=MULTIRUN",)) -> Program:
    config = OmegaConf.create({"hydra": {"overrides": {"hydra": list(hydra)}}})
    return Program(SimpleNamespace(argv=argv, config=config))  # type: ignore[arg-type]


def arguments(command: str) -> list[str]:
    """What the program gets."""
    return shlex.split(command)[2:]


class TestHowTheProgramIsStarted:
    @pytest.fixture
    def project(self, tmp_path):
        package = tmp_path / "proj"
        package.mkdir()
        for name in ("__init__", "helper"):
            (package / f"{name}.py").touch()
        for name in ("train", "__main__"):
            (package / f"{name}.py").write_text(f"import proj.helper; {TELL}")
        (tmp_path / "train.py").write_text(TELL)
        return tmp_path

    def told(self, folder: Path, *command: str) -> list[str]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "lightning_hpo" / "_hydra")])
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split("|")

    def test_a_module_stays_a_module(self, project):
        assert self.told(project, sys.executable, "-m", "proj.train") == ["python", "-m", "proj.train"]
        assert self.told(project, sys.executable, "-m", "proj") == ["python", "-m", "proj"]

    def test_a_script_has_a_path_that_holds_in_any_folder(self, project):
        assert self.told(project / "proj", sys.executable, "../train.py") == ["python", f"{project}/train.py"]

    def test_a_zipped_program_is_started_by_its_file(self, project):
        zipped = project / "zipped"
        zipped.mkdir()
        (zipped / "__main__.py").write_text(TELL)
        zipapp.create_archive(zipped, project / "app.pyz")
        assert self.told(project, sys.executable, "app.pyz") == ["python", f"{project}/app.pyz"]

    def test_an_installed_command_is_started_by_itself(self, project):
        command = project / "bin" / "my-train"
        command.parent.mkdir()
        command.write_text(f"#!{sys.executable}\n{TELL}")
        command.chmod(0o755)
        assert self.told(project, "bin/my-train") == [str(command)]

    def test_a_file_that_cannot_start_itself_is_given_to_python(self, tmp_path):
        for name, text, mode in (("a", "#!/x\n", 0o644), ("b", "import x\n", 0o755), ("c.py", "#!/x\n", 0o755)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(mode)
            assert start_of(str(tmp_path / name)) == ["python", str(tmp_path / name)]

    def test_what_is_no_file_is_left_as_it_is(self):
        assert start_of("-c") == ["python", "-c"]

    def test_a_tool_that_runs_the_program_is_not_taken_for_it(self, monkeypatch, tmp_path):
        tool = SimpleNamespace(__spec__=SimpleNamespace(name="tool.__main__", origin="/lib/tool/__main__.py"))
        monkeypatch.setitem(sys.modules, "__main__", tool)
        (tmp_path / "train.py").touch()
        assert start_of(f"{tmp_path}/train.py") == ["python", f"{tmp_path}/train.py"]


class TestContinuing:
    def test_everything_is_said_again_and_the_folder_is_named_once(self):
        told = program("train.py", "-m", "lr=1,2", "hydra.launcher.study=/old").continued(Path("/new"))
        assert told == "python train.py -m lr=1,2 hydra.launcher.study=/new"

    @pytest.mark.parametrize(
        ("given", "absolute"),
        [
            (["--config-dir", "conf"], ["--config-dir", "{}/conf"]),
            (["--config-dir=../conf"], ["--config-dir={}/../conf"]),
            (["-cd", "conf"], ["-cd", "{}/conf"]),
            (["--config-d", "conf"], ["--config-d", "{}/conf"]),
            (["--config-dir", "/conf"], ["--config-dir", "/conf"]),
            (["--config-path", "conf"], ["--config-path", "conf"]),  # relative to the script
        ],
    )
    def test_a_folder_of_configurations_is_found_from_any_folder(self, given, absolute):
        told = arguments(program("train.py", *given, "-m", "lr=1,2").continued(Path("/study")))
        expected = [os.path.normpath(a.format(os.getcwd())) if a.startswith("{") else a for a in absolute]
        expected = [a.replace("={}/../", f"={os.path.dirname(os.getcwd())}/") for a in expected]
        assert told == [*expected, "-m", "lr=1,2", "hydra.launcher.study=/study"]

    @pytest.mark.parametrize(
        "folder", ["/a/lr=0.1,wd=(a) it's", "/a/b\\", "/a/[1] {x}", "/é", "/a/2026-01-01/12-00-00"]
    )
    def test_any_folder_is_named_so_that_the_shell_and_hydra_read_it_back(self, folder):
        said = arguments(program("train.py", "-m").continued(Path(folder)))[-1]
        override = OverridesParser.create().parse_override(said)
        assert override.key_or_group == STUDY_OPTION.rstrip("=")
        assert override.value() == folder

    def test_an_ordinary_folder_has_no_quotes(self):
        assert program("train.py").continued(Path("/a/b-1.c")).endswith(" hydra.launcher.study=/a/b-1.c")


class TestTrainingOnce:
    def test_what_the_job_is_made_with_is_kept_and_what_the_sweep_is_made_with_is_not(self):
        kept = [
            "+hydra.job.env_set.FOO='a b'",
            "hydra.job.chdir=true",
            "+hydra.callbacks.log._target_=x.Y",
            "+hydra/callbacks=log",
            "hydra/job_logging=colorlog",
            "hydra.searchpath=[pkg://x]",
        ]
        left_out = [
            "hydra/launcher=hpo",
            "hydra.launcher.metric=loss",
            "++hydra.launcher.x=1",
            "hydra/sweeper=hpo",
            "hydra.sweep.dir=/study",
            "hydra.run.dir=x",
            "hydra.mode=MULTIRUN",
        ]
        told = program("train.py", "-cn", "c", "-m", hydra=(*kept, *left_out)).single(["lr=0.1", "name='a b'"])
        assert arguments(told) == ["--config-name", "c", *kept, "lr=0.1", "name='a b'"]

    def test_a_configuration_that_asks_for_many_runs_itself_is_told_to_run_once(self):
        assert arguments(program("train.py", hydra=()).single(["lr=1"])) == ["lr=1", "hydra.mode=RUN"]

    def test_so_is_one_that_may(self):
        told = program("train.py", "hydra.mode=MULTIRUN", hydra=("hydra.mode=MULTIRUN",)).single(["lr=1"])
        assert arguments(told) == ["lr=1", "hydra.mode=RUN"]


class TestSecrets:
    """A command is printed, kept in the study and shown to whoever looks at it."""

    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("db.password=topsecret", "db.password=???"),
            ("++wandb.api_key='a b'", "++wandb.api_key=???"),
            ("db={user:me,password:topsecret}", "db=???"),
            ("hydra.job.env_set.HF_API_KEY=x", "hydra.job.env_set.HF_API_KEY=???"),
            ("db.password=${oc.env:DB_PASSWORD}", "db.password=${oc.env:DB_PASSWORD}"),
            ("model.tokenizer=bpe", "model.tokenizer=bpe"),
            ("model={max_tokens:128}", "model={max_tokens:128}"),
        ],
    )
    def test_are_hidden_in_commands_and_what_names_their_place_is_not(self, given, shown, tmp_path):
        begun = program("train.py", "-m", given, "model.lr=1,2")
        assert arguments(begun.continued(tmp_path))[:-1] == ["-m", shown, "model.lr=1,2"]
        alone = program("train.py", hydra=(given,) if given.startswith("hydra") else ()).single([given, "model.lr=1"])
        assert shown in arguments(alone) and "topsecret" not in alone

    def test_a_command_with_a_hidden_secret_says_that_its_value_is_to_be_given(self):
        refuse_hidden(["db.password=topsecret", "model.act=???"])
        with pytest.raises(OptionError, match=r"^db\.password=\?\?\? stands for a secret, .* Give its value instead\."):
            refuse_hidden(["model.lr=1", without_secret("db.password=topsecret")])
