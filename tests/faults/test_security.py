"""What ``docs/security.md`` promises about files from elsewhere, deletions, permissions and the network.

The channel's promises are tested in ``test_fuzz.py``, ``tests/runtime/test_admission.py`` and
``tests/runtime/test_channel_server.py``; those about loading checkpoints in ``tests/integrations/test_saving.py``.
"""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import pickle
import re
import sqlite3
import stat
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_hpo import cli, uniform
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    Outcome,
    Reported,
    Suggested,
    WorkerReady,
)
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import HpoError, StudyError
from lightning_hpo.report.folder import read_reports
from lightning_hpo.report.page import page
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.database import FILE_NAME, checksum
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.processes import fork, redirect_output
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.runtime.suggesting import ProcessHost
from lightning_hpo.study import Study, load_study
from tests.integrations.programs import PROGRAM, Gate, ProgramServer
from tests.report.studies import new_state, small_study

COMMANDS = [
    ["status"], ["status", "--json"], ["trials"], ["trials", "--json"], ["best"], ["best", "--json"], ["report"],
]  # fmt: skip


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def look_at(study: Path) -> None:
    """Every command that only looks, and what a program can do."""
    for command in COMMANDS:
        cli.main([command[0], str(study), *command[1:]])
    cli.main(["why", str(study), "1"])
    cli.main(["export", str(study), "--to", "csv", str(study.parent / "out.csv")])
    cli.main(["clean", str(study), "--all", "--yes"])
    with contextlib.suppress(StudyError):
        load_study(study).close()


# --------------------------------------------------------------------------------- nothing is executed


@pytest.mark.parametrize("where", ["checkpoint", "yaml", "header", "event"])
def test_looking_at_a_study_from_elsewhere_executes_nothing(tmp_path: Path, where: str) -> None:
    study, mark = tmp_path / "study", tmp_path / "executed"
    small_study(study).close()
    bomb = pickle.dumps(Bomb(mark))
    tag = f"!!python/object/apply:os.mkdir ['{mark}']\n"
    if where == "checkpoint":
        (study / "1" / "checkpoints").mkdir(parents=True)
        for name in ("1/checkpoints/resource-1.ckpt", "1/checkpoints/last.ckpt", "study.pkl", "tuner.pkl"):
            (study / name).write_bytes(bomb)
    elif where == "yaml":
        (study / "1" / ".hydra").mkdir(parents=True)
        for name in ("multirun.yaml", "optimization_results.yaml", "1/.hydra/config.yaml", "1/.hydra/overrides.yaml"):
            (study / name).write_text(tag)
    else:
        with sqlite3.connect(study / FILE_NAME) as database:
            for text in (tag, bomb.decode("latin-1")):
                if where == "header":
                    values = (json.dumps(text), checksum("options", json.dumps(text)))
                    database.execute("UPDATE header SET value = ?, crc = ? WHERE name = 'options'", values)
                else:
                    values = (text, checksum(2, "Reported", text))
                    database.execute("UPDATE event SET kind = 'Reported', data = ?, crc = ? WHERE number = 2", values)
    with contextlib.suppress(HpoError):
        look_at(study)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb is a dud"


