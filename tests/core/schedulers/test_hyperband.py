from __future__ import annotations

import math

import pytest

from lightning_hpo.core.events import Verdict, WorkerReady
from lightning_hpo.errors import ReportError
from tests.core.driving import Driven


def letters(study: Driven, *values: float) -> str:
    """Trials 0, 1, 2, ... report one value each at level 1: C continue, S stop, P pause."""
    told = ""
    for value in values:
        study.ready()
        told += study.tell(len(study.state.trials) - 1, 1, value).name[0]
    return told


class TestStopping:
    """max_t = 9, levels 1 and 3."""

    METRICS = (0.50, 0.40, 0.45, 0.30, 0.60, 0.35, 0.32, 0.35)

    def test_stops_what_is_not_among_the_best_third(self):
        assert letters(Driven(max_t=9, min_rung_entries="two"), *self.METRICS) == "CCSCSCCC"

    def test_judges_nobody_before_eta_trials_have_reported(self):
        assert letters(Driven(max_t=9), *self.METRICS) == "CCSCSCCC"
        assert letters(Driven(max_t=9), 0.40, 0.50) == "CC"
        assert letters(Driven(max_t=9, min_rung_entries="two"), 0.40, 0.50) == "CS"

    def test_maximises_with_the_same_decisions(self):
        negated = [-v for v in self.METRICS]
        assert letters(Driven(max_t=9, mode="max", min_rung_entries="two"), *negated) == "CCSCSCCC"

    def test_equal_values_all_continue(self):
        assert letters(Driven(max_t=9), *[0.5] * 12) == "C" * 12

    def test_does_not_judge_between_levels_nor_at_max_t(self):
        study = Driven(max_t=9, min_rung_entries="two")
        study.ready()
        study.ready()
        study.train(0, *[0.1] * 8)
        assert [study.tell(1, r, 0.1) for r in (1, 2, 3)] == [Verdict.CONTINUE] * 3
        assert [study.tell(1, r, 0.9) for r in (4, 8)] == [Verdict.CONTINUE] * 2
        told = study.report(1, 9, 0.9)
        assert told.completed
        assert list(study.state.scheduler.rungs()) == [1, 3]

    def test_a_stopped_trial_still_counts(self):
        study = Driven(max_t=9, min_rung_entries="two")
        letters(study, 0.5, 0.4, 0.45)
        assert [i for i, *_ in study.state.scheduler.rungs()[1].entries()] == [1, 2, 0]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_a_value_that_is_not_finite_is_the_worst_at_its_rung(self, bad, mode):
        study = Driven(max_t=9, mode=mode)
        assert letters(study, bad, 0.5, 0.5, 0.5) == "SCCC"
        assert study.state.scheduler.rungs()[1].entries()[-1][0] == 0

    def test_a_jump_counts_for_the_highest_milestone_passed(self):
        study = Driven(max_t=27)
        study.ready()
        study.tell(0, 4, 0.5)
        assert [len(r) for r in study.state.scheduler.rungs().values()] == [0, 1, 0]
        assert study[0].milestone == 9

    def test_a_jump_loses_the_milestone_if_wished(self):
        study = Driven(max_t=27, late_reports="lost")
        study.ready()
        study.tell(0, 4, 0.5)
        assert [len(r) for r in study.state.scheduler.rungs().values()] == [0, 0, 0]
        assert study[0].milestone == 9

    def test_reasons_are_for_people(self):
        study = Driven(max_t=9)
        letters(study, 0.5, 0.4)
        study.ready()
        assert study.report(2, 1, 0.45).reason == "rank 2 of 3 at rung 1: worse than the 33% quantile"


class TestPromotion:
    """max_t = 9, levels 1 and 3; a trial's metric is the same at all levels."""

    METRICS = (0.5, 0.4, 0.45, 0.3, 0.6, 0.35, 0.2, 0.7)

    def jobs(self, **options):
        study = Driven(type="promotion", max_t=9, n_trials=8, **options)
        return study.run(lambda i, r: self.METRICS[i])

    def test_of_the_better_of_two(self):
        expected = "n0 n1 1->3 n2 n3 3->3 3->9 n4 n5 5->3 n6 6->3 6->9 n7"
        assert self.jobs(min_rung_entries="two").startswith(expected)

    def test_waits_for_eta_trials(self):
        assert self.jobs().startswith("n0 n1 n2 1->3 n3 3->3 n4 n5 5->3 3->9 n6 6->3 6->9 n7")

    def test_every_trial_pauses_at_its_milestone_however_good(self):
        study = Driven(type="promotion", max_t=9)
        assert letters(study, 0.5, 0.4, 0.01) == "PPP"
        assert study.job() == "2->3"

    def test_prefers_the_highest_rung(self):
        study = Driven(type="promotion", max_t=9)
        for _ in range(10):
            study.ready()
        for trial in range(9):
            study.train(trial, 0.1 * (trial + 1))
        assert [study.job() for _ in range(3)] == ["0->3", "1->3", "2->3"]
        for trial in range(3):
            study.train(trial, 0.5, 0.1 * (trial + 1))
        study.train(9, 0.05)  # the best of rung 1
        assert [study.job() for _ in range(2)] == ["0->9", "9->3"]

    def test_a_trial_at_max_t_is_complete(self):
        study = Driven(type="promotion", max_t=3)
        assert letters(study, 0.3, 0.2, 0.1) == "PPP"
        assert study.job() == "2->3"
        study.train(2, 0.1)
        assert study.report(2, 3, 0.1).completed

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_never_of_a_value_that_is_not_finite(self, bad):
        study = Driven(type="promotion", max_t=9)
        assert letters(study, bad, bad, bad) == "SSS"
        assert study.job() == "n3"

    def test_at_most_one_of_equals_after_the_other(self):
        study = Driven(type="promotion", max_t=9)
        letters(study, 0.5, 0.5, 0.5)
        assert [study.job() for _ in range(4)] == ["0->3", "1->3", "2->3", "n3"]

    def test_of_a_jumped_milestone_counts_at_it(self):
        study = Driven(type="promotion", max_t=27)
        study.ready()
        assert study.tell(0, 4, 0.5) is Verdict.PAUSE
        assert [len(r) for r in study.state.scheduler.rungs().values()] == [0, 1, 0]

    def test_promise_is_rank_by_entries(self):
        study = Driven(type="promotion", max_t=9)
        for _ in range(4):
            study.ready()
        for trial, value in enumerate((0.5, 0.4, 0.45, 0.3)):
            study.train(trial, value)
        scheduler = study.state.scheduler
        assert [scheduler.promise(i) for i in range(4)] == [1.0, 0.5, 0.75, 0.25]
        assert all(scheduler.may_promote(i) for i in range(4))


