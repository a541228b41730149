from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_hpo
from lightning_hpo.cli import COMMANDS, main
from lightning_hpo.core.events import CheckpointRemoved, CheckpointSaved
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.report.folder import continuing
from lightning_hpo.report.results import write_results
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.study import Recommendation, Study
from tests.report.studies import SPACE, new_state, small_study, state_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small study, in ``study``."""
    small_study(tmp_path / "study").close()
    return tmp_path / "study"


Output = pytest.CaptureFixture[str]


def lines(text: str) -> list[str]:
    return [re.sub(r" {2,}", "  ", line.strip()) for line in text.splitlines()]


# ----------------------------------------------------------------------------------------- status


def test_status_shows_where_the_study_stands(folder: Path, capsys: Output):
    assert main(["status", str(folder)]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[0] == f"Study {folder} has ended: all 4 trials are done"
    assert "best at full resource  val_loss=0.45  epoch 3  trial 1  lr=0.01 act=gelu" in shown
    assert "best seen  val_loss=0.4  epoch 2  trial 1  lr=0.01 act=gelu" in shown
    assert "spent  5 epochs instead of 9 for full training: 44 % saved" in shown
    assert "rungs  1: 3 trials, best 0.5 · 3: 1, best 0.45" in shown
    assert "1  completed  3  0.45  0.4  2  lr=0.01 act=gelu" in shown
    assert "trial 3 failed: RuntimeError: out of memory" in shown


def test_status_of_a_study_that_runs_says_who_works_on_it(tmp_path: Path, capsys: Output):
    study = Study.create(SPACE, path=tmp_path, metric="m", algorithm="random", max_t=9)
    job = study.ask()
    assert job is not None
    assert main(["status", str(tmp_path)]) == 0
    assert f"is worked on by process {os.getpid()}" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_running"] is True
    study.complete(job.trial_id)
    study.close()
    assert main(["status", str(tmp_path)]) == 0
    assert "is not running and can be continued" in capsys.readouterr().out


def test_trials_of_a_launcher_that_was_killed_are_not_called_running(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    state = new_state(algorithm="random", type=None, n_trials=None)
    monkeypatch.chdir(tmp_path)
    command = f"python train.py hydra.launcher.study={tmp_path}/old"
    header = study_header(state.space, state.options) | continuing(command, tmp_path / "old")
    Journal.create(tmp_path / "old", header).close()
    study = Study.load(tmp_path / "old")
    for _ in range(2):
        study.ask()
    study.close()  # as if it had been killed: its trials have not ended
    (tmp_path / "old").rename(tmp_path / "new")
    assert main(["status", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "was interrupted with 2 running trials. Continued, it tries them again" in shown.splitlines()[0]
    assert "trials     2: 2 waiting" in shown
    assert f"continue   python train.py hydra.launcher.study={tmp_path}/new\n" in shown
    monkeypatch.chdir(tmp_path / "new")
    assert main(["status", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["trials"] == {"total": 2, "waiting": 2} and data["cut_off"] == [0, 1]
    assert data["continue_command"].startswith(f"cd {tmp_path} && python train.py")
    assert main(["trials", "--status", "running"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_status_of_a_study_without_trials(tmp_path: Path, capsys: Output):
    Study.create(SPACE, path=tmp_path, metric="m", algorithm="random").close()
    assert main(["status", str(tmp_path)]) == 0
    assert "no trial has reported a finite value" in capsys.readouterr().out


def test_a_study_that_counts_validations_says_so(tmp_path: Path, capsys: Output):
    state = new_state()
    Journal.create(tmp_path, study_header(state.space, state.options) | {"resource": "validation"}).close()
    assert main(["status", str(tmp_path)]) == 0
    assert "0 validations" in capsys.readouterr().out


def test_status_as_json(folder: Path, capsys: Output):
    assert main(["status", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best_at_full_resource"]["value"] == 0.45
    assert data["best_seen"] == {
        "trial": 1,
        "resource": 2,
        "value": 0.4,
        "params": {"model.lr": 0.01, "act": "gelu"},
    }
    assert data["rungs"] == {"1": {"trials": 3, "best": 0.5}, "3": {"trials": 1, "best": 0.45}}
    assert data["ended"] == "all 4 trials are done"


# ----------------------------------------------------------------------------------------- trials


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], [0, 1, 2, 3]),
        (["--sort", "value"], [1, 2, 0, 3]),
        (["--sort", "resource"], [1, 0, 2, 3]),
        (["--sort", "value", "--limit", "2"], [1, 2]),
        (["--status", "paused"], [0, 2]),
        (["--status", "running"], []),
        (["--limit", "0"], []),
    ],
)
def test_trials_can_be_sorted_and_chosen(folder: Path, capsys: Output, arguments: list[str], ids: list[int]):
    assert main(["trials", str(folder), *arguments]) == 0
    shown = lines(capsys.readouterr().out)
    assert [int(line.split()[0]) for line in shown[1:]] == ids
    assert main(["trials", str(folder), "--json", *arguments]) == 0
    assert [trial["trial"] for trial in json.loads(capsys.readouterr().out)] == ids


def test_in_mode_max_the_largest_value_comes_first(tmp_path: Path, capsys: Output):
    small_study(tmp_path, mode="max").close()
    assert main(["trials", str(tmp_path), "--sort", "value", "--json"]) == 0
    assert [trial["trial"] for trial in json.loads(capsys.readouterr().out)] == [1, 2, 0, 3]


def test_a_diverged_trial_is_listed_last_and_in_strict_json(tmp_path: Path, capsys: Output):
    study = Study.create(SPACE, path=tmp_path, metric="m", mode="max", algorithm="random", max_t=1)
    for trial, value in enumerate([float("inf"), 0.1]):
        study.ask()
        study.tell(trial, 1, value)
    study.close()
    assert main(["trials", str(tmp_path), "--sort", "value", "--json"]) == 0
    assert [(t["trial"], t["last_value"]) for t in json.loads(capsys.readouterr().out)] == [(1, 0.1), (0, "inf")]


# ------------------------------------------------------------------------------------- best, why


def test_best_shows_whole_configurations_with_constants(folder: Path, capsys: Output):
    assert main(["best", str(folder)]) == 0
    assert lines(capsys.readouterr().out) == [
        "best at full resource  val_loss=0.45  epoch 3  trial 1  lr=0.01 act=gelu",
        "best seen  val_loss=0.4  epoch 2  trial 1  lr=0.01 act=gelu",
        "",
        "trial 1",
        "model.lr  0.01",
        "act  gelu",
        "batch_size  64",
    ]


def test_best_as_json(folder: Path, capsys: Output):
    assert main(["best", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best_at_full_resource"]["params"] == {"model.lr": 0.01, "act": "gelu"}
    assert (data["metric"], data["mode"]) == ("val_loss", "min")


def test_what_was_recommended_can_be_looked_up_until_the_study_goes_on(tmp_path: Path, capsys: Output):
    """Trial 2 is recommended, as if a model had thought so; the best one is trial 1."""
    with contextlib.closing(small_study(tmp_path)) as study:
        state = state_of(study)
        chosen = Recommendation(2, state.whole_config(state.trials[2]), 0.6, 0.05, 0)
        write_results(tmp_path, state, reason="x", recommendation=chosen)
    assert main(["best", str(tmp_path)]) == 0
    shown = lines(capsys.readouterr().out)
    assert "recommended  expected 0.6 ± 0.05  trial 2  lr=0.001 act=relu" in shown and "trial 2" in shown
    for command in ("best", "status"):
        assert main([command, str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["recommended"]
        assert (found["trial"], found["expected_value"], found["params"]["act"]) == (2, 0.6, "relu")
    assert main(["report", str(tmp_path)]) == 0
    assert "recommended" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    results = tmp_path / "optimization_results.yaml"
    earlier = results.read_text().replace("elapsed_seconds: ", "elapsed_seconds: 1")
    for other in (earlier, "- 1", "recommended: {trial: []}"):
        results.write_text(other)  # of an earlier end of the study, or of somebody else
        assert main(["best", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["recommended"] is None


def test_best_of_nothing(tmp_path: Path, capsys: Output):
    Study.create(SPACE, path=tmp_path, metric="m", algorithm="random").close()
    assert main(["best", str(tmp_path)]) == 0
    assert main(["best", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["best_seen"] is None


def test_why_tells_the_story_of_a_trial(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch):
    assert main(["why", str(folder), "1"]) == 0
    story = capsys.readouterr().out
    assert story.startswith("Trial 1 is complete after 3 epochs\n")
    monkeypatch.chdir(folder)
    assert main(["why", "1"]) == 0
    assert capsys.readouterr().out == story


@pytest.mark.parametrize("arguments", [["x"], ["3", "x"], ["a", "b", "3"], ["-1"]])
def test_why_wants_one_number(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, arguments: list[str]):
    monkeypatch.chdir(folder)
    assert main(["why", *arguments]) == 2
    assert "Give the number of one, after the study folder if need be" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ which study


def test_without_a_folder_the_newest_study_below_multirun_is_meant(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    small_study(tmp_path / "multirun" / "2026-11-05" / "12-00-00").close()
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("Study multirun/2026-11-05/12-00-00 has ended")


@pytest.mark.parametrize("command", ["status", "trials", "best", "report"])
def test_where_there_is_no_study_one_line_says_so(tmp_path: Path, capsys: Output, command: str):
    assert main([command, str(tmp_path / "nowhere")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("lightning-hpo: There is no study in ")
    assert output.err.count("\n") == 1


def test_a_damaged_study_is_one_line_too(folder: Path, capsys: Output):
    (folder / "study.db").write_bytes(b"no database at all " * 100)
    assert main(["status", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --------------------------------------------------------------------------------- export, report


def test_export_writes_the_file_and_says_where(folder: Path, capsys: Output, tmp_path: Path):
    assert main(["export", str(folder), "--to", "csv", str(tmp_path / "r.csv")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.csv'}\n"
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + 5


def test_export_to_standard_output_writes_nothing_else(folder: Path, tmp_path: Path):
    assert main(["export", str(folder), "--to", "csv", str(tmp_path / "r.csv")]) == 0
    command = [sys.executable, "-m", "lightning_hpo.cli", "export", str(folder), "--to", "csv", "-"]
    with open(tmp_path / "all", "w") as file:
        file.write("before\n")
        file.flush()
        subprocess.run(command, stdout=file, check=True, cwd=tmp_path)
    assert (tmp_path / "all").read_bytes() == b"before\n" + (tmp_path / "r.csv").read_bytes()
    assert not (tmp_path / "-").exists()


def test_a_command_needs_no_standard_output(folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "lightning_hpo.cli", "report", str(folder), "--output", str(tmp_path / "page")]
    done = subprocess.run(f"exec {shlex.join(command)} >&-", shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "page").exists()


def test_export_knows_its_formats(folder: Path, capsys: Output):
    assert main(["export", str(folder), "--to", "cvs", "x"]) == 2
    assert "Did you mean 'csv'? Use one of: csv, json, optuna." in capsys.readouterr().err


def test_export_to_a_folder_that_is_not_there(folder: Path, capsys: Output, tmp_path: Path):
    assert main(["export", str(folder), "--to", "json", str(tmp_path / "no" / "r.json")]) == 2
    assert "choose a folder you may write to." in capsys.readouterr().err


def test_report_writes_into_the_study_folder_or_where_it_is_told(folder: Path, capsys: Output, tmp_path: Path):
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder), "--output", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n{tmp_path / 'r.html'}\n"
    assert (folder / "report.html").read_text() == (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("arguments", [["export", "--to", "csv"], ["export", "--to", "optuna"], ["report", "--output"]])
@pytest.mark.parametrize(
    "name", ["study.db", "study.db-wal", "study.mark", "trials.csv", "up/study.db", "link", "study"]
)
def test_what_a_study_lives_on_is_not_overwritten(
    folder: Path, capsys: Output, tmp_path: Path, arguments: list[str], name: str
):
    (folder / "up").symlink_to("..")
    (folder / "link").symlink_to("study.db")
    (folder / "study").symlink_to(tmp_path / "elsewhere" / "study.db")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "study.db", tmp_path / "elsewhere")
    shutil.copy(folder / "study.db", folder.parent)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert main([arguments[0], str(folder), *arguments[1:], str(folder / name)]) == 2
    assert capsys.readouterr().err.endswith("would be lost. Write to a file with another name.\n")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_elsewhere_its_names_are_free(folder: Path, capsys: Output, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    assert main(["export", str(folder), "--to", "csv", str(tmp_path / "elsewhere" / "trials.csv")]) == 0
    assert main(["report", str(folder), "--output", str(folder / "own.html")]) == 0


# --------------------------------------------------------------------- what the system does not allow


@pytest.mark.parametrize(
    "command", [["status"], ["trials"], ["best"], ["why", "0"], ["report"], ["simulate"], ["clean", "--yes"]]
)
def test_a_folder_whose_name_no_file_system_takes_is_an_error_in_one_line(command: list[str], capsys: Output):
    name, *rest = command
    assert main([name, "a" * 300, *rest]) == 2
    assert capsys.readouterr().err.endswith("Correct the folder's name or its permissions.\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
@pytest.mark.parametrize("command", ["status", "clean"])
def test_a_folder_that_may_not_be_looked_into_is_an_error_in_one_line(command: str, tmp_path: Path, capsys: Output):
    folder = tmp_path / "study"
    folder.mkdir(mode=0)
    assert main([command, str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_device_without_room_for_the_output_is_an_error_in_one_line(tmp_path: Path):
    small_study(tmp_path).close()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lightning_hpo.cli", "status", str(tmp_path)],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("lightning-hpo: The output cannot be read or written: No space left on device.")
    assert done.stderr.count("\n") == 1


def test_a_number_of_thousands_of_digits_names_no_trial(tmp_path: Path, capsys: Output):
    small_study(tmp_path).close()
    assert main(["why", str(tmp_path), "9" * 5000]) == 2
    assert "names no trial" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ clean


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Trial 0 is complete and not the best one, trial 1 is; both have checkpoints of 10 bytes."""
    study = Study.create({"x": lightning_hpo.uniform(0, 1)}, path=tmp_path, metric="m", algorithm="random", max_t=1)
    for trial, value in enumerate([0.5, 0.4]):
        study.ask()
        study.tell(trial, 1, value)
    study.close()
    with Journal.open(tmp_path) as journal:
        for trial in range(2):
            file = tmp_path / str(trial) / "checkpoints" / "resource-1.ckpt"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"0123456789")
            saved = Checkpoint(1, f"{trial}/checkpoints/resource-1.ckpt", "", 10)
            journal.append([CheckpointSaved(1.0, trial, 1, saved)])
    return tmp_path


