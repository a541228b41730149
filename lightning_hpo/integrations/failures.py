"""What an exception that leaves the user's script means for its trial, and what to do about it.

A trial that *failed* is not tried again: its script raised, and would raise again. A trial that was *lost* is the
victim of its surroundings (memory, disk, a batch system) and goes on from its last checkpoint, at most ``max_retries``
times.
"""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable, Iterator

from lightning_hpo.core.events import Outcome
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import AllFailed, ExecutionError, TrialError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
_FORKING = ("_launch", "_execute_child")
"""Functions of ``multiprocessing`` and ``subprocess`` that start processes."""
_LOADING_WORKER = re.compile(r"DataLoader worker \(pid")
_CPU_ALLOCATION = re.compile(r"DefaultCPUAllocator|can't allocate memory|not enough memory")
_GPU_ADVICE = (
    "The GPU had no memory left. Lower the batch size or the upper bounds of what makes the model large, "
    "or give each trial more of the GPU with hydra.launcher.gpus_per_trial."
)
_MEMORY_ADVICE = (
    "The machine had no memory left. Lower hydra.launcher.n_workers, the batch size "
    "or the number of processes that load data."
)


def judge(error: BaseException) -> tuple[Outcome, str]:
    """``LOST`` or ``FAILED``, and one line: the error, what is at its bottom and, where there is any, the advice.

    What counts is also what caused it: libraries wrap errors of the surroundings into their own, as ``logging.config``
    does when the disk is full.
    """
    causes = list(_causes(error))
    # What was only handled when the error came up need not be its reason: scripts expect a KeyError, try with less
    # memory. A full disk is none they expect, and it makes the clean-up fail as well.
    known = [*causes, *(e for e in _before(error) if e not in causes)]
    for outcome, applies, candidates, advice in (
        (Outcome.FAILED, _is_cuda_out_of_memory, causes, _GPU_ADVICE),
        (Outcome.FAILED, _is_out_of_memory, causes, _MEMORY_ADVICE),
        (
            Outcome.LOST,
            _is_full_disk,
            known,
            "The disk is full. Make room on it; the trial goes on from its last checkpoint.",
        ),
        (
            Outcome.LOST,
            _is_loss_of_loading_process,
            causes,
            f"A process that loads data was killed (out of memory?). {_MEMORY_ADVICE.partition('. ')[2]}",
        ),
        (
            Outcome.LOST,
            _is_out_of_processes,
            causes,
            "The system had no process, thread or open file left. Lower hydra.launcher.n_workers or the number of "
            "processes that load data, or raise the limits (ulimit -u, ulimit -n).",
        ),
        (Outcome.LOST, _is_trouble_of_the_study, causes, ""),
    ):
        decisive = next((e for e in candidates if applies(e)), None)
        if decisive is not None:
            summary = _summary(error, decisive)
            return outcome, f"{summary.rstrip('. ')}. {advice}" if advice else summary
    return Outcome.FAILED, _summary(error, causes[-1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from (``raise ... from ...``), down to the bottom."""
    return _chain(error, lambda e: e.__cause__)


def _before(error: BaseException) -> Iterator[BaseException]:
    """The error and all that Python's traceback shows above it."""
    return _chain(error, lambda e: e.__cause__ or (None if e.__suppress_context__ else e.__context__))


def _chain(error: BaseException, before: Callable[[BaseException], BaseException | None]) -> Iterator[BaseException]:
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:  # scripts may tie them to a ring
        seen.add(id(step))
        yield step
        step = before(step)


def _summary(error: BaseException, bottom: BaseException) -> str:
    """``ValueError: no such data set: FileNotFoundError: ...``; the second one only if the first does not tell it."""
    line = _line(error)
    told = str(bottom).strip().partition("\n")[0]
    if bottom is error or (told and told in line):
        return line
    return f"{line.rstrip(':. ')}: {_line(bottom)}"


def _line(error: BaseException) -> str:
    """Class and message; of a long message the first line says most."""
    return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[0]


def _is_sigterm(request: SystemExit) -> bool:
    """Whether Lightning ended the training because the process got SIGTERM: that is no end of the script's own."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return module is not None and isinstance(request, module.SIGTERMException)


def end_by_exit(request: SystemExit) -> None:
    """Returns if the script ended well by it: ``sys.exit()`` or ``sys.exit(0)``.

    Raises:
        ExecutionError: if SIGTERM ended it.
        TrialError: if it ended badly.
    """
    if _is_sigterm(request):
        raise ExecutionError(
            "The training was told to end (SIGTERM from outside of the study). Let the study go on, or continue it "
            "where its processes are left alone."
        ) from request
    if request.code not in (None, 0):
        raise TrialError(
            f"The script called sys.exit({request.code!r}). Raise an exception that says what went wrong instead."
        ) from request


def _is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _is_out_of_processes(error: BaseException) -> bool:
    """The rest is with other processes of the user, of the study or not: there may be some later."""
    if isinstance(error, BlockingIOError):
        return any(f.name in _FORKING for f in traceback.extract_tb(error.__traceback__))
    if isinstance(error, OSError):
        return error.errno in _NO_FILES
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def _is_trouble_of_the_study(error: BaseException) -> bool:
    return isinstance(error, ExecutionError)


def _is_loss_of_loading_process(error: BaseException) -> bool:
    """Torch notices the death itself, or the connection to the dead process breaks while a batch is received."""
    if isinstance(error, RuntimeError):
        return _LOADING_WORKER.search(str(error)) is not None
    frames = traceback.extract_tb(error.__traceback__)
    receives = any(f.name == "_try_get_data" and f.filename.endswith("dataloader.py") for f in frames)
    return receives and isinstance(error, (ConnectionError, EOFError, FileNotFoundError))


def _is_cuda_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATION.search(str(error)) is not None
    )


def refuse_failure(state: StudyState) -> None:
    """Who waits for the study must not take it for a good one.

    Raises:
        AllFailed: if every trial failed.
    """
    if not state.trials or any(trial.status is not TrialStatus.FAILED for trial in state.trials.values()):
        return
    first = state.trials[min(state.trials)]
    raise AllFailed(
        f"Every trial of the study failed ({len(state.trials)}), the first with: {first.error or 'no error was told'}. "
        "Correct the causes, and start again in another folder: trials that failed are not tried again."
    )