def test_no_module_of_the_package_reads_pickles_or_yaml_from_a_study() -> None:
    """Of the few places that unpickle, each has its reason; a new one must be thought about."""
    package = Path(cli.__file__).parent
    pattern = re.compile(r"\b(pickle\.loads?|torch\.load|yaml\.(unsafe_|full_)?load|eval|exec|dill|joblib)\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if pattern.search(re.sub(r"re\.compile\(.*", "", path.read_text()))
    }
    assert found == {
        "integrations/batch.py",  # what jobs returned, from a folder that was made for them, for this user alone
        "integrations/job.py",  # the sweep, from the launcher's pipe
        "integrations/saving.py",  # with weights_only=True
        "runtime/backends/zygote.py",  # the user's function, from the launcher's pipe
    }


ODD_VALUES: list[Any] = [
    None, True, 1.5, -1, 2**53, 10**30, "", "nan", "x" * 50, [], {}, [[]], {"a": {}}, "../../x", float("inf"),
]  # fmt: skip


def with_one_odd_value(data: Any, choose: st.DataObject) -> Any:
    """JSON data in which one value, somewhere, is another or missing."""
    place, key = {"": data}, ""
    while isinstance(place[key], (dict, list)) and place[key] and choose.draw(st.integers(0, 4)):
        place = place[key]
        key = choose.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if isinstance(place, dict) and key != "" and choose.draw(st.booleans()):
        del place[key]
        return data
    odd = choose.draw(st.sampled_from(ODD_VALUES))
    if key == "":
        return odd
    place[key] = odd
    return data


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_study_with_something_odd_in_it_is_shown_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    """Its checksums are right: somebody has made it so."""
    whole, study = tmp_path / "whole", tmp_path / uuid.uuid4().hex
    if not whole.exists():
        small_study(whole).close()
    study.mkdir()
    (study / FILE_NAME).write_bytes((whole / FILE_NAME).read_bytes())
    with contextlib.closing(sqlite3.connect(study / FILE_NAME)) as database, database:
        if data.draw(st.booleans()):
            rows = database.execute("SELECT number, kind, data FROM event").fetchall()
            number, kind, text = data.draw(st.sampled_from(rows))
            odd = json.dumps(with_one_odd_value(json.loads(text), data))
            values = (odd, checksum(number, kind, odd), number)
            database.execute("UPDATE event SET data = ?, crc = ? WHERE number = ?", values)
        else:
            name, text = data.draw(st.sampled_from(database.execute("SELECT name, value FROM header").fetchall()))
            odd = json.dumps(with_one_odd_value(json.loads(text), data))
            database.execute("UPDATE header SET value = ?, crc = ? WHERE name = ?", (odd, checksum(name, odd), name))
    try:
        page(*read_reports(study))
    except HpoError as problem:
        assert str(problem).rstrip().endswith((".", "db"))


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("continue", "x"), ("continue", []), ("continue", {"command": 1}), ("continue", {"command": "a", "in": "b"}),
        ("resource", None), ("resource", {"a": 1}), ("settings", ["a"]),
    ],
)  # fmt: skip
def test_a_header_that_nobody_writes_is_refused_in_words(tmp_path: Path, name: str, odd: Any, capsys) -> None:
    small_study(tmp_path / "study").close()
    text = json.dumps(odd)
    with contextlib.closing(sqlite3.connect(tmp_path / "study" / FILE_NAME)) as database, database:
        database.execute("INSERT OR REPLACE INTO header VALUES (?, ?, ?)", (name, text, checksum(name, text)))
    assert cli.main(["status", str(tmp_path / "study")]) != 0
    told = capsys.readouterr()
    assert f"the header's {name} is nothing that this package writes" in told.err + told.out


# ------------------------------------------------------------------------------------- what people see


HOSTILE_TEXTS = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>", "</title></style>",
    "javascript:alert(1)", "&lt;b&gt;", "<!--", "]]>", "\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\r\nforged", "\u202e",
]  # fmt: skip