def kept(folder: Path) -> list[str]:
    return sorted(path.parts[-3] for path in folder.rglob("*.ckpt"))


def test_clean_deletes_what_is_not_needed(checkpoints: Path, capsys: Output):
    assert main(["clean", str(checkpoints), "--yes"]) == 0
    assert capsys.readouterr().out == "1 checkpoint deleted (10 bytes).\n"
    assert kept(checkpoints) == ["1"]
    assert main(["clean", str(checkpoints), "--yes"]) == 0
    assert capsys.readouterr().out == "There is nothing to delete.\n"
    assert main(["clean", str(checkpoints), "--yes", "--all"]) == 0
    assert kept(checkpoints) == []


@pytest.mark.parametrize(("answer", "left"), [("y", ["1"]), ("yes", ["1"]), ("", ["0", "1"]), ("n", ["0", "1"])])
def test_clean_asks_first(
    checkpoints: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, answer: str, left: list[str]
):
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    assert main(["clean", str(checkpoints)]) == 0
    assert asked == ["Delete 1 checkpoint (10 bytes)? [y/N] "]
    assert kept(checkpoints) == left


def test_clean_without_anybody_to_ask(checkpoints: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["clean", str(checkpoints)]) == 2
    assert capsys.readouterr().err.endswith("Add --yes.\n")
    assert kept(checkpoints) == ["0", "1"]


