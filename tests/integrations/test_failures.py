"""What a failure means for its trial, and that the disk may be full for a while."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import ChannelError
from lightning_hpo.integrations.failures import end_by_exit, judge
from lightning_hpo.integrations.tuner import FunctionTrial
from lightning_hpo.runtime import failpoints
from lightning_hpo.runtime.backends.base import Job
from tests.integrations.conftest import Trials

KILLED_LOADER = (
    "DataLoader worker (pid 4711) is killed by signal: Killed. "
    "Details are lost due to multiprocessing. Rerunning with num_workers=0 may give better error trace."
)


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (ValueError("no such data set"), Outcome.FAILED, "ValueError: no such data set"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), Outcome.FAILED, "batch size"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), Outcome.FAILED, "hydra.launcher.gpus_per_trial."),
        (MemoryError("Unable to allocate 80 GiB"), Outcome.FAILED, "Lower hydra.launcher.n_workers"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Outcome.FAILED, "n_workers"),
        (OSError(errno.ENOSPC, "No space left on device"), Outcome.LOST, "Make room on it"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Outcome.LOST, "Make room on it"),
        (OSError(errno.ENOENT, "No such file or directory"), Outcome.FAILED, "No such file"),
        (RuntimeError(KILLED_LOADER), Outcome.LOST, "out of memory?"),
        (RuntimeError("can't start new thread"), Outcome.LOST, "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files"), Outcome.LOST, "ulimit -n"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), Outcome.FAILED, "temporarily unavailable"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Outcome.FAILED, "mat1 and mat2"),
        (ChannelError("The launcher is gone. Start the study again."), Outcome.LOST, "Start the study again."),
    ],
)
def test_a_trial_whose_surroundings_failed_is_lost_and_one_whose_script_failed_is_failed(error, outcome, says):
    judged, summary = judge(error)
    assert judged is outcome
    assert says in summary
    assert summary.startswith(type(error).__module__ if "." in summary.split(":")[0] else type(error).__name__)
    assert "\n" not in summary


@pytest.mark.parametrize(
    "start", [lambda: subprocess.run(["true"]), lambda: multiprocessing.get_context("fork").Process().start()]
)
def test_so_is_one_for_which_the_system_has_no_process_left(start, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(subprocess, "_fork_exec", refuse)
    monkeypatch.setattr(subprocess, "_USE_POSIX_SPAWN", False)
    with pytest.raises(BlockingIOError) as refused:
        start()
    outcome, summary = judge(refused.value)
    assert outcome is Outcome.LOST and "Lower hydra.launcher.n_workers" in summary


def raised(error: BaseException, *, cause: BaseException | None = None, handling: BaseException | None = None):
    """The error as it is after ``raise error from cause``, or after ``raise error`` while another one was handled."""
    try:
        if handling is None:
            raise error from cause
        try:
            raise handling
        except BaseException:
            raise error  # noqa: B904
    except BaseException as caught:
        return caught


def of_hydra(target: object, **arguments: object) -> BaseException:
    with pytest.raises(InstantiationException) as caught:
        instantiate({"_target_": target, **arguments})
    return caught.value


def test_the_reason_of_what_hydra_could_not_make_is_told_in_the_same_line():
    _, summary = judge(of_hydra("lightning.pytorch.loggers.CSVLogger", name=1))
    assert summary.startswith(
        "hydra.errors.InstantiationException: Error in call to target 'lightning.pytorch.loggers.csv_logs.CSVLogger': "
        "TypeError: "
    )
    assert "save_dir" in summary and "\n" not in summary
    _, summary = judge(of_hydra("no_such_module.X"))
    assert summary.endswith("ModuleNotFoundError: No module named 'no_such_module'")


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (raised(ValueError("bad"), cause=KeyError("lr")), "ValueError: bad: KeyError: 'lr'"),
        (raised(ValueError("bad: no 'lr'."), cause=KeyError("lr")), "ValueError: bad: no 'lr'."),
        (
            raised(ValueError("bad"), cause=MemoryError()),
            "ValueError: bad: MemoryError. The machine had no memory left",
        ),
        (
            raised(ValueError("a\nb"), cause=raised(KeyError("k"), cause=OSError("deep\ndown"))),
            "ValueError: a: OSError: deep",
        ),
        (raised(ValueError("no model 'x'"), handling=KeyError("key")), "ValueError: no model 'x'"),
    ],
)
def test_what_is_at_the_bottom_of_an_error_is_told_unless_it_is_told_already(error, summary):
    assert judge(error)[1].startswith(summary)
    assert judge(error)[1] == summary or "memory" in summary


@pytest.mark.parametrize(
    "cause",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(KILLED_LOADER),
        ChannelError("The launcher is gone. Start the study again."),
    ],
)
def test_trouble_of_the_surroundings_stays_what_it_is_in_the_errors_of_libraries(cause):
    outcome, advice = judge(cause)
    error = raised(ValueError("x"), cause=raised(ValueError("Unable to configure handler 'file'"), cause=cause))
    judged, summary = judge(error)
    assert judged is outcome
    assert summary == f"ValueError: x: {advice}"


def test_a_full_disk_counts_also_if_something_else_failed_over_it():
    full = OSError(errno.ENOSPC, "No space left on device")
    outcome, summary = judge(raised(ValueError("I/O operation on closed file."), handling=full))
    assert outcome is Outcome.LOST
    assert summary.startswith("ValueError: I/O operation on closed file: OSError: [Errno 28] No space left on device.")
    ignored = raised(ValueError("x"), handling=full)
    ignored.__suppress_context__ = True  # raise ... from None
    assert judge(ignored) == (Outcome.FAILED, "ValueError: x")


@pytest.mark.parametrize("handled", [ChannelError("x"), RuntimeError(KILLED_LOADER), MemoryError()])
def test_what_a_script_had_dealt_with_does_not_excuse_its_own_error(handled):
    assert judge(raised(ValueError("a bug"), handling=handled)) == (Outcome.FAILED, "ValueError: a bug")


def test_errors_that_caused_each_other_in_a_ring_come_to_an_end():
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert judge(first) == (Outcome.FAILED, "ValueError: first: KeyError: 'second'")


def test_what_pytorch_really_says_of_a_killed_loading_process_is_recognised(trials: Trials) -> None:
    attempt = trials.run("loading_worker_is_killed")
    error = RuntimeError(attempt.results[0]["message"])
    assert judge(error)[0] is Outcome.LOST, attempt.results


def test_so_is_a_connection_that_breaks_while_a_batch_is_received(trials: Trials) -> None:
    assert trials.run("connection_breaks_while_loading").returned == ["lost"]
    assert judge(ConnectionResetError(errno.ECONNRESET, "by the script's own server"))[0] is Outcome.FAILED


JOB = Job(0, 1, Path("trial"), Path("trial.log"), payload={"config": {}})


@pytest.mark.parametrize("code", [None, 0])
def test_a_script_may_end_by_exit(code):
    end_by_exit(SystemExit(code))
    assert FunctionTrial(lambda config: sys.exit(code))(JOB).outcome is Outcome.COMPLETED


def test_but_not_with_a_code_that_says_it_failed():
    result = FunctionTrial(lambda config: sys.exit(3))(JOB)
    assert result.outcome is Outcome.FAILED and "sys.exit(3)" in result.error


def test_lightnings_end_by_sigterm_is_not_the_scripts_own():
    def train(config):
        raise SIGTERMException

    result = FunctionTrial(train)(JOB)
    assert result.outcome is Outcome.LOST and "SIGTERM" in result.error


def test_a_checkpoint_waits_for_room_on_the_disk(trials: Trials) -> None:
    trials.environment = {failpoints.VARIABLE: "checkpoint.written=raise:ENOSPC@1"}
    asked = []

    def answer(problem):
        asked.append((problem.kind, problem.message))
        return "continue"

    trials.answer_problem = answer
    saved = trials.pause_at(2)
    assert saved.checkpoint.resource == 2
    ((kind, message),) = asked
    assert kind == "DiskFull"
    assert "resource-2.ckpt needs" in message and "missing are" in message
    assert [f.name for f in (trials.folder / "trial" / "checkpoints").iterdir()] == ["resource-2.ckpt"]


def test_a_checkpoint_that_is_not_worth_waiting_for_is_given_up(trials: Trials) -> None:
    trials.environment = {failpoints.VARIABLE: "checkpoint.written=raise:ENOSPC"}
    trials.decide = lambda _: "pause"
    attempt = trials.run()
    assert attempt.results[0]["raised"] == "DiskFull"
    assert not list((trials.folder / "trial" / "checkpoints").iterdir())


def test_a_callback_that_raises_at_a_pause_does_not_cost_the_checkpoint(trials: Trials) -> None:
    """It is written before other callbacks hear of the end."""
    paused = trials.pause_at(2, "raises_when_paused")
    assert paused.results[0]["raised"] == "ValueError"
    assert paused.checkpoint.resource == 2
    resumed = trials.run("raises_when_paused")
    assert resumed.returned == "trained"
    assert list(resumed.reports) == [3, 4]


def _ended_by_sigterm(config: dict) -> None:
    raise SIGTERMException


def _out_of_gpu_memory(config: dict) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("function", "outcome", "says"),
    [(_ended_by_sigterm, Outcome.LOST, "SIGTERM"), (_out_of_gpu_memory, Outcome.FAILED, "batch size")],
)
def test_functions_of_the_tuner_are_judged_alike(function, outcome, says, tmp_path):
    result = FunctionTrial(function)(Job(0, 1, tmp_path, tmp_path / "trial.log", payload={"config": {}}))
    assert result.outcome is outcome
    assert says in (result.error or "")
