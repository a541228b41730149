"""The process in which the searcher lives dies, raises or talks nonsense: the launcher hears of it and goes on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from omegaconf import OmegaConf

from lightning_hpo.core.domains import uniform
from lightning_hpo.core.events import Reported, Suggested, WorkerReady, to_json
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher import Suggestion, SuggestRequest, suggested
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import HpoError, OptionError, SearcherFailed
from lightning_hpo.integrations import run
from lightning_hpo.runtime import process_table, suggesting
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.stored import study_header
from lightning_hpo.runtime.suggesting import Answered, ProcessHost
from lightning_hpo.searchers import server
from lightning_hpo.searchers.server import serve
from tests.integrations.programs import PROGRAM, Gate


def with_options(**options) -> dict:
    """What a searcher is told of a study with these options."""
    given = StudyOptions.from_mapping(
        {"metric": "loss", "algorithm": "asha", "max_t": 9, "points_to_evaluate": [], "random_seed": 0, **options}
    )
    return json.loads(json.dumps(study_header(SearchSpace({"x": uniform(0.0, 1.0)}), given)))


HEADER = with_options()
REQUEST = SuggestRequest(0, 0, 1, None)


def hang(connection) -> None:
    connection.recv(1)
    time.sleep(60)


def never_read(connection) -> None:
    time.sleep(600)


def talk_nonsense(connection) -> None:
    connection.recv(1)
    connection.sendall(b"\xff not JSON\n")
    connection.recv(1)


def die_in_the_middle_of_a_message(connection) -> None:
    connection.recv(1)
    connection.sendall(b'{"suggestion": {"config": {"x": 0.')


REPORTS = [Reported(float(n), n, 1, 1, 0.5, {"train_loss": 0.25, "val_loss": 0.5}, 1.0) for n in range(10_000)]
"""Megabytes, of which a socket holds less than a tenth."""


@pytest.fixture
def begin(tmp_path):
    """Makes a host that has been told of the study; its process is a fork that runs ``serve``, or a new interpreter."""
    with contextlib.ExitStack() as closing:

        def begin(serve, header=HEADER) -> ProcessHost:
            host = ProcessHost("lightning_hpo.searchers.server", tmp_path / "search.log", serve)
            closing.callback(host.close)
            host.begin(header, [])
            return host

        yield begin


@pytest.fixture
def gate(tmp_path):
    """A named pipe: who opens it for reading waits until the test opens it for writing."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def answer(host: ProcessHost, timeout_s: float = 60.0) -> Answered:
    """What it answers, however it is woken on the way."""
    deadline = time.monotonic() + timeout_s
    while (found := host.poll()) is None:
        assert wait(host.waitables(), max(deadline - time.monotonic(), 0.0)), f"no answer within {timeout_s} s"
    return found


def failure(host: ProcessHost) -> str:
    """What its failure says, which it says again and again, and without waking anybody for it."""
    with pytest.raises(HpoError) as raised:
        answer(host)
    with pytest.raises(type(raised.value)) as again:
        host.poll()
    assert str(again.value) == str(raised.value) and not host.waitables()
    return f"{type(raised.value).__name__}: {raised.value}"


def within(seconds: float):
    """How much of this time is left."""
    deadline = time.monotonic() + seconds
    return lambda: deadline - time.monotonic()


def children() -> list[int]:
    return [pid for pid, parent, _ in process_table.processes() if parent == os.getpid()]


@pytest.mark.parametrize("method", [serve, None], ids=["fork", "interpreter"])
def test_it_answers_and_follows(begin, method):
    host = begin(method)
    host.follow([WorkerReady(1.0)])
    host.ask(REQUEST)
    assert host.is_busy
    given = answer(host)
    assert given.request == REQUEST
    assert given.suggestion is not None and 0 <= given.suggestion.config["x"] <= 1
    assert not host.is_busy


@pytest.mark.parametrize("method", [serve, None], ids=["fork", "interpreter"])
def test_it_begins_when_it_has_looked_at_the_options_not_earlier(begin, method):
    host = begin(method)
    assert not host.has_begun
    assert wait(host.waitables(), 60)
    assert host.poll() is None and host.has_begun and not host.is_busy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", [serve, None], ids=["fork", "interpreter"])