class Elements(html.parser.HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.found |= {f"@{name}" for name, _ in attributes}

    def handle_comment(self, data: str) -> None:
        self.found.add("comment")


def study_full_of(texts: list[str], folder: Path) -> Path:
    """A study in which everything that can be text is one of these."""
    names = iter(f"{text} {number}" for number, text in enumerate(texts * 20))
    space: dict[str, Any] = {next(names): st_choice([next(names), next(names)]) for _ in range(3)}
    study = Study.create(space, path=folder, metric=next(names), algorithm="random", max_t=3, n_trials=4)
    for trial in range(4):
        study.ask()
        study.tell(trial, 1, 0.5 / (trial + 1), metrics={next(names): 1.0})
    study.fail(0, next(names))
    study.complete(1)
    study.close()
    with Journal.open(folder) as journal:
        attempt = Suggested(99.0, 4, dict(study.trials[0].config), next(names), next(names))
        ended = AttemptEnded(99.0, 4, 1, Outcome.FAILED, "\n".join([next(names), next(names)]))
        journal.append([attempt, AttemptStarted(99.0, 4, 1, 1, next(names)), ended])
    return folder


def st_choice(values: list[str]) -> Any:
    from lightning_hpo import choice

    return choice(values)


def test_the_page_of_a_study_from_elsewhere_is_text_and_drawings_only(tmp_path: Path) -> None:
    plain = Elements(page(*read_reports(study_full_of(["plain"], tmp_path / "plain"))))
    for number, text in enumerate(HOSTILE_TEXTS):
        study = study_full_of([text], tmp_path / f"<b>{number}")
        hostile = Elements(page(*read_reports(study)))
        assert hostile.found <= plain.found | {"@class"}, text
    assert not {"script", "img", "iframe", "object", "link", "@href", "@src", "@onload", "@style"} & plain.found


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_texts_a_study_holds_its_page_has_the_same_elements(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / uuid.uuid4().hex
    found = Elements(page(*read_reports(study_full_of(texts, folder)))).found
    assert found <= Elements(page(*read_reports(study_full_of(["x"], tmp_path / uuid.uuid4().hex)))).found


def test_a_study_from_elsewhere_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_full_of(HOSTILE_TEXTS, tmp_path / "study")
    for command in (["status"], ["trials"], ["best"]):
        cli.main([*command, str(study)])
    for trial in range(5):
        cli.main(["why", str(study), str(trial)])
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "title" in printed, "the texts are not shown at all"
    is_steering = [line for line in printed.splitlines() if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)]
    assert is_steering == []


# ------------------------------------------------------------------------------------------- deletions


odd_paths = st.one_of(
    st.lists(
        st.sampled_from(["..", ".", "", "0", "1", "checkpoints", "resource-1.ckpt", "outside", "link", "study.db"]),
        min_size=1,
        max_size=5,
    ).map("/".join),
    st.sampled_from(["/etc/passwd", "../outside/checkpoints/resource-1.ckpt", "link/checkpoints/resource-1.ckpt",
                     "0/checkpoints/../../../outside/checkpoints/resource-1.ckpt", "\0", "\ud800", "study.db"]),
)  # fmt: skip


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(odd_paths, min_size=3, max_size=3))
def test_cleaning_a_study_from_elsewhere_deletes_nothing_but_its_checkpoints(tmp_path: Path, paths: list[str]) -> None:
    """Its journal names whatever it likes as checkpoints, and a folder of it is a link to somewhere else."""
    root = tmp_path / uuid.uuid4().hex
    study, outside = root / "study", root / "outside"
    precious = [outside / "checkpoints" / "resource-1.ckpt", root / "resource-1.ckpt", study / "0" / "trial.log"]
    state = new_state(algorithm="random", type=None)
    events: list[Any] = []
    for trial, path in enumerate(paths):
        events += [
            WorkerReady(trial),
            Reported(trial, trial, 1, 1, 0.5),
            CheckpointSaved(trial, trial, 1, Checkpoint(1, path, "0" * 64, 5)),
            AttemptEnded(trial, trial, 1, Outcome.FAILED, "no"),
        ]
    with Journal.create(study, study_header(state.space, state.options)) as journal:
        journal.append(events)
    for file in precious:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
    (study / "link").symlink_to(outside)
    (study / "1").symlink_to(outside)
    cli.main(["clean", str(study), "--all", "--yes"])
    assert all(file.read_text() == "precious" for file in precious)
    assert Journal.exists(study)


@pytest.mark.parametrize("name", ["study.lock", "study.mark", "search.log", "0/trial.log"])
@pytest.mark.parametrize("target", ["a file", "nothing", "itself"])
def test_going_on_with_a_study_from_elsewhere_writes_to_no_file_that_a_link_in_it_names(
    tmp_path: Path, name: str, target: str
) -> None:
    study, precious = tmp_path / "study", tmp_path / "precious"
    Study.create({"x": uniform(0, 1)}, metric="m", algorithm="random", max_t=1, path=study).close()
    if target == "a file":
        precious.write_text("precious\n" * 9)
    link = study / name
    (study / "0").mkdir()
    link.unlink(missing_ok=True)
    link.symlink_to(precious if target != "itself" else link)
    assert Journal.holder(study) is None
    Study.load(study).close()
    ProcessHost("lightning_hpo.no_such_module", study / "search.log").close()
    in_fork(lambda: (redirect_output(str(study / "0" / "trial.log")), print("trained")))
    assert precious.exists() == (target == "a file")
    if target == "a file":
        assert precious.read_text() == "precious\n" * 9
    assert not link.is_symlink()


def in_fork(work: Callable[[], Any]) -> None:
    def child() -> None:
        work()
        sys.stdout.flush()

    assert os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1]) == 0


def test_deletions_are_where_they_have_been_thought_about() -> None:
    package = Path(cli.__file__).parent
    pattern = re.compile(r"\b(rmtree|unlink|rmdir|os\.remove)\(")
    found = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if pattern.search(p.read_text())}
    known = {
        "integrations/batch.py",  # the folder it has made itself for results, under a random name
        "integrations/run.py",  # the file with which it has tried whether the folder can be written
        "report/results.py",  # what a launcher that was killed has left, by its fixed name in the study folder
        "report/writing.py",  # its own temporary files, under random names beside what they are to replace
        "runtime/backends/trial_server.py",  # the temporary folders it has made itself for its trials
        "runtime/channel_server.py",  # the socket's folder: its own, in the study or among temporary files
        "runtime/checkpoints.py",  # the one place through which checkpoints go, and its own temporary files
        "runtime/database.py",  # a file that is made anew
        "runtime/filesystems.py",  # a link in the place of a file that a study keeps, to put the file there
        "runtime/journal.py",  # temporary files and what a deleted study has left, by their fixed names
    }
    assert found - known == set(), "is it sure that nothing else can be deleted there?"


