from __future__ import annotations

import itertools
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.events import Outcome, StudyContinued
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.schedulers.prospects import Prospects, student_tail
from lightning_hpo.errors import OptionError
from tests.core.driving import Driven

finite = st.floats(-100, 100, allow_nan=False)


def two_levels(*curves: tuple[float, float], best: float | None = None) -> Prospects:
    """Levels 1 and 3. Trials 0, 1, .. have a value at 1 and one at 3; the last reported trial is 99, with ``best``."""
    known = Prospects((1, 3))
    for trial, (first, last) in enumerate(curves):
        known.report(trial, first, 1)
        known.report(trial, last, 3)
    if best is not None:
        known.report(99, best, None)
    return known


@pytest.mark.parametrize("freedom", range(1, 8))
def test_students_distribution(freedom):
    for t in (-40.0, -3.0, -0.5, 0.0, 0.1, 1.0, 2.5, 40.0):
        assert student_tail(t, freedom) == pytest.approx(student.sf(t, freedom), rel=1e-9, abs=1e-15)


class TestProbability:
    """Falls of 1, 2 and 3: mean 2, standard deviation 1, scale sqrt(1 + 1/3). With two degrees of freedom the upper
    tail of Student's distribution is 1/2 - t / (2 sqrt(2 + t^2))."""

    CURVES = ((10.0, 9.0), (10.0, 8.0), (10.0, 7.0))

    def test_of_the_mean_fall_is_one_half(self):
        known = two_levels(*self.CURVES)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 9) == pytest.approx(0.5)  # the best value is 7: it has to fall by 2

    def test_follows_student(self):
        known = two_levels(*self.CURVES)
        known.report(5, 11.0, 1)  # has to fall by 4, which is 2 / 1.1547 = sqrt(3) more than the mean
        assert known.improvement(5, 1, 9) == pytest.approx(0.5 - math.sqrt(3) / (2 * math.sqrt(5)))

    def test_counts_the_lowest_value_on_the_way(self):
        known = Prospects((1, 3))
        for trial, lowest in enumerate((9.0, 8.0, 7.0)):
            known.report(trial, 10.0, 1)
            known.report(trial, lowest, None)
            known.report(trial, 20.0, 3)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 9) == pytest.approx(0.5)

    def test_is_unknown_with_fewer_than_three_falls(self):
        known = two_levels(*self.CURVES[:2])
        assert known.improvement(0, 1, 9) is None
        assert two_levels(*self.CURVES).improvement(0, 1, 9) is not None

    def test_is_unknown_until_three_trials_went_to_every_level_above(self):
        known = Prospects((1, 3, 9))
        for trial in range(3):
            for level in (1, 3):
                known.report(trial, 10.0 - level - trial, level)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 9) is None

    def test_is_that_of_the_level_where_it_is_largest(self):
        """To level 3 the falls are 1, 2, 3 and to level 9 they are 11, 12, 13: a fall by 6 is sure to come by then."""
        known = Prospects((1, 3, 9))
        for trial in range(3):
            known.report(trial, 20.0, 1)
            known.report(trial, 19.0 - trial, 3)
            known.report(trial, 9.0 - trial, 9)
        known.report(5, 19.0, 1)  # the best value is 7: it has to fall by 12, the mean fall to level 9
        assert known.improvement(5, 1, 9) == pytest.approx(0.5)

    def test_learns_from_the_six_most_similar_trials(self):
        near = [(10.0 + 0.01 * i, 8.0 - i) for i in range(6)]
        far = [(50.0, 49.0 - i) for i in range(20)]
        known = two_levels(*far, *near)
        known.report(99, 10.0, 1)
        alone = two_levels(*near)
        alone.report(98, 10.0, 1)
        assert known.improvement(99, 1, 9) == alone.improvement(98, 1, 9)

    def test_of_equal_falls_is_certain(self):
        """All fall by 2 to 8, the best value; to reach it is no improvement."""
        known = two_levels((10.0, 8.0), (10.0, 8.0), (10.0, 8.0))
        for trial, value in ((5, 10.0), (6, 9.9), (7, 10.5)):
            known.report(trial, value, 1)
        assert [known.improvement(trial, 1, 9) for trial in (5, 6, 7)] == [0.0, 1.0, 0.0]

    def test_up_to_the_ceiling_only(self):
        known = Prospects((1, 3, 9))
        for trial, last in enumerate((9.0, 8.0, 7.0)):
            known.report(trial, 10.0, 1)
            known.report(trial, last, 3)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 3) == pytest.approx(0.5)
        assert known.improvement(5, 1, 9) is None

    def test_counts_what_ended_on_the_way(self):
        """No trial gets to 3, all end at 2, as with early stopping."""
        known = Prospects((1, 3))
        for trial, last in enumerate((9.0, 8.0, 7.0)):
            known.report(trial, 10.0, 1)
            known.report(trial, last, None)
            assert known.improvement(trial, 1, 3) is None
            known.end(trial)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 3) == pytest.approx(0.5)

    def test_does_not_count_what_ended_without_going_on(self):
        known = Prospects((1, 3))
        for trial in range(3):
            known.report(trial, 10.0, 1)
            known.end(trial)
        known.report(5, 9.0, 1)
        assert known.improvement(5, 1, 3) is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_diverges_has_not_fallen(self, bad):
        """Falls of 3, 0 and 0: mean 1, standard deviation sqrt(3), scale 2."""
        known = two_levels((10.0, 7.0), (10.0, bad), (10.0, bad))
        known.report(5, 10.0, 1)  # has to fall by 3, which is one scale more than the mean
        assert known.improvement(5, 1, 9) == pytest.approx(0.5 - 1.0 / (2.0 * math.sqrt(3.0)))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_ignores_trials_that_were_never_finite(self, bad):
        known = two_levels(*self.CURVES, (bad, bad))
        known.report(5, 9.0, 1)
        known.report(6, bad, 1)
        assert known.improvement(5, 1, 9) == pytest.approx(0.5)
        assert known.improvement(6, 1, 9) is None

    def test_survives_the_largest_numbers(self):
        huge = sys.float_info.max
        known = two_levels((huge, -huge), (huge, 0.0), (0.0, -huge), best=-huge)
        known.report(5, huge, 1)
        assert 0.0 <= known.improvement(5, 1, 9) <= 1.0

    @given(st.lists(st.tuples(finite, finite), min_size=3, max_size=12), finite, st.floats(0.1, 10), finite)
    def test_does_not_depend_on_the_unit_of_the_metric(self, curves, value, scale, shift):
        plain, other = two_levels(*curves), two_levels(*[(scale * a + shift, scale * b + shift) for a, b in curves])
        plain.report(98, value, 1)
        other.report(98, scale * value + shift, 1)
        falls = sorted(a - b for a, b in curves)
        starts = sorted([*(a for a, _ in curves), value])
        gaps = [b - a for values in (falls, starts) for a, b in itertools.pairwise(values)]
        if min(gaps, default=1.0) > 1e-3:  # nearly equal ones may change places by rounding
            assert other.improvement(98, 1, 9) == pytest.approx(plain.improvement(98, 1, 9), abs=1e-6)

    @given(st.lists(st.tuples(finite, finite), min_size=3, max_size=12), finite)
    def test_is_a_probability(self, curves, value):
        known = two_levels(*curves)
        known.report(98, value, 1)
        assert 0.0 <= known.improvement(98, 1, 9) <= 1.0


