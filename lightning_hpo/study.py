"""Ask and tell: a study without processes, Hydra or Lightning."""

from __future__ import annotations

import functools
import math
import operator
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from lightning_hpo.core.confirmation import check_seed
from lightning_hpo.core.events import (
    AttemptEnded,
    CheckpointSaved,
    Event,
    Outcome,
    Reported,
    Resume,
    Start,
    Suggested,
    SuggestionWanted,
    Told,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions, max_t_among
from lightning_hpo.core.searcher import Searcher, SuggestRequest, suggested
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint, Config, Trial
from lightning_hpo.core.unread import note_on_unread
from lightning_hpo.errors import ReportError, StudyError
from lightning_hpo.searchers import make_searcher

if TYPE_CHECKING:
    from lightning_hpo.runtime.journal import Journal
    from lightning_hpo.searchers.recommend import Recommended


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _one_at_a_time(method: Callable[Concatenate[Study, _P], _T]) -> Callable[Concatenate[Study, _P], _T]:
    """A method of a study during which other threads wait that call one, too."""

    @functools.wraps(method)
    def alone(self: Study, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self._lock:
            return method(self, *args, **kwargs)

    return alone


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A trial that is best in some sense, with the report that makes it so."""

    trial_id: int
    config: Config
    resource: int
    value: float


@dataclass(frozen=True, slots=True)
class Best:
    """The best trial of a study, in both senses of the word."""

    at_full_resource: Incumbent | None
    """Among trials trained to ``max_t``, or that ended by themselves."""
    at_any_resource: Incumbent | None
    """Among all reports: the luckiest of many noisy values, also of trials that were paused or stopped early."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The configuration to use."""

    trial_id: int
    config: Config
    mean: float
    """Expected value of the metric in a training to ``max_t``, in the user's sign: the mean of the best few epochs in a
    row, up to five (:func:`lightning_hpo.core.confirmation.window`), not that of a single lucky one."""
    std: float
    """Standard deviation of that expectation; infinite where nothing tells it. Without confirmations it does not count
    what another seed of training would change: one training of each configuration cannot tell."""
    confirmations: int = 0
    """Trainings with other seeds that the expectation is the mean of; 0: it comes from the search."""


class Study:
    """A study driven by hand: :meth:`ask`, train, :meth:`tell`.

    The searcher runs inline, in the calling thread; its results repeat with the same ``random_seed``.

    Threads may share it: their calls wait for each other, also for a searcher that takes its time. Processes may not.

    A study in a folder is locked while it is open: :meth:`close` it, or open it in a ``with`` statement.
    """

    def __init__(self, state: StudyState, journal: Journal | None = None) -> None:
        self._state = state
        self._journal = journal
        self._searcher: Searcher = make_searcher(state.options.searcher_name, state.options.searcher)
        self._zero = time.monotonic() - state.progress.time
        self._unwritten: list[Event] = []
        self._undelivered: list[Start | Resume] = []
        """Jobs that nobody has heard of, because what led to them could not be written."""
        self._is_closed = False
        self._lock = threading.RLock()

    # -------------------------------------------------------------------------------------- opening

    @classmethod
    def create(
        cls,
        space: SearchSpace | Mapping[str, Any],
        *,
        metric: str,
        mode: str = "min",
        algorithm: str = "default",
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Study:
        """A new study, or the study in ``path`` continued.

        Args:
            space: name -> domain or constant.
            metric: name of the value told.
            mode: ``min`` or ``max``.
            algorithm: scheduler and searcher by name.
            path: folder in which the study is kept; without one it lives in memory.
            **options: see :class:`lightning_hpo.core.options.StudyOptions`. With rungs, ``max_t`` may be left out where
                the space has a constant ``epochs``, ``max_t`` or ``max_epochs``.

        Raises:
            OptionError, SpaceError: if an option or the space cannot be used.
            StudyLocked, StudyMismatch: if the study in ``path`` is in use, or was made with other settings.

        Warns:
            UserWarning: of options that nothing of the algorithm reads.
        """
        parsed = space if isinstance(space, SearchSpace) else SearchSpace.parse(space)
        if options.get("max_t") is None:
            options["max_t"] = max_t_among(parsed.constants, algorithm)
        checked = StudyOptions.from_mapping({"metric": metric, "mode": mode, "algorithm": algorithm, **options})
        check_seed(checked.confirm, parsed, must_be_there=True)
        study = cls(StudyState(parsed, checked))
        note = note_on_unread(checked)
        if note is not None:
            warnings.warn(note, stacklevel=2)
        if path is None:
            return study
        from lightning_hpo.runtime.journal import Journal
        from lightning_hpo.runtime.stored import check_same_study, continued_state, study_header

        if not Journal.exists(path):
            study._journal = Journal.create(path, study_header(parsed, checked))
            return study
        journal = Journal.open(path)
        try:
            check_same_study(journal.header, parsed, checked)
            return cls(continued_state(journal, checked)[0], journal)
        except BaseException:
            journal.close()
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> Study:
        """The study in the folder, with the settings it was created with.

        Args:
            path: the study folder.
            read_only: a copy in memory, to look at while a launcher goes on with the study; what it is told is not
                kept. False: the study itself, to go on with; nobody else can until it is closed.

        Raises:
            StudyNotFound, StudyLocked, StudyCorrupt: if it cannot be opened.
        """
        from lightning_hpo.runtime.journal import Journal
        from lightning_hpo.runtime.stored import continued_state, state_from_header

        if read_only:
            with Journal.read(path) as reader:
                state = state_from_header(reader.header)
                for event in reader.events():
                    state.handle(event)
            return cls(state)
        journal = Journal.open(path)
        try:
            return cls(continued_state(journal)[0], journal)
        except BaseException:
            journal.close()
            raise

    @_one_at_a_time
    def close(self) -> None:
        """Let others continue the study; a study in memory needs no closing.

        Raises:
            StudyError: if something it was told before could not be written, and still cannot; it is closed then, too.
        """
        if self._journal is None or self._is_closed:
            return
        try:
            if self._unwritten:
                self._commit()
        finally:
            self._journal.close()
            self._is_closed = True

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------- ask and tell

    @_one_at_a_time
    def ask(self) -> Start | Resume | None:
        """What a free worker is to do: start a trial, resume a paused one, or nothing now.

        A start with a ``replicate`` trains a configuration again, to confirm it: use another seed of training. Where
        the space has a seed (``confirm.seed_attr``), the configuration has another one already.

        A resumed trial goes on after ``from_resource``; where its state cannot be kept it may also be trained from
        scratch: reports up to ``from_resource`` are ignored then.

        Raises:
            StudyError: if it cannot be written; the job is kept, and the next call returns it.
        """
        self._check_open()
        if not self._undelivered:
            job = self._next_job()
            if job is not None:
                self._undelivered.append(job)
        self._commit()
        return self._undelivered.pop(0) if self._undelivered else None

    @_one_at_a_time
    def tell(
        self,
        trial_id: int,
        resource: int,
        value: float,
        *,
        metrics: Mapping[str, float] | None = None,
        cost: float | None = None,
    ) -> Verdict:
        """Report the metric of a trial after ``resource`` units; returns ``continue``, ``pause`` or ``stop``.

        Args:
            trial_id: from :meth:`ask`.
            resource: 1, 2, 3, ...; what was told before is ignored.
            value: the metric, in the user's sign; NaN and infinities are the worst value, with which a trial is stopped
                at a rung. Where there are no rungs it is trained on, unless :meth:`fail` ends it.
            metrics: other values to keep.
            cost: total the trial has cost so far, in any unit: seconds, money; finite and at least 0.

        Raises:
            ReportError: for an unknown trial, an impossible resource or cost, what is not a number, or a trial that
                nobody is known to train: one that was running when the study was opened again.
        """
        self._check_open()
        trial = self._at_work(trial_id)
        number = _number(value, trial_id, "value")
        others = {str(name): _number(v, trial_id, f"metrics[{name!r}]") for name, v in (metrics or {}).items()}
        spent = None if cost is None else _cost(cost, trial_id)
        at, max_t = _integer(resource), self._state.scheduler.max_t
        if max_t is not None and isinstance(at, int) and at > max_t:
            raise ReportError(
                f"Trial {trial_id} reported at resource {resource}, but a full training ends at max_t={max_t}. "
                "Report up to max_t, or create the study with the right max_t."
            )
        event = Reported(self._now(), trial.id, trial.attempt, at, number, others, spent)
        told = next(d for d in self._handle(event) if isinstance(d, Told))
        if told.completed:
            self._end(trial, Outcome.COMPLETED)
        elif told.verdict is Verdict.PAUSE and trial.id in self._state.live:
            # Whoever trains keeps the state of the trial; the study only notes how far it got.
            kept = Checkpoint(at, "", "", 0)
            self._handle(CheckpointSaved(self._now(), trial.id, trial.attempt, kept))
            self._end(trial, Outcome.PAUSED)
        elif told.verdict is Verdict.STOP:
            self._end(trial, Outcome.STOPPED)
        self._commit()
        return told.verdict

    @_one_at_a_time
    def complete(self, trial_id: int) -> None:
        """The trial ended by itself; its last report is its result.

        Nothing happens if it was stopped, paused or complete already.

        Raises:
            ReportError: as :meth:`tell`, for a trial that is unknown, or that nobody is known to train.
        """
        self._check_open()
        self._end(self._at_work(trial_id), Outcome.COMPLETED)
        self._commit()

    @_one_at_a_time
    def fail(self, trial_id: int, error: str | BaseException = "it failed") -> None:
        """The trial cannot go on; its configuration will not be proposed again.

        Args:
            trial_id: from :meth:`ask`.
            error: what went wrong, in words or as it was raised.

        Raises:
            ReportError: as :meth:`complete`.
        """
        self._check_open()
        told = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
        self._end(self._at_work(trial_id), Outcome.FAILED, told)
        self._commit()

    @_one_at_a_time
    def attach(self, config: Mapping[str, Any]) -> int:
        """Start a trial with a configuration chosen outside; returns its id.

        Raises:
            SpaceError: if the configuration is not of the study's space.
            StudyError: if it cannot be written; the trial is kept, for the next call with this configuration, or for
                :meth:`ask`.
        """
        self._check_open()
        checked = self._state.space.check(config)
        job = next((j for j in self._undelivered if self._is_attached(j.trial_id, checked)), None)
        if job is None:
            trial_id = len(self._state.trials)
            event = Suggested(self._now(), trial_id, checked, "attached", "chosen outside the study")
            job = next(d for d in self._handle(event) if isinstance(d, Start))
            self._undelivered.append(job)
        self._commit()
        self._undelivered.remove(job)
        return job.trial_id

    # -------------------------------------------------------------------------------------- results

    @property
    def space(self) -> SearchSpace:
        return self._state.space

    @property
    def options(self) -> StudyOptions:
        return self._state.options

    @property
    def trials(self) -> Mapping[int, Trial]:
        """Every trial by id. Read-only: changes are not part of the study."""
        return self._state.trials

    @_one_at_a_time
    def best(self) -> Best:
        """The best trial at full resource and the best at any, which are seldom the same."""
        return best_of(self._state)

    @_one_at_a_time
    def recommend(self) -> Recommendation:
        """The configuration to use: the best expected value in a training to ``max_t``, noise taken into account.

        Not the luckiest report: the lowest of many noisy values is lower than what the configuration gives when it is
            trained again. Where the best were confirmed, the mean of these trainings decides.

        Raises:
            ReportError: before the first finite report.
        """
        from lightning_hpo.searchers.recommend import recommend

        if self._state.best_any is None:
            raise ReportError("No trial has reported a finite value yet. Tell the study some results first.")
        return recommendation_of(self._state, recommend(self._state.view(), self._state.options.searcher))

    # -------------------------------------------------------------------------------------- details

    def _check_open(self) -> None:
        if self._is_closed:
            raise StudyError("The study is closed, and what it is told would be lost. Open it again with load_study.")

    def _at_work(self, trial_id: int) -> Trial:
        trial = self._state.trial(trial_id)
        if self._state.is_lost(trial):
            raise ReportError(
                f"Trial {trial_id} was running when the study was opened again, and waits to be started anew: what is "
                "told of it before is not taken in. Call ask(): it says which trial goes on, and from where."
            )
        return trial

    def _next_job(self) -> Start | Resume | None:
        """What there is to do now, not written yet; the searcher is asked if it takes one."""
        wanted = self._state.wanted  # still there if the searcher raised the last time
        if wanted is None:
            ready = WorkerReady(self._now())
            (decision,) = self._state.handle(ready)
            if not isinstance(decision, (Start, Resume, SuggestionWanted)):
                return None
            self._unwritten.append(ready)
            if not isinstance(decision, SuggestionWanted):
                return decision
            wanted = decision
        decisions = self._handle(self._suggested(self._state.request(wanted)))
        job = next((d for d in decisions if isinstance(d, (Start, Resume))), None)
        # Every configuration has been tried: what was held back for new ones may go on now.
        return self._next_job() if job is None else job

    def _is_attached(self, trial_id: int, config: Config) -> bool:
        trial = self._state.trials[trial_id]
        return trial.origin == "attached" and trial.config == config

    def _suggested(self, request: SuggestRequest) -> Suggested:
        suggestion = self._searcher.suggest(self._state.view(), request)
        return suggested(self._now(), request.trial_id, suggestion)

    def _end(self, trial: Trial, outcome: Outcome, error: str | None = None) -> None:
        if trial.id in self._state.live:
            self._handle(AttemptEnded(self._now(), trial.id, trial.attempt, outcome, error))

    def _handle(self, event: Event) -> list[Any]:
        decisions = self._state.handle(event)
        self._unwritten.append(event)
        return decisions

    def _commit(self) -> None:
        """Write what a call has changed, in one transaction; what cannot be written is kept for the next try."""
        if self._journal is not None:
            self._journal.append(self._unwritten)
        self._unwritten.clear()

    def _now(self) -> float:
        return time.monotonic() - self._zero


def recommendation_of(state: StudyState, found: Recommended) -> Recommendation:
    """What a searcher recommends, with constants and in the user's sign."""
    config = state.space.with_constants(found.config)
    return Recommendation(found.trial_id, config, state.criterion(found.mean), found.std, found.confirmations)


def best_of(state: StudyState) -> Best:
    """The best trials of a study."""

    def incumbent(found: tuple[int, int, float] | None) -> Incumbent | None:
        if found is None:
            return None
        trial_id, resource, value = found
        return Incumbent(trial_id, state.whole_config(state.trials[trial_id]), resource, value)

    return Best(incumbent(state.best_full), incumbent(state.best_any))


def load_study(path: str | os.PathLike[str], *, read_only: bool = False) -> Study:
    """The study in a folder, to continue or, ``read_only``, to look at: :meth:`Study.load`."""
    return Study.load(path, read_only=read_only)


def _integer(resource: Any) -> Any:
    """Whole numbers of other libraries are integers too; the study refuses the rest."""
    try:
        return resource if isinstance(resource, bool) else operator.index(resource)
    except TypeError:
        return resource


def _number(told: Any, trial_id: int, what: str) -> float:
    """``told`` as a float; ``what`` it is, as the argument of :meth:`Study.tell`."""
    try:
        # Arrays and tensors of one element have item(); those of several raise.
        number = told.item() if hasattr(told, "item") else told
        if not isinstance(number, (bool, str, bytes)):
            return float(number)
    except OverflowError:
        # Not shown: it may have more digits than Python writes.
        raise ReportError(
            f"Trial {trial_id} reported a {what} too large for a float. Tell one below {sys.float_info.max:.2g}."
        ) from None
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ReportError(
        f"Trial {trial_id} reported {what}={told!r} of type {type(told).__name__}, which is not a number. "
        "Tell a float or a tensor with one element."
    )


def _cost(told: Any, trial_id: int) -> float:
    cost = _number(told, trial_id, "cost")
    if not (math.isfinite(cost) and cost >= 0.0):
        raise ReportError(
            f"Trial {trial_id} reported cost={told!r}, which is no amount. "
            "Tell what the trial has cost so far, a finite number of at least 0, or leave cost out."
        )
    return cost