def test_a_batch_system_that_ends_everybody_leaves_it_to_the_launcher_to_end_it(begin, method, number):
    before = set(children())
    host = begin(method)
    (pid,) = set(children()) - before
    if method is serve:  # else while it begins
        host.ask(REQUEST)
        answer(host)
    os.kill(pid, number)
    host.ask(REQUEST)
    assert answer(host).suggestion is not None
    host.close()
    assert host._process.poll() == 0


def test_a_process_that_is_killed_is_told_apart_from_one_that_thinks(begin):
    before = set(children())
    host = begin(hang)
    host.ask(REQUEST)
    assert host.poll() is None
    (pid,) = set(children()) - before
    os.kill(pid, signal.SIGKILL)
    assert wait(host.waitables(), 10)
    with pytest.raises(SearcherFailed, match=r"search\.log"):
        host.poll()
    assert host.recommend(within(5.0)) is None


class Watch:
    """A clock that goes as fast as it is told to."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(suggesting, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep))

    def look(self, host: ProcessHost, seconds: float, step: float = 1.0) -> None:
        """At the process, every second for so long."""
        for _ in range(round(seconds / step)):
            self.now += step
            assert host.poll() is None


def test_a_process_that_is_silent_for_too_long_hangs_and_is_ended(begin, monkeypatch):
    watch = Watch(monkeypatch)
    computed = [0.0]
    monkeypatch.setattr(suggesting.process_table, "processor_seconds", lambda pid: computed[0])
    before = set(children())
    host = begin(hang)
    host.ask(REQUEST)
    (pid,) = set(children()) - before
    watch.look(host, 299.0)
    computed[0] += 0.01
    watch.look(host, 301.0)
    with pytest.raises(SearcherFailed, match=r"has not answered for 601 s: it hangs\. Look at search\.log"):
        watch.look(host, 1.0)
    os.waitpid(pid, 0)


def test_time_in_which_the_launcher_was_not_there_to_listen_does_not_count(begin, monkeypatch):
    watch = Watch(monkeypatch)
    host = begin(hang)
    host.ask(REQUEST)
    watch.look(host, 3600.0, step=3600.0)


def test_a_process_that_is_not_asked_may_be_silent(begin, monkeypatch):
    host = begin(serve)
    host.ask(REQUEST)
    answer(host)
    watch = Watch(monkeypatch)
    watch.look(host, 1000.0)


def test_a_process_that_computes_may_take_an_hour_or_ten_times_as_long_as_ever(begin, monkeypatch):
    def answer_once(connection) -> None:
        lines = connection.makefile("rb")
        while b"request" not in lines.readline():
            pass
        reply = {"suggestion": {"config": {"x": 0.5}, "reason": "", "origin": "model", "bracket_weights": None}}
        connection.sendall(json.dumps(reply).encode() + b"\n")
        time.sleep(60)

    watch = Watch(monkeypatch)
    monkeypatch.setattr(suggesting.process_table, "processor_seconds", lambda pid: watch.now)
    host = begin(answer_once)
    watch.look(host, 500.0)
    host.ask(REQUEST)
    assert wait(host.waitables(), 10) and host.poll() is not None
    host.ask(REQUEST)
    watch.look(host, 4900.0)
    with pytest.raises(SearcherFailed, match="hangs"):
        watch.look(host, 200.0)


def test_the_time_that_a_process_has_computed_is_known():
    before = process_table.processor_seconds(os.getpid())
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        pass
    after = process_table.processor_seconds(os.getpid())
    assert before is not None and after is not None and 0.2 < after - before < 5.0
    assert process_table.processor_seconds(2**22 + 1) is None


def test_what_is_said_to_a_dead_process_is_no_error_until_its_answer_is_wanted(begin):
    before = set(children())
    host = begin(serve)
    (pid,) = set(children()) - before
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it is dead; the host will wait for it, too
    for _ in range(3):
        host.follow([WorkerReady(1.0)])
    host.ask(REQUEST)
    with pytest.raises(SearcherFailed):
        host.poll()


def test_an_exception_in_the_searcher_is_told_with_its_message(begin, tmp_path):
    host = begin(serve)
    host.ask(SuggestRequest(0, 0, 1, None))
    answer(host)
    host._send({"request": {"no": "such field", "slot": None}})
    assert "SearcherFailed: The searcher raised: TypeError: " in failure(host)
    assert "Traceback" in (tmp_path / "search.log").read_text()


def test_nonsense_is_a_failure_of_the_searcher_not_of_the_launcher(begin):
    host = begin(talk_nonsense)
    host.ask(REQUEST)
    wait(host.waitables(), 10)
    with pytest.raises(SearcherFailed):
        host.poll()


@pytest.mark.timeout(60)
def test_the_launcher_never_waits_for_a_searcher_that_does_not_read(begin):
    host = begin(never_read)
    for report in REPORTS:
        host.follow([report])
    host.ask(REQUEST)
    assert host._line.unsent > 2**20, "the socket has taken everything: this test shows nothing"
    assert host.poll() is None
    assert not wait(host.waitables(), 0.0), "the loop would turn without pause"
    assert host.recommend(within(0.2)) is None
    host.close()


@pytest.mark.timeout(60)
def test_what_a_busy_searcher_did_not_read_reaches_it_whole_and_in_order(begin, gate):
    def read_later(connection) -> None:
        gate.open("rb").close()
        lines = connection.makefile("rb")
        assert json.loads(lines.readline()) == {"header": HEADER}
        told = [lines.readline() for _ in REPORTS]
        assert told == [json.dumps({"events": [to_json(report)]}).encode() + b"\n" for report in REPORTS]
        assert json.loads(lines.readline())["request"]["trial_id"] == 0
        connection.sendall(b'{"error": "everything has come"}\n')

    host = begin(read_later)
    for report in REPORTS:
        host.follow([report])
    host.ask(REQUEST)
    assert host._line.unsent > 2**20
    gate.open("wb").close()
    with pytest.raises(SearcherFailed, match="everything has come"):
        # Only what wakes the launcher's loop, and no look at the clock, brings the rest on its way.
        while wait(host.waitables(), 20):
            assert host.poll() is None


def test_a_searcher_that_reads_nothing_for_ever_fails_before_it_fills_the_memory(begin, monkeypatch):
    monkeypatch.setattr(suggesting, "_MOST_UNSENT_BYTES", 2**20)
    host = begin(never_read)
    kept = []
    for report in REPORTS:
        host.follow([report])
        kept.append(host._line.unsent)
    assert 0.9 * 2**20 < max(kept) <= 2**20 and kept[-1] == 0
    with pytest.raises(SearcherFailed, match=r"1 MiB of events unread.*Look at search\.log"):
        host.poll()


def test_a_long_history_is_not_taken_for_a_searcher_that_reads_nothing(begin, monkeypatch):
    monkeypatch.setattr(suggesting, "_MOST_UNSENT_BYTES", 2**19)
    host = begin(never_read)
    host.begin(HEADER, REPORTS)
    assert host._line.unsent > 2**20
    host.follow(REPORTS[:10])
    assert host.poll() is None


@pytest.mark.timeout(60)
def test_a_process_that_dies_with_much_unread_is_dead_and_nothing_else(begin):
    before = set(children())
    host = begin(never_read)
    (pid,) = set(children()) - before
    for report in REPORTS:
        host.follow([report])
    os.kill(pid, signal.SIGKILL)
    assert wait(host.waitables(), 10)
    for report in REPORTS[:10]:
        host.follow([report])
    assert host._line.unsent == 0, "nobody will take it any more"
    for _ in range(3):
        with pytest.raises(SearcherFailed):
            host.poll()
    assert not host.waitables(), "the loop would turn without pause"


@pytest.mark.timeout(60)
def test_half_an_answer_is_none(begin):
    host = begin(die_in_the_middle_of_a_message)
    host.ask(REQUEST)
    with pytest.raises(SearcherFailed, match="died"):
        while wait(host.waitables(), 10):
            assert host.poll() is None


def test_half_a_message_of_a_launcher_that_is_gone_is_ignored(begin, tmp_path):
    host = begin(serve)
    host._line._socket.sendall(b'{"events": [{"event": "Work')
    host.close()
    assert (tmp_path / "search.log").read_text() == ""


def test_a_process_in_the_middle_of_a_fit_is_ended_with_the_host(begin):
    before = set(children())
    host = begin(hang)
    host.ask(REQUEST)
    (pid,) = set(children()) - before
    host.close()
    assert not Path(f"/proc/{pid}").exists()
    assert host._process.poll() == -signal.SIGKILL, "its fit was waited for"


class TestOptionsThatOnlyTheProcessCanRefuse:
    """A wrong option is no failure: random search would not be what was asked for."""

    HEADER: ClassVar = with_options(algorithm="mobster")

    @pytest.mark.parametrize("method", [serve, None], ids=["fork", "interpreter"])
    def test_a_gpu_that_is_not_there(self, begin, method):
        host = begin(method, with_options(algorithm="mobster", searcher={"device": "cuda:63"}))
        told = failure(host)
        assert told.startswith("OptionError: searcher.device=cuda:63, but the searcher's process sees ")
        assert told.endswith(" GPUs. Set searcher.device to auto or cpu.")
        assert not host.has_begun

    def test_a_package_that_is_not_there(self, begin, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gpytorch" else find(name))
        assert failure(begin(serve, self.HEADER)) == (
            f"OptionError: algorithm=mobster fits models and needs gpytorch, not to be found by {sys.executable}. "
            "Install what is missing, or choose an algorithm that fits none, such as asha."
        )

    def test_an_algorithm_without_a_model_needs_no_package(self, begin, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        host = begin(serve)
        host.ask(REQUEST)
        assert answer(host).suggestion is not None

    def test_what_is_found_when_the_searcher_is_built(self, begin, monkeypatch):
        def refuse(*_):
            raise OptionError("searcher.model=x cannot be had. Leave it out.")

        monkeypatch.setattr(server, "make_searcher", refuse)
        assert failure(begin(serve)) == "OptionError: searcher.model=x cannot be had. Leave it out."

    def test_what_is_found_when_a_model_is_fitted(self, begin, monkeypatch):
        class Late:
            def suggest(self, view, request):
                raise OptionError("searcher.model=x cannot be had. Leave it out.")

        monkeypatch.setattr(server, "make_searcher", lambda *_: Late())
        host = begin(serve)
        host.ask(REQUEST)
        assert failure(host) == "OptionError: searcher.model=x cannot be had. Leave it out."

    def test_with_all_there_is_it_begins(self, begin):
        host = begin(serve, self.HEADER)
        host.ask(REQUEST)
        assert answer(host).suggestion is not None and host.has_begun


TUNER = """
from pathlib import Path
from lightning_hpo import Tuner, loguniform