# --------------------------------------------------------------------- a real run: permissions, network


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study whose two trials are being trained, with the variable by which its processes are known."""
    folder = tmp_path_factory.mktemp("running")
    program = folder / "program.py"
    telling = 'print(os.environ["LIGHTNING_HPO_KEY"], file=open(os.environ["KEY_FILE"], "a"))'
    program.write_text(PROGRAM.replace("    loader = torch", f"    {telling}\n    loader = torch", 1))
    mark = uuid.uuid4().hex
    server = ProgramServer(SECURITY_MARK=mark, KEY_FILE=str(folder / "keys"))
    command = [
        "-m", "hydra/launcher=hpo", "hydra.launcher.metric=val_loss", "hydra.launcher.n_trials=2",
        "hydra.launcher.n_workers=2", "hydra.launcher.algorithm=random", "model.lr=interval(0.1,0.2)",
        f"gate={folder / 'gate'}", f"hydra.sweep.dir={folder / 'study'}",
    ]  # fmt: skip
    before = os.umask(0o022)
    with Gate(folder / "gate") as gate:
        try:
            run = server.start(program, *command, folder=folder)
        finally:
            os.umask(before)
        gate.wait_for(2, run)
        yield folder / "study", mark
    assert run.end().code == 0
    server.close()


def processes(mark: str) -> list[int]:
    """Every process of the study."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"SECURITY_MARK={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_nothing_of_a_local_study_listens_on_a_network(running: tuple[Path, str]) -> None:
    _, mark = running
    listening = {}
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        # State 0A is LISTEN; sockets of the other kinds need not listen to receive.
        listening |= {line.split()[9]: line for line in lines if not table.startswith("tcp") or line.split()[3] == "0A"}
    inodes = set()
    pids = processes(mark)
    assert len(pids) >= 3, "a launcher and two trials"
    for pid in pids:
        try:
            names = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {found[1] for name in names if (found := re.fullmatch(r"socket:\[(\d+)\]", name))}
    assert inodes, "the channel's sockets are not seen"
    assert [listening[inode] for inode in inodes & listening.keys()] == []


def test_a_running_study_is_for_its_user_alone(running: tuple[Path, str]) -> None:
    study, _ = running
    assert stat.S_IMODE(study.stat().st_mode) == 0o700
    private = {}
    for path in study.rglob("*"):
        if path.name.startswith("study.") or path.parent.name == ".channel":
            with contextlib.suppress(FileNotFoundError):  # a file of the database that is gone when all is written
                private[path.name] = oct(stat.S_IMODE(path.stat().st_mode) & 0o077)
    assert private.keys() >= {"study.db", "study.lock", "study.mark", "socket"}
    assert private == dict.fromkeys(private, "0o0")


def test_the_key_is_nowhere_on_disk_and_in_no_command_line(running: tuple[Path, str]) -> None:
    study, mark = running
    (key,) = set((study.parent / "keys").read_bytes().split())
    assert re.fullmatch(rb"[0-9a-f]{64}", key)
    looked_at = set()
    for path in study.rglob("*"):
        if path.is_file():
            with contextlib.suppress(FileNotFoundError):  # a file of the database that is gone when all is written
                assert key not in path.read_bytes(), path
                looked_at.add(path.relative_to(study).as_posix())
    assert looked_at >= {"study.db", "0/trial.log", "1/trial.log"}
    for pid in processes(mark):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            assert key not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_every_run_has_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for number in range(5):
        with ChannelServer(tmp_path / str(number)) as server:
            keys.add(server.key)
    assert len(keys) == 5 and {len(key) for key in keys} == {32}


def test_every_test_that_the_document_names_exists() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)*)`", (root / "docs" / "security.md").read_text())
    assert len(named) > 30
    for file, path in named:
        text = (root / file).read_text()
        for part in filter(None, path.split("::")):
            assert re.search(rf"^\s*(def|class) {part}\b", text, re.MULTILINE), f"{file}{path}"
