from __future__ import annotations

import csv
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from lightning_hpo.core.space import choice, finrange, lograndint, uniform
from lightning_hpo.errors import StudyError
from lightning_hpo.report.export import KINDS, export
from lightning_hpo.report.page import write_page
from lightning_hpo.study import Study
from tests.report.studies import small_study


def test_csv_holds_every_report_with_metrics_and_hyperparameters(tmp_path: Path):
    space = {"value": choice(["a,b", "c"]), "größe": uniform(0, 1)}
    study = Study.create(
        space, path=tmp_path, metric="loss", algorithm="random", points_to_evaluate=[{"value": "a,b", "größe": 0.5}]
    )
    study.ask()
    study.tell(0, 1, 0.5, metrics={"train": 1.5})
    study.tell(0, 2, float("nan"), metrics={"cost": 3.0}, cost=7.0)
    study.close()
    export(tmp_path, "csv", tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert {k: first[k] for k in ("trial", "attempt", "resource", "value", "cost")} == {
        "trial": "0",
        "attempt": "1",
        "resource": "1",
        "value": "0.5",
        "cost": "",
    }
    assert (first["train"], first["metric.cost"], first["config.value"], first["größe"]) == ("1.5", "", "a,b", "0.5")
    assert (second["value"], second["metric.cost"], second["cost"], second["train"]) == ("nan", "3.0", "7.0", "")


def test_json_is_strict_json_and_complete(tmp_path: Path):
    study = small_study(tmp_path)
    study.attach({"model.lr": 0.2, "act": "relu", "batch_size": 64})
    study.tell(4, 1, float("inf"))
    study.close()
    export(tmp_path, "json", tmp_path / "r.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert [t["status"] for t in data["trials"]] == ["paused", "completed", "paused", "failed", "stopped"]
    assert data["trials"][1]["curve"] == {"1": 0.5, "2": 0.4, "3": 0.45}
    assert data["trials"][4]["last_value"] == "inf"
    assert data["trials"][4]["config"] == {"model.lr": 0.2, "act": "relu"}
    assert [(r["trial"], r["resource"], r["value"]) for r in data["reports"]] == [
        (0, 1, 0.9),
        (1, 1, 0.5),
        (2, 1, 0.7),
        (1, 2, 0.4),
        (1, 3, 0.45),
        (4, 1, "inf"),
    ]
    assert data["status"]["best_seen"]["value"] == 0.4
    assert data["options"]["metric"] == "val_loss"


def test_a_study_without_trials_can_be_exported(tmp_path: Path):
    Study.create({"x": uniform(0, 1)}, path=tmp_path, metric="m", algorithm="random").close()
    export(tmp_path, "csv", tmp_path / "r.csv")
    export(tmp_path, "json", tmp_path / "r.json")
    assert (tmp_path / "r.csv").read_text() == "trial,attempt,resource,value,seconds,cost,x\n"
    assert json.loads((tmp_path / "r.json").read_text())["trials"] == []


def test_without_optuna_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_study(tmp_path).close()
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(StudyError, match=r"Install it with: pip install optuna$"):
        export(tmp_path, "optuna", tmp_path / "o.db")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_optuna_sees_the_same_study(tmp_path: Path, mode: str):
    optuna = pytest.importorskip("optuna")
    small_study(tmp_path / "digits", mode=mode).close()
    for _ in range(2):  # an older file is replaced
        export(tmp_path / "digits", "optuna", tmp_path / "o.db")
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path / 'o.db'}")
    assert [t.state.name for t in study.trials] == ["PRUNED", "COMPLETE", "PRUNED", "FAIL"]
    assert study.best_trial.number == 1
    assert study.best_value == pytest.approx(0.45 if mode == "min" else 0.55)
    assert study.best_params == {"model.lr": 0.01, "act": "gelu"}
    assert list(study.best_trial.intermediate_values) == [1, 2, 3]
    assert study.best_trial.distributions["model.lr"].log


def test_optuna_gets_domains_it_has_no_name_for(tmp_path: Path):
    optuna = pytest.importorskip("optuna")
    space = {"n": lograndint(1, 100), "w": finrange(0.0, 1.0, 3), "layers": choice([[1, 2], [3]])}
    study = Study.create(space, path=tmp_path / "s", metric="m", algorithm="random", max_t=1)
    study.ask()
    study.tell(0, 1, 0.5)
    study.ask()
    study.tell(1, 1, float("nan"))
    study.ask()  # still runs: Optuna is not told of it
    study.close()
    export(tmp_path / "s", "optuna", tmp_path / "o.db")
    loaded = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'o.db'}")
    assert [t.state.name for t in loaded.trials] == ["COMPLETE", "FAIL"]
    assert loaded.trials[0].params["layers"] in ("[1, 2]", "[3]")
    assert loaded.trials[0].distributions["n"].log


class TestWhereItIsWritten:
    """To the place that the user named, whatever is there."""

    @pytest.fixture
    def study(self, tmp_path: Path) -> Path:
        small_study(tmp_path / "study").close()
        return tmp_path / "study"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("there", ["old", None])
    def test_a_link_is_followed_and_stays(self, study: Path, tmp_path: Path, kind: str, there: str | None):
        if kind == "optuna":
            pytest.importorskip("optuna")
        (tmp_path / "data").mkdir()
        if there is not None:
            (tmp_path / "data" / "file").write_text(there)
        (tmp_path / "link").symlink_to("data/file")
        export(study, kind, tmp_path / "link")
        assert os.readlink(tmp_path / "link") == "data/file"
        export(study, kind, tmp_path / "another")
        assert len((tmp_path / "data" / "file").read_bytes()) == len((tmp_path / "another").read_bytes()) > 100
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["file"]

    def test_a_page_that_is_asked_for_is_written_through_a_link_too(self, study: Path, tmp_path: Path):
        (tmp_path / "link").symlink_to(tmp_path / "page.html")
        write_page(study, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and "</html>" in (tmp_path / "page.html").read_text()

    def test_but_not_where_nobody_asked_for_it(self, study: Path, tmp_path: Path):
        """A study from elsewhere may hold any link."""
        (tmp_path / "precious").write_text("precious")
        (study / "report.html").symlink_to(tmp_path / "precious")
        write_page(study)
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.parametrize("kind", ["csv", "json"])
    def test_a_pipe_is_written_into(self, study: Path, tmp_path: Path, kind: str):
        os.mkfifo(tmp_path / "pipe")
        heard: list[str] = []
        reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()), daemon=True)
        reader.start()
        export(study, kind, tmp_path / "pipe")
        reader.join(10)
        export(study, kind, tmp_path / "file")
        assert heard == [(tmp_path / "file").read_text()]
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_folder_is_refused_as_such(self, study: Path, tmp_path: Path, kind: str):
        if kind == "optuna":
            pytest.importorskip("optuna")
        with pytest.raises(StudyError, match=r"is a folder, .*\. Give the name of a file in it\."):
            export(study, kind, study)