def train(config):
    Path("trained").touch()

if __name__ == "__main__":
    options = {"metric": "val_loss", "max_t": 3, "algorithm": "mobster", "searcher": {"device": "cuda:63"}}
    Tuner(train, {"lr": loguniform(1e-4, 1e-1)}, path="study", start_method="START", **options).run()
"""


class TestAStudyWithAnOptionThatOnlyTheProcessCanRefuse:
    """It ends with the error and its remedy, and has trained nothing."""

    def test_of_a_script(self, programs, tmp_path):
        (tmp_path / "script.py").write_text(PROGRAM)
        arguments = ["-m", "hydra/launcher=hpo", "hydra.launcher.metric=val_loss", "hydra.sweep.dir=study"]
        searched = ["model.lr=tag(log,interval(1e-4,1e-1))", "hydra.launcher.searcher.device=cuda:63"]
        ended = programs.run(tmp_path / "script.py", *arguments, *searched, folder=tmp_path)
        assert ended.code == 1
        assert "searcher.device=cuda:63, but the searcher's process sees" in ended.output
        assert "Set searcher.device to auto or cpu." in ended.output
        assert "Traceback" not in ended.output and "random search" not in ended.output
        assert (tmp_path / "study" / "search.log").exists() and not (tmp_path / "study" / "0").exists()

    @pytest.mark.parametrize("start_method", ["fork", "spawn"])
    def test_of_a_tuner(self, programs, tmp_path, start_method):
        (tmp_path / "tuner.py").write_text(TUNER.replace("START", start_method))
        ended = programs.run(tmp_path / "tuner.py", folder=tmp_path)
        assert ended.code == 1
        *_, last = ended.output.strip().splitlines()
        assert last.startswith("lightning_hpo.errors.OptionError: searcher.device=cuda:63, but the searcher's process")
        assert last.endswith("Set searcher.device to auto or cpu.")
        assert "random search" not in ended.output
        assert (tmp_path / "study" / "search.log").exists() and not (tmp_path / "trained").exists()


def pids_of_searcher(study: Path) -> list[int]:
    """Processes that print to the study's search.log."""
    found = []
    for pid, _, _ in process_table.processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/fd/1").readlink() == study / "search.log":
                found.append(pid)
    return found


