"""The study as a state machine: events in, decisions out.

:meth:`StudyState.handle` is the only door through which a study changes. It has no clock, no files and
no generator state, so the events of a study, fed again, give the same study: that is how a study is
continued after a crash, simulated, and tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from lightning_hpo.core.brackets import draw_bracket
from lightning_hpo.core.confirmation import Confirmation, Cost, leading, with_seed
from lightning_hpo.core.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRemoved,
    CheckpointSaved,
    Decision,
    DropCheckpoint,
    Event,
    Finish,
    Idle,
    Outcome,
    PauseRequested,
    Reported,
    Resume,
    Start,
    StudyContinued,
    Suggested,
    SuggestionWanted,
    Told,
    Verdict,
    WorkerReady,
    portable,
)
from lightning_hpo.core.observations import SearcherData
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.schedulers.base import Ruling, Scheduler
from lightning_hpo.core.schedulers.factory import make_scheduler
from lightning_hpo.core.schedulers.fifo import Fifo
from lightning_hpo.core.searcher import Observation, Pending, SuggestRequest
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.stopping import Progress
from lightning_hpo.core.trial import Config, Trial, TrialStatus
from lightning_hpo.errors import OptionError, ReportError, SpaceError, StudyError


class StudyState:
    """Everything a study knows.

    Args:
        space: what is searched.
        options: how.

    Attributes:
        trials: every trial by id; ids are 0, 1, 2, ... in the order of their start.
        ended: why nothing will be started any more, None while the study goes on.

    Raises:
        OptionError, SpaceError: if options contradict each other or the space, or nothing is searched.
    """

    def __init__(self, space: SearchSpace, options: StudyOptions) -> None:
        if not space.domains:
            raise SpaceError(
                "Nothing is searched: no entry of the space has a domain. "
                'Give at least one of them a domain, as in {"lr": loguniform(1e-4, 1e-1)}.'
            )
        if options.confirm.seed_attr in space.domains:
            raise OptionError(
                f"confirm.seed_attr={options.confirm.seed_attr} is searched, but every confirmation gets its own. "
                "Name the key of the training seed, or take it out of the space."
            )
        self.space = space
        self.options = options
        self.scheduler = make_scheduler(options)
        self.data = SearcherData(
            options.effective_searcher_data,
            self.scheduler.levels,
            self.scheduler.max_t,
            options.register_pending_myopic,
            self.scheduler.learns_at_completion,
        )
        self.trials: dict[int, Trial] = {}
        self.progress = Progress(options.metric)
        self.ended: str | None = None
        self.repeated_error: str | None = None
        """The error with which the first trials all failed, if that ended the study."""
        self.initial_configs: Sequence[Config] = space.complete(options.points_to_evaluate)
        self.searcher_state: dict[str, Any] | None = None
        self.taken: dict[str, int] = {}
        """Match key of every trial's configuration -> the first trial that had it."""
        self._configs: dict[int, Config] = {}
        self._taken_by_failed: dict[str, None] = {}
        self._failed: set[int] = set()
        self._waiting: list[int] = []
        self._live: set[int] = set()
        """Trials with a process."""
        self._batch_left = 0
        self._jobs = 0
        """Starts and promotions so far: the counter of the bracket draws. A job that was lost and is tried again is
        the same job, so that the draws do not depend on what was killed."""
        self._bracket_weights = self.scheduler.bracket_weights
        self._wanted: SuggestionWanted | None = None
        self._initial_used = 0
        self._is_exhausted = False
        self._pause_requests: dict[int, str] = {}
        self._verdicts: dict[int, Told] = {}
        self._best_any: tuple[float, int, int] | None = None
        self._best_full: tuple[float, int, int] | None = None
        self._spent_checkpoints: set[int] = set()
        """Final trials that still have a checkpoint."""
        self._first_errors: list[str] = []
        self._has_success = False
        self._clock: dict[int, float] = {}
        self._busy_seconds: dict[int, float] = {}
        self._busy_in_all = 0.0
        self._confirmation = Confirmation(options.confirm)
        self._confirming = Fifo(self.scheduler.max_t)
        """The scheduler of confirmations."""
        self._handlers: dict[type, Callable[[Any], list[Decision]]] = {
            Suggested: self._on_suggested,
            AttemptStarted: self._on_started,
            Reported: self._on_reported,
            CheckpointSaved: self._on_checkpoint_saved,
            CheckpointRemoved: self._on_checkpoint_removed,
            AttemptEnded: self._on_ended,
            PauseRequested: self._on_pause_requested,
            StudyContinued: self._on_continued,
        }

    # ------------------------------------------------------------------------------------ the door

    def handle(self, event: Event) -> list[Decision]:
        """Take in a fact; returns what is to be done about it.

        A :class:`WorkerReady` that is answered by :class:`Idle` or :class:`Finish` need not be kept. Every other
        event that does not raise must be, in this order, for the study to be the same when they are fed again.

        Raises:
            ReportError: if the event speaks of a trial that does not exist, or is a report that no trial can have sent.
                The study has not changed then.
        """
        self.progress.time = max(self.progress.time, event.time)
        if isinstance(event, WorkerReady):
            return [self._next_job(event)]
        decisions = self._handlers[type(event)](event)
        if isinstance(event, StudyContinued):
            return decisions  # nobody is there yet to delete checkpoints: the next event brings it up
        return decisions + self._spent()

    # ---------------------------------------------------------------------------------- questions

    def view(self) -> StudyView:
        """What a searcher may see."""
        return StudyView(self)

    def request(self, wanted: SuggestionWanted) -> SuggestRequest:
        """The request to the searcher that belongs to a decision."""
        return SuggestRequest(wanted.trial_id, wanted.bracket, wanted.milestone, self.scheduler.slot())

    def next_request(self) -> SuggestRequest | None:
        """The request that would come next, to be answered ahead of time; None if none can come."""
        is_over = self._confirmation.chosen is not None
        if is_over or self._wanted is not None or not self._may_start() or self._initial_left:
            return None
        bracket = self._draw_bracket()
        return SuggestRequest(len(self.trials), bracket, self.scheduler.first_milestone(bracket), self.scheduler.slot())

    @property
    def wanted(self) -> SuggestionWanted | None:
        """The suggestion that was asked for and has not come yet."""
        return self._wanted

    @property
    def live(self) -> Set[int]:
        """Trials that have a worker."""
        return self._live

    @property
    def bracket_weights(self) -> tuple[float, ...]:
        return self._bracket_weights

    @property
    def best_any(self) -> tuple[int, int, float] | None:
        """``(trial_id, resource, value)`` of the best report at any resource; None before the first finite report."""
        return None if self._best_any is None else self._public(self._best_any)

    @property
    def best_full(self) -> tuple[int, int, float] | None:
        """The same among reports at ``max_t``, or of trials that ended by themselves."""
        return None if self._best_full is None else self._public(self._best_full)

    def _public(self, best: tuple[float, int, int]) -> tuple[int, int, float]:
        value, trial_id, resource = best
        return trial_id, resource, self.criterion(value)

    def criterion(self, value: float) -> float:
        """The value that is minimised inside; its own inverse."""
        return value if self.options.mode == "min" else -value

    def busy_seconds(self, trial_id: int) -> float:
        """Time the trial's attempts took until their last reports; pauses do not count."""
        return self._busy_seconds.get(trial_id, 0.0)

    def trial(self, trial_id: int) -> Trial:
        """Raises ReportError if there is no such trial."""
        try:
            return self.trials[trial_id]
        except KeyError:
            raise ReportError(
                f"There is no trial {trial_id}; the study has {len(self.trials)}. Report with an id that ask() "
                f"returned."
            ) from None

    # ------------------------------------------------------------------------------- starting jobs

    def _next_job(self, event: WorkerReady) -> Decision:
        closing = self.closing_reason(event.time)
        if closing is not None:
            return Finish(closing)
        if not self.options.asynchronous and not self._batch_left:
            if self._live:
                return Idle("the batch is not complete")
            self._batch_left = self.options.n_workers
        is_searching = not self._is_search_over()
        job = self._resume_waiting(is_searching)
        if job is None and is_searching:
            job = self._promote() or self._start_new()
        if job is None and self._confirmation:
            job = self._confirm()
        if isinstance(job, (Start, Resume)):
            self._batch_left = max(self._batch_left - 1, 0)
            self._clock[job.trial_id] = event.time
            return job
        if job is not None:
            return job
        if self._live:
            return Idle("waiting for running trials")
        self.ended = self._why_nothing_is_left()
        return Finish(self.ended)

    def closing_reason(self, time: float) -> str | None:
        """Why the study ends at this time: its stop criterion, or the same error again and again; None: it goes on.

        A metric that has reached its threshold ends the search only, if the best are to be confirmed.
        """
        self.progress.time = max(self.progress.time, time)
        if self.ended is None:
            stop = self.options.stop
            self.ended = stop.limit_reason(self.progress) if self._confirmation else stop.reason(self.progress)
        return self.ended

    def _why_nothing_is_left(self) -> str:
        if self._confirmation.chosen is not None and self._confirmation.next() is None:
            return f"the best {len(self._confirmation.chosen)} configurations are confirmed"
        if self._is_exhausted:
            return "every configuration has been tried"
        if self._is_full:
            return f"all {self.options.n_trials} trials are done"
        return "nothing is left to start"

    def _resume_waiting(self, is_searching: bool) -> Decision | None:
        for trial_id in self._waiting:
            trial = self.trials[trial_id]
            if is_searching or trial.confirms is not None:
                self._waiting.remove(trial_id)
                return self._resumed(trial)
        return None

    def _promote(self) -> Resume | None:
        promotion = self.scheduler.promote(self._draw_bracket(), self._is_paused)
        if promotion is None:
            return None
        trial = self.trials[promotion.trial_id]
        trial.milestone = promotion.milestone
        trial.reason = promotion.reason
        self._jobs += 1
        self.data.resume(trial.id, promotion.from_resource, promotion.milestone)
        return self._resumed(trial)

    def _resumed(self, trial: Trial) -> Resume:
        trial.attempt += 1
        trial.status = TrialStatus.RUNNING
        trial.resume_from = trial.checkpoint.resource if trial.checkpoint else 0
        self._live.add(trial.id)
        self._verdicts.pop(trial.id, None)
        return Resume(
            trial.id,
            self._whole_config(trial),
            trial.resume_from,
            trial.milestone,
            trial.attempt,
            trial.checkpoint,
            trial.replicate,
        )

    def _is_paused(self, trial_id: int) -> bool:
        return self.trials[trial_id].status is TrialStatus.PAUSED

    def _draw_bracket(self) -> int:
        if len(self._bracket_weights) == 1:
            return 0
        return draw_bracket(self._bracket_weights, generator(self.options.random_seed, Stream.BRACKET, self._jobs))

    @property
    def _initial_left(self) -> bool:
        return self._initial_used < len(self.initial_configs)

    @property
    def _is_full(self) -> bool:
        """Has the study its total number of trials, those that will confirm the best included?"""
        if self.options.n_trials is None:
            return False
        to_come = self.options.confirm.trainings if self._confirmation.chosen is None else 0
        return len(self.trials) + to_come >= self.options.n_trials

    def _may_start(self) -> bool:
        return not self._is_exhausted and not self._is_full and self.scheduler.may_start()

    def _start_new(self) -> Decision | None:
        if self._wanted is not None:
            return Idle("waiting for the searcher")
        if not self._may_start():
            return None
        bracket = self._draw_bracket()
        if self._initial_left:
            config = self.initial_configs[self._initial_used]
            self._initial_used += 1
            return self._start(config, bracket, "initial", "one of the first configurations to evaluate")
        self._wanted = SuggestionWanted(len(self.trials), bracket, self.scheduler.first_milestone(bracket))
        return self._wanted

    def _start(self, config: Config, bracket: int, origin: str, reason: str) -> Start:
        trial_id = len(self.trials)
        milestone = self.scheduler.start(trial_id, bracket)
        start = self._begin(Trial(trial_id, config, bracket, milestone, origin, reason))
        self.taken.setdefault(self.space.match_key(config), trial_id)
        self.data.start(trial_id, milestone)
        self._jobs += 1
        self._configs[trial_id] = config
        if self._is_full:
            self.scheduler.close()
        return start

    def _begin(self, trial: Trial) -> Start:
        trial.started_at = self._clock[trial.id] = self.progress.time
        self.trials[trial.id] = trial
        self._live.add(trial.id)
        self.progress.started += 1
        return Start(trial.id, self._whole_config(trial), trial.milestone, replicate=trial.replicate)

    def _whole_config(self, trial: Trial) -> Config:
        """Searched values and constants; a confirmation's seed is its own."""
        whole = self.space.with_constants(trial.config)
        return with_seed(whole, self.options.confirm.seed_attr, trial.replicate)

    # -------------------------------------------------------------------------------- confirmation

    def _is_search_over(self) -> bool:
        """Has it ended, although the study has not, because its best trials are still to be confirmed?"""
        if not self._confirmation:
            return False
        reached = self.options.stop.threshold_reason(self.progress) is not None
        return reached or self._confirmation.chosen is not None or self._needs_rest_to_confirm()

    def _needs_rest_to_confirm(self) -> bool:
        """Is what is left of the limits needed to confirm the best?"""
        if not self._confirmation or not self.progress.evaluations:
            return False
        trainings, n_workers = self.options.confirm.trainings, self.options.n_workers
        after = self._full_training().times(trainings, n_workers, self.progress)
        return self.options.stop.limit_reason(after) is not None

    def _full_training(self) -> Cost:
        """What a training to ``max_t`` takes: by the mean over the study or by its best trial, whichever is more."""
        max_t = self.view().max_t
        units, best = self.progress.evaluations, self._best_any
        seconds, cost = self._busy_in_all / units, self.progress.cost / units
        if best is not None:
            trial = self.trials[best[1]]
            seconds = max(seconds, self.busy_seconds(trial.id) / trial.resource)
            cost = max(cost, trial.cost / trial.resource)
        return Cost(max_t, max_t * seconds, max_t * cost)

    def _confirm(self) -> Decision | None:
        """The next confirmation; the first of them ends the search."""
        confirmation, n_trials = self._confirmation, self.options.n_trials
        if n_trials is not None and len(self.trials) >= n_trials:
            return None
        if confirmation.chosen is None:
            if self._wanted is not None:
                return Idle("waiting for the searcher")
            if self._live and not self._needs_rest_to_confirm():
                return None
            view = self.view()
            curves = {trial_id: view.curve(trial_id) for trial_id in self._configs}
            confirmation.chosen = leading(curves, view.rung_levels, view.max_t, self.options.confirm.top)
            if confirmation.next() is None:
                # A worker that finds nothing to do is not an event, so it must not change the study.
                confirmation.chosen = None
                return None
        following = confirmation.next()
        return None if following is None else self._start_confirmation(*following)

    def _start_confirmation(self, confirmed: int, replicate: int) -> Start:
        trial_id, config = len(self.trials), self.trials[confirmed].config
        reason = f"trains the configuration of trial {confirmed} again, {replicate} of {self.options.confirm.seeds}"
        trial = Trial(trial_id, config, 0, self._confirming.first_milestone(0), "confirm", reason, confirmed, replicate)
        self._confirmation.start(confirmed, trial_id)
        return self._begin(trial)

    def _scheduler_of(self, trial: Trial) -> Scheduler:
        return self.scheduler if trial.confirms is None else self._confirming

    # --------------------------------------------------------------------------------------- events

    def _on_suggested(self, event: Suggested) -> list[Decision]:
        if event.trial_id != len(self.trials):
            raise StudyError(
                f"The next trial is {len(self.trials)}, not {event.trial_id}. Answer suggestions in the order "
                f"in which they are wanted."
            )
        wanted, self._wanted = self._wanted, None
        if event.bracket_weights is not None:
            self._bracket_weights = event.bracket_weights
        if event.searcher_state is not None:
            # What the searcher gets back must not depend on whether it went through a journal.
            self.searcher_state = portable(event.searcher_state)
        if event.config is None:
            self._is_exhausted = True
            self.scheduler.close()
            return []
        bracket = 0 if wanted is None else wanted.bracket
        self._batch_left = max(self._batch_left - 1, 0)
        return [self._start(dict(event.config), bracket, event.origin, event.reason)]

    def _on_started(self, event: AttemptStarted) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt == trial.attempt:
            self._clock[trial.id] = event.time
        return []

    def _on_reported(self, event: Reported) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if isinstance(event.resource, bool) or not isinstance(event.resource, int) or event.resource < 1:
            raise ReportError(
                f"Trial {trial.id} reported at resource {event.resource!r}. Report after 1, 2, 3, ... units of "
                f"resource."
            )
        if event.attempt != trial.attempt or trial.status is not TrialStatus.RUNNING:
            return [self._late(trial, event.attempt)]
        if self._is_trained_to_the_end(trial):
            return [self._verdicts[trial.id]]
        if event.resource <= trial.resource:
            return [self._repeated(trial, event)]
        cost = _latest_cost(trial, event.cost)
        # First, because it may refuse the report.
        ruling = self._scheduler_of(trial).report(trial.id, event.resource, self.criterion(event.value), cost)
        self._account(trial, event, cost)
        told = self._rule(trial, event, ruling)
        self._verdicts[trial.id] = told
        return [told]

    def _late(self, trial: Trial, attempt: int) -> Told:
        """A report after the decision: it changes nothing, the decision stands."""
        if attempt == trial.attempt and trial.id in self._verdicts:
            return self._verdicts[trial.id]
        paused = trial.status in (TrialStatus.PAUSED, TrialStatus.PAUSING)
        return Told(trial.id, Verdict.PAUSE if paused else Verdict.STOP, f"the trial is {trial.status}")

    def _repeated(self, trial: Trial, event: Reported) -> Told:
        """What is known is not judged again, and what comes out of order comes too late; the first value stands."""
        known = trial.curve.get(event.resource)
        if known is not None:
            self._scheduler_of(trial).repeat(trial.id, event.resource, self.criterion(known))
        if trial.id in self._pause_requests:
            return self._pause_as_requested(trial)
        return Told(trial.id, Verdict.CONTINUE, f"repeats what is known up to {trial.resource}")

    def _account(self, trial: Trial, event: Reported, cost: float | None) -> None:
        trial.curve[event.resource] = event.value
        trial.metrics = dict(event.metrics)
        seconds = max(event.time - self._clock.get(trial.id, event.time), 0.0)
        self._busy_seconds[trial.id] = self._busy_seconds.get(trial.id, 0.0) + seconds
        self._busy_in_all += seconds
        self._clock[trial.id] = event.time
        if cost is not None:
            self.progress.cost += cost - trial.cost
            trial.cost = cost
        self.progress.add_report({self.options.metric: event.value, **event.metrics})
        criterion = self.criterion(event.value)
        if math.isfinite(criterion) and (self._best_any is None or criterion < self._best_any[0]):
            self._best_any = (criterion, trial.id, event.resource)

    def _rule(self, trial: Trial, event: Reported, ruling: Ruling) -> Told:
        value = self.criterion(event.value)
        continues = ruling.verdict is Verdict.CONTINUE and not ruling.completed
        if trial.confirms is None:
            self.data.report(trial.id, event.resource, value, ruling.level, ruling.milestone, continues)
        if ruling.milestone is not None:
            trial.milestone = ruling.milestone
        if ruling.completed:
            self._note_full(trial, event.resource)
            if self.scheduler.learns_at_completion and trial.confirms is None:
                self.data.complete(trial.id, event.resource, value)
            return Told(trial.id, ruling.verdict, ruling.reason, completed=True)
        if ruling.verdict is Verdict.PAUSE:
            trial.status = TrialStatus.PAUSING
        elif ruling.verdict is Verdict.STOP:
            trial.status = TrialStatus.STOPPING
        elif trial.confirms is None and (self._confirmation.chosen is not None or self._needs_rest_to_confirm()):
            self._pause_requests.setdefault(trial.id, "the search is over: its worker is to confirm the best")
        if trial.id in self._pause_requests and trial.status is TrialStatus.RUNNING:
            return self._pause_as_requested(trial)
        return Told(trial.id, ruling.verdict, ruling.reason)

    def _pause_as_requested(self, trial: Trial) -> Told:
        trial.status = TrialStatus.PAUSING
        told = Told(trial.id, Verdict.PAUSE, self._pause_requests[trial.id])
        self._verdicts[trial.id] = told
        return told

    def _note_full(self, trial: Trial, resource: int) -> None:
        criterion = self.criterion(trial.curve[resource])
        if math.isfinite(criterion) and (self._best_full is None or criterion < self._best_full[0]):
            self._best_full = (criterion, trial.id, resource)

    def _on_checkpoint_saved(self, event: CheckpointSaved) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt != trial.attempt:
            return []
        old, trial.checkpoint = trial.checkpoint, event.checkpoint
        if trial.status.is_final:
            self._spent_checkpoints.add(trial.id)
        if old is None or old.path == event.checkpoint.path:
            return []
        return [DropCheckpoint(trial.id, old, "a newer checkpoint is saved")]

    def _on_checkpoint_removed(self, event: CheckpointRemoved) -> list[Decision]:
        self.trial(event.trial_id).checkpoint = None
        self._spent_checkpoints.discard(event.trial_id)
        return []

    def _on_pause_requested(self, event: PauseRequested) -> list[Decision]:
        if self.trial(event.trial_id).status is TrialStatus.RUNNING:
            self._pause_requests[event.trial_id] = event.reason
        return []

    def _on_ended(self, event: AttemptEnded) -> list[Decision]:
        trial = self.trial(event.trial_id)
        if event.attempt != trial.attempt or trial.id not in self._live:
            return []
        self._live.discard(trial.id)
        requested = self._pause_requests.pop(trial.id, None)
        if event.error:
            trial.error = event.error
        if self._is_trained_to_the_end(trial):
            self._complete(trial)
        elif trial.status is TrialStatus.PAUSING and event.outcome is Outcome.COMPLETED:
            self._complete_early(trial)  # the training ended by itself in the epoch in which it was to pause
        elif trial.status is TrialStatus.PAUSING:
            if requested is not None and trial.resource < trial.milestone:
                self._wait(trial)
            else:
                trial.status = TrialStatus.PAUSED
        elif trial.status is TrialStatus.STOPPING:
            self._finish(trial, TrialStatus.STOPPED)
        elif event.outcome is Outcome.COMPLETED:
            self._complete_early(trial)
        elif event.outcome is Outcome.STOPPED:
            self._give_up(trial, TrialStatus.STOPPED)
        elif event.outcome is Outcome.FAILED:
            self._fail(trial)
        elif event.outcome is Outcome.LOST:
            trial.failures += 1
            if trial.failures > self.options.max_retries:
                self._fail(trial)
            else:
                self._wait(trial)
        else:
            self._wait(trial)
        return []

    def _is_trained_to_the_end(self, trial: Trial) -> bool:
        return self.scheduler.max_t is not None and trial.resource >= self.scheduler.max_t

    def _complete(self, trial: Trial) -> None:
        self._has_success = True
        self.progress.completed += 1
        self._finish(trial, TrialStatus.COMPLETED)

    def _complete_early(self, trial: Trial) -> None:
        if not trial.curve:
            trial.error = trial.error or "the script ended without a single report"
            self._fail(trial)
            return
        last = trial.resource
        if trial.confirms is None:
            self.data.complete(trial.id, last, self.criterion(trial.curve[last]))
        self._note_full(trial, last)
        self._scheduler_of(trial).fail(trial.id)
        self._complete(trial)

    def _fail(self, trial: Trial) -> None:
        self._failed.add(trial.id)
        if trial.confirms is None:
            self._taken_by_failed[self.space.match_key(trial.config)] = None
        self.progress.failed += 1
        self._give_up(trial, TrialStatus.FAILED)
        if not self._has_success and not any(t.curve for t in self.trials.values()):
            self._first_errors.append((trial.error or "unknown error").strip().splitlines()[-1])
            limit = self.options.max_failures_in_a_row
            if len(self._first_errors) >= limit and len(set(self._first_errors[-limit:])) == 1:
                self.repeated_error = self._first_errors[-1]
                self.ended = (
                    f"the first {len(self._first_errors)} trials failed with the same error: {self.repeated_error}"
                )

    def _give_up(self, trial: Trial, status: TrialStatus) -> None:
        self.data.drop_pending(trial.id)
        self._scheduler_of(trial).fail(trial.id)
        self._finish(trial, status)

    def _finish(self, trial: Trial, status: TrialStatus) -> None:
        trial.status = status
        trial.ended_at = self.progress.time
        self.progress.finished += 1
        if trial.checkpoint is not None:
            self._spent_checkpoints.add(trial.id)

    def _wait(self, trial: Trial) -> None:
        trial.status = TrialStatus.WAITING
        self._waiting.append(trial.id)

    def _on_continued(self, event: StudyContinued) -> list[Decision]:
        if event.limits is not None:
            self.options = self.options.with_limits(event.limits)
            self._confirmation.reopen(self.options.confirm)
        self._wanted = None
        self._batch_left = 0
        self.ended = self.repeated_error = None
        for trial_id in sorted(self._live):
            trial = self.trials[trial_id]
            self._on_ended(AttemptEnded(event.time, trial_id, trial.attempt, Outcome.INTERRUPTED))
        if self._is_full or self._is_exhausted:
            self.scheduler.close()
        else:
            self.scheduler.reopen()
        # The launcher may have gone before it deleted what it was told to.
        self._spent_checkpoints = {i for i, t in self.trials.items() if t.status.is_final and t.checkpoint is not None}
        return []

    # ------------------------------------------------------------------------------------ retention

    def _spent(self) -> list[Decision]:
        """Checkpoints of final trials that are not the best one's."""
        best = None if self._best_any is None else self._best_any[1]
        spent = [i for i in sorted(self._spent_checkpoints) if i != best]
        decisions: list[Decision] = []
        for trial_id in spent:
            self._spent_checkpoints.discard(trial_id)
            checkpoint = self.trials[trial_id].checkpoint
            if checkpoint is not None:
                decisions.append(DropCheckpoint(trial_id, checkpoint, f"the trial is {self.trials[trial_id].status}"))
        return decisions

    # ------------------------------------------------------------------------------------ invariants

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself; for tests."""
        for i, trial in self.trials.items():
            assert i == trial.id
            assert trial.status.occupies_worker == (i in self._live), (i, trial.status)
            assert (trial.status is TrialStatus.WAITING) == (i in self._waiting), (i, trial.status)
            assert (i in self._failed) == (trial.status is TrialStatus.FAILED), (i, trial.status)
        assert list(self.trials) == list(range(len(self.trials)))
        assert len(self._waiting) == len(set(self._waiting))
        running = {i for i, t in self.trials.items() if t.status is TrialStatus.RUNNING}
        waiting = set(self._waiting)
        pausing = {i for i in self._pause_requests if self.trials[i].status is TrialStatus.PAUSING}
        assert {p.trial_id for p in self.data.pending()} <= running | waiting | pausing
        observed = {(o.trial_id, o.resource) for o in self.data.observations()}
        assert not observed & set(self.data.pending())
        assert self.progress.started == len(self.trials)
        finals = [t.status for t in self.trials.values() if t.status.is_final]
        assert self.progress.finished == len(finals)
        assert self.progress.completed == sum(s is TrialStatus.COMPLETED for s in finals)


def _latest_cost(trial: Trial, reported: float | None) -> float | None:
    """The largest cost the trial ever reported, None if it reported none; what is not finite does not count."""
    if reported is None or not math.isfinite(reported):
        return trial.cost or None
    return max(trial.cost, reported)


class StudyView:
    """A searcher's view (:class:`lightning_hpo.core.searcher.SearchView`) of a study."""

    def __init__(self, state: StudyState) -> None:
        self._state = state

    @property
    def space(self) -> SearchSpace:
        return self._state.space

    @property
    def seed(self) -> int:
        return self._state.options.random_seed

    @property
    def mode(self) -> str:
        return self._state.options.mode

    @property
    def max_t(self) -> int:
        state = self._state
        return state.scheduler.max_t or max((t.resource for t in state.trials.values()), default=1) or 1

    @property
    def rung_levels(self) -> tuple[int, ...]:
        return self._state.scheduler.levels

    @property
    def default_bracket_weights(self) -> tuple[float, ...]:
        return self._state.scheduler.bracket_weights

    @property
    def observations(self) -> Sequence[Observation]:
        return self._state.data.observations()

    @property
    def pending(self) -> Sequence[Pending]:
        return self._state.data.pending()

    @property
    def failed(self) -> Set[int]:
        return self._state._failed

    @property
    def configs(self) -> Mapping[int, Config]:
        return self._state._configs

    @property
    def confirmations(self) -> Mapping[int, Sequence[int]]:
        trials = self._state.trials
        complete = {
            confirmed: [i for i in again if trials[i].status is TrialStatus.COMPLETED]
            for confirmed, again in self._state._confirmation.of.items()
        }
        return {confirmed: again for confirmed, again in complete.items() if again}

    @property
    def initial_configs(self) -> Sequence[Config]:
        return self._state.initial_configs

    @property
    def taken(self) -> Set[str]:
        return self._state.taken.keys()

    @property
    def taken_by_failed(self) -> Set[str]:
        return self._state._taken_by_failed.keys()

    @property
    def state(self) -> Mapping[str, Any] | None:
        return self._state.searcher_state

    def curve(self, trial_id: int) -> Mapping[int, float]:
        state = self._state
        curve = state.trials[trial_id].curve
        return {r: state.criterion(v) for r, v in curve.items() if math.isfinite(v)}

    def epoch_cost(self, trial_id: int) -> float | None:
        state = self._state
        resource = state.trials[trial_id].resource
        if not resource:
            return None
        spent = state.trials[trial_id].cost or state._busy_seconds.get(trial_id, 0.0)
        return spent / resource if spent > 0 else None
