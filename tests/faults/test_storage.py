"""The journal in the hands of others: locked by them, read while it is written, written by another version."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_hpo import load_study
from lightning_hpo.core.domains import uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.errors import StudyCorrupt
from lightning_hpo.runtime import database
from lightning_hpo.runtime.journal import SCHEMA, Journal
from lightning_hpo.runtime.stored import study_header
from tests.faults.durable import DurableCluster

OPTIONS = StudyOptions.from_mapping(
    {"metric": "loss", "algorithm": "asha", "type": "promotion", "max_t": 9, "n_trials": 6, "n_workers": 2}
)
SPACE = SearchSpace({"x": uniform(0.0, 1.0)})


@pytest.fixture
def cluster(tmp_path):
    made = DurableCluster(tmp_path / "study", OPTIONS, SPACE, n_workers=2)
    Journal.create(made.folder, study_header(SPACE, OPTIONS)).close()
    return made


class TestLocked:
    def test_a_study_waits_until_another_program_lets_go_of_its_database(self, cluster, monkeypatch):
        monkeypatch.setattr(database, "BUSY_S", 0.01)
        said = []
        cluster.say = lambda message, warning=False: said.append((message, warning))
        thief = sqlite3.connect(cluster.folder / "study.db", isolation_level=None, timeout=5.0)
        waits, commit = [], cluster.after_commit

        def lock_after_the_tenth_commit(events):
            commit(events)
            if cluster._commits == 0 and len(cluster.journal) >= 12 and not waits:
                thief.execute("BEGIN IMMEDIATE")
                waits.append(0.0)

        def release_after_three_tries(seconds):
            waits.append(seconds)
            cluster.now += seconds
            if len(waits) == 4:
                thief.execute("ROLLBACK")

        cluster.after_commit = lock_after_the_tenth_commit
        cluster.sleep = release_after_three_tries
        assert cluster._launch_once() == 0
        assert len(waits) == 4
        assert said[0][1] and said[0][0].startswith("The study waits: ") and "locked" in said[0][0]
        assert said[-1] == ("The study can be written again and goes on.", False)
        cluster.check()
        assert all(trial.failures == 0 for trial in cluster.state().trials.values())

    def test_a_reader_that_never_lets_go_holds_nobody_up(self, cluster):
        said = []
        cluster.say = lambda message, warning=False: said.append(message)
        with contextlib.closing(database.connect_reader(cluster.folder / "study.db")) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM event").fetchone() == (0,)
            assert cluster._launch_once() == 0
            assert reader.execute("SELECT count(*) FROM event").fetchone() == (0,)
        assert said == []
        cluster.check()

    def test_a_reader_may_be_killed_at_any_time(self, cluster):
        program = (
            "import os, sys; from lightning_hpo.runtime.journal import Journal\n"
            "events = iter(Journal.read(sys.argv[1]).events()); next(events); os.kill(os.getpid(), 9)"
        )
        cluster.run_with("journal.committed=exit@12", most_launches=5)
        before = len(cluster.events())
        done = subprocess.run([sys.executable, "-c", program, str(cluster.folder)], timeout=60)
        assert done.returncode == -9
        cluster.check()
        assert len(cluster.events()) == before


def old_study(folder: Path) -> Path:
    """A study as the first release wrote it; see ``data/README.md``."""
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.executescript((Path(__file__).parent / "data" / "study-schema-1.sql").read_text())
    return folder


class TestVersions:
    def test_a_study_of_the_first_release_is_read_as_it_was(self, tmp_path):
        with Journal.read(old_study(tmp_path / "study")) as journal:
            assert journal.header["schema"] == 1
            assert len(list(journal.events())) == 28
        study = load_study(tmp_path / "study")
        curves = {i: trial.curve for i, trial in study.trials.items()}
        assert math.isnan(curves.pop(2)[1])
        assert curves == {0: {1: 0.9}, 1: {1: 0.8}, 3: {1: 0.6, 2: 0.55, 3: 0.4}, 4: {}}
        assert [str(study.trials[i].status) for i in range(5)] == ["paused", "waiting", "stopped", "paused", "failed"]
        best = study.best().at_any_resource
        assert best is not None and (best.trial_id, best.resource, best.value) == (3, 3, 0.4)
        assert best.config["depth"] == 3

    def test_and_goes_on(self, tmp_path):
        study = load_study(old_study(tmp_path / "study"))
        job = study.ask()
        assert job is not None and (job.trial_id, job.attempt) == (1, 3)
        assert study.tell(1, 2, 0.7) == "continue"
        assert study.tell(1, 3, 0.6) == "pause"

    def test_a_study_of_a_newer_release_is_refused_and_left_alone(self, tmp_path):
        study = old_study(tmp_path / "study")
        with contextlib.closing(sqlite3.connect(study / "study.db")) as connection:
            crc = database.checksum("schema", str(SCHEMA + 1))
            connection.execute("UPDATE header SET value = ?, crc = ? WHERE name = 'schema'", (str(SCHEMA + 1), crc))
            connection.commit()
            before = list(connection.iterdump())
        with pytest.raises(StudyCorrupt, match=r"newer version(.|\n)*Upgrade"):
            load_study(study)
        with contextlib.closing(sqlite3.connect(study / "study.db")) as connection:
            assert list(connection.iterdump()) == before

    def test_events_of_every_release_are_among_the_stored_ones(self):
        """A change of the format needs a new number, a new file here, and the old one stays readable."""
        stored = {int(name[13:-4]) for name in os.listdir(Path(__file__).parent / "data") if name.endswith(".sql")}
        assert stored == set(range(1, SCHEMA + 1))
