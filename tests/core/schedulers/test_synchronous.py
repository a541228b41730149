from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.events import Finish, Outcome, StudyContinued, Verdict, WorkerReady
from lightning_hpo.core.schedulers.synchronous import (
    DifferentialEvolutionHyperband,
    SyncHyperband,
    hyperband_brackets,
)
from lightning_hpo.core.searcher import Slot
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import OptionError
from tests.core.driving import Driven, snapshot


class TestBrackets:
    def test_of_the_papers_example(self):
        """R = 81, eta = 3 (Hyperband, table 1); sizes are rounded up."""
        assert hyperband_brackets(81) == [
            [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
            [(34, 3), (12, 9), (4, 27), (2, 81)],
            [(15, 9), (5, 27), (2, 81)],
            [(8, 27), (3, 81)],
            [(5, 81)],
        ]

    def test_end_at_max_t_even_if_it_is_no_power(self):
        assert hyperband_brackets(20, grace_period=2)[0] == [(27, 2), (9, 6), (3, 18), (1, 20)]

    def test_may_be_fewer(self):
        assert hyperband_brackets(81, brackets=2) == hyperband_brackets(81)[:2]
        assert len(hyperband_brackets(81, brackets=99)) == 5

    def test_reach_max_t_once_even_if_a_level_is_rounded_up_to_it(self):
        """Levels of eta = 2.5 are 1, 2.5, 6.25, 15.6: the last is 16, too. Sizes are 5/(5-s) 2.5^(4-s-k)."""
        assert hyperband_brackets(16, reduction_factor=2.5) == [
            [(40, 1), (16, 2), (7, 6), (1, 16)],
            [(20, 2), (8, 6), (2, 16)],
            [(11, 6), (2, 16)],
            [(3, 16)],
            [(5, 16)],
        ]

    def test_that_make_no_sense_are_refused(self):
        with pytest.raises(OptionError, match="Choose 1 <= grace_period <= max_t"):
            hyperband_brackets(3, grace_period=4)


LADDERS = st.tuples(
    st.integers(1, 100), st.integers(1, 5), st.one_of(st.sampled_from([2.0, 2.5, 3.0, 3.5]), st.floats(2.0, 6.0))
).filter(lambda ladder: ladder[1] <= ladder[0])
"""``max_t``, ``grace_period`` and ``reduction_factor``."""
ROUNDED_UP = [
    (98, 1, 2.5), (8, 3, 2.5), (19, 3, 2.5), (47, 3, 2.5), (4, 1, 3.5), (43, 1, 3.5), (86, 2, 3.5),
]  # fmt: skip
"""Those whose last level but one is rounded up to ``max_t``."""


def drive(
    scheduler: SyncHyperband,
    n_trials: int,
    value: Callable[[int, int], float],
    ends: Callable[[int, int], bool] = lambda trial_id, level: False,
) -> Counter[int]:
    """One worker trains until nobody can be promoted and ``n_trials`` are started.

    Args:
        value: what a trial reports at a level.
        ends: does it end by itself where it was to pause? This is known only after the next job.

    Returns how many jobs ended at each level.
    """
    jobs: Counter[int] = Counter()
    paused: set[int] = set()
    ending: list[int] = []
    started = 0
    while True:
        promotion = scheduler.promote(0, paused.__contains__)
        if promotion is not None:
            trial_id, milestone = promotion.trial_id, promotion.milestone
            paused.remove(trial_id)
        elif started < n_trials:
            trial_id, milestone = started, scheduler.start(started, 0)
            started += 1
        elif ending:
            scheduler.fail(ending.pop())
            continue
        else:
            return jobs
        jobs[milestone] += 1
        verdict = scheduler.report(trial_id, milestone, value(trial_id, milestone)).verdict
        while ending:
            scheduler.fail(ending.pop())
        if verdict is Verdict.PAUSE and ends(trial_id, milestone):
            ending.append(trial_id)
        elif verdict is Verdict.PAUSE:
            paused.add(trial_id)


class TestBracketsOfAnyLadder:
    @given(LADDERS)
    def test_levels_rise_to_max_t_while_sizes_fall(self, ladder):
        for bracket in hyperband_brackets(*ladder):
            assert bracket[-1][1] == ladder[0]
            for (size, level), (next_size, next_level) in itertools.pairwise(bracket):
                assert level < next_level and size > next_size

    @pytest.mark.parametrize("ladder", ROUNDED_UP)
    def test_also_where_a_level_is_rounded_up_to_max_t(self, ladder):
        for bracket in hyperband_brackets(*ladder):
            assert [level for _, level in bracket].count(ladder[0]) == 1

    @given(LADDERS)
    def test_every_bracket_is_finished(self, ladder):
        self.finish(ladder)

    @pytest.mark.parametrize("ladder", ROUNDED_UP)
    def test_is_finished_also_where_a_level_is_rounded_up(self, ladder):
        self.finish(ladder)

    def finish(self, ladder: tuple[int, int, float]) -> None:
        """Every place of every bracket is trained for, in one cycle through the brackets."""
        shapes = hyperband_brackets(*ladder)
        places = Counter({level: 0 for shape in shapes for _, level in shape})
        for size, level in itertools.chain(*shapes):
            places[level] += size
        jobs = drive(SyncHyperband(*ladder), sum(shape[0][0] for shape in shapes), lambda i, r: 0.1 * (7 * i % 11))
        assert jobs == places

    @pytest.mark.parametrize("ladder", [(16, 1, 2.5), (27, 1, 3.0), *ROUNDED_UP])
    def test_so_is_every_bracket_of_differential_evolution(self, ladder):
        """Bracket s has the rungs of bracket 0 from the s-th on; after bracket 0 every place is a new trial's."""
        first = hyperband_brackets(*ladder)[0]
        later = [rung for s in range(1, len(first)) for rung in first[s:]]
        n_trials = first[0][0] + sum(size for size, _ in later)
        places: Counter[int] = Counter()
        for size, level in [*first, *later]:
            places[level] += size
        scheduler = DifferentialEvolutionHyperband(*ladder)
        assert drive(scheduler, n_trials, lambda i, r: 0.1 * (7 * i % 11)) == places


def sync(max_t: int = 9, **options) -> Driven:
    """max_t = 9: brackets 9@1 3@3 1@9, 5@3 2@9, 3@9."""
    return Driven(algorithm="sync_hyperband", max_t=max_t, **options)


class TestSyncHyperband:
    def test_fills_a_rung_promotes_its_best_and_cycles_through_the_brackets(self):
        """max_t = 3: brackets 3@1 1@3 and 2@3. Trial i reports 0.1 i, so the first of each bracket is best."""
        jobs = sync(3, n_trials=10).run(lambda i, r: 0.1 * i)
        assert jobs == "n0 n1 n2 0->3 n3 n4 n5 n6 n7 5->3 n8 n9"

    def test_trials_of_later_brackets_begin_at_later_levels(self):
        study = sync(3, n_trials=10)
        study.run(lambda i, r: 0.1 * i)
        full = [i for i, t in study.state.trials.items() if t.status is TrialStatus.COMPLETED]
        assert full == [0, 3, 4, 5, 8, 9]

    def test_the_best_of_a_rung_go_on_ties_to_the_earlier(self):
        study = sync(9)
        for value in (0.5, 0.1, 0.3, 0.1, 0.9, 0.1, 0.1, 0.8, 0.7):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        assert [study.job() for _ in range(3)] == ["1->3", "3->3", "5->3"]

    def test_a_free_worker_fills_the_next_bracket_meanwhile(self):
        study = sync(3)
        assert [study.job() for _ in range(5)] == ["n0", "n1", "n2", "n3", "n4"]
        assert [study[i].milestone for i in range(5)] == [1, 1, 1, 3, 3]
        for trial in range(3):
            study.train(trial, 0.1)
        assert study.job() == "0->3"  # the oldest bracket first
        assert study.job() == "n5"

    def test_a_promoted_trial_whose_process_has_not_ended_is_passed_over(self):
        study = sync(3)
        for _ in range(3):
            study.ready()
        study.report(0, 1, 0.1)
        study.train(1, 0.2)
        study.train(2, 0.3)
        assert study.job() == "n3"
        study.save(0, 1)
        study.end(0, Outcome.PAUSED)
        assert study.job() == "0->3"

    def test_a_failed_trial_is_last_in_its_rung(self):
        study = sync(3)
        for _ in range(3):
            study.ready()
        study.fail(0)
        study.train(1, 0.9)
        study.train(2, 0.8)
        assert study.job() == "2->3"

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_so_is_one_whose_value_is_not_finite(self, bad):
        study = sync(3)
        for value in (bad, 0.9, 0.8):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        assert study[0].status is TrialStatus.STOPPED
        assert study.job() == "2->3"

    def test_a_trial_that_ended_by_itself_where_it_was_to_pause_is_passed_over(self):
        """The best of the rung ended before the others came: the second best goes on."""
        study = sync(3)
        for _ in range(3):
            study.ready()
        study.report(0, 1, 0.1)
        study.end(0, Outcome.COMPLETED)
        study.train(1, 0.3)
        study.train(2, 0.2)
        assert study.job() == "2->3"
        assert not study.state.scheduler.may_promote(0)

    def test_and_gives_up_the_place_to_which_it_was_promoted(self):
        """The rung was filled, and the best of it promoted, before its process ended."""
        study = sync(3)
        for _ in range(3):
            study.ready()
        study.report(0, 1, 0.1)
        study.train(1, 0.3)
        study.train(2, 0.2)
        assert study.job() == "n3"  # trial 0 has the place, and is not paused yet
        study.end(0, Outcome.COMPLETED)
        assert study.job() == "2->3"

    def test_its_place_is_never_given_to_one_that_goes_on_already(self):
        """max_t = 9, brackets 9@1 3@3 1@9: trials 0, 1, 2 are promoted; when 1 has ended, 3 goes on for it."""
        study = sync(9)
        for _ in range(9):
            study.ready()
        for trial in (0, 2, 3, 4, 5, 6, 7, 8):
            study.train(trial, 0.1 * trial)
        study.report(1, 1, 0.1)
        assert study.job() == "0->3"
        study.end(1, Outcome.COMPLETED)
        assert [study.job() for _ in range(3)] == ["3->3", "2->3", "n9"]

    def test_a_rung_whose_trials_all_ended_by_themselves_ends_its_bracket(self):
        study = sync(3)
        for trial in range(3):
            study.ready()
            study.report(trial, 1, 0.1)
            if trial < 2:
                study.end(trial, Outcome.COMPLETED)
        study.end(2, Outcome.COMPLETED)
        assert study.job() == "n3"
        assert not study.state.scheduler.may_promote(2)

    @pytest.mark.parametrize("method", [SyncHyperband, DifferentialEvolutionHyperband])
    @given(enders=st.sets(st.tuples(st.integers(0, 26), st.sampled_from([1, 3, 9]))))
    def test_every_bracket_is_finished_whoever_ends_by_itself(self, method, enders):
        """27@1, 9@3, 3@9, 1@27: as many are trained on as there are places and trials that can be."""
        ended: Counter[int] = Counter()

        def ends(trial_id: int, level: int) -> bool:
            ended[level] += (trial_id, level) in enders
            return (trial_id, level) in enders

        jobs = drive(method(27, brackets=1), 27, lambda i, r: 0.1 * (7 * i % 11) + 0.01 * i / r, ends)
        assert jobs[1] == 27
        for size, level in ((9, 3), (3, 9), (1, 27)):
            assert jobs[level] == min(size, jobs[level // 3] - ended[level // 3])

    def test_a_rung_of_nothing_but_failures_ends_its_bracket(self):
        study = sync(3)
        for trial in range(3):
            study.ready()
            study.fail(trial, f"error {trial}")
        assert study.job() == "n3"
        assert study[3].milestone == 3

    def test_does_not_wait_for_trials_that_will_not_come(self):
        """Two of the three places of the first rung are never taken."""
        assert sync(3, n_trials=1).run(lambda i, r: 0.1) == "n0 0->3"

    def test_goes_on_when_the_total_is_raised(self):
        study = sync(3, n_trials=1)
        study.run(lambda i, r: 0.1)
        assert isinstance(study.ready(), Finish)
        study.handle(StudyContinued(0.0, {"n_trials": 3}))
        assert study.run(lambda i, r: 0.1) == "n1 n2"
        assert [study[i].milestone for i in (1, 2)] == [3, 3]

    def test_asking_what_would_come_next_changes_nothing(self):
        study, other = sync(3), sync(3)
        for _ in range(12):
            for driven in (study, other):
                if driven is study:
                    for _ in range(3):
                        driven.state.next_request()
                driven.ready()
        for trial in (0, 1, 2, 3, 4):
            study.tell(trial, study[trial].milestone, 0.1 * trial)
            other.tell(trial, other[trial].milestone, 0.1 * trial)
        assert snapshot(study.state) == snapshot(other.state)
        assert study.job() == other.job() == "0->3"

    def test_a_lost_trial_keeps_its_place(self):
        study = sync(3)
        for _ in range(3):
            study.ready()
        study.lose(0)
        study.train(1, 0.5)
        study.train(2, 0.4)
        assert study.job() == "0->1"
        study.train(0, 0.1)
        assert study.job() == "0->3"

    def test_checkpoints_of_trials_that_are_out_are_not_needed(self):
        study = sync(3)
        for value in (0.1, 0.2, 0.3):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        assert [study.state.scheduler.may_promote(i) for i in range(3)] == [True, False, False]


class TestDifferentialEvolution:
    """max_t = 3: brackets 3@1 1@3, 1@3, 3@1 1@3, ..."""

    def want(self, study: Driven) -> Slot | None:
        (wanted,) = study.handle(WorkerReady(0.0))
        return study.state.request(wanted).slot

    def start(self, study: Driven, *values: float) -> None:
        study.suggest(len(study.state.trials))
        study.train(len(study.state.trials) - 1, *values)

    def test_the_first_bracket_is_successive_halving(self):
        study = Driven(algorithm="dehb", max_t=3)
        for value in (0.3, 0.1, 0.2):
            assert self.want(study) is None
            self.start(study, value)
        assert study.job() == "1->3"

    def test_later_brackets_evolve_the_populations(self):
        study = Driven(algorithm="dehb", max_t=3)
        for value in (0.3, 0.1, 0.2):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        study.train(1, 0.06, 0.05)
        # Bracket 1: one place at level 3, held by trial 1.
        assert self.want(study) == Slot(3, target=1, parents=(1,))
        self.start(study, 0.5, 0.5, 0.07)  # not better than 0.05: trial 1 keeps the place
        # Bracket 2: three places at level 1, held by 0, 1 and 2.
        assert self.want(study) == Slot(1, target=0, parents=(0, 1, 2))
        self.start(study, 0.25)  # better than 0.3
        assert self.want(study) == Slot(1, target=1, parents=(0, 1, 2))
        self.start(study, 0.1)  # a tie: the target stays
        assert self.want(study) == Slot(1, target=2, parents=(0, 1, 2))
        self.start(study, 0.5)
        # Its rung at level 3: the target is who holds it, the parents are the best of the rung below.
        assert self.want(study) == Slot(3, target=1, parents=(1,))
        self.start(study, 0.5, 0.5, 0.01)
        assert self.want(study) == Slot(3, target=7, parents=(7,))
        self.start(study, 0.5, 0.5, 0.5)
        assert self.want(study) == Slot(1, target=4, parents=(4, 1, 2))

    def test_offspring_end_at_their_level_and_are_never_resumed(self):
        study = Driven(algorithm="dehb", max_t=3, n_trials=8)
        jobs = study.run(lambda i, r: 1.0 - 0.1 * i)
        assert jobs == "n0 n1 n2 2->3 n3 n4 n5 n6 n7"
        assert [study[i].status.value for i in (4, 5, 6)] == ["stopped"] * 3
        assert study[7].status is TrialStatus.COMPLETED

    def test_a_failed_offspring_loses_against_its_target(self):
        study = Driven(algorithm="dehb", max_t=3)
        for value in (0.3, 0.1, 0.2):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        study.train(1, 0.06, 0.05)
        study.ready()
        study.fail(3)
        for _ in range(3):
            study.ready()
            study.train(len(study.state.trials) - 1, 0.9)
        assert self.want(study) == Slot(3, target=1, parents=(1,))

    def test_an_offspring_that_ends_late_competes_with_who_holds_the_place_by_then(self):
        """Trial 3 of bracket 1 fails when bracket 2 has long replaced its target at level 3."""
        study = Driven(algorithm="dehb", max_t=3)
        for value in (0.3, 0.1, 0.2):
            study.ready()
            study.train(len(study.state.trials) - 1, value)
        study.job()
        study.train(1, 0.06, 0.05)
        study.ready()  # trial 3 takes the place of bracket 1, target 1, and trains on
        for _ in range(3):
            study.ready()  # trials 4, 5 and 6: the first rung of bracket 2
        for trial in (4, 5, 6):
            study.train(trial, 0.9)
        study.ready()
        study.train(7, 0.5, 0.5, 0.01)  # its second rung: trial 7 replaces trial 1
        study.fail(3)
        assert self.want(study) == Slot(3, target=7, parents=(7,))

    def test_places_nobody_came_for_keep_their_holders(self):
        study = Driven(algorithm="dehb", max_t=3, n_trials=5)
        study.run(lambda i, r: 1.0 - 0.1 * i)  # the fifth trial takes the first place of bracket 2
        study.handle(StudyContinued(0.0, {"n_trials": 50}))
        assert self.want(study) == Slot(3, target=3, parents=(4,))
        self.start(study, 0.95, 0.95, 0.95)
        assert self.want(study) == Slot(3, target=3, parents=(3,))  # bracket 3
        self.start(study, 0.95, 0.95, 0.95)
        assert self.want(study) == Slot(1, target=4, parents=(4, 1, 2))
