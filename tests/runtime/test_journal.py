from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import AttemptEnded, Outcome, Reported, WorkerReady
from lightning_hpo.errors import StudyCorrupt, StudyError, StudyLocked, StudyNotFound
from lightning_hpo.runtime.database import BACKUP_NAME, FILE_NAME, MARK_NAME, checksum
from lightning_hpo.runtime.journal import Backups, Journal

HEADER = {"space": [{"name": "lr"}], "options": {"metric": "loss"}}
EVENTS = [
    WorkerReady(0.25),
    Reported(1.5, 0, 1, 3, math.nan, {"acc": math.inf}, 12.5),
    AttemptEnded(2.0, 0, 1, Outcome.FAILED, "ValueError: käse"),
]


def make(folder: Path, events=EVENTS) -> None:
    with Journal.create(folder, HEADER) as journal:
        journal.append(events)


class TestWhatIsWritten:
    def test_is_read_again(self, tmp_path):
        make(tmp_path)
        with Journal.open(tmp_path) as journal:
            assert len(journal) == 3
            assert journal.header == {**HEADER, "schema": 1}
            # NaN is not equal to itself, hence the texts.
            assert [str(e) for e in journal.events()] == [str(e) for e in EVENTS]

    def test_goes_on_where_it_ended(self, tmp_path):
        make(tmp_path)
        with Journal.open(tmp_path) as journal:
            journal.append([WorkerReady(9.0)])
            assert list(journal.events(after=3)) == [WorkerReady(9.0)]

    def test_is_on_disk_when_append_returns(self, tmp_path):
        program = (
            "import os, sys\n"
            "from lightning_hpo.core.events import WorkerReady\n"
            "from lightning_hpo.runtime.journal import Journal\n"
            "journal = Journal.create(sys.argv[1], {})\n"
            "journal.append([WorkerReady(1.0), WorkerReady(2.0)])\n"
            "os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60)
        assert done.returncode == -9
        with Journal.open(tmp_path) as journal:  # the lock went with the process
            assert list(journal.events()) == [WorkerReady(1.0), WorkerReady(2.0)]

    def test_is_for_the_owner_only(self, tmp_path):
        make(tmp_path / "study")
        assert (tmp_path / "study").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "study" / FILE_NAME).stat().st_mode & 0o777 == 0o600

    def test_is_text_that_other_programs_can_read(self, tmp_path):
        make(tmp_path)
        with sqlite3.connect(tmp_path / FILE_NAME) as database:
            ((_kind, data),) = database.execute("SELECT kind, data FROM event WHERE trial = 0 AND kind = 'Reported'")
        assert json.loads(data)["value"] == "nan"

    def test_events_of_one_call_are_written_all_or_none(self, tmp_path, monkeypatch):
        with Journal.create(tmp_path, HEADER) as journal:
            monkeypatch.setattr("lightning_hpo.runtime.journal.checksum", lambda *_: object())
            with pytest.raises(StudyError, match="cannot be written"):
                journal.append(EVENTS)
            monkeypatch.undo()
            assert len(journal) == 0
            journal.append(EVENTS)
            assert len(list(journal.events())) == 3


class TestAStudyThatIsTakenAway:
    @pytest.mark.parametrize("how", ["deleted", "moved", "replaced", "its file deleted", "its place taken"])
    def test_takes_no_events_any_more(self, tmp_path, how):
        study, other = tmp_path / "study", tmp_path / "other"
        make(other)
        with Journal.create(study, HEADER) as journal:
            journal.append(EVENTS)
            if how == "its file deleted":
                (study / FILE_NAME).unlink()
            elif how == "moved":
                study.rename(tmp_path / "moved")
            else:
                shutil.rmtree(study)
            if how == "replaced":
                other.rename(study)
            elif how == "its place taken":
                study.touch()
            for events in (EVENTS, []):
                with pytest.raises(StudyNotFound, match=r"is gone: .* or begin the study anew\.$"):
                    journal.append(events)

    def test_goes_on_once_it_is_back(self, tmp_path):
        study = tmp_path / "study"
        with Journal.create(study, HEADER) as journal:
            study.rename(tmp_path / "moved")
            with pytest.raises(StudyNotFound):
                journal.append(EVENTS)
            (tmp_path / "moved").rename(study)
            journal.append(EVENTS)
        with Journal.open(study) as journal:
            assert len(journal) == len(EVENTS)

    def test_on_a_network_file_system_another_number_means_nothing(self, tmp_path, monkeypatch):
        make(tmp_path / "study")
        with Journal.open(tmp_path / "study") as journal:
            journal._file = (0, 0)
            monkeypatch.setattr("lightning_hpo.runtime.journal.network_filesystem", lambda folder: "nfs4")
            journal.append(EVENTS)


