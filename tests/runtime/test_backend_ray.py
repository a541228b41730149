"""The Ray backend: on a stand-in for Ray everywhere, on Ray itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_hpo.errors import BackendError, OptionError
from lightning_hpo.runtime.backends import ray as ray_backend
from lightning_hpo.runtime.backends import ray_cluster, trial_host
from lightning_hpo.runtime.backends.base import Exit, Job, Started
from lightning_hpo.runtime.backends.ray import RayBackend
from lightning_hpo.runtime.script import FunctionReference
from tests.runtime.fake_ray import ActorUnavailableError, FakeRay, Node
from tests.runtime.launching import wait_until
from tests.runtime.scripted_launcher import entry

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")


class Trials:
    """Starts scripted trials on a backend and collects what becomes of them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        options = {"gpus_per_trial": 0, "n_workers": 2, **options}
        self.backend = RayBackend(options.pop("entry", FunctionReference(entry)), **options)
        self.seen: list[Started | Exit] = []

    def start(self, trial_id: int, do: str, attempt: int = 1, **payload: Any) -> Path:
        folder = self.folder / str(trial_id)
        environment = {"OF_THE_JOB": "yes"}
        log = folder / "trial.log"
        self.backend.start(
            Job(trial_id, attempt, folder, log, environment, payload={"do": do, **payload}, seed=trial_id)
        )
        return folder

    def follow(self, until: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := until()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s, but {self.seen}"
            wait(self.backend.waitables(), 0.2)
            self.seen += self.backend.poll()
        return found

    def exit(self, trial_id: int, attempt: int = 1) -> Exit:
        return self._next(Exit, trial_id, attempt)

    def started(self, trial_id: int, attempt: int = 1) -> Started:
        return self._next(Started, trial_id, attempt)

    def _next(self, kind: type, trial_id: int, attempt: int) -> Any:
        return self.follow(
            lambda: next(
                (e for e in self.seen if isinstance(e, kind) and (e.trial_id, e.attempt) == (trial_id, attempt)), None
            )
        )

    def runs(self, trial_id: int, attempt: int = 1) -> Started:
        """Wait until the scripted trial is in its sleep."""
        started = self.started(trial_id, attempt)
        self.follow((self.folder / str(trial_id) / "runs").exists)
        return started


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Two nodes with one CPU each."""
    ray = FakeRay(one=Node(1), two=Node(1))
    monkeypatch.setattr(ray_backend, "import_ray", lambda: ray)
    monkeypatch.setattr(ray_backend, "_ROOM_PERIOD_S", 0.1)
    return ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for trials, which the launcher joins, and one node with two CPUs."""
    if not HAS_RAY:
        pytest.skip("ray is not installed")
    ray = ray_cluster.import_ray()
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        made.add_node(num_cpus=2)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(params=["fake", pytest.param("ray", marks=pytest.mark.slow)])
def trials(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trials]:
    request.getfixturevalue("fake" if request.param == "fake" else "cluster")
    made = Trials(tmp_path)
    yield made
    made.backend.close(0)


# ---------------------------------------------------------------------------------- what trials see


def test_a_trial_finds_what_it_would_find_on_the_launchers_machine(trials: Trials):
    folder = trials.start(3, "describe")
    end = trials.exit(3)
    assert (end.exit_code, end.signal, end.problem, end.requested) == (0, None, None, False)
    facts = json.loads((folder / "facts0.json").read_text())
    assert facts["environment"]["OF_THE_JOB"] == "yes"
    assert facts["environment"]["LIGHTNING_HPO_TRIAL"] == "3"
    assert facts["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert facts["leads_session"] and facts["sigint"] and facts["sigterm"]
    import random

    assert facts["random"] == random.Random(3).random()
    assert (folder / "trial.log").read_text() == "written by print\nwritten by a subprocess\nand its stderr\n"
    assert trials.started(3).pid == end.pid
    assert trials.started(3).worker.endswith("/cpu")


def test_an_exception_is_in_the_log_and_in_the_exit_code(trials: Trials):
    folder = trials.start(0, "raise")
    assert trials.exit(0).exit_code == 1
    assert (folder / "trial.log").read_text().endswith("ValueError: no such layer\n")


def test_a_trial_that_the_kernel_kills_is_told_with_its_signal(trials: Trials):
    trials.start(0, "kill_itself")
    end = trials.exit(0)
    assert (end.exit_code, end.signal, end.requested) == (None, signal.SIGKILL, False)


def test_stopping_ends_the_trial_and_what_it_has_started(trials: Trials):
    trials.start(0, "leave_processes", seconds=100)
    pid = trials.runs(0).pid
    trials.backend.stop(0, 1, grace_s=1.0)
    assert trials.exit(0).requested
    assert not is_running(pid)
    assert trials.backend.free_slots == 2


def test_slots_are_given_again_and_no_more_of_them_than_there_are(trials: Trials):
    backend = trials.backend
    assert (backend.capacity, backend.free_slots) == (2, 2)
    trials.start(0, "sleep")
    trials.start(1, "describe")
    assert backend.free_slots == 0
    with pytest.raises(BackendError, match=r"All 2 slots are taken. Wait for a trial to end, or raise n_workers"):
        trials.start(2, "describe")
    trials.exit(1)
    trials.start(2, "describe")
    assert trials.exit(2).exit_code == 0


def test_closing_ends_every_trial(trials: Trials):
    for trial_id in (0, 1):
        trials.start(trial_id, "ignore_sigterm")
    pids = [trials.runs(trial_id).pid for trial_id in (0, 1)]
    trials.backend.close(0.1)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    with pytest.raises(BackendError, match="Create a new one"):
        trials.start(2, "describe")


# --------------------------------------------------------------------------------------- lost nodes


def test_a_lost_node_ends_its_trials_and_the_next_attempt_runs_elsewhere(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    trials.start(0, "sleep")
    pid = trials.runs(0).pid
    (node,) = {actor.node for actor in fake.actors}
    fake.lose(node)
    end = trials.exit(0)
    assert end.problem is not None and "was lost (ActorDiedError: its node died)" in end.problem
    assert (end.exit_code, end.signal) == (None, None)
    wait_until(lambda: not is_running(pid))
    trials.follow(lambda: trials.backend.capacity == 1)
    trials.start(0, "describe", attempt=2)
    assert trials.exit(0, 2).exit_code == 0
    assert fake.actors[-1].node != node
    trials.backend.close(0)


def test_a_node_that_cannot_be_reached_is_given_up(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    trials.start(0, "sleep")
    trials.runs(0)
    (node,) = {actor.node for actor in fake.actors}
    fake.lose(node, ActorUnavailableError("the connection is closed"))
    assert "ActorUnavailableError" in (trials.exit(0).problem or "")
    assert trials.backend.poll() == []
    trials.backend.close(0)


def test_a_trial_that_waits_for_a_lost_node_takes_the_next_idle_slot(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    trials.start(0, "sleep")
    first = trials.runs(0)
    trials.start(1, "sleep")
    trials.runs(1)
    lost = fake.actors[1].node
    assert lost is not None
    # Ray has not noticed yet that the node is gone, so there seems to be a slot.
    nodes = fake.nodes()
    fake.nodes = lambda: nodes  # type: ignore[method-assign]
    fake.lose(lost)
    trials.exit(1)
    trials.start(1, "describe", attempt=2)
    trials.backend.stop(0, 1, grace_s=0.0)
    trials.exit(0)
    assert trials.exit(1, 2).exit_code == 0
    assert first.pid is not None
    trials.backend.close(0)


def test_a_trial_server_that_dies_costs_its_trial_only(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    trials.start(0, "sleep")
    trials.start(1, "sleep")
    trials.runs(0)
    survivor = trials.runs(1)
    os.kill(fake.actors[0]._object._server.pid, signal.SIGKILL)
    ends = trials.follow(lambda: [e for e in trials.seen if isinstance(e, Exit)])
    assert "the process that starts trials died" in (ends[0].problem or "")
    other = 1 - ends[0].trial_id
    assert is_running(trials.started(other).pid or 0)
    assert survivor.pid is not None
    trials.backend.close(0)


def test_nodes_that_join_are_used(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path, n_workers=None)
    fake.join("three", Node(4))
    trials.follow(lambda: trials.backend.free_slots == 6)
    trials.backend.close(0)


def test_a_trial_stopped_before_it_has_a_node_never_runs(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    fake.schedule = lambda: None  # type: ignore[method-assign]
    trials.start(0, "sleep")
    trials.backend.stop(0, 1)
    end = trials.exit(0)
    assert (end.problem, end.requested, end.pid) == ("stopped before it was started", True, None)
    trials.backend.close(0)


def test_a_slot_is_kept_for_the_next_trial(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path, n_workers=1)
    for trial_id in range(3):
        trials.start(trial_id, "describe")
        trials.exit(trial_id)
    assert len(fake.actors) == 1
    trials.backend.close(0)


# ------------------------------------------------------------------------------- what cannot be done


def test_workers_that_never_get_ready_end_the_study(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path)
    fake.broken = ImportError("a traceback\nModuleNotFoundError: No module named 'lightning_hpo'")
    trials.start(0, "describe")
    trials.start(1, "describe")
    with pytest.raises(BackendError, match=r"3 Ray workers in a row died .*No module named 'lightning_hpo'") as caught:
        trials.follow(lambda: False, timeout_s=5)
    assert str(caught.value).endswith("install the same versions of Python and of all packages on every node.")
    assert len(fake.actors) == 6, "two were made at a time"
    trials.backend.close(0)


def test_a_function_that_nodes_cannot_load_ends_the_study(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path, entry=Unloadable())
    trials.start(0, "describe")
    with pytest.raises(BackendError, match="Define the training function at the top level of a module"):
        trials.follow(lambda: False, timeout_s=30)
    trials.backend.close(0)


class Unloadable:
    def __call__(self, job: Job) -> None: ...

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_study_folder_that_is_not_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(trial_host, "_SHARED_FOLDER_S", 0.0)
    host = trial_host.TrialHost.__new__(trial_host.TrialHost)
    refusal = host.start(b"{}", str(tmp_path / "3"))
    assert refusal is not None and refusal.endswith("storage that all nodes share, with hydra.sweep.dir=... .")


def test_no_node_with_enough_room_is_an_error(fake: FakeRay, tmp_path: Path):
    with pytest.raises(BackendError, match=r"takes 1 CPU and 2 GPU of one node.* lower gpus_per_trial"):
        Trials(tmp_path, gpus_per_trial=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"start_method": "fork"}, "Leave start_method out"), ({"gpus_per_trial": 1.5}, "gpus_per_trial must be")],
)
def test_options_that_make_no_sense_are_refused(fake: FakeRay, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(OptionError, match=message):
        Trials(tmp_path, **options)


def test_fewer_slots_than_wanted_and_unused_options_are_told(fake: FakeRay, tmp_path: Path):
    trials = Trials(tmp_path, n_workers=3, devices=[0])
    assert trials.backend.note is not None
    assert trials.backend.note.startswith("devices is not used")
    assert "2 instead of 3 trials run at a time: each takes 1 CPU and 0 GPU" in trials.backend.note
    trials.backend.close(0)


# ------------------------------------------------------------------------------------------ devices


def test_a_trial_sees_the_devices_that_ray_assigned(fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake.alive["two"].gpus = 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # Ray sets it in the actor's process
    trials = Trials(tmp_path, gpus_per_trial=None)
    folder = trials.start(0, "describe")
    assert trials.started(0).worker.endswith("/gpu:1")
    trials.exit(0)
    assert json.loads((folder / "facts0.json").read_text())["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert fake.options["num_gpus"] == 1
    trials.backend.close(0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_trial", "room"),
    [
        (8, 0, (1, 0.0), 8),
        (8, 0, (3, 0.0), 2),
        (8, 0, (1, 1.0), 0),
        (8, 2, (1, 1.0), 2),
        (8, 3, (1, 2.0), 1),
        (8, 2, (1, 0.25), 8),
        (4, 2, (1, 0.25), 4),
        (8, 2, (1, 0.4), 4),  # two shares of 0.4 fit on one GPU, the rest of it is not used
        (0, 0, (1, 0.0), 0),
    ],
)
def test_room_on_a_node(cpus: float, gpus: float, per_trial: tuple[int, float], room: int):
    assert ray_cluster.room_on({"CPU": cpus, "GPU": gpus, "memory": 1e10}, *per_trial) == room


# ----------------------------------------------------------------------------------- joining a cluster


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module ``ray`` without a cluster; ``calls`` keeps what it was asked and what it saw then."""
    fake_module: Any = ModuleType("ray")
    constants: Any = ModuleType("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = True
    fake_module.calls = []
    fake_module.is_initialized = lambda: False

    def init(address: str, **options: Any) -> None:
        loopback = not constants.ENABLE_RAY_CLUSTER and os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0"
        usage = os.environ.get("RAY_USAGE_STATS_ENABLED")
        fake_module.calls.append({"address": address, "loopback": loopback, "usage": usage, **options})
        if address == "auto" and not hasattr(fake_module, "cluster"):
            raise ConnectionError("Could not find any running Ray instance.")

    fake_module.init = init
    for name, value in (("ray", fake_module), ("ray._private", ModuleType("x")), (constants.__name__, constants)):
        monkeypatch.setitem(sys.modules, name, value)
    sys.modules["ray._private"].ray_constants = constants  # type: ignore[attr-defined]
    for name in ("RAY_ADDRESS", *ray_cluster._PRIVATE):
        monkeypatch.delenv(name, raising=False)
    fake_module.constants = constants
    return fake_module


def test_a_running_cluster_is_joined(module: Any):
    module.cluster = "there"
    assert ray_cluster.join(module, 4) == (True, False)
    assert [call["address"] for call in module.calls] == ["auto"]


def test_without_a_cluster_ray_is_started_for_this_machine_alone(module: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 2)
    before = dict(os.environ)
    assert ray_cluster.join(module, 4) == (True, True)
    call = module.calls[-1]
    assert (call["address"], call["num_cpus"], call["include_dashboard"]) == ("local", 4, False)
    assert call["loopback"] and call["usage"] == "0"
    assert dict(os.environ) == before and module.constants.ENABLE_RAY_CLUSTER


def test_a_named_cluster_that_is_not_there_is_not_replaced(module: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(BackendError, match=r"cluster at RAY_ADDRESS=10.0.0.1:6379.*correct RAY_ADDRESS"):
        ray_cluster.join(module, 4)
    assert [call["address"] for call in module.calls] == ["auto"]


def test_a_launcher_outside_of_the_cluster_is_refused(module: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(BackendError, match="ray job submit"):
        ray_cluster.join(module, 4)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError) as caught:
        RayBackend(FunctionReference(entry))
    assert str(caught.value).endswith('pip install "hydra-lightning-hpo[ray]"')


# ---------------------------------------------------------------------------------------- Ray itself


@needs_ray
@pytest.mark.slow
def test_a_node_of_a_real_cluster_is_lost(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    node = cluster.add_node(num_cpus=8)
    trials = Trials(tmp_path, n_workers=10)
    for trial_id in range(10):
        trials.start(trial_id, "sleep")
    pids = {trial_id: trials.runs(trial_id).pid for trial_id in range(10)}
    cluster.remove_node(node, allow_graceful=False)
    lost = trials.follow(lambda: len(ends := [e for e in trials.seen if isinstance(e, Exit)]) == 8 and ends)
    assert all(end.problem and "was lost" in end.problem for end in lost)
    wait_until(lambda: not any(is_running(pids[end.trial_id]) for end in lost))
    trials.follow(lambda: trials.backend.capacity == 2)
    survivors = sorted(set(range(10)) - {end.trial_id for end in lost})
    assert all(is_running(pids[trial_id]) for trial_id in survivors)
    trials.backend.stop(survivors[0], 1, grace_s=0.0)
    trials.exit(survivors[0])
    trials.start(lost[0].trial_id, "describe", attempt=2)
    assert trials.exit(lost[0].trial_id, 2).exit_code == 0
    trials.backend.close(0)
    assert "(raylet)" not in "".join(capfd.readouterr()), "Ray's messages would tear the launcher's table"


KILLED_LAUNCHER = """
import json, sys
from pathlib import Path
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.backends.ray import RayBackend
from lightning_hpo.runtime.script import FunctionReference
from multiprocessing.connection import wait
from tests.runtime.scripted_launcher import entry

if __name__ == "__main__":
    backend = RayBackend(FunctionReference(entry), n_workers=1, gpus_per_trial=0)
    assert backend.interface is None
    folder = Path(sys.argv[1])
    backend.start(Job(0, 1, folder, folder / "trial.log", payload={"do": "sleep"}))
    while True:
        wait(backend.waitables())
        for event in backend.poll():
            print(event.pid, flush=True)
"""


@needs_ray
@pytest.mark.slow
def test_a_killed_launcher_takes_its_trials_and_its_own_cluster_with_it(tmp_path: Path):
    root = Path(__file__).parents[2]
    mark = f"LIGHTNING_HPO_TEST_MARK={tmp_path}"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(root), "RAY_ADDRESS": "local", **dict([mark.split("=", 1)])}
    script = tmp_path / "launcher.py"
    script.write_text(KILLED_LAUNCHER)
    launcher = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "0")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert launcher.stdout is not None
    try:
        pid = int(launcher.stdout.readline())
        wait_until((tmp_path / "0" / "runs").exists)
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not is_running(pid), 5)
    wait_until(lambda: not marked(mark), 15)


def marked(word: str) -> list[int]:
    """Processes with the word in their environment, but for two of Ray's own, which take a minute to end."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            program = path.with_name("cmdline").read_bytes()
            if word.encode() in path.read_bytes() and not (b"ray" in program and b"agent" in program.lower()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
