"""A study from its settings to its results: the body that the Hydra sweeper and the Tuner share."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher_options import DEFAULT_MODELS
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.unread import note_on_unread
from lightning_hpo.core.view import StudyView
from lightning_hpo.errors import StudyError, StudyMismatch
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.integrations.failures import refuse_failure
from lightning_hpo.integrations.settings import Changed, changed_settings, note_on_settings, remark_on_settings
from lightning_hpo.integrations.warm_up import warm_up
from lightning_hpo.report.folder import continuing
from lightning_hpo.report.live import RunObserver, make_observer
from lightning_hpo.report.results import summary, write_results
from lightning_hpo.report.screen import show
from lightning_hpo.report.writing import write_atomically
from lightning_hpo.runtime.backends.base import Backend, Entry
from lightning_hpo.runtime.backends.local import DEFAULT_PRELOAD, LocalBackend
from lightning_hpo.runtime.backends.ray import RayBackend
from lightning_hpo.runtime.channel_server import ChannelServer, refuse_too_many_trials
from lightning_hpo.runtime.checkpoint_store import CheckpointStore, recorded_checkpoints
from lightning_hpo.runtime.coordinator import Coordinator, JobFactory, RunResult
from lightning_hpo.runtime.filesystems import network_filesystem, shortage
from lightning_hpo.runtime.interrupts import Interrupts
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.revival import RevivedHost
from lightning_hpo.runtime.script import refuse_nested_sweep
from lightning_hpo.runtime.stored import check_same_study, continued_state, study_header
from lightning_hpo.runtime.suggesting import InlineHost, ProcessHost, SearcherHost
from lightning_hpo.runtime.trial_folders import TrialFolders
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.recommend import Recommended, recommend
from lightning_hpo.searchers.server import serve
from lightning_hpo.study import Recommendation, recommendation_of

_RECOMMEND_S = 30.0
"""Time the searcher has for its recommendation at the end."""
_RECOMMEND_SOON_S = 3.0
"""The same for somebody who has pressed Ctrl-C."""
_SEARCHER = "lightning_hpo.searchers.server"
_SEARCH_LOG = "search.log"


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
    first_folder: str = "0"
    """Name of the first trial's folder, or the pattern of all, for people."""
    continue_command: str | None = None
    """Command line that continues the study, for people."""
    retrain_command: Callable[[dict[str, Any]], str] | None = None
    """Command line that trains a configuration once, for people."""
    notes: tuple[str, ...] = ()
    """What the user should be told once."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Name -> JSON value of what the trials are made with besides the space, kept with the study."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> text of files for the study folder."""
    preload: tuple[str, ...] = ()
    """Modules every trial will import: imported once, ahead of the trials."""


def run_study(setup: StudySetup) -> StudyState:
    """Run a study, or go on with the one in the folder; write and print its results.

    Raises:
        HpoError: whatever ended the study before its time, after everything was closed and written.
        SystemExit: with 128 + its number, if a signal other than Ctrl-C ended the study, likewise.
        KeyboardInterrupt: if Ctrl-C did.
    """
    refuse_nested_sweep()
    options = setup.options
    check_folder(setup.folder)
    stored = _stored_header(setup.folder)
    seed = _seed(options.random_seed, stored)
    # Before anything is started: wrong options, or another launcher, must not cost a process.
    StudyState(setup.space, options.study_options(seed, options.n_workers or 1, setup.max_t))
    if stored is not None:
        Journal.open(setup.folder).close()
    with contextlib.ExitStack() as ending:
        late = Interrupts()
        ending.callback(late.close)
        state, result, conclude = _run(setup, seed, ending, late)
        conclude()
    if result.problem is not None:
        raise result.problem
    by = result.interrupted_by or (late.by if late.count else None)
    if by is signal.SIGINT:
        raise KeyboardInterrupt
    if by is not None:
        raise SystemExit(128 + by)
    refuse_failure(state)
    return state