SLOW_TO_BEGIN = """
import glob, os, sys, time
if "lightning_hpo.searchers.server" in sys.orig_argv and glob.glob({gate!r} + ".*"):  # not the first: trials run
    while os.path.exists({lasts!r}):
        time.sleep(0.01)
"""


class TestAStudyWhoseSearcherIsKilled:
    """It goes on with the model, not with random search to its end."""

    LAUNCHER = ("metric=val_loss", "algorithm=mobster", "type=promotion", "searcher.num_init_random=2", "n_workers=2")

    @pytest.fixture
    def gate(self, tmp_path):
        with Gate(tmp_path / "gate") as gate:
            yield gate

    def begin(self, programs, gate: Gate, n_trials: int, **environment: str):
        """Both workers have trials in their first epoch when it returns, until the gate is opened."""
        folder = gate.path.parent
        (folder / "script.py").write_text(PROGRAM)
        launcher = [f"hydra.launcher.{option}" for option in (*self.LAUNCHER, f"n_trials={n_trials}")]
        job = ["hydra.sweep.dir=study", "model.lr=tag(log,interval(1e-4,1e-1))", f"gate={gate.path}"]
        running = programs.start(
            folder / "script.py", "-m", "hydra/launcher=hpo", *launcher, *job, folder=folder, **environment
        )
        gate.wait_for(2, running)
        return running

    def kill(self, study: Path) -> None:
        deadline = time.monotonic() + 20
        while not (pids := pids_of_searcher(study)):
            assert time.monotonic() < deadline, "no process has taken over"
            time.sleep(0.01)
        (pid,) = pids
        os.kill(pid, signal.SIGKILL)

    @pytest.fixture
    def slow_to_begin(self, tmp_path):
        """Environment in which a searcher that takes over says nothing as long as the test lasts."""
        lasts = tmp_path / "lasts"
        customizing = tmp_path / "path" / "sitecustomize.py"
        customizing.parent.mkdir()
        customizing.write_text(SLOW_TO_BEGIN.format(gate=str(tmp_path / "gate"), lasts=str(lasts)))
        lasts.touch()
        yield {"PYTHONPATH": os.pathsep.join([str(customizing.parent), *filter(None, [os.environ.get("PYTHONPATH")])])}
        lasts.unlink()

    def recommended(self, study: Path) -> dict:
        return OmegaConf.to_container(OmegaConf.load(study / "optimization_results.yaml"))["recommended"]

    @pytest.mark.timeout(180)
    def test_a_searcher_that_is_killed_comes_back_with_its_model(self, programs, tmp_path, gate):
        running = self.begin(programs, gate, n_trials=10)
        self.kill(tmp_path / "study")
        running.wait_for(lambda output: "The searcher is there again" in output)
        so_far = running.output
        gate.open()
        ended = running.end()
        assert ended.code == 0, ended.output
        assert so_far.count("The searcher failed; until a new process takes over") == 1
        assert "killed by SIGKILL" in so_far and "(EI " not in so_far
        assert "(EI " in ended.output[len(so_far) :], "the model's suggestions have not come again"
        with Journal.read(tmp_path / "study") as journal:
            origins = [event.origin for event in journal.events() if isinstance(event, Suggested)]
        assert "model" in origins
        assert self.recommended(tmp_path / "study")["trial"] in range(10) and "recommended" in ended.output

    @pytest.mark.timeout(180)
    def test_a_searcher_that_is_killed_again_and_again_is_given_up(self, programs, tmp_path, gate, slow_to_begin):
        running = self.begin(programs, gate, n_trials=6, **slow_to_begin)
        for told in ("The searcher failed;", "The searcher failed again;", "The searcher failed 3 times"):
            self.kill(tmp_path / "study")
            running.wait_for(lambda output, told=told: told in output)
        gate.open()
        ended = running.end()
        assert ended.code == 0, ended.output
        assert "failed 3 times without a suggestion in between; the study goes on with random search" in ended.output
        assert not pids_of_searcher(tmp_path / "study") and "(EI " not in ended.output
        assert self.recommended(tmp_path / "study")["trial"] in range(6), "which needs no model"