def test_clean_asks_also_for_what_no_trial_has_recorded(
    checkpoints: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
):
    stray = checkpoints / "1" / "checkpoints" / "resource-7.ckpt"
    stray.write_bytes(b"01234")
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["clean", str(checkpoints)]) == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert main(["clean", str(checkpoints)]) == 0
    with Journal.open(checkpoints) as journal:
        journal.append([CheckpointRemoved(2.0, 0, "by hand")])
    assert main(["clean", str(checkpoints)]) == 0
    assert asked == [
        "Delete 1 checkpoint and 1 that no trial has recorded (15 bytes)? [y/N] ",
        "Delete 1 checkpoint that no trial has recorded (5 bytes)? [y/N] ",
    ]
    assert stray.exists()
    capsys.readouterr()
    assert main(["clean", str(checkpoints), "--yes"]) == 0
    assert capsys.readouterr().out == "1 checkpoint that no trial has recorded deleted (5 bytes).\n"
    assert not stray.exists()


def test_clean_refuses_while_the_study_runs(checkpoints: Path, capsys: Output):
    with Journal.open(checkpoints):
        assert main(["clean", str(checkpoints), "--yes"]) == 2
    assert "is being worked on by process" in capsys.readouterr().err
    assert kept(checkpoints) == ["0", "1"]


