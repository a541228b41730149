from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.events import Verdict
from lightning_hpo.core.schedulers.pasha import _exchanged, _percentile_90
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


class Rule:
    """Ceiling and epsilon by the definition: after every report, all pairs and all positions are looked at."""

    def __init__(self, levels: tuple[int, ...], max_t: int, mode: str) -> None:
        self.levels, self.max_t, self.mode = levels, max_t, mode
        self.top = 1
        self.ceiling = levels[1]
        self.epsilon = 0.0
        self.curves: dict[int, dict[int, float]] = {}
        self.came: dict[int, list[int]] = {}

    def report(self, trial_id: int, epoch: int, value: float) -> None:
        self.curves.setdefault(trial_id, {})[epoch] = value if math.isfinite(value) else math.inf
        self.came.setdefault(epoch, []).append(trial_id)
        gaps = [gap for a, b in itertools.combinations(sorted(self.curves), 2) if (gap := self.gap(a, b)) is not None]
        if gaps:
            self.epsilon = float(np.percentile(gaps, 90))
        if self.is_stable():
            return
        self.top += 1
        self.ceiling = self.levels[self.top] if self.top < len(self.levels) else self.max_t
        self.top = min(self.top, len(self.levels) - 1)

    def gap(self, first: int, second: int) -> float | None:
        """How far they are apart at their last common epoch, if their order had been the same and another before."""
        a, b = self.curves[first], self.curves[second]
        if self.mode == "max":
            a, b = b, a
        common = [e for e in sorted(a.keys() & b.keys()) if e <= self.levels[self.top]]
        if not common or common[-1] <= self.levels[self.top - 1] or not math.isfinite(a[common[-1]] - b[common[-1]]):
            return None
        *orders, last = [a[e] > b[e] for e in common]
        crossed_twice = any(orders[i] == last and (not last) in orders[i:] for i in range(len(orders)))
        return abs(a[common[-1]] - b[common[-1]]) if crossed_twice else None

    def is_stable(self) -> bool:
        below, top = self.levels[self.top - 1], self.levels[self.top]
        there = self.came.get(top, [])
        ranked_below = sorted(there, key=lambda i: self.curves[i][below])
        # Sorting keeps the order in which equal ones came; those that diverged have none.
        ranked = sorted((i for i in there if math.isfinite(self.curves[i][top])), key=lambda i: self.curves[i][top])
        ranked += [i for i in ranked_below if not math.isfinite(self.curves[i][top])]
        near = self.epsilon if len(there) >= 2 else 0.0
        return all(
            abs(self.curves[trial_id][below] - self.curves[other][below]) <= near
            for trial_id, other in zip(ranked, ranked_below, strict=True)
        )


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1 / 3]) | st.floats(0.0, 9.0), min_size=1, max_size=60), st.data())
def test_epsilon_is_the_percentile_of_the_gaps_there_are_though_some_come_and_some_go(gaps, data):
    ordered = _exchanged(np.empty(0), [], gaps)
    assert _percentile_90(ordered) == np.percentile(gaps, 90)
    left = data.draw(st.permutations(gaps))
    gone = [left.pop() for _ in range(data.draw(st.integers(0, len(gaps))))]
    new = data.draw(st.lists(st.sampled_from([0.1, 0.7, 2.5]), min_size=1))
    assert list(_exchanged(ordered, gone, new)) == sorted(left + new)


class TestLikeTheRule:
    """Whatever is kept from one report to the next, ceiling and epsilon are those of the definition."""

    @settings(max_examples=30)
    @pytest.mark.parametrize("mode", ["min", "max"])
    @given(
        ladder=st.sampled_from([(9, (1, 3)), (16, (1, 2, 4, 8)), (8, (2, 5))]),
        seed=st.integers(0, 10**6),
        noise=st.sampled_from([0.01, 0.1, 1.0]),
        bad=st.sampled_from([0.0, 0.1]),
        digits=st.sampled_from([1, 15]),
    )
    def test_whatever_is_reported_in_whatever_order(self, mode, ladder, seed, noise, bad, digits):
        """Four workers; values of one decimal are often equal."""
        draw = random.Random(seed)
        max_t, levels = ladder
        study = pasha(max_t, rung_levels=levels, mode=mode, n_trials=15)
        rule = Rule(levels, max_t, mode)
        while True:
            while len(study.state.live) < 4 and study.job() != "idle" and study.state.ended is None:
                pass
            if not study.state.live:
                return
            trial_id = draw.choice(sorted(study.state.live))
            resource = study[trial_id].resource + 1
            exact = (7 * trial_id % 15) / 15 + 0.3 / resource + draw.gauss(0.0, noise)
            value = math.inf if draw.random() < bad else round(exact, digits)
            study.tell(trial_id, resource, value if mode == "min" else -value)
            if resource < max_t:
                rule.report(trial_id, resource, value)
            scheduler = study.state.scheduler
            assert (scheduler.ceiling(), scheduler.epsilon()) == (rule.ceiling, rule.epsilon)