class TestOpening:
    def test_a_folder_without_a_study_is_named(self, tmp_path):
        for opening in (Journal.open, Journal.read):
            with pytest.raises(StudyNotFound, match=rf"{tmp_path}.*Give the folder of a study\.$"):
                opening(tmp_path)

    def test_a_study_is_never_overwritten(self, tmp_path):
        make(tmp_path)
        with pytest.raises(StudyError, match="already"):
            Journal.create(tmp_path, HEADER)
        with Journal.open(tmp_path) as journal:
            assert len(journal) == 3

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_is_refused(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(StudyError, match=r"Choose a folder you may write to\.$"):
            Journal.create(tmp_path / "study", HEADER)

    def test_a_file_where_the_folder_should_be_is_refused(self, tmp_path):
        (tmp_path / "study").write_text("")
        with pytest.raises(StudyError, match=r"Choose a folder you may write to\.$"):
            Journal.create(tmp_path / "study", HEADER)

    def test_a_second_process_is_refused_and_told_who_works_on_it(self, tmp_path):
        with Journal.create(tmp_path, HEADER):
            program = f"from lightning_hpo.runtime.journal import Journal; Journal.open({str(tmp_path)!r})"
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
            assert f"StudyLocked: The study in {tmp_path} is being worked on by process {os.getpid()}" in done.stderr
            assert "Wait until it ends or stop it, or look" in done.stderr
            assert f"process {os.getpid()}" in (Journal.holder(tmp_path) or "")
        assert Journal.holder(tmp_path) is None

    def test_the_lock_is_released_when_opening_fails(self, tmp_path):
        make(tmp_path)
        with pytest.raises(StudyError):
            Journal.create(tmp_path, HEADER)
        Journal.open(tmp_path).close()

    def test_a_crash_while_a_study_is_created_leaves_nothing_in_the_way(self, tmp_path, monkeypatch):
        def crash(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            Journal.create(tmp_path, HEADER)
        monkeypatch.undo()
        assert not Journal.exists(tmp_path)
        make(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [FILE_NAME, "study.lock", MARK_NAME]

    def test_the_write_ahead_log_of_a_deleted_study_is_not_taken_for_this_one(self, tmp_path):
        old = Journal.create(tmp_path, HEADER)
        old.append(EVENTS * 50)
        left_over = (tmp_path / f"{FILE_NAME}-wal").read_bytes()
        old.close()
        (tmp_path / FILE_NAME).unlink()
        (tmp_path / f"{FILE_NAME}-wal").write_bytes(left_over)
        with Journal.create(tmp_path, HEADER) as journal:
            assert list(journal.events()) == []

    def test_a_newer_format_is_refused(self, tmp_path):
        with Journal.create(tmp_path, {"schema": 99}):
            pass
        for opening in (Journal.open, Journal.read):
            with pytest.raises(StudyCorrupt, match=r"newer version.*Upgrade hydra-lightning-hpo to open it\.$"):
                opening(tmp_path)

    def test_opening_executes_nothing(self, tmp_path):
        """Even if somebody puts a pickle where JSON should be."""
        make(tmp_path)
        marker = tmp_path / "executed"
        bomb = f"cposix\nsystem\n(S'touch {marker}'\ntR."
        with sqlite3.connect(tmp_path / FILE_NAME) as database:
            database.execute("UPDATE event SET data = ?", (bomb,))
            database.execute("UPDATE header SET value = ? WHERE name = 'space'", (bomb,))
        with Journal.read(tmp_path) as journal:
            with pytest.raises(StudyCorrupt):
                list(journal.events())
            with pytest.raises(StudyCorrupt):
                _ = journal.header
        assert not marker.exists()


class TestReaders:
    def test_see_what_is_committed_while_the_launcher_writes(self, tmp_path):
        with Journal.create(tmp_path, HEADER) as writer, Journal.read(tmp_path) as reader:
            assert list(reader.events()) == []
            writer.append([WorkerReady(1.0)])
            assert list(reader.events()) == [WorkerReady(1.0)]

    def test_do_not_hold_up_the_launcher(self, tmp_path):
        with Journal.create(tmp_path, HEADER) as writer, Journal.read(tmp_path) as reader:
            writer.append([WorkerReady(float(i)) for i in range(10)])
            slow = reader.events()
            next(slow)  # in the middle of a read transaction
            begun = time.monotonic()
            writer.append([WorkerReady(11.0)])
            assert time.monotonic() - begun < 5.0
            assert len(list(slow)) == 9  # a reader's view does not change under it

    def test_cannot_write(self, tmp_path):
        make(tmp_path)
        with Journal.read(tmp_path) as reader, pytest.raises(StudyError, match="cannot be written"):
            reader.append([WorkerReady(1.0)])


class TestDamage:
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
    def test_a_flipped_byte_is_noticed_or_does_not_matter(self, tmp_path, place, flip):
        make_once(tmp_path)
        content = bytearray((tmp_path / "good").read_bytes())
        content[int(place * len(content))] ^= flip
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        (folder / FILE_NAME).write_bytes(content)
        try:
            with Journal.open(folder) as journal:
                found = (journal.header, [str(e) for e in journal.events()])
        except StudyCorrupt as problem:
            assert "sqlite3 study.db .recover" in str(problem) or "Upgrade" in str(problem)
        else:
            assert found == ({**HEADER, "schema": 1}, [str(e) for e in EVENTS * 40])

    @pytest.mark.parametrize("word", ["number", "INTEGER", "PRIMARY", "kind", "data", "crc"])
    def test_a_damaged_definition_of_the_events_is_noticed_without_the_mark(self, tmp_path, word):
        """Without its key the table would seem to hold no events."""
        make(tmp_path)
        (tmp_path / MARK_NAME).unlink()
        content = (tmp_path / FILE_NAME).read_bytes()
        end = content.index(word.encode(), content.index(b"CREATE TABLE event")) + len(word)
        assert content[end : end + 1] == b" "
        (tmp_path / FILE_NAME).write_bytes(content[:end] + b"A" + content[end + 1 :])
        with pytest.raises(StudyCorrupt), Journal.open(tmp_path) as journal:
            list(journal.events())

    @pytest.mark.parametrize("sixteenth", range(16))
    def test_a_truncated_file_is_refused(self, tmp_path, sixteenth):
        make_once(tmp_path)
        content = (tmp_path / "good").read_bytes()
        (tmp_path / FILE_NAME).write_bytes(content[: len(content) * sixteenth // 16])
        with pytest.raises(StudyCorrupt, match="There is no backup"), Journal.open(tmp_path) as journal:
            list(journal.events())

    @pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
    def test_whoever_has_a_file_of_another_program_there_is_told_to_take_another_folder(self, tmp_path, content):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(StudyCorrupt, match=r"If study\.db is none of this package's, choose another folder"):
            Journal.open(tmp_path)

    def test_a_folder_in_the_place_of_the_file_is_named_as_such(self, tmp_path):
        (tmp_path / FILE_NAME).mkdir()
        for access in (Journal.open, Journal.read):
            with pytest.raises(StudyError, match=r"study\.db is a folder, .* choose another folder for the study\."):
                access(tmp_path)

    def test_a_missing_event_is_noticed(self, tmp_path):
        make(tmp_path)
        with sqlite3.connect(tmp_path / FILE_NAME) as database:
            database.execute("DELETE FROM event WHERE number = 2")
        with Journal.read(tmp_path) as journal, pytest.raises(StudyCorrupt, match="event 2 is missing"):
            list(journal.events())

    @pytest.mark.parametrize("sixteenth", range(16))
    @pytest.mark.parametrize("how", ["flipped", "truncated"])
    def test_lost_commits_of_the_write_ahead_log_are_noticed(self, tmp_path, sixteenth, how):
        """SQLite ends such a log where the damage begins and says nothing."""
        wal = tmp_path / f"{FILE_NAME}-wal"
        with Journal.create(tmp_path / "live", HEADER) as journal:
            for _ in range(10):
                journal.append(EVENTS)
            for name in (FILE_NAME, f"{FILE_NAME}-wal", MARK_NAME):  # as a launcher that is killed leaves them
                (tmp_path / name).write_bytes((tmp_path / "live" / name).read_bytes())
        content = bytearray(wal.read_bytes())
        if how == "flipped":
            content[len(content) * sixteenth // 16] ^= 1
        else:
            del content[len(content) * sixteenth // 16 :]
        wal.write_bytes(content)
        for opening in (Journal.read, Journal.open):
            with pytest.raises(StudyCorrupt, match=r"30 events were written to it, and \d+ are left") as caught:
                opening(tmp_path)
        assert f"rm {tmp_path / MARK_NAME}" in str(caught.value)
        (tmp_path / MARK_NAME).unlink()
        with Journal.open(tmp_path) as journal:  # what is left is a whole beginning
            assert [str(e) for e in journal.events()] == [str(e) for e in (EVENTS * 10)[: len(journal)]]

    def test_a_study_from_before_there_were_marks_gets_one(self, tmp_path):
        make(tmp_path)
        (tmp_path / MARK_NAME).unlink()
        Journal.open(tmp_path).close()
        assert (tmp_path / MARK_NAME).read_text().startswith("3 ")

    @pytest.mark.parametrize("content", [b"", b"9999 00000000", b"\xff\xfe\0", b"9" * 5000, b"-1 2"])
    def test_a_damaged_mark_is_no_reason_to_refuse_a_study(self, tmp_path, content):
        make(tmp_path)
        (tmp_path / MARK_NAME).write_bytes(content)
        with Journal.open(tmp_path) as journal:
            assert len(list(journal.events())) == 3

    def test_a_deleted_study_leaves_no_mark_for_the_next_one(self, tmp_path):
        make(tmp_path)
        (tmp_path / FILE_NAME).unlink()
        make(tmp_path, [WorkerReady(1.0)])
        with Journal.open(tmp_path) as journal:
            assert len(journal) == 1

    def test_a_database_that_computes_something_is_refused(self, tmp_path):
        """A view that never ends in place of the table, or a trigger beside it."""
        endless = "WITH RECURSIVE n(number) AS (SELECT 1 UNION ALL SELECT number FROM n) SELECT number FROM n"
        make(tmp_path / "view")
        with sqlite3.connect(tmp_path / "view" / FILE_NAME) as database:
            database.execute("DROP TABLE event")
            database.execute(f"CREATE VIEW event AS {endless}")
        make(tmp_path / "trigger")
        with sqlite3.connect(tmp_path / "trigger" / FILE_NAME) as database:
            database.execute("CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; END")
        for name in ("view", "trigger"):
            for opening in (Journal.read, Journal.open):
                with pytest.raises(StudyCorrupt, match=r"tables of a study|no plain table"):
                    opening(tmp_path / name)

    def test_json_that_is_nested_too_deeply_is_corrupt(self, tmp_path):
        make(tmp_path)
        text = "[" * 200_000
        with sqlite3.connect(tmp_path / FILE_NAME) as database:
            crc = checksum(2, "Reported", text)
            database.execute("UPDATE event SET kind = 'Reported', data = ?, crc = ? WHERE number = 2", (text, crc))
        with Journal.read(tmp_path) as journal, pytest.raises(StudyCorrupt):
            list(journal.events())

    def test_a_database_that_another_program_has_locked_is_not_called_damaged(self, tmp_path, monkeypatch):
        make(tmp_path)
        monkeypatch.setattr("lightning_hpo.runtime.database.BUSY_S", 0.01)
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            for opening in (Journal.open, Journal.read):
                with pytest.raises(StudyError, match=r"another program has locked .* try again\.$") as caught:
                    opening(tmp_path)
                assert not isinstance(caught.value, StudyCorrupt)
        Journal.open(tmp_path).close()


def make_once(folder: Path) -> None:
    """A study of several pages, in ``good``."""
    if not (folder / "good").exists():
        make(folder / "whole", EVENTS * 40)
        (folder / "good").write_bytes((folder / "whole" / FILE_NAME).read_bytes())


class TestBackup:
    def test_is_a_study_that_can_be_put_in_place_of_a_damaged_one(self, tmp_path):
        with Journal.create(tmp_path, HEADER) as journal:
            journal.append(EVENTS)
            assert journal.backup() == tmp_path / BACKUP_NAME
            journal.append([WorkerReady(99.0)])
        (tmp_path / FILE_NAME).write_bytes(b"damaged")
        with pytest.raises(StudyCorrupt, match=r"Put the backup \(3 events, of 20") as caught:
            Journal.open(tmp_path)
        advice = str(caught.value).rpartition("in its place: ")[2]
        subprocess.run(["sh", "-c", advice], check=True)
        with Journal.open(tmp_path) as journal:
            assert [str(e) for e in journal.events()] == [str(e) for e in EVENTS]

    def test_that_is_damaged_itself_is_not_recommended(self, tmp_path):
        make(tmp_path)
        (tmp_path / FILE_NAME).write_bytes(b"damaged")
        (tmp_path / BACKUP_NAME).write_bytes(b"damaged too")
        with pytest.raises(StudyCorrupt, match="There is no backup"):
            Journal.open(tmp_path)

    def test_is_for_the_owner_only(self, tmp_path):
        with Journal.create(tmp_path, HEADER) as journal:
            assert journal.backup().stat().st_mode & 0o777 == 0o600

    def test_replaces_the_last_one_only_when_it_is_whole(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        with Journal.create(tmp_path, HEADER) as journal:
            journal.append(EVENTS)
            journal.backup()
            before = (tmp_path / BACKUP_NAME).read_bytes()
            journal.append(EVENTS * 100)
            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(StudyError, match="No space left"):
                journal.backup()
            assert (tmp_path / BACKUP_NAME).read_bytes() == before

    def test_is_made_every_so_often_if_there_is_something_new(self, tmp_path):
        now = 0.0
        with Journal.create(tmp_path, HEADER) as journal:
            backups = Backups(journal, every_s=600.0, clock=lambda: now)
            journal.append(EVENTS)
            now = 599.0
            assert backups.tick() is None and not backup_size(tmp_path, backups)
            now = 600.0
            assert backups.tick() is None and backup_size(tmp_path, backups) == 3
            (tmp_path / BACKUP_NAME).unlink()
            now = 5000.0
            backups.tick()
            assert backup_size(tmp_path, backups) == 0  # nothing new
            journal.append(EVENTS)
            backups.tick()
            assert backup_size(tmp_path, backups) == 6

    def test_is_made_when_the_study_ends(self, tmp_path):
        with Journal.create(tmp_path, HEADER) as journal:
            backups = Backups(journal, every_s=600.0, clock=lambda: 0.0)
            assert backups.finish() is None and not (tmp_path / BACKUP_NAME).exists()
            journal.append(EVENTS)
            assert backups.finish() is None
            assert backup_size(tmp_path, backups) == 3

    def test_that_fails_is_reported_once_and_tried_again(self, tmp_path, monkeypatch):
        now = 600.0
        with Journal.create(tmp_path, HEADER) as journal:
            backups = Backups(journal, every_s=600.0, clock=lambda: now)
            journal.append(EVENTS)
            (tmp_path / f"{BACKUP_NAME}.tmp").mkdir()
            now = 1200.0
            backups.tick()
            assert "cannot be written" in str(backups.wait())
            assert "cannot be written" in str(backups.tick()) and backups.tick() is None
            (tmp_path / f"{BACKUP_NAME}.tmp").rmdir()
            journal.append(EVENTS)
            now = 1800.0
            backups.tick()
            assert backup_size(tmp_path, backups) == 6

    def test_waits_for_the_next_time_if_the_system_has_no_thread_left(self, tmp_path, monkeypatch):
        def refuse(thread):
            raise RuntimeError("can't start new thread")

        now = 0.0
        with Journal.create(tmp_path, HEADER) as journal:
            backups = Backups(journal, every_s=600.0, clock=lambda: now)
            journal.append(EVENTS)
            now = 600.0
            with monkeypatch.context() as full:
                full.setattr("threading.Thread.start", refuse)
                assert "new thread. Raise the limit" in str(backups.tick())
                assert backups.tick() is None and not backup_size(tmp_path, backups)
            now = 1200.0
            assert backups.tick() is None and backup_size(tmp_path, backups) == 3


def backup_size(folder: Path, backups: Backups) -> int:
    backups.wait()
    if not (folder / BACKUP_NAME).exists():
        return 0
    with sqlite3.connect(folder / BACKUP_NAME) as database:
        return int(database.execute("SELECT count(*) FROM event").fetchone()[0])


def test_many_events_share_one_commit(tmp_path):
    """Group commit: a thousand events cost about as much as one."""
    with Journal.create(tmp_path, HEADER) as journal:
        commits = []
        journal._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        journal.append([WorkerReady(float(i)) for i in range(1000)])
        assert len(commits) == 1


def test_a_locked_out_launcher_is_a_study_error():
    assert issubclass(StudyLocked, StudyError)