def _run(
    setup: StudySetup, seed: int, ending: contextlib.ExitStack, late: Interrupts
) -> tuple[StudyState, RunResult, Callable[[], None]]:
    """The run itself, everything closed behind it.

    Args:
        ending: what is to hold until the results are written and printed.
        late: takes what interrupts after the run: the results are written all the same.

    Returns:
        The study, how the run ended, and what writes and prints the results: the screen is free for them now.
    """
    options = setup.options
    with contextlib.ExitStack() as closing:
        # Processes are forked before there are threads, sockets or databases, which do not survive a fork.
        backend = _backend(setup)
        closing.callback(backend.close)
        refuse_too_many_trials(backend.capacity)
        study_options = options.study_options(seed, backend.capacity, setup.max_t)
        process = _searcher_process(setup.folder, study_options, backend)
        if process is not None:
            closing.callback(process.close)
        journal = closing.enter_context(_open_journal(setup, study_options))
        state, events = continued_state(journal, study_options)
        if isinstance(backend, LocalBackend):
            backend.remove_left_over()
        if process is not None:
            process.begin(_header_here(journal, state), events)
        # Trials on other nodes cannot reach a socket of the file system.
        server = closing.enter_context(ChannelServer(setup.folder, interface=getattr(backend, "interface", None)))
        jobs = setup.jobs(study_options)
        observer = closing.enter_context(make_observer(setup.folder, unit=options.resource))
        for name, text in setup.files.items():
            write_atomically(setup.folder / name, text)
        changed = changed_settings(setup.settings, journal.header)
        notes = (*setup.notes, note_on_unread(study_options), note_on_settings(changed))
        _introduce(setup, state, backend, observer, notes)
        folders = TrialFolders(setup.folder, state, jobs.folder, lambda message: observer.say(message, warning=True))
        host = None if process is None else _revived(setup.folder, process, journal, state, observer)
        if host is not None:
            closing.callback(host.close)
        coordinator = Coordinator(
            state=state,
            journal=journal,
            backend=backend,
            server=server,
            host=host or _inline(study_options.searcher_name, state),
            fallback=lambda: _inline("random", state),
            store=_swept_store(setup, state, folders),
            jobs=jobs,
            folders=folders,
            observer=observer,
            resource=options.resource,
            epoch_timeout=options.epoch_timeout,
            trial_timeout=options.trial_timeout,
            shortage=lambda: shortage(setup.folder),
        )
        ending.enter_context(late.listening())
        result = coordinator.run()
        begun = time.monotonic()

        def seconds_left() -> float:
            if result.is_urgent or late.count + result.is_interrupted > 1:
                return 0.0
            is_hurried = result.is_interrupted or late.count
            return (_RECOMMEND_SOON_S if is_hurried else _RECOMMEND_S) - (time.monotonic() - begun)

        recommendation = _recommendation(state, host, seconds_left)
    return state, result, lambda: _conclude(setup, state, folders, changed, result, recommendation)


def _searcher_process(folder: Path, options: StudyOptions, backend: Backend) -> ProcessHost | None:
    if options.searcher_name not in DEFAULT_MODELS:
        return None  # no model to fit: it costs microseconds in the launcher
    forks = getattr(backend, "start_method", None) == "fork"
    return ProcessHost(_SEARCHER, folder / _SEARCH_LOG, serve if forks else None)


def _revived(
    folder: Path, first: ProcessHost, journal: Journal, state: StudyState, observer: RunObserver
) -> RevivedHost:
    def again() -> ProcessHost:
        events = list(journal.events())
        # A new interpreter, however the first was made: there are threads by now, whose locks a fork would inherit.
        process = ProcessHost(_SEARCHER, folder / _SEARCH_LOG)
        process.begin(_header_here(journal, state), events)
        return process

    return RevivedHost(first, again, _inline("random", state), observer.say)


def _header_here(journal: Journal, state: StudyState) -> dict[str, Any]:
    """The header for the searcher's process, with this machine's device: the study may have begun on another."""
    stored = journal.header["options"]
    searcher = (stored.get("searcher") or {}) | {"device": state.options.searcher.device}
    return journal.header | {"options": stored | {"searcher": searcher}}


def _swept_store(setup: StudySetup, state: StudyState, folders: TrialFolders) -> CheckpointStore:
    """The checkpoints, without what a crash left behind."""
    store = CheckpointStore(setup.folder, setup.options.disk_limit)
    trials = state.trials.values()
    store.sweep([folders.of(trial) for trial in trials], recorded_checkpoints(trials))
    return store