class TestBrackets:
    def start_in(self, study: Driven, bracket: int) -> int:
        """Start trials until one is in the bracket; all others report a bad value and are out of the way."""
        while True:
            decision = study.ready()
            trial = study[decision.trial_id]
            if trial.bracket == bracket:
                return trial.id
            study.fail(trial.id, f"error {trial.id}")

    def test_a_trial_of_a_later_bracket_is_not_judged_at_lower_levels(self):
        study = Driven(max_t=9, brackets=2, min_rung_entries="two")
        good = self.start_in(study, 0)
        study.train(good, 0.1)
        late = self.start_in(study, 1)
        assert study[late].milestone == 3
        assert study.tell(late, 1, 0.9) is Verdict.CONTINUE
        study.train(good, 0.1, 0.1)
        assert study.tell(late, 2, 0.9) is Verdict.CONTINUE
        assert study.tell(late, 3, 0.9) is Verdict.STOP  # all compete at the level they share

    def test_with_systems_of_their_own_brackets_do_not_compete(self):
        study = Driven(max_t=9, brackets=2, min_rung_entries="two", rung_system_per_bracket=True)
        good = self.start_in(study, 0)
        study.train(good, 0.1, 0.1, 0.1)
        late = self.start_in(study, 1)
        study.train(late, 0.9, 0.9)
        assert study.tell(late, 3, 0.9) is Verdict.CONTINUE
        assert [len(study.state.scheduler.rungs(s)[3]) for s in (0, 1)] == [1, 1]

    def test_the_last_bracket_trains_straight_to_max_t(self):
        study = Driven(max_t=9, brackets=3)
        trial = self.start_in(study, 2)
        assert study[trial].milestone == 9
        assert study.train(trial, *[0.9] * 8) is Verdict.CONTINUE
        assert study.report(trial, 9, 0.9).completed

    def test_brackets_follow_their_distribution(self):
        study = Driven(max_t=9, brackets=3)  # 3 / (3 * 1), 3 / (2 * 3), 3 / (1 * 9)
        for _ in range(600):
            study.ready()
        counts = [sum(t.bracket == b for t in study.state.trials.values()) / 600 for b in range(3)]
        assert counts == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.07)

    def test_a_searcher_may_change_the_distribution(self):
        study = Driven(max_t=9, brackets=3)
        (wanted,) = study.handle(WorkerReady(0.0))
        study.suggest(wanted.trial_id, bracket_weights=(0.0, 0.0, 1.0))
        starts = [study.ready().trial_id for _ in range(20)]
        assert {study[i].bracket for i in starts} == {2}


class TestCostPromotion:
    """max_t = 9, levels 1 and 3, quantile 1/3."""

    def study(self, *entries: tuple[float, float]) -> Driven:
        study = Driven(type="cost_promotion", max_t=9)
        for _ in entries:
            study.ready()
        for trial, (value, cost) in enumerate(entries):
            study.tell(trial, 1, value, cost=cost)
        return study

    def test_takes_the_best_within_a_third_of_the_cost(self):
        """Total 12, a third is 4: the best alone has cost 10."""
        study = self.study((0.1, 10.0), (0.2, 1.0))
        assert study.job() == "n2"
        study.tell(2, 1, 0.3, cost=1.0)
        assert study.job() == "n3"
        study.tell(3, 1, 0.05, cost=2.0)  # total 14, a third 4.67: the new best fits, the next does not
        assert study.job() == "3->3"
        assert study.job() == "n4"

    def test_promotes_several_cheap_ones(self):
        """Total 15, a third is 5: 1 + 1 + 1 fit, with the next it would be 13."""
        study = self.study((0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 10.0), (0.5, 2.0))
        assert [study.job() for _ in range(4)] == ["0->3", "1->3", "2->3", "n5"]

    @pytest.mark.parametrize("unit", [1.0, 0.1, 0.7, 1e-9, 3e8])
    def test_does_not_depend_on_the_unit_of_cost(self, unit):
        """Six that cost the same: two of them are exactly a third."""
        study = self.study(*((0.1 * n, unit) for n in range(1, 7)))
        assert [study.job() for _ in range(3)] == ["0->3", "1->3", "n6"]

    def test_needs_two_entries(self):
        assert self.study((0.1, 0.0)).job() == "n1"

    def test_needs_costs(self):
        study = Driven(type="cost_promotion", max_t=9)
        study.ready()
        with pytest.raises(ReportError, match=r"Report a cost, or use type=promotion\.$"):
            study.report(0, 1, 0.5)

    def test_never_promotes_a_value_that_is_not_finite(self):
        study = self.study((math.nan, 1.0), (math.inf, 1.0), (math.nan, 100.0))
        assert study.job() == "n3"
