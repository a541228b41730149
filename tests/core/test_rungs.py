from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lightning_hpo.core.rungs import Rung, quantiles, rung_levels
from lightning_hpo.errors import OptionError

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


class TestLevels:
    @pytest.mark.parametrize(
        ("grace", "eta", "max_t", "levels"),
        [
            (1, 3, 81, (1, 3, 9, 27)),
            (1, 3, 56, (1, 3, 9, 27)),
            (1, 3, 10, (1, 3, 9)),
            (2, 2.5, 40, (2, 5, 12, 31)),  # 2, 5, 12.5, 31.25: half to even
            (5, 3, 81, (5, 15, 45)),
            (1, 3, 3, (1,)),
            (1, 2.5, 6, (1, 2)),  # 6.25 is not below 6
        ],
    )
    def test_are_geometric_and_below_max_t(self, grace, eta, max_t, levels):
        assert rung_levels(max_t, grace, eta) == levels

    def test_grow_by_three_from_one_unless_told_otherwise(self):
        assert rung_levels(81) == (1, 3, 9, 27)

    def test_may_be_equally_spaced(self):
        assert rung_levels(10, grace_period=2, rung_increment=3) == (2, 5, 8)
        assert rung_levels(8, grace_period=2, rung_increment=3) == (2, 5)

    def test_a_reduction_factor_wins_over_an_increment(self):
        assert rung_levels(9, reduction_factor=3, rung_increment=2) == (1, 3)

    def test_may_be_given_and_lose_an_entry_equal_to_max_t(self):
        assert rung_levels(9, levels=[1, 4, 9]) == (1, 4)
        assert rung_levels(20, grace_period=5, reduction_factor=4, levels=[1, 4, 9]) == (1, 4, 9)

    @pytest.mark.parametrize(
        ("arguments", "fix"),
        [
            ({"max_t": 1}, "Raise max_t"),
            ({"max_t": 5, "grace_period": 5}, "Raise max_t"),
            ({"max_t": 9, "grace_period": 0}, "Set grace_period"),
            ({"max_t": 9, "reduction_factor": 1.9}, "Set it to 2 or more"),
            ({"max_t": 9, "reduction_factor": math.nan}, "Set it to 2 or more"),
            ({"max_t": 9, "rung_increment": 0}, "Set it to an integer of at least 1"),
            ({"max_t": 9, "levels": [3]}, "Give at least two increasing levels"),
            ({"max_t": 9, "levels": [1, 3, 3]}, "strictly increasing"),
            ({"max_t": 9, "levels": [1, 10]}, "beyond max_t=9"),
            ({"max_t": 9, "levels": [0, 3]}, "positive integers"),
            ({"max_t": 9, "levels": [1, 2.5]}, "positive integers"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, arguments, fix):
        with pytest.raises(OptionError, match=fix):
            rung_levels(**arguments)

    @given(st.integers(2, 2000), st.integers(1, 50), st.floats(2, 10))
    def test_always_increase_strictly_below_max_t(self, max_t, grace, eta):
        assume(max_t > grace)
        levels = rung_levels(max_t, grace, eta)
        assert levels[0] == grace and levels[-1] < max_t
        assert list(levels) == sorted(set(levels))

    def test_quantiles_are_ratios_of_neighbours(self):
        assert quantiles((1, 3, 9, 27), 56) == (1 / 3, 1 / 3, 1 / 3, 27 / 56)


def rung(*values, level=1, next_level=3, min_entries="two"):
    made = Rung(level, next_level, min_entries)
    for trial_id, value in enumerate(values):
        made.add(trial_id, value)
    return made


class TestCutoff:
    @pytest.mark.parametrize(
        ("count", "cutoff"),
        [(1, None), (2, 0.43333), (3, 0.43333), (4, 0.4), (5, 0.41667), (6, 0.38333), (7, 0.35), (8, 0.35)],
    )
    def test_is_the_interpolated_quantile_of_all_entries(self, count, cutoff):
        values = (0.50, 0.40, 0.45, 0.30, 0.60, 0.35, 0.32, 0.35)[:count]
        assert rung(*values).cutoff() == (None if cutoff is None else pytest.approx(cutoff, abs=1e-5))

    @pytest.mark.parametrize(
        ("level", "next_level", "needed"), [(1, 3, 3), (1, 4, 4), (9, 10, 2), (2, 5, 3), (5, 12, 3)]
    )
    def test_does_not_exist_while_fewer_than_eta_reported(self, level, next_level, needed):
        for count in range(1, needed):
            assert rung(*range(count), level=level, next_level=next_level, min_entries="ratio").cutoff() is None
        assert rung(*range(needed), level=level, next_level=next_level, min_entries="ratio").cutoff() is not None

    @given(st.lists(NUMBERS, min_size=2, max_size=40, unique=True))
    @example([0.0, -1000000.0, -999999.9999999999])  # neighbours among the floats
    def test_lets_the_best_third_pass_and_no_other(self, values):
        filled = rung(*values)
        passing = sorted(v for v in values if filled.passes(v))
        assert passing == sorted(values)[: math.floor(Fraction(len(values) - 1, 3)) + 1]

    @given(st.sampled_from([10, 16, 19, 22, 100]), st.data())
    def test_that_is_one_of_the_values_lets_it_pass_whatever_the_rounding(self, n, data):
        """(n - 1) / 3 is an integer here; 1/3 has no exact float, nor has 1 - 1/3."""
        values = data.draw(st.lists(NUMBERS, min_size=n, max_size=n, unique=True))
        for sign in (1, -1):  # a metric to be maximised is negated
            signed = [sign * v for v in values]
            filled = rung(*signed)
            assert filled.passes(sorted(signed)[(n - 1) // 3])
            assert not filled.passes(sorted(signed)[(n - 1) // 3 + 1])

    @given(NUMBERS, st.integers(2, 30))
    def test_lets_equal_values_all_pass(self, value, count):
        filled = rung(*[value] * count)
        assert filled.cutoff() == value and filled.passes(value)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_never_lets_a_value_pass_that_is_not_finite(self, bad):
        assert rung(0.1, 0.2, bad).passes(bad) is False
        assert rung(bad, bad, bad, bad).passes(bad) is False
        assert rung(bad, bad, bad, 0.5).passes(0.5) is True

    def test_counts_values_that_are_not_finite_as_worst(self):
        """n = 4, q = 1/3: the cutoff is the second best."""
        assert rung(math.nan, 0.3, 0.2, -math.inf).cutoff() == 0.3
        assert rung(math.nan, 0.3, math.inf, -math.inf).cutoff() == math.inf


class TestEntries:
    def test_are_best_first_and_ties_in_order_of_arrival(self):
        assert [i for i, *_ in rung(0.3, 0.1, 0.3, 0.2).entries()] == [1, 3, 0, 2]

    def test_that_were_promoted_stand_behind_their_equals(self):
        filled = rung(0.1, 0.1, 0.2)
        filled.mark_promoted(0)
        assert filled.entries() == [(1, 0.1, False), (0, 0.1, True), (2, 0.2, False)]

    def test_that_were_promoted_still_count_for_the_cutoff(self):
        filled = rung(0.1, 0.2, 0.3, 0.4)
        filled.mark_promoted(0)
        assert filled.cutoff() == 0.2
        assert filled.best_promotable(lambda _: True) == 1
        filled.mark_promoted(1)
        assert filled.best_promotable(lambda _: True) is None

    def test_rank_counts_the_strictly_better(self):
        filled = rung(0.1, 0.2, 0.2, 0.4)
        assert [filled.rank(v) for v in (0.1, 0.2, 0.3, 0.4)] == [1, 2, 4, 4]


class TestPromotion:
    def test_takes_the_best_that_is_available(self):
        filled = rung(0.1, 0.2, 0.3, 0.4)
        assert filled.best_promotable(lambda i: i != 0) == 1
        assert filled.best_promotable(lambda i: i > 1) is None  # the third best is not among the best third

    def test_never_takes_a_value_that_is_not_finite(self):
        assert rung(math.nan, math.nan, math.nan).best_promotable(lambda _: True) is None

    @given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]), min_size=1, max_size=30))
    def test_one_after_the_other_takes_everything_that_passes_once(self, values):
        filled = rung(*values)
        taken = []
        while (trial := filled.best_promotable(lambda _: True)) is not None:
            filled.mark_promoted(trial)
            taken.append(trial)
        assert sorted(taken) == [i for i, v in enumerate(values) if filled.passes(v)]
        assert [values[i] for i in taken] == sorted(values[i] for i in taken)
