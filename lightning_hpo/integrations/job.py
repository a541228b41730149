"""One trial's Hydra job: composed, run and judged in the trial's own process.

:class:`HydraJob` holds what every job of a sweep needs. In a forked process it is simply there; for a new interpreter
it can be pickled (its task function by reference, see ``runtime.script``), and brings Hydra's global state along.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import hydra.core.utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lightning_hpo.core.events import Outcome
from lightning_hpo.errors import OptionError, TrialInterrupted, TrialPaused
from lightning_hpo.integrations.composing import Composer
from lightning_hpo.integrations.failures import end_by_exit, judge
from lightning_hpo.integrations.hydra_space import format_value
from lightning_hpo.integrations.select_sweeper import as_composed, written_overrides
from lightning_hpo.runtime.filesystems import name_too_long
from lightning_hpo.runtime.script import FunctionReference, dump_entry

_JOB_NUM = re.compile(r"\$\{hydra[.:]job\.num\}")


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    outcome: Outcome
    value: Any = None
    """What the task function returned; None unless completed."""
    error: str | None = None
    """One line: class and message of the exception."""
    traceback: str | None = None
    """Of the user's code, without Hydra's frames and ours."""
    exception: Exception | None = None
    job_return: JobReturn | None = None
    """Hydra's own record; None if the job's configuration could not be composed or the job was interrupted."""


class HydraJob:
    """Runs jobs of one sweep.

    Args:
        hydra_context: Hydra's, as a sweeper gets it.
        config: the configuration of the multirun.
        task_function: the user's function, without the decorator.
        sweep_dir: folder of the study; default: ``hydra.sweep.dir``.
    """

    def __init__(
        self,
        hydra_context: HydraContext,
        config: DictConfig,
        task_function: TaskFunction,
        sweep_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = FunctionReference(task_function)
        self.sweep_dir = Path(os.path.abspath(sweep_dir if sweep_dir is not None else str(config.hydra.sweep.dir)))
        self.config = as_composed(config)
        self.composer = Composer(hydra_context.config_loader, self.config)
        self.argv = tuple(sys.argv)
        self._folders: dict[tuple[int | str, ...], Path] = {}

    # ------------------------------------------------------------------------------- in the launcher

    def compose(self, overrides: Sequence[str], job_num: int) -> DictConfig:
        """The whole configuration of a job, ``hydra`` included.

        Raises:
            hydra.errors.HydraException: if an override does not fit the configuration.
        """
        composed = self.composer.compose(overrides)
        with read_write(composed), open_dict(composed):
            composed.hydra.job.num = job_num
            composed.hydra.job.id = f"{composed.hydra.job.name}_{job_num}"
            composed.hydra.sweep.dir = str(self.sweep_dir)
        return composed

    def folder(self, overrides: Sequence[str], job_num: int) -> Path:
        """Where the job's output goes: ``hydra.sweep.dir`` / ``hydra.sweep.subdir``.

        Raises:
            OptionError: if ``hydra.sweep.subdir`` cannot be resolved, leads out of the sweep's folder, or is longer
                than the name of a folder may be.
        """
        key: tuple[int | str, ...] = (job_num, *overrides)
        if key not in self._folders:
            self._folders[key] = self._find_folder(overrides, job_num)
        return self._folders[key]

    def folder_name(self, job_num: int) -> str:
        """``hydra.sweep.subdir`` of a job as it was written, but for its number; other ``${...}`` stay."""
        written = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        assert isinstance(written, dict)
        return _JOB_NUM.sub(str(job_num), str(written["subdir"]))

    def _find_folder(self, overrides: Sequence[str], job_num: int) -> Path:
        subdir = self.folder_name(job_num)
        if "${" in subdir:  # composing costs tens of milliseconds, and most folders do not need it
            composed = self.compose(overrides, job_num)
            try:
                with hydra_config(composed):
                    subdir = str(composed.hydra.sweep.subdir)
            except OmegaConfBaseException as problem:
                raise OptionError(
                    f"hydra.sweep.subdir is {subdir!r}, which cannot be resolved for trial {job_num}: "
                    f"{str(problem).splitlines()[0]}. Correct it, or leave it out: then trials have numbered folders."
                ) from problem
        folder = Path(os.path.abspath(self.sweep_dir / subdir))
        if folder == self.sweep_dir or self.sweep_dir not in folder.parents:
            raise OptionError(
                f"hydra.sweep.subdir is {subdir!r} for trial {job_num}, which is not a folder below hydra.sweep.dir. "
                "Set hydra.sweep.subdir to a relative path that holds ${hydra.job.num}."
            )
        too_long = name_too_long(folder)
        if too_long is not None:
            raise OptionError(
                f"The folder of trial {job_num} cannot be made: {too_long}. "
                "Set hydra.sweep.subdir to something shorter, such as ${hydra.job.num}."
            )
        return folder

    # ------------------------------------------------------------------------ in the trial's process

    def run(self, overrides: Sequence[str], job_num: int, folder: Path | None = None) -> JobResult:
        """Run the job and say how it ended; never raises, but for what ends the process itself.

        The job's number is the trial's id, so a trial that is resumed enters the same folder again.

        Args:
            overrides: of the single job.
            job_num: ``hydra.job.num``.
            folder: what :meth:`folder` returned; default: ask it.
        """
        interruptions: list[TrialInterrupted] = []
        try:
            setup_globals()
            folder = self.folder(overrides, job_num) if folder is None else folder
            composed = self.compose(overrides, job_num)
            with read_write(composed), open_dict(composed):
                composed.hydra.sweep.subdir = os.path.relpath(folder, self.sweep_dir)
                composed.hydra.run.dir = str(folder)
                if os.environ.get("LOCAL_RANK", "0") != "0":
                    composed.hydra.output_subdir = None  # the first rank writes the job's configuration
            with _arguments(self.single_run_arguments(composed, overrides, folder)):
                job_return = run_job(
                    hydra_context=self.hydra_context,
                    task_function=_guarded(self.task_function.function, interruptions),
                    config=composed,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            if interruptions:
                paused = isinstance(interruptions[0], TrialPaused)
                return JobResult(Outcome.PAUSED if paused else Outcome.STOPPED)
            return self._judged(job_return)
        except KeyboardInterrupt:
            return JobResult(Outcome.INTERRUPTED)
        except Exception as error:
            return _failed(error)

    def _judged(self, job_return: JobReturn) -> JobResult:
        try:
            return JobResult(Outcome.COMPLETED, job_return.return_value, job_return=job_return)
        except Exception as error:
            result = _failed(error, job_return)
            if not hasattr(hydra.core.utils, "_log_job_error_to_file"):  # Hydra 1.3 leaves the job's log empty
                _write_to_log_files(f"Error executing job with overrides: {job_return.overrides}\n{result.traceback}")
            return result

    def single_run_arguments(self, composed: DictConfig, overrides: Sequence[str], folder: Path) -> list[str]:
        """``sys.argv`` of a program that runs this job alone.

        Libraries that start a program again for distributed training take ``sys.argv``; that of the multirun would
        start a second sweep.
        """
        return [
            self.argv[0],
            *config_flags(self.argv),
            *written_overrides(self.config, "hydra"),
            *overrides,
            "hydra.mode=RUN",
            f"hydra.job.num={composed.hydra.job.num}",
            f"hydra.job.id={format_value(str(composed.hydra.job.id))}",
            f"hydra.run.dir={format_value(str(folder))}",
        ]

    # ------------------------------------------------------------------------- to a new interpreter

    def __reduce__(self) -> tuple[Any, ...]:
        state = Singleton.get_state()
        carried: Any = (self.__dict__, state["instances"], _dump_resolvers(state["omegaconf_resolvers"]))
        return _restore, (dump_entry(carried),)


def _restore(data: bytes) -> HydraJob:
    # The scan of plugins defines their classes anew in Hydra 1.3: only then may objects of these classes be made.
    plugins = Plugins.instance()
    attributes, instances, dumped_resolvers = pickle.loads(data)
    setup_globals()
    # The script, imported again, has registered its resolvers; those it registers later came along if they could.
    present = Singleton.get_state()["omegaconf_resolvers"]
    carried = pickle.loads(dumped_resolvers) if dumped_resolvers is not None else {}
    Singleton.set_state({"instances": instances | {Plugins: plugins}, "omegaconf_resolvers": carried | present})
    job = HydraJob.__new__(HydraJob)
    job.__dict__.update(attributes)
    return job


def config_flags(argv: Sequence[str]) -> list[str]:
    """The arguments of a program that tell Hydra where its configuration is, with a path that holds in any folder."""
    parser = argparse.ArgumentParser(add_help=False)
    for short, name in (("-cp", "--config-path"), ("-cn", "--config-name"), ("-cd", "--config-dir")):
        parser.add_argument(short, name)
    known, _ = parser.parse_known_args(list(argv[1:]))
    flags = {"--config-path": known.config_path, "--config-name": known.config_name}
    if known.config_dir is not None:
        flags["--config-dir"] = os.path.abspath(known.config_dir)
    return [part for flag, value in flags.items() if value is not None for part in (flag, value)]


@contextmanager
def hydra_config(composed: DictConfig) -> Iterator[None]:
    """Lets ``${hydra:...}`` in a composed configuration be resolved."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(composed)
    try:
        yield
    finally:
        holder.cfg = before