def test_clean_wants_a_folder(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(checkpoints)
    with pytest.raises(SystemExit) as exit:
        main(["clean"])
    assert exit.value.code == 2


# ------------------------------------------------------------------------------------ the program


def test_the_help_tells_which_command_wants_a_folder(capsys: Output):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "clean, which deletes, takes only the one that is named." in " ".join(capsys.readouterr().out.split())


def test_the_help_lists_every_command(capsys: Output):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert all(command.name in text and command.summary in text for command in COMMANDS)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_its_own_help(command: str, capsys: Output):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert "usage: lightning-hpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["stauts"], ["trials", ".", "--sort", "size"], ["trials", ".", "--limit", "-1"]]
)
def test_a_wrong_call_is_refused(arguments: list[str], capsys: Output):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def test_the_version(capsys: Output):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"lightning-hpo {lightning_hpo.__version__}\n"


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lightning_hpo.cli", *arguments]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_reason_to_complain(folder: Path, arguments: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            program("trials", str(folder), *arguments), stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_on_a_terminal_there_are_colours_and_in_a_file_there_are_none(folder: Path):
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    in_file = subprocess.run(
        program("status", str(folder)), capture_output=True, timeout=60, check=True, env=environment
    )
    assert b"\x1b" not in in_file.stdout
    leader, follower = pty.openpty()
    done = subprocess.run(
        program("status", str(folder)), stdout=follower, stderr=follower, timeout=60, check=True, env=environment
    )
    os.close(follower)
    shown = os.read(leader, 100_000)
    os.close(leader)
    assert done.returncode == 0
    assert b"\x1b[32mcompleted\x1b[0m" in shown


def test_long_configurations_are_not_cut_in_files(tmp_path: Path, capsys: Output):
    value = "x" * 300
    study = Study.create({"a": lightning_hpo.choice([value, "b"])}, path=tmp_path, metric="m", algorithm="random")
    study.attach({"a": value})
    study.close()
    assert main(["trials", str(tmp_path)]) == 0
    assert f"a={value}" in capsys.readouterr().out
