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

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import ExecutionError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
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
    """``LOST`` or ``FAILED``, and one line that names the error and, where there is any, the advice.

    What counts is also what caused it: libraries wrap errors of the surroundings into their own, as ``logging.config``
    does when the disk is full.
    """
    summary = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[0]
    for outcome, applies, advice in (
        (Outcome.FAILED, _is_cuda_out_of_memory(error), _GPU_ADVICE),
        (Outcome.FAILED, _is_out_of_memory(error), _MEMORY_ADVICE),
        (
            Outcome.LOST,
            isinstance(error, OSError) and error.errno in _NO_ROOM,
            "The disk is full. Make room on it; the trial goes on from its last checkpoint.",
        ),
        (
            Outcome.LOST,
            _is_loss_of_loading_process(error),
            f"A process that loads data was killed (out of memory?). {_MEMORY_ADVICE.partition('. ')[2]}",
        ),
        (Outcome.LOST, isinstance(error, ExecutionError), ""),
    ):
        if applies:
            return outcome, f"{summary.rstrip('. ')}. {advice}" if advice else summary
    return Outcome.FAILED, summary


def is_sigterm(request: SystemExit) -> bool:
    """Whether Lightning ended the training because the process got SIGTERM: that is no end of the script's own."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return module is not None and isinstance(request, module.SIGTERMException)


def terminated() -> ExecutionError:
    """The error of a training that SIGTERM has ended."""
    return ExecutionError(
        "The training was told to end (SIGTERM from outside of the study). Let the study go on, or continue it where "
        "its processes are left alone."
    )


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
