"""A study from its settings to its results: the body that the Hydra sweeper and the Tuner share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_hpo.core.events import StudyContinued
from lightning_hpo.core.options import ALGORITHMS, StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import BackendError, StudyError
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.report.live import make_observer
from lightning_hpo.report.results import summary, write_results
from lightning_hpo.runtime.backends.base import Backend, Entry
from lightning_hpo.runtime.backends.local import LocalBackend
from lightning_hpo.runtime.channel import ChannelServer
from lightning_hpo.runtime.checkpoints import CheckpointStore
from lightning_hpo.runtime.coordinator import Coordinator, JobFactory, RunResult
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.suggesting import InlineHost, ProcessHost, SearcherHost
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.server import serve
from lightning_hpo.study import check_same_study, study_header

_NEED_PROCESS = ("bayesopt", "hypertune")
"""Searchers that fit models; the others cost microseconds and compute in the launcher."""


@dataclass(frozen=True)
class StudySetup:
    """Everything a run needs to know."""

    space: SearchSpace
    options: LauncherOptions
    max_t: int | None
    folder: Path
    """The study folder."""
    entry: Entry
    """Runs one attempt in its process."""
    jobs: Callable[[StudyOptions], JobFactory]
    continue_command: str = ""
    """Command line that continues the study, for people."""
    retrain_command: Callable[[Mapping[str, Any]], str] | None = None
    """Command line that trains a configuration once, for people."""
    notes: tuple[str, ...] = ()
    """What the user should be told once."""
    extra_header: dict[str, Any] = field(default_factory=dict)
    """JSON data to be kept with the study."""


def run_study(setup: StudySetup) -> tuple[StudyState, RunResult]:
    """Run a study, or go on with the one in the folder; write and print its results.

    Raises:
        HpoError: whatever ended the study before its time, after everything was closed and written.
    """
    options = setup.options
    _check_folder(setup.folder)
    stored = _stored_header(setup.folder)
    seed = _seed(options.random_seed, stored)
    # Before anything is started: wrong options must not cost a process.
    StudyState(setup.space, options.study_options(seed, options.n_workers or 1, setup.max_t))
    with contextlib.ExitStack() as closing:
        # Processes are forked before there are threads, sockets or databases, which do not survive a fork.
        backend = _backend(setup)
        closing.callback(backend.close)
        study_options = options.study_options(seed, backend.capacity, setup.max_t)
        searcher = ALGORITHMS[study_options.algorithm].searcher
        host: ProcessHost | None = None
        if searcher in _NEED_PROCESS:
            host = ProcessHost("lightning_hpo.searchers.server", serve if _forks(backend) else None)
            closing.callback(host.close)
        state = StudyState(setup.space, study_options)
        journal = closing.enter_context(_open_journal(setup, state))
        events = list(journal.events())
        for event in events:
            state.handle(event, is_replay=True)
        if len(events):
            continued = StudyContinued(state.progress.time)
            state.handle(continued)
            journal.append([continued])
            events.append(continued)
        if host is not None:
            host.begin(journal.header, events)
        server = closing.enter_context(ChannelServer(setup.folder))
        jobs = setup.jobs(study_options)
        store = CheckpointStore(setup.folder, options.disk_limit)
        recorded = [t.checkpoint for t in state.trials.values() if t.checkpoint is not None]
        store.sweep([jobs.folder(t.id, t.config) for t in state.trials.values()], recorded)
        observer = closing.enter_context(make_observer(setup.folder))
        observer.header(
            state,
            start_method=f"{getattr(backend, 'start_method', options.backend)}: {getattr(backend, 'reason', '')}",
            continue_command=setup.continue_command,
            notes=[*setup.notes, *([backend.note] if getattr(backend, "note", None) else [])],
        )
        coordinator = Coordinator(
            state=state,
            journal=journal,
            backend=backend,
            server=server,
            host=host or _inline(searcher, state),
            fallback=lambda: _inline("random", state),
            store=store,
            jobs=jobs,
            observer=observer,
            resource=options.resource,
            epoch_timeout=options.epoch_timeout,
            trial_timeout=options.trial_timeout,
        )
        result = coordinator.run()
        write_results(setup.folder, state, result.reason)
    if state.trials:
        print(
            summary(
                state,
                setup.folder,
                result.reason,
                continue_command=setup.continue_command,
                retrain_command=setup.retrain_command,
            ),
            flush=True,
        )
    if result.problem is not None:
        raise result.problem
    return state, result


def _inline(name: str, state: StudyState) -> SearcherHost:
    return InlineHost(make_searcher(name, state.options.searcher), state.view)


def _forks(backend: Backend) -> bool:
    return getattr(backend, "start_method", None) == "fork"


def _backend(setup: StudySetup) -> Backend:
    options = setup.options
    if options.backend == "ray":
        raise BackendError(
            "backend=ray is not available in this version. Set backend=local, and start one study per node."
        )
    return LocalBackend(
        setup.entry,
        n_workers=options.n_workers,
        gpus_per_trial=options.gpus_per_trial,
        devices=options.devices,
        start_method=options.start_method,  # type: ignore[arg-type]  # checked with the other options
    )


def _open_journal(setup: StudySetup, state: StudyState) -> Journal:
    if not Journal.exists(setup.folder):
        header = study_header(setup.space, state.options) | setup.extra_header
        return Journal.create(setup.folder, header)
    journal = Journal.open(setup.folder)
    try:
        check_same_study(journal.header, setup.space, state.options)
        journal.set_header(options=state.options.to_json())
    except BaseException:
        journal.close()
        raise
    return journal


def _stored_header(folder: Path) -> Mapping[str, Any] | None:
    if not Journal.exists(folder):
        return None
    with Journal.read(folder) as journal:
        return journal.header


def _seed(wanted: int | None, stored: Mapping[str, Any] | None) -> int:
    if wanted is not None:
        return wanted
    if stored is not None:
        return int(stored["options"]["random_seed"])
    return int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF


def _check_folder(folder: Path) -> None:
    """Fail before any work is lost, not when the first result is to be written."""
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as problem:
        raise StudyError(
            f"The study folder {folder} cannot be written: {problem.strerror or problem}. "
            "Choose another with hydra.sweep.dir=..., or correct its permissions."
        ) from problem