def _guarded(task_function: TaskFunction, interruptions: list[TrialInterrupted]) -> TaskFunction:
    """Ends at Hydra's door what must not pass it: a pause leaves the user's code, but is no failure of the job.

    Hydra would skip the end of the job (callbacks, log files) or call it failed, depending on its version.
    """

    @functools.wraps(task_function)
    def guarded_task(config: DictConfig) -> Any:
        try:
            return task_function(config)
        except TrialInterrupted as interruption:
            interruptions.append(interruption)
            return None
        except SystemExit as request:
            end_by_exit(request)
            return None

    return guarded_task


def _failed(error: Exception, job_return: JobReturn | None = None) -> JobResult:
    lines = traceback.format_exception(type(error), error, _from_task(error.__traceback__))
    print("".join(lines), file=sys.stderr, flush=True)
    # Of a long message the first line says most; the log has the rest.
    outcome, summary = judge(error)
    return JobResult(outcome, None, summary, "".join(lines), error, job_return)


def _from_task(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the user's code; all of it if it never got there."""
    step = trace
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_name == "guarded_task" and code.co_filename == __file__:
            return step.tb_next or step
        step = step.tb_next
    return trace


def _write_to_log_files(message: str) -> None:
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def _dump_resolvers(resolvers: dict[str, Any]) -> bytes | None:
    """OmegaConf wraps every resolver in a local function, which only cloudpickle can pickle."""
    if importlib.util.find_spec("cloudpickle") is None:
        return None
    import cloudpickle

    kept: dict[str, Any] = {}
    for name, resolver in resolvers.items():
        try:
            cloudpickle.dumps(resolver)
        except Exception:  # a resolver that holds an open file stays behind; the script may register it again
            continue
        kept[name] = resolver
    return bytes(cloudpickle.dumps(kept))