def promotions(study: Driven, values: list[float]) -> list[str]:
    """What was promoted while trials with these values at level 1 came in; what is promoted falls by 0.1 until 3."""
    found = []
    for value in values:
        while "->" in (job := study.job()):
            found.append(job)
            trial = int(job.split("->")[0])
            there = study[trial].curve[1]
            study.train(trial, there, there - 0.1)
        study.tell(int(job[1:]), 1, value)
    return found


class TestPromotion:
    """max_t = 3, level 1. The first trial falls to 0.2, all others are near 0.9 and fall by 0.1 only. As they get worse
    and worse, rank alone sends on those at positions 0 to (n - 1) / 3 of n."""

    @staticmethod
    def values(n: int) -> list[float]:
        return [0.3] + [0.9 + 0.001 * i for i in range(n - 1)]

    def test_is_by_rank_alone_unless_wished(self):
        """18 values are known when the last trial starts."""
        found = promotions(Driven(type="promotion", max_t=3), self.values(19))
        assert found == [f"{trial}->3" for trial in range(6)]

    def test_passes_over_what_will_not_improve(self):
        """Three trials show it. From then on only a ninth of the rung goes on, two of 18."""
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4)
        assert promotions(study, self.values(19)) == ["0->3", "1->3", "2->3"]

    def test_a_third_of_the_promotions_are_made_in_any_case(self):
        """71 values are known when the last trial starts; a ninth of them is 7.9."""
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4)
        assert promotions(study, self.values(72)) == [f"{trial}->3" for trial in range(8)]

    def test_what_may_improve_goes_on(self):
        """Every new trial begins lower than the best one has ended."""
        values = [1.0 - 0.2 * i for i in range(12)]
        by_rank = promotions(Driven(type="promotion", max_t=3), values)
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4)
        assert promotions(study, values) == by_rank
        assert len(by_rank) > 5

    def test_is_by_rank_when_no_new_trial_will_be_started(self):
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4, n_trials=19)
        assert promotions(study, self.values(19)) == ["0->3", "1->3", "2->3"]
        assert [study.job() for _ in range(5)] == ["3->3", "4->3", "5->3", "6->3", "idle"]

    def test_goes_on_to_be_so_with_more_trials(self):
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4, n_trials=10)
        promotions(study, self.values(10))
        study.handle(StudyContinued(0.0, {"n_trials": 40}))
        assert study.job() == "n10"

    def test_learns_from_reports_between_rungs(self):
        """max_t = 9. All go from 0.9 down to 0.2 at 2, and back: the fall on the way is what counts."""
        study = Driven(type="promotion", max_t=9, rung_levels=[1, 8], improvement_probability=0.4)
        found = []
        for trial in range(30):
            while "->" in (job := study.job()):
                old = int(job.split("->")[0])
                found.append(job)
                study.train(old, *([0.2, *[0.9] * 6] if job.endswith("8") else [0.9]))
            study.tell(trial, 1, 0.9 - 0.001 * trial)
        assert sum(job.endswith("->8") for job in found) >= 10

    def test_where_no_trial_gets_to_the_end(self):
        """All end by themselves at 2, as with early stopping."""
        study = Driven(type="promotion", max_t=3, improvement_probability=0.4)
        found = []
        for value in self.values(19):
            while "->" in (job := study.job()):
                found.append(job)
                trial = int(job.split("->")[0])
                study.report(trial, 2, study[trial].curve[1] - 0.1)
                study.end(trial, Outcome.COMPLETED)
            study.tell(int(job[1:]), 1, value)
        assert found == ["0->3", "1->3", "2->3"]

    def test_a_rung_below_is_looked_at_when_one_above_holds_back(self):
        """max_t = 9. The first trial ends low, the others fall by 0.1 at each rung and are held back at the second."""
        study = Driven(type="promotion", max_t=9, improvement_probability=0.4)
        scheduler = study.state.scheduler
        meanwhile = []
        for value in self.values(200):
            while "->" in (job := study.job()):
                trial, goal = map(int, job.split("->"))
                paused = [t.id for t in study.state.trials.values() if t.id != trial and t.resource == 3]
                if goal == 3 and any(scheduler.held_back(other) is not None for other in paused):
                    meanwhile.append(trial)
                there = study[trial].curve[study[trial].resource] - 0.1
                study.train(trial, *[there] * (goal - study[trial].resource))
            study.tell(int(job[1:]), 1, value)
        assert meanwhile

    def test_the_default_algorithm_presets_it_by_rank(self):
        by_rank = {"metric": "loss", "promotion_rule": "rank"}
        assert StudyOptions.from_mapping({"metric": "loss"}).improvement_probability == 0
        assert StudyOptions.from_mapping(by_rank).improvement_probability == 0.4
        given = {**by_rank, "improvement_probability": 0}
        assert StudyOptions.from_mapping(given).improvement_probability == 0
        assert not any(
            StudyOptions.from_mapping({"metric": "loss", "algorithm": name, "max_t": 9}).improvement_probability
            for name in ALGORITHMS.keys() - {"default"}
        )

    @pytest.mark.parametrize("algorithm", ["random", "sync_hyperband", "dehb", "median"])
    def test_is_refused_where_nothing_is_promoted_by_rank(self, algorithm):
        with pytest.raises(OptionError, match=r"Leave it out, or choose .* asha\.$"):
            StudyOptions.from_mapping({"metric": "loss", "algorithm": algorithm, "improvement_probability": 0.4})

    @pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
    def test_is_a_probability(self, wrong):
        with pytest.raises(OptionError, match="improvement_probability"):
            StudyOptions.from_mapping({"metric": "loss", "improvement_probability": wrong})

    def test_an_older_study_goes_on_without_it(self):
        """Its header does not name the option, though its algorithm presets it by now."""
        stored = StudyOptions.from_mapping({"metric": "loss", "promotion_rule": "rank"}).to_json()
        del stored["improvement_probability"]
        assert StudyOptions.from_json(stored).improvement_probability == 0
        assert StudyOptions.from_json(stored).searcher.model == "gp_independent"


class TestStopping:
    def curve(self, study: Driven, first: float, last: float) -> str:
        """One trial, as far as it may go."""
        trial = study.ready().trial_id
        told = study.tell(trial, 1, first).name[0]
        if told == "C":
            study.train(trial, last, last)
        return told

    def test_stops_what_will_not_improve(self):
        """The first falls to 0.2. All others pass the rung by rank, as their values are lower and lower, but fall by
        0.1 only. Two of them show it; then one goes on of those that always do, a ninth of the ten that reported."""
        values = [0.9 - 0.001 * i for i in range(12)]
        by_rank, study = Driven(max_t=3), Driven(max_t=3, improvement_probability=0.4)
        for driven in (by_rank, study):
            assert self.curve(driven, 1.0, 0.2) == "C"
        assert "".join(self.curve(by_rank, v, v - 0.1) for v in values) == "C" * 12
        assert "".join(self.curve(study, v, v - 0.1) for v in values) == "CCSSSSSSCSSS"
