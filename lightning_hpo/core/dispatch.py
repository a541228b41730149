"""What a free worker does: resume a trial, start a new one, confirm one of the best, or nothing."""

from __future__ import annotations

import dataclasses

from lightning_hpo.core.brackets import draw_bracket
from lightning_hpo.core.confirmation import Cost, leading
from lightning_hpo.core.events import Decision, Finish, Idle, Resume, Start, SuggestionWanted, WorkerReady
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.record import StudyRecord
from lightning_hpo.core.schedulers.base import Promotion
from lightning_hpo.core.searcher import SuggestRequest
from lightning_hpo.core.seeds import Stream, generator
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import Config, Trial, TrialStatus


class Dispatcher(StudyRecord):
    """Gives out work."""

    def __init__(self, space: SearchSpace, options: StudyOptions) -> None:
        super().__init__(space, options)
        self._waiting: list[int] = []
        """Trials whose process was lost, in the order in which they are tried again."""
        self._batch_left = 0
        self._jobs = 0
        """Starts and promotions so far: the counter of the bracket draws. A job that was lost and is tried again is
        the same job, so that the draws do not depend on what was killed."""
        self._bracket_weights = self.scheduler.bracket_weights
        self._wanted: SuggestionWanted | None = None
        self._initial_used = 0
        self._is_exhausted = False

    @property
    def wanted(self) -> SuggestionWanted | None:
        """The suggestion that was asked for and has not come yet."""
        return self._wanted

    @property
    def bracket_weights(self) -> tuple[float, ...]:
        return self._bracket_weights

    def request(self, wanted: SuggestionWanted) -> SuggestRequest:
        """The request to the searcher that belongs to a decision."""
        scheduler = self.scheduler
        return SuggestRequest(
            wanted.trial_id, wanted.bracket, wanted.milestone, scheduler.slot(), scheduler.wants_limits
        )

    def next_request(self) -> SuggestRequest | None:
        """The request that would come next, to be answered ahead of time; None if none can come."""
        is_over = self.confirmation.chosen is not None
        if is_over or self._wanted is not None or not self._may_start() or self._initial_left:
            return None
        if self.scheduler.is_searcher_led:
            return None  # what the next free worker is best used for depends on the report that frees it
        bracket = self._draw_bracket()
        return SuggestRequest(len(self.trials), bracket, self.scheduler.first_milestone(bracket), self.scheduler.slot())

    def _next_job(self, event: WorkerReady) -> Decision:
        closing = self.closing_reason(event.time)
        if closing is not None:
            return Finish(closing)
        batch_left = self._batch_left
        if not self.options.asynchronous and not batch_left:
            if self._live:
                return Idle("the batch is not complete")
            batch_left = self.options.n_workers
        is_searching = not self._is_search_over()
        job = self._resume_waiting(is_searching)
        if job is None and is_searching:
            job = self._promote() or self._start_new()
        if job is None and self.confirmation:
            job = self._confirm()
        if job is None and not self._live:
            job = self._train_one_to_the_end()
        if isinstance(job, SuggestionWanted):
            self._batch_left = batch_left
        if isinstance(job, (Start, Resume)):
            self._batch_left = max(batch_left - 1, 0)
            self._clock[job.trial_id] = event.time
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
        if self.ended is None or self.repeated_error is None:
            stop, now = self.options.stop, dataclasses.replace(self.progress, time=max(self.progress.time, time))
            reason = stop.limit_reason(now) if self.confirmation else stop.reason(now)
            self.ended = reason or self.ended
        return self.ended

    def _why_nothing_is_left(self) -> str:
        if self.confirmation.chosen is not None and self.confirmation.next() is None:
            number = len(self.confirmation.chosen)
            return f"the best {number} configurations are confirmed" if number > 1 else "the best one is confirmed"
        if self._is_exhausted:
            return "every configuration has been tried"
        if self._is_full:
            number, limit = len(self.trials), self.options.n_trials or 0
            more = f"n_trials is {limit}, and there are {number} trials already"
            return f"all {limit} trials are done" if number <= limit else more
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
        if promotion is None and not self._may_start():
            # There will be no other draw, and each bracket may have rungs of its own.
            every = (self.scheduler.promote(b, self._is_paused) for b in range(len(self._bracket_weights)))
            promotion = next((found for found in every if found is not None), None)
        return None if promotion is None else self._promoted(promotion, promotion.reason)

    def _train_one_to_the_end(self) -> Resume | None:
        if any(trial.status is TrialStatus.COMPLETED for trial in self.trials.values()):
            return None
        promotion = self.scheduler.last_resort(self._is_paused)
        return (
            None if promotion is None else self._promoted(promotion, f"none was trained to the end; {promotion.reason}")
        )

    def _promoted(self, promotion: Promotion, reason: str) -> Resume:
        trial = self.trials[promotion.trial_id]
        trial.milestone = promotion.milestone
        trial.reason = reason
        self._jobs += 1
        # It may have reported beyond its rung, where it does not report at every unit.
        self.data.resume(trial.id, max(promotion.from_resource, trial.resource), promotion.milestone)
        return self._resumed(trial)

    def _resumed(self, trial: Trial) -> Resume:
        trial.attempt += 1
        trial.status = TrialStatus.RUNNING
        trial.resume_from = trial.checkpoint.resource if trial.checkpoint else 0
        self._live.add(trial.id)
        self._verdicts.pop(trial.id, None)
        return Resume(
            trial.id,
            self.whole_config(trial),
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
        to_come = self.options.confirm.trainings if self.confirmation.chosen is None else 0
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
        self.scheduler.asked()
        return self._wanted

    def _start(self, config: Config, bracket: int, origin: str, reason: str, aim: int | None = None) -> Start:
        trial_id = len(self.trials)
        milestone = self.scheduler.start(trial_id, bracket)
        if aim is not None and self.scheduler.is_searcher_led:
            milestone = self.scheduler.aim(trial_id, aim)
        start = self._begin(Trial(trial_id, config, bracket, milestone, origin, reason))
        self.taken.setdefault(self.space.match_key(config), trial_id)
        self.data.start(trial_id, milestone)
        self._jobs += 1
        self.configs[trial_id] = config
        if self._is_full:
            self.scheduler.close()
        return start

    def _begin(self, trial: Trial) -> Start:
        trial.started_at = self._clock[trial.id] = self.progress.time
        self.trials[trial.id] = trial
        self._live.add(trial.id)
        self.progress.started += 1
        return Start(trial.id, self.whole_config(trial), trial.milestone, replicate=trial.replicate)

    # -------------------------------------------------------------------------------- confirmation

    def _is_search_over(self) -> bool:
        """Has it ended, although the study has not, because its best trials are still to be confirmed?"""
        if not self.confirmation:
            return False
        reached = self.options.stop.threshold_reason(self.progress) is not None
        return reached or self.confirmation.chosen is not None or self._needs_rest_to_confirm()

    def _needs_rest_to_confirm(self) -> bool:
        """Is what is left of the limits needed to confirm the best?"""
        if not self.confirmation or not self.progress.evaluations:
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
        confirmation, n_trials = self.confirmation, self.options.n_trials
        if n_trials is not None and len(self.trials) >= n_trials:
            return None
        if confirmation.chosen is None:
            if self._wanted is not None:
                return Idle("waiting for the searcher")
            if self._live and not self._needs_rest_to_confirm():
                return None
            view = self.view()
            curves = {trial_id: view.curve(trial_id) for trial_id in self.configs}
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
        self.confirmation.start(confirmed, trial_id)
        return self._begin(trial)
