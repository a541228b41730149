from __future__ import annotations

import math

import pytest

from lightning_hpo.core.events import Verdict
from tests.core.driving import Driven


def pasha(max_t: int, **options) -> Driven:
    return Driven(algorithm="pasha", max_t=max_t, **options)


def train(study: Driven, *values: float) -> Verdict:
    """The next job trains and reports the values."""
    decision = study.ready()
    return study.train(decision.trial_id, *values)


class TestOneLevel:
    def test_is_plain_promotion(self):
        study = pasha(3)
        assert study.state.scheduler.levels == (1,)
        assert study.state.scheduler.ceiling() == 3
        values = (0.5, 0.3, 0.4, 0.2, 0.6)
        plain = Driven(type="promotion", max_t=3, n_trials=5).run(lambda i, r: values[i])
        assert pasha(3, n_trials=5).run(lambda i, r: values[i]) == plain


class TestTwoLevels:
    """max_t = 9: levels 1 and 3."""

    def test_begins_with_the_second_level_as_ceiling(self):
        study = pasha(9)
        assert study.state.scheduler.levels == (1, 3)
        assert (study.state.scheduler.ceiling(), study.state.scheduler.epsilon()) == (3, 0.0)

    def test_grows_to_max_t_when_the_ranking_changes(self):
        study = pasha(9)
        for value in (0.5, 0.4, 0.3):
            train(study, value)
        train(study, 0.3, 0.3)  # trial 2 goes to level 3
        train(study, 0.2)
        assert study[3].curve == {1: 0.2}
        assert study.state.scheduler.ceiling() == 3
        train(study, 0.25, 0.35)  # trial 3 was better at 1 and is worse at 3
        assert study.state.scheduler.ceiling() == 9

    def test_does_not_grow_while_the_ranking_is_the_same(self):
        study = pasha(9)
        for value in (0.5, 0.4, 0.3):
            train(study, value)
        train(study, 0.3, 0.3)
        train(study, 0.2)
        train(study, 0.2, 0.2)
        assert study[3].resource == 3
        assert study.state.scheduler.ceiling() == 3

    def test_promotes_nobody_above_the_ceiling(self):
        study = pasha(9)
        jobs = Driven(algorithm="pasha", max_t=9, n_trials=20).run(lambda i, r: 0.1 * i).split()
        assert study.state.scheduler.ceiling() == 3
        assert not any(job.endswith("->9") for job in jobs)
        assert "0->3" in jobs

    def test_estimates_the_noise_from_curves_that_cross_twice(self):
        """At level 3 trial 3 is behind, it was ahead at 2 and behind at 1: their difference at 3 is noise."""
        study = pasha(9)
        for value in (0.5, 0.4, 0.3):
            train(study, value)
        train(study, 0.3, 0.30)  # trial 2
        train(study, 0.35)  # trial 3: second of four, promoted
        train(study, 0.25, 0.32)
        assert study[3].curve == {1: 0.35, 2: 0.25, 3: 0.32}
        assert study.state.scheduler.epsilon() == pytest.approx(0.02)
        assert study.state.scheduler.ceiling() == 3

    def test_a_change_of_ranking_within_the_noise_does_not_count(self):
        study = self.noisy()
        assert study.job() == "4->3"
        study.train(4, 0.28, 0.31)  # ahead of trial 2 (0.30) at level 1, 0.01 behind it at 3
        assert study.state.scheduler.ceiling() == 3

    def test_a_change_of_ranking_beyond_it_does(self):
        study = self.noisy()
        assert study.job() == "4->3"
        study.train(4, 0.28, 0.35)
        assert study.state.scheduler.ceiling() == 9

    def noisy(self) -> Driven:
        study = pasha(9)
        for value in (0.5, 0.4, 0.3):
            train(study, value)
        train(study, 0.3, 0.30)
        train(study, 0.35)
        train(study, 0.25, 0.32)
        train(study, 0.29)  # trial 4
        assert study.state.scheduler.epsilon() == pytest.approx(0.02)
        return study


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
class TestDivergence:
    """max_t = 9. A value at the upper level that is not finite counts as the worst, and is no measure of the noise."""

    def test_of_the_third_best_leaves_epsilon_and_the_ceiling_as_they_were(self, bad):
        study = self.diverged(0.39, bad, 0.6, 0.7)
        assert study.state.scheduler.epsilon() == pytest.approx(0.02)
        assert study.state.scheduler.ceiling() == 3

    def test_of_the_best_changes_the_ranking(self, bad):
        study = self.diverged(0.29, bad)
        assert study.state.scheduler.epsilon() == pytest.approx(0.02)
        assert study.state.scheduler.ceiling() == 9

    def test_of_two_is_a_tie_whoever_came_first(self, bad):
        """Trial 7 was better at level 1 than trial 4 (0.36 and 0.39), by more than epsilon."""
        study = self.diverged(0.39, bad, 0.6, 0.7)
        train(study, 0.36)
        assert study.job() == "7->3"
        study.train(7, 0.36, bad)
        assert study.state.scheduler.epsilon() == pytest.approx(0.02)
        assert study.state.scheduler.ceiling() == 3

    def test_alone_is_no_estimate_at_all(self, bad):
        """The only curves that have crossed twice are those of a trial that diverged."""
        study = pasha(9)
        for value in (0.5, 0.4, 0.3):
            train(study, value)
        train(study, 0.3, 0.30)
        train(study, 0.35)
        train(study, 0.25, bad)
        assert study[3].resource == 3
        assert (study.state.scheduler.epsilon(), study.state.scheduler.ceiling()) == (0.0, 3)

    def diverged(self, value: float, bad: float, *others: float) -> Driven:
        """Epsilon is the 0.02 between trials 2 and 3; trial 4 crosses both of them before it diverges at level 3."""
        study = pasha(9)
        for first in (0.5, 0.4, 0.3):
            train(study, first)
        train(study, 0.3, 0.30)
        train(study, 0.35)
        train(study, 0.25, 0.32)
        for first in (value, *others):
            train(study, first)
        assert study.job() == "4->3"
        study.train(4, 0.2, bad)
        assert study[4].resource == 3
        return study


class TestMoreLevels:
    def test_the_ceiling_climbs_level_by_level(self):
        """max_t = 27; the later a trial the better it is at level 1, the worse higher up."""
        study = pasha(27, n_trials=60)
        ceilings = [study.state.scheduler.ceiling()]

        def values(trial: int, resource: int) -> float:
            if study.state.scheduler.ceiling() != ceilings[-1]:
                ceilings.append(study.state.scheduler.ceiling())
            return 1.0 - 0.01 * trial if resource == 1 else 0.5 + 0.01 * trial * (1 if resource < 9 else -1)

        study.run(values)
        assert ceilings == [3, 9, 27]

    def test_systems_of_their_own_have_ceilings_of_their_own(self):
        study = pasha(27, brackets=2, rung_system_per_bracket=True)
        assert [study.state.scheduler.ceiling(s) for s in (0, 1)] == [3, 9]