@pytest.mark.parametrize("answers", [True, False])
def test_a_recommendation_needs_no_process_that_answers(monkeypatch, answers):
    """Then it is made without a model: what killed the process must not be done in the launcher."""

    def fit(*_):
        raise AssertionError("the launcher fits a model")

    monkeypatch.setattr("lightning_hpo.searchers.recommend._smooth_over_configurations", fit)
    options = StudyOptions.from_mapping({"metric": "loss", "algorithm": "random", "max_t": 3, "points_to_evaluate": []})
    state = StudyState(SearchSpace({"x": uniform(0.0, 1.0)}), options)
    for trial, value in enumerate((0.5, 0.25)):
        suggestion = Suggestion({"x": value}, "EI 1.0", "model", state={"parameters": {"noise": [1.0]}})
        state.handle(suggested(1.0, trial, suggestion))
        state.handle(Reported(2.0, trial, 1, 3, value, {}, None))
    assert "parameters" in state.searcher_state
    host = SimpleNamespace(recommend=lambda timeout_s: (0, {"x": 0.5}, 0.3, 0.1, 0) if answers else None)
    found = run._recommendation(state, host, 1.0)
    assert (found.trial_id, found.config) == ((0, {"x": 0.5}) if answers else (1, {"x": 0.25}))


