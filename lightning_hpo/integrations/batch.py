"""Jobs of another sweeper: run in parallel and to their end, without any tuning."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import BackendError, ExecutionError, TrialError
from lightning_hpo.integrations.config import LauncherOptions, read_options
from lightning_hpo.integrations.job import HydraJob, JobResult
from lightning_hpo.runtime.backends.base import Backend, Entry, Exit, Job
from lightning_hpo.runtime.backends.local import LocalBackend

_log = logging.getLogger(__name__)


def run_batch(
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> list[JobReturn]:
    """Run jobs, ``hydra.launcher.n_workers`` at a time.

    Args:
        job_overrides: of each job.
        initial_job_idx: ``hydra.job.num`` of the first one.

    Returns:
        One record per job, in the order of the jobs. A job that raised, or whose process was lost, is a failed one.

    Raises:
        OptionError: if an option of the launcher is wrong.
        BackendError: if no process can be started.
    """
    options = read_launcher_options(config, tunes=False)
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    hydra_job = HydraJob(hydra_context, config, task_function)
    hydra_job.sweep_dir.mkdir(parents=True, exist_ok=True)
    results = Path(tempfile.mkdtemp(prefix="hpo-"))  # for this user alone: pickles are read from it
    try:
        with _backend(options, BatchEntry(hydra_job, results)) as backend:
            _log.info("Launching %d jobs, %d at a time", len(job_overrides), backend.capacity)
            jobs = [
                _job(hydra_job, list(overrides), initial_job_idx + position)
                for position, overrides in enumerate(job_overrides)
            ]
            exits = run_all(backend, jobs, _announce)
        return [_read_return(results, job, exits[job.trial_id]) for job in jobs]
    finally:
        shutil.rmtree(results, ignore_errors=True)


def read_launcher_options(config: DictConfig, tunes: bool = True) -> LauncherOptions:
    """The options below ``hydra.launcher``, checked; see :func:`~lightning_hpo.integrations.config.read_options`."""
    mapping = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(mapping, Mapping)
    return read_options({str(name): value for name, value in mapping.items()}, tunes)


def run_all(backend: Backend, jobs: Sequence[Job], announce: Callable[[Job], None]) -> dict[int, Exit]:
    """Start each job as soon as there is room, and wait for all.

    Returns:
        How the process of each job ended, by trial id.
    """
    waiting, exits = list(reversed(jobs)), dict[int, Exit]()
    while len(exits) < len(jobs):
        while waiting and backend.free_slots:
            job = waiting.pop()
            announce(job)
            backend.start(job)
        wait(list(backend.waitables()))
        exits |= {event.trial_id: event for event in backend.poll() if isinstance(event, Exit)}
    return exits


class BatchEntry:
    """Runs a job in its process and leaves Hydra's record of it in a file.

    Args:
        hydra_job: the sweep's jobs.
        results: an existing folder that only this user can write.
    """

    def __init__(self, hydra_job: HydraJob, results: Path) -> None:
        self.hydra_job = hydra_job
        self.results = results

    def __call__(self, job: Job) -> None:
        overrides = job.payload["overrides"]
        result = self.hydra_job.run(overrides, job.trial_id, job.folder)
        path = _result_file(self.results, job)
        partial = path.with_suffix(".partial")
        partial.write_bytes(_dump(_as_job_return(result, overrides)))
        os.replace(partial, path)


def _backend(options: LauncherOptions, entry: Entry) -> LocalBackend:
    if options.backend != "local":
        raise BackendError(
            f"hydra.launcher.backend={options.backend} runs searches, not the jobs of another sweeper. "
            "Set hydra.launcher.backend=local, or leave hydra/sweeper out."
        )
    return LocalBackend(
        entry,
        n_workers=options.n_workers,
        gpus_per_trial=options.gpus_per_trial,
        devices=options.devices,
        start_method=options.start_method,  # type: ignore[arg-type]  # checked with the other options
        preload=(),
    )


def _job(hydra_job: HydraJob, overrides: list[str], number: int) -> Job:
    folder = hydra_job.folder(overrides, number)
    seed = int.from_bytes(os.urandom(4), "big")
    return Job(number, 1, folder, folder / "trial.log", payload={"overrides": overrides}, seed=seed)


def _announce(job: Job) -> None:
    _log.info("\t#%d : %s", job.trial_id, " ".join(filter_overrides(job.payload["overrides"])))


def _result_file(results: Path, job: Job) -> Path:
    return results / f"{job.trial_id}.pickle"


def _as_job_return(result: JobResult, overrides: list[str]) -> JobReturn:
    job_return = result.job_return or JobReturn(overrides=overrides, status=JobStatus.FAILED)
    if result.outcome is not Outcome.COMPLETED:
        job_return.status = JobStatus.FAILED
        job_return.return_value = result.exception or TrialError(
            f"The job was {result.outcome}. Start it again, or without the sweeper that runs it to its end."
        )
    return job_return


def _dump(job_return: JobReturn) -> bytes:
    """The record for the launcher. What cannot travel is replaced: a return value by None, an exception by its text."""
    try:
        dumped = pickle.dumps(job_return)
        pickle.loads(dumped)
        return dumped
    except Exception as problem:
        value = job_return._return_value
        if job_return.status is JobStatus.FAILED:
            job_return.return_value = TrialError(f"{type(value).__name__}: {value}. See the job's log for the rest.")
        else:
            _log.warning("The job's return value is lost, it cannot be pickled: %s", problem)
            job_return.return_value = None
        return pickle.dumps(job_return)


def _read_return(results: Path, job: Job, exit: Exit) -> JobReturn:
    path = _result_file(results, job)
    if path.exists():
        job_return: Any = pickle.loads(path.read_bytes())
        assert isinstance(job_return, JobReturn)
        return job_return
    lost = JobReturn(overrides=job.payload["overrides"], status=JobStatus.FAILED)
    lost.return_value = ExecutionError(
        f"The process of job {job.trial_id} was lost: {exit.description}. See {job.log}."
    )
    return lost
