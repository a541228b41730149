"""The tuner without Hydra: where its studies are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hpo import Tuner, uniform
from lightning_hpo.errors import StudyError

SPACE = {"x": uniform(0.0, 1.0)}


def tuner(**options) -> Tuner:
    return Tuner(print, SPACE, **{"metric": "loss", "max_t": 3, **options})


def test_each_has_a_study_of_its_own_even_if_they_begin_in_the_same_second(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [tuner(algorithm=algorithm).path for algorithm in ("asha", "random", "bohb")]
    assert len(set(paths)) == 3 and {path.parent for path in paths} == {tmp_path / "hpo"}


def test_its_folder_stays_the_same(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tuner()
    first = made.path
    monkeypatch.chdir("/")
    assert made.path == first
    assert tuner(path=tmp_path / "mine").path == tmp_path / "mine"
    assert tuner(study=str(tmp_path / "mine")).path == tmp_path / "mine"


def test_nothing_is_made_before_it_is_needed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuner()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_hold_a_study_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpo").touch()
    with pytest.raises(StudyError, match="Choose a folder you may write to"):
        _ = tuner().path