class TestCauseOfDeath:
    """It is named, and not what the launcher noticed first: that its messages are not taken."""

    def test_an_exception_at_the_start(self, begin, monkeypatch):
        def refuse(*_):
            raise OSError("libcudart.so: file too short.")

        monkeypatch.setattr(server, "make_searcher", refuse)
        host = begin(serve)
        host.follow(REPORTS)
        assert failure(host) == (
            "SearcherFailed: The searcher raised: OSError: libcudart.so: file too short. "
            "Look at search.log in the study folder."
        )

    def test_an_event_that_it_cannot_take(self, begin):
        host = begin(serve)
        host._send({"events": [{"event": "NoSuchEvent"}]})
        host.follow(REPORTS)
        assert "SearcherFailed: The searcher raised: " in failure(host)

    def test_an_interpreter_that_does_not_get_as_far_as_the_searcher(self, tmp_path):
        (tmp_path / "search.log").write_text("Traceback (most recent call last):\nOldError: of an earlier launcher\n")
        host = ProcessHost("lightning_hpo.searchers.no_such_module", tmp_path / "search.log")
        host.begin(HEADER, REPORTS)
        told = failure(host)
        assert "died (exit code 1: " in told and "No module named lightning_hpo.searchers.no_such_module). Look" in told
        host.close()

    def test_an_exception_that_nobody_caught(self, begin):
        def fail(connection):
            try:
                raise KeyError("first")
            except KeyError:
                raise RuntimeError("no such library.\nTry another one.") from None

        assert "died (exit code 1: RuntimeError: no such library). Look at search.log" in failure(begin(fail))

    def test_an_exit_without_a_word(self, begin):
        assert "died (exit code 3). Look at search.log" in failure(begin(lambda connection: os._exit(3)))

    def test_a_kill(self, begin):
        host = begin(lambda connection: os.kill(os.getpid(), signal.SIGKILL))
        host.follow(REPORTS)
        assert "died (killed by SIGKILL (out of memory?)). Look at search.log" in failure(host)


LAUNCHER = """
import sys, time
from pathlib import Path
from lightning_hpo.runtime.suggesting import ProcessHost
from lightning_hpo.searchers import server

class Fitting:
    def suggest(self, view, request):
        print("fitting", flush=True)
        time.sleep(60)

server.make_searcher = lambda *_: Fitting()
sys.path.insert(0, sys.argv[2])
from tests.faults.test_searcher_process import HEADER, REQUEST
host = ProcessHost("lightning_hpo.searchers.server", Path(sys.argv[1]), server.serve)
host.begin(HEADER, [])
host.ask(REQUEST)
print(host._process.pid, flush=True)
time.sleep(60)
"""


def test_a_fit_does_not_outlive_a_launcher_that_is_killed(tmp_path, request):
    log = tmp_path / "search.log"
    command = [sys.executable, "-c", LAUNCHER, str(log), str(request.config.rootpath)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        deadline = time.monotonic() + 20
        while not (log.exists() and "fitting" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 5
        while pid in {found for found, _, _ in process_table.processes()}:
            assert time.monotonic() < deadline, "the searcher has outlived its launcher"
            time.sleep(0.02)