def _introduce(
    setup: StudySetup, state: StudyState, backend: Backend, observer: RunObserver, notes: tuple[str | None, ...]
) -> None:
    reason = getattr(backend, "reason", "")
    observer.header(
        state,
        workers=backend.capacity,
        start_method=f"{getattr(backend, 'start_method', setup.options.backend)}{f' ({reason})' if reason else ''}",
        continue_command=setup.continue_command,
        first_folder=setup.first_folder,
    )
    for note in (*notes, getattr(backend, "note", None), _note_on_network(setup.folder)):
        if note:
            observer.say(note)


def _note_on_network(folder: Path) -> str | None:
    kind = network_filesystem(folder)
    if kind is None:
        return None
    return (
        f"The study folder is on a network file system ({kind}): commits are slower there, and who looks at the study "
        "may hold them up for a moment. A folder on a local disk is better (hydra.sweep.dir)."
    )


def _recommendation(
    state: StudyState, host: RevivedHost | None, seconds_left: Callable[[], float]
) -> Recommendation | None:
    """By the searcher's model if it lives in a process that answers in time, else computed here without a model."""
    if state.best_any is None:
        return None
    found = None if host is None else host.recommend(seconds_left)
    if found is not None:
        return recommendation_of(state, Recommended(*found))
    view = state.view() if host is None else _ViewWithoutModel(state)
    return recommendation_of(state, recommend(view, state.options.searcher))


class _ViewWithoutModel(StudyView):
    """For the launcher, which is not to import torch, let alone to fit what has just killed another process."""

    @property
    def state(self) -> None:
        return None


def _conclude(
    setup: StudySetup,
    state: StudyState,
    folders: TrialFolders,
    changed: Changed,
    result: RunResult,
    recommendation: Recommendation | None,
) -> None:
    if not state.trials:
        if result.problem is None:
            show(f"The study ended before its first trial: {result.reason}.", sys.stdout)
        return
    try:
        write_results(setup.folder, state, reason=result.reason, recommendation=recommendation)
    except StudyError as problem:
        if not result.is_interrupted:
            raise
        show(f"Warning: The results are not written. {problem}", sys.stdout)
    if result.problem is not None and state.best_any is None:
        return  # there is nothing to sum up, and the problem has the last word
    retrain = setup.retrain_command
    show(
        summary(
            state,
            setup.folder,
            reason=result.reason,
            unit=setup.options.resource,
            recommendation=recommendation,
            retrain=None if retrain is None else lambda config: retrain(config) + remark_on_settings(changed),
            continue_command=setup.continue_command,
            log_of=lambda i: folders.of(state.trials[i]) / "trial.log",
        ),
        sys.stdout,
    )


def _inline(name: str, state: StudyState) -> SearcherHost:
    return InlineHost(make_searcher(name, state.options.searcher), state.view)


def _backend(setup: StudySetup) -> Backend:
    options = setup.options
    if options.backend == "ray":
        return RayBackend(
            setup.entry,
            n_workers=options.n_workers,
            gpus_per_trial=options.gpus_per_trial,
            devices=options.devices,
            start_method=options.start_method,
            preload=(*DEFAULT_PRELOAD, *setup.preload),
            warm_up=warm_up,
            ranks_per_trial=options.ranks_per_trial,
        )
    return LocalBackend(
        setup.entry,
        n_workers=options.n_workers,
        gpus_per_trial=options.gpus_per_trial,
        devices=options.devices,
        start_method=options.start_method,  # type: ignore[arg-type]  # checked with the other options
        preload=(*DEFAULT_PRELOAD, *setup.preload),
        warm_up=warm_up,
        study=setup.folder,
    )


def _open_journal(setup: StudySetup, options: StudyOptions) -> Journal:
    if not Journal.exists(setup.folder):
        header = study_header(setup.space, options) | {
            "resource": setup.options.resource,
            "settings": {**setup.settings},
        }
        header |= continuing(setup.continue_command, setup.folder)
        return Journal.create(setup.folder, header)
    journal = Journal.open(setup.folder)
    try:
        check_same_study(journal.header, setup.space, options)
        counted = journal.header.get("resource", setup.options.resource)
        if counted != setup.options.resource:
            raise StudyMismatch(
                f"The study counts resource in units of {counted}, and resource={setup.options.resource} is another. "
                f"Set resource={counted}, or start a new study in another folder."
            )
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


def check_folder(folder: Path) -> None:
    """Fail before any work is lost, not when the first result is to be written.

    Raises:
        StudyError: if the folder cannot be made or written.
    """
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
