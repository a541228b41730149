"""The programmatic twin of the launcher: a study of a plain function, without Hydra."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_hpo.core.confirmation import check_seed
from lightning_hpo.core.events import Outcome, Resume, Start
from lightning_hpo.core.options import StudyOptions, max_t_among
from lightning_hpo.core.seeds import Stream, child_seed
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Trial
from lightning_hpo.errors import StudyError, TrialPaused, TrialStopped
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.integrations.failures import end_by_exit, judge
from lightning_hpo.integrations.job import JobResult
from lightning_hpo.integrations.run import StudySetup, run_study
from lightning_hpo.integrations.trial import TrialEntry
from lightning_hpo.runtime.backends.base import Job
from lightning_hpo.runtime.script import FunctionReference
from lightning_hpo.study import Best, best_of

TrainFunction = Callable[[dict[str, Any]], Any]


class Tuner:
    """Tunes a function that builds a Trainer with :class:`~lightning_hpo.HPOCallback` and fits.

    ::

        def train(config):
            trainer = Trainer(max_epochs=27, callbacks=[HPOCallback()])
            trainer.fit(Model(lr=config["lr"]), data)

        Tuner(train, {"lr": loguniform(1e-4, 1e-1)}, metric="val_loss", max_t=27, algorithm="mobster",
        n_workers=4).run()

    Args:
        train_fn: takes a configuration: searched values and constants. What it returns is not used.
        space: name -> domain or constant.
        metric: name of a logged metric.
        mode: ``min`` or ``max``.
        algorithm: scheduler and searcher by name.
        path: the study folder; default: a new one below ``hpo/`` in the working folder. A study in it is continued.
        **options: as ``hydra.launcher.*``; ``stop`` and ``searcher`` are mappings.

    Raises:
        OptionError, SpaceError: if an option or the space cannot be used.
    """

    def __init__(
        self,
        train_fn: TrainFunction,
        space: SearchSpace | Mapping[str, Any],
        *,
        metric: str,
        mode: str = "min",
        algorithm: str = "default",
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.train_fn = train_fn
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.parse(space)
        self.options: LauncherOptions = LauncherOptions.from_mapping(
            {"metric": metric, "mode": mode, "algorithm": algorithm, **options}
        )
        check_seed(self.options.confirm, self.space, must_be_there=True)
        self._given = path if path is not None else self.options.study

    @functools.cached_property
    def path(self) -> Path:
        """The study folder."""
        if self._given is not None:
            return Path(self._given).absolute()
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        return _new_folder(Path("hpo").absolute(), [now, *(f"{now}_{i}" for i in range(2, 1000))])

    def run(self) -> Best:
        """Run the study to its end; returns its best trials.

        Raises:
            HpoError: whatever ends the study before its time.
            KeyboardInterrupt: after Ctrl-C, when the running trials are paused and the results are written.
        """
        state = run_study(
            StudySetup(
                space=self.space,
                options=self.options,
                max_t=self._max_t(),
                folder=self.path,
                entry=TrialEntry(FunctionTrial(self.train_fn)),
                jobs=lambda study: FunctionJobs(self.path, study, self.options.ranks_per_trial),
                continue_command=f"Tuner(..., path={str(self.path)!r}).run()",
            )
        )
        return best_of(state)

    def _max_t(self) -> int | None:
        options, named = self.options, self.options.max_resource_attr
        if options.max_t is not None or (options.resource != "epoch" and named is None):
            return options.max_t  # a constant of the space counts epochs unless it is named
        return max_t_among(self.space.constants, options.algorithm, named)


def _new_folder(parent: Path, names: Sequence[str]) -> Path:
    """The first that nobody else has made: others may begin in the same second."""
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileExistsError):
                (parent / name).mkdir(mode=0o700)
                return parent / name
    except OSError as problem:
        raise StudyError(
            f"{parent} cannot hold a study: {problem.strerror or problem}. Choose a folder you may write to, with path."
        ) from problem
    raise StudyError(f"{parent} is full of studies of this second. Choose a folder, with path.")


class FunctionTrial:
    """Runs the user's function for an attempt."""

    def __init__(self, train_fn: TrainFunction) -> None:
        self._train_fn = FunctionReference(train_fn)

    def __call__(self, job: Job) -> JobResult:
        try:
            return JobResult(Outcome.COMPLETED, self._trained(dict(job.payload["config"])))
        except TrialPaused:
            return JobResult(Outcome.PAUSED)
        except TrialStopped:
            return JobResult(Outcome.STOPPED)
        except KeyboardInterrupt:
            return JobResult(Outcome.INTERRUPTED)
        except BaseException as error:
            text = traceback.format_exc()
            print(text, file=sys.stderr, flush=True)
            outcome, summary = judge(error)
            return JobResult(outcome, error=summary, traceback=text)

    def _trained(self, config: dict[str, Any]) -> Any:
        try:
            return self._train_fn(config)
        except SystemExit as request:
            end_by_exit(request)
            return None


class FunctionJobs:
    """Turns decisions into jobs; each trial has a numbered folder below the study's."""

    def __init__(self, folder: Path, options: StudyOptions, ranks: int) -> None:
        self._folder = folder
        self._options = options
        self._ranks = ranks

    def folder(self, trial: Trial) -> Path:
        return self._folder / str(trial.id)

    def job(self, decision: Start | Resume, folder: Path, environment: dict[str, str]) -> Job:
        return Job(
            trial_id=decision.trial_id,
            attempt=decision.attempt,
            folder=folder,
            log=folder / "trial.log",
            environment=environment,
            payload={"config": decision.config},
            ranks=self._ranks,
            seed=child_seed(self._options.random_seed, Stream.TRAINING, decision.trial_id),
        )
