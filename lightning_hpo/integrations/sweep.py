"""The body of the Hydra sweeper: from overrides to a finished study."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.utils import configure_log, setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lightning_hpo.core.domains import Domain, Float
from lightning_hpo.core.events import Resume, Start
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.seeds import Stream, child_seed
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Config, Trial
from lightning_hpo.errors import SpaceError
from lightning_hpo.integrations.batch import read_launcher_options
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.integrations.hidden import is_secret, leaves, refuse_hidden
from lightning_hpo.integrations.hydra_space import ParsedSweep, read_space
from lightning_hpo.integrations.job import HydraJob, JobResult
from lightning_hpo.integrations.program import Program
from lightning_hpo.integrations.resource_and_seed import resolve_max_t, resolve_seed
from lightning_hpo.integrations.run import StudySetup, check_folder, run_study
from lightning_hpo.integrations.select_sweeper import written_overrides
from lightning_hpo.integrations.trial import TrialEntry
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.journal import Journal
from lightning_hpo.runtime.script import refuse_nested_sweep
from lightning_hpo.runtime.stored import state_from_header

_CALLBACK = "HPOCallback"


def run_sweep(
    hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig, arguments: list[str]
) -> float | None:
    """Tune the script; returns the best value at full resource, None if no trial got there.

    Args:
        hydra_context, task_function, config: what Hydra gives a sweeper.
        arguments: the overrides of the command line.

    Raises:
        HpoError: for every mistake in the settings, before anything is started, and whatever ends the study early.
        SystemExit: with 128 + its number, after a signal has ended the study in an orderly way; 130 for Ctrl-C.
    """
    refuse_nested_sweep()
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    options = read_launcher_options(config)
    refuse_hidden(written_overrides(config, "task"))
    params = OmegaConf.to_container(config.hydra.sweeper.params or OmegaConf.create({}), resolve=True)
    assert isinstance(params, Mapping)
    folder = Path(options.study or str(config.hydra.sweep.dir)).absolute()
    given = {str(name): value for name, value in params.items()}
    parsed = read_space(hydra_context.config_loader, arguments, given, options.space, _domains_of_study(folder))
    options = in_categories(options, parsed)
    hydra_job = HydraJob(hydra_context, config, task_function, folder)
    middle = parsed.space.default()
    another = parsed.space.sample(np.random.default_rng(0))
    try:
        hydra_job.composer.learn(parsed.overrides(middle), parsed.overrides(another))
        composed = hydra_job.compose(parsed.overrides(middle), 0)
    except ConfigCompositionException as problem:
        refuse_float_for_integer(problem, parsed.space)
        raise
    hydra_job.folder(parsed.overrides(middle), 0)  # if it cannot be had, that is said before there is a study
    written = OmegaConf.to_container(composed, resolve=False)
    found = list(targets(written))
    max_t = resolve_max_t(composed, options, parsed.space.names)
    seed = resolve_seed(composed, options, parsed.space.names)
    notes = parsed.notes
    if options.study is not None and not Journal.exists(folder):
        notes = (*notes, f"There was no study in {folder} to continue: this is a new one.")
    check_folder(folder)
    program = Program(hydra_job)
    setup = StudySetup(
        space=parsed.space,
        options=options,
        max_t=max_t,
        folder=folder,
        entry=TrialEntry(HydraTrial(hydra_job), callback_is_configured=any(name == _CALLBACK for _, name in found)),
        jobs=lambda study: HydraJobs(hydra_job, parsed, study, options.ranks_per_trial, seed),
        first_folder=hydra_job.folder_name(0),
        continue_command=program.continued(folder),
        retrain_command=lambda values: program.single(parsed.overrides(values)),
        notes=notes,
        settings=script_settings(written, parsed.space.domains),
        files={"multirun.yaml": OmegaConf.to_yaml(config)},
        preload=tuple(module for module, _ in found),
    )
    try:
        state = run_study(setup)
    except KeyboardInterrupt:
        # Hydra would let it pass, and Python would print a traceback below the results.
        raise SystemExit(128 + signal.SIGINT) from None
    best = state.best_full
    return None if best is None else best[2]


def refuse_float_for_integer(problem: ConfigCompositionException, space: SearchSpace) -> None:
    """
    Raises:
        SpaceError: if a job cannot be composed because ``interval(4,16)``, which is of floats, searches an integer.
    """
    name = str(problem).partition(" override ")[2].partition("=")[0].lstrip("+")
    domain = space.domains.get(name)
    if isinstance(domain, Float) and "could not be converted to Integer" in str(problem.__cause__):
        ends = f"{domain.lower:g},{domain.upper:g}"
        raise SpaceError(
            f"{name} is an integer in the configuration, and interval({ends}) has other numbers between its ends. "
            f"Write int(interval({ends}))."
        ) from problem


def _domains_of_study(folder: Path) -> Mapping[str, Domain]:
    """What the study in the folder searches; nothing if there is none."""
    if not Journal.exists(folder):
        return {}
    with Journal.read(folder) as journal:
        return state_from_header(journal.header).space.domains


def in_categories(options: LauncherOptions, parsed: ParsedSweep) -> LauncherOptions:
    """The options with configurations as the study keeps them: as texts where it cannot keep the values of a choice."""
    points, allowed = options.points_to_evaluate, options.searcher.restrict_configurations
    for number, point in enumerate(points or ()):
        parsed.check_searched(f"points_to_evaluate[{number}]", point)
    for number, configuration in enumerate(allowed or ()):
        parsed.check_searched(f"searcher.restrict_configurations[{number}]", configuration)
    searcher = dataclasses.replace(
        options.searcher, restrict_configurations=None if allowed is None else parsed.categories(allowed)
    )
    return dataclasses.replace(
        options, points_to_evaluate=None if points is None else parsed.categories(points), searcher=searcher
    )


def targets(node: Any) -> Iterator[tuple[str, str]]:
    """Module and name of every ``_target_`` below a node of a configuration, in their order."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str) and "." in target:
            module, _, name = target.rpartition(".")
            yield module, name
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


def script_settings(written: Any, searched: Collection[str]) -> dict[str, Any]:
    """What a job's configuration holds besides what Hydra needs for itself and what is searched, by dotted name.

    Secrets are left out, as what is returned is kept and shown.
    """
    own = {key: node for key, node in written.items() if key != "hydra"}
    return {name: value for name, value in leaves(own) if name not in searched and not is_secret(name)}


class HydraTrial:
    """Runs the Hydra job of an attempt."""

    def __init__(self, hydra_job: HydraJob) -> None:
        self._hydra_job = hydra_job

    def __call__(self, job: Job) -> JobResult:
        return self._hydra_job.run(job.payload["overrides"], job.trial_id, job.folder)


class HydraJobs:
    """Turns decisions into Hydra jobs; a trial's id is its ``hydra.job.num``.

    Args:
        seed: key and value of the training seed in the jobs' configurations, if they have one.
    """

    def __init__(
        self,
        hydra_job: HydraJob,
        parsed: ParsedSweep,
        options: StudyOptions,
        ranks: int,
        seed: tuple[str, int] | None = None,
    ) -> None:
        self._hydra_job = hydra_job
        self._parsed = parsed
        self._options = options
        self._ranks = ranks
        self._seed = seed

    def folder(self, trial: Trial) -> Path:
        return self._hydra_job.folder(self._overrides(trial.config, trial.replicate), trial.id)

    def job(self, decision: Start | Resume, folder: Path, environment: dict[str, str]) -> Job:
        return Job(
            trial_id=decision.trial_id,
            attempt=decision.attempt,
            folder=folder,
            log=folder / "trial.log",
            environment=environment,
            payload={"overrides": self._overrides(decision.config, decision.replicate)},
            ranks=self._ranks,
            seed=child_seed(self._options.random_seed, Stream.TRAINING, decision.trial_id),
        )

    def _overrides(self, config: Config, replicate: int) -> list[str]:
        overrides = self._parsed.overrides(config)
        if replicate and self._seed is not None:
            name, seed = self._seed
            overrides.append(f"{name}={seed + replicate}")
        return overrides
