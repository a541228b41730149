from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.domains import (
    Float,
    choice,
    domain_from_json,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from lightning_hpo.errors import SpaceError
from tests.core.strategies import CATEGORIES, DOMAINS

SEEDS = st.integers(0, 2**32 - 1)


def draws(domain, n=20000, seed=1):
    return domain.sample_many(np.random.default_rng(seed), n)


def frequencies(domain, n=20000):
    return {value: count / n for value, count in Counter(draws(domain, n)).items()}


class TestEveryDomain:
    @given(DOMAINS, SEEDS)
    def test_draws_lie_inside_and_are_left_alone_by_cast(self, domain, seed):
        for value in domain.sample_many(np.random.default_rng(seed), 20):
            assert domain.contains(value)
            assert domain.cast(value) == value and type(domain.cast(value)) is type(value)

    @given(DOMAINS, SEEDS)
    def test_an_encoded_value_lies_in_the_box_and_decodes_to_itself(self, domain, seed):
        values = domain.sample_many(np.random.default_rng(seed), 20)
        encoded = domain.encode_many(values)
        assert encoded.shape == (20, domain.width)
        assert np.all(domain.bounds[:, 0] <= encoded) and np.all(encoded <= domain.bounds[:, 1])
        for value, decoded in zip(values, domain.decode_many(encoded), strict=True):
            if isinstance(domain, Float):
                assert decoded == pytest.approx(value, rel=1e-9, abs=1e-9 * (domain.upper - domain.lower))
            else:
                assert decoded == value

    @given(DOMAINS, st.data())
    def test_every_point_of_the_cube_decodes_to_a_member(self, domain, data):
        point = data.draw(st.lists(st.floats(0, 1), min_size=domain.width, max_size=domain.width))
        assert domain.contains(domain.decode(point))

    @given(DOMAINS, SEEDS)
    def test_one_at_a_time_is_the_same_as_many(self, domain, seed):
        value, other = domain.sample_many(np.random.default_rng(seed), 2)
        assert domain.sample(np.random.default_rng(seed)) == domain.sample_many(np.random.default_rng(seed), 1)[0]
        both = domain.encode_many([value, other])
        assert np.array_equal(domain.encode(other), both[1])
        assert domain.decode(both[0]) == domain.decode_many(both)[0]

    @given(DOMAINS)
    def test_the_default_is_a_member(self, domain):
        assert domain.contains(domain.default)

    @given(DOMAINS)
    def test_json_gives_an_equal_domain(self, domain):
        read = domain_from_json(json.loads(json.dumps(domain.to_json())))
        assert read == domain and type(read) is type(domain)

    @given(DOMAINS)
    def test_members_are_different_and_as_many_as_the_size(self, domain):
        if domain.size is None:
            assert domain.members is None
        elif domain.size < 1000:
            assert len({domain.match_token(value) for value in domain.members}) == domain.size
            assert all(domain.contains(value) for value in domain.members)

    @given(DOMAINS, SEEDS)
    def test_values_are_plain_python(self, domain, seed):
        json.dumps(domain.sample(np.random.default_rng(seed)))
        json.dumps(domain.decode(np.full(domain.width, 0.5)))
        json.dumps(domain.default)


class TestEncoding:
    """Numbers by hand: a float is its share of the transformed range, an integer's cell has width 1."""

    @pytest.mark.parametrize(
        ("domain", "value", "expected"),
        [
            (uniform(-1, 3), 0.0, [0.25]),
            (loguniform(0.1, 10), 1.0, [0.5]),
            (reverseloguniform(0, 0.99), 0.9, [0.5]),
            (randint(1, 4), 1, [0.125]),
            (lograndint(1, 4), 1, [math.log(2) / math.log(9)]),
            (choice(["a", "b"]), "b", [0.75]),
            (choice(["a", "b", "c"]), "b", [0, 1, 0]),
            (choice(["a"]), "a", [1]),
            (ordinal(["s", "m", "l"]), "m", [0.5]),
            (ordinal(["s"]), "s", [0.5]),
            # lower edge 1 - 7/4, upper edge 8 + 7/4: half of the mean gap of 3.5
            (ordinal([1, 2, 8], "nn"), 2, [2.75 / 10.5]),
            (logordinal([1, 10, 1000]), 10, [1.75 / 4.5]),
            (finrange(0, 1, 5), 0.25, [0.3]),
            (logfinrange(1, 100, 3), 10.0, [0.5]),
            (uniform(2, 2), 2.0, [0]),
            (randint(2, 2), 2, [0.5]),
        ],
    )
    def test_value(self, domain, value, expected):
        np.testing.assert_allclose(domain.encode(value), expected, rtol=0, atol=1e-7)
        assert domain.match_token(domain.decode(expected)) == domain.match_token(value)

    def test_ties_of_a_one_hot_block_go_to_the_first(self):
        assert choice(["a", "b", "c"]).decode([0.4, 0.7, 0.7]) == "b"

    def test_outside_of_the_range_is_the_nearest_end(self):
        np.testing.assert_array_equal(uniform(0, 1).encode_many([-5.0, 7.0]), [[0.0], [1.0]])

    def test_boxes(self):
        assert uniform(0, 1).bounds.tolist() == [[0, 1]]
        assert uniform(1, 1).bounds.tolist() == [[0, 0]]
        assert choice(["a"]).bounds.tolist() == [[1, 1]]
        assert choice(["a", "b", "c"]).bounds.tolist() == [[0, 1]] * 3


class TestDefault:
    @pytest.mark.parametrize(
        ("domain", "expected"),
        [
            (uniform(0, 3), 1.5),
            (loguniform(1e-6, 1), 1e-3),
            (reverseloguniform(0, 0.99), 0.495),
            (randint(0, 1), 0),
            (randint(1, 4), 2),
            (lograndint(4, 1024), 64),
            (choice(["b", "a"]), "b"),
            (ordinal(["a", "b", "c", "d"]), "c"),
            (ordinal([1, 2, 8]), 2),
            (logordinal([1, 10, 10000]), 10),
            (finrange(0, 1, 4), 2 / 3),
            (logfinrange(8, 128, 5, cast_int=True), 32),
        ],
    )
    def test_is_the_middle(self, domain, expected):
        assert domain.match_token(domain.default) == domain.match_token(expected)


class TestDraws:
    def test_the_ends_of_a_log_integer_range_have_whole_cells(self):
        found = frequencies(lograndint(1, 3))
        whole = math.log(3.5 / 0.5)
        assert found[1] == pytest.approx(math.log(1.5 / 0.5) / whole, abs=0.015)
        assert found[2] == pytest.approx(math.log(2.5 / 1.5) / whole, abs=0.015)
        assert found[3] == pytest.approx(math.log(3.5 / 2.5) / whole, abs=0.015)

    def test_integers_are_equally_frequent(self):
        assert all(abs(f - 0.25) < 0.015 for f in frequencies(randint(-1, 2)).values())

    def test_ordered_numbers_own_what_is_nearest_to_them(self):
        # Edges -0.75, 1.5, 5, 9.75 of the categories' shares.
        found = frequencies(ordinal([1, 2, 8]))
        assert found[1] == pytest.approx(2.25 / 10.5, abs=0.015)
        assert found[2] == pytest.approx(3.5 / 10.5, abs=0.015)

    @pytest.mark.parametrize(
        ("domain", "median"),
        [(uniform(0, 8), 4), (loguniform(1e-4, 1), 1e-2), (reverseloguniform(0, 0.9999), 0.99)],
    )
    def test_half_of_the_floats_lie_below_the_middle_of_the_scale(self, domain, median):
        assert np.mean(np.array(draws(domain)) < median) == pytest.approx(0.5, abs=0.015)

    def test_grid_points_are_equally_frequent(self):
        assert all(abs(f - 1 / 3) < 0.015 for f in frequencies(logfinrange(1, 100, 3)).values())


class TestFiniteRange:
    def test_linear_and_log_grids(self):
        assert finrange(0, 1, 5).members == (0.0, 0.25, 0.5, 0.75, 1.0)
        assert logfinrange(1, 1000, 4).members == pytest.approx((1, 10, 100, 1000))
        assert logfinrange(16, 512, 6, cast_int=True).members == (16, 32, 64, 128, 256, 512)

    def test_both_bounds_are_members_exactly(self):
        domain = logfinrange(0.07, 0.9, 7)
        assert (domain.members[0], domain.members[-1]) == (0.07, 0.9)

    def test_a_value_between_goes_to_the_nearest(self):
        assert finrange(0, 1, 5).cast(0.4) == 0.5
        assert logfinrange(1, 100, 3).cast(4) == 10

    def test_rounding_may_leave_fewer_members(self):
        # Grid 1, 1.58, 2.51, 3.98, 6.31, 10
        domain = logfinrange(1, 10, 6, cast_int=True)
        assert domain.members == (1, 2, 3, 4, 6, 10)
        # Grid 1, 1.29, 1.67, 2.15, 2.78, 3.59, 4.64, 5.99, 7.74, 10
        assert logfinrange(1, 10, 10, cast_int=True).members == (1, 2, 3, 4, 5, 6, 8, 10)
        assert logfinrange(1, 10, 10, cast_int=True).size == 8

    def test_equal_members_are_encoded_alike_however_they_were_drawn(self):
        # Grid 0, 0.5, 1: rounded half to even 0, 0, 1.
        domain = finrange(0, 1, 3, cast_int=True)
        assert {*domain.encode_codes(domain.sample_codes(np.random.default_rng(0), 50)).ravel()} == {
            *domain.encode_many([0, 1]).ravel()
        }

    def test_a_rounded_member_is_kept_even_if_another_grid_point_is_nearer(self):
        # Grid 0.6, 1.6, ..: rounded 1, 2, ..; the number 1 is nearer to 1.6 than to 0.6 in log scale.
        domain = logfinrange(0.6, 0.6 * (8 / 3) ** 3, 4, cast_int=True)
        assert domain.members == (1, 2, 4, 11)
        assert [domain.decode(domain.encode(value)) for value in domain.members] == [1, 2, 4, 11]


class TestCast:
    @pytest.mark.parametrize(
        ("domain", "value", "expected"),
        [
            (uniform(0, 3), 1, 1.0),
            (randint(1, 9), 4.0, 4),
            (randint(1, 9), np.int64(4), 4),
            (uniform(0, 3), np.float32(0.5), 0.5),
            (choice([1, 2]), np.int32(2), 2),
            (choice(["a", "b"]), np.str_("b"), "b"),
            (choice([True, False]), np.bool_(False), False),
            (choice([0.1, 0.2]), 0.1005, 0.1),
            (choice([[1, 2], [3]]), (1, 2), [1, 2]),
            (choice([{"a": 1, "b": 2}]), {"b": 2, "a": 1}, {"a": 1, "b": 2}),
            (ordinal([1, 2, 8]), 6, 8),
        ],
    )
    def test_brings_a_value_into_the_type_of_the_domain(self, domain, value, expected):
        assert domain.cast(value) == expected and type(domain.cast(value)) is type(expected)

    @pytest.mark.parametrize(
        ("domain", "value"),
        [
            (uniform(0, 3), 3.1),
            (uniform(0, 3), "1"),
            (uniform(0, 3), math.nan),
            (uniform(0, 3), None),
            (uniform(0, 3), True),
            (randint(1, 9), 0),
            (randint(1, 9), True),
            (choice(["relu", "gelu"]), "rleu"),
            (choice([1, 2]), True),
            (choice([True, False]), 1),
            (choice([0.1, 0.2]), 0.102),
            (choice(["a"]), ["a"]),
            (ordinal([1, 2, 8]), 9),
            (ordinal(["s", "m"]), "l"),
            (finrange(0, 1, 5), 1.1),
            (finrange(0, 1, 5), "0.5"),
        ],
    )
    def test_refuses_strangers(self, domain, value):
        assert not domain.contains(value)
        with pytest.raises(SpaceError, match=r"Give .*\.$"):
            domain.cast(value)

    def test_a_misspelled_category_is_recognised(self):
        with pytest.raises(SpaceError, match="Did you mean 'relu'"):
            choice(["relu", "gelu"]).cast("rleu")

    def test_contains_does_not_round(self):
        assert randint(1, 9).contains(4.0) and not randint(1, 9).contains(4.2)
        assert not finrange(0, 1, 5).contains(0.3)


class TestCategories:
    @given(CATEGORIES)
    def test_a_number_of_the_list_is_nearest_when_all_increase(self, categories):
        kind = ordinal(categories).kind
        is_numeric = all(type(c) in (int, float) for c in categories)
        assert (kind == "nn") == (is_numeric and len(categories) > 1 and categories == sorted(categories))

    def test_integers_among_floats_become_floats(self):
        domain = choice([0, 0.5])
        assert [type(c) for c in domain.categories] == [float, float]
        assert domain.cast(0) == 0.0

    def test_none_may_stand_beside_any_type(self):
        assert choice([None, "cosine"]).cast(None) is None

    def test_any_iterable_will_do(self):
        assert choice(np.array([1, 2])).categories == (1, 2)
        assert choice(c for c in "ab").categories == ("a", "b")


class TestMatchToken:
    def test_floats_agree_in_seven_digits(self):
        domain = loguniform(1e-6, 1)
        assert domain.match_token(0.12345678) == domain.match_token(0.12345679)
        assert domain.match_token(0.1234567) != domain.match_token(0.1234568)

    def test_zero_has_no_sign(self):
        assert uniform(-1, 1).match_token(-0.0) == uniform(-1, 1).match_token(0.0)

    def test_integers_agree_whatever_their_type(self):
        assert randint(1, 9).match_token(3) == randint(1, 9).match_token(3.0)


NOT_A_DOMAIN = {
    "inverted": (lambda: uniform(1, 0), "lower=1 is above upper=0"),
    "log of zero": (lambda: loguniform(0, 1), "lower=0 has no logarithm.*uniform"),
    "log of negative integer": (lambda: lograndint(-1, 4), "lower=-1 has no logarithm.*randint"),
    "log grid from zero": (lambda: logfinrange(0, 1, 3), "no logarithm.*finrange"),
    "reverse log up to one": (lambda: reverseloguniform(0.5, 1), r"\[0, 1\)"),
    "reverse log below zero": (lambda: reverseloguniform(-0.5, 0.5), r"\[0, 1\)"),
    "nan": (lambda: uniform(math.nan, 1), "lower is nan"),
    "infinite": (lambda: uniform(0, math.inf), "upper is inf"),
    "beyond floats": (lambda: uniform(0, 10**400), "upper is beyond 1e150"),
    "text bound": (lambda: uniform("0", 1), "without quotes"),
    "boolean bound": (lambda: randint(False, 1), "lower is False"),
    "fractional integer": (lambda: randint(1, 2.5), "upper=2.5 is not an integer"),
    "huge integer": (lambda: randint(0, 2**41), r"beyond 2\*\*40"),
    "tiny log": (lambda: loguniform(1e-200, 1), "too near to 0"),
    "no category": (lambda: choice([]), "no categories"),
    "text as categories": (lambda: choice("relu"), "no list"),
    "number as categories": (lambda: choice(3), "no list"),
    "repeated": (lambda: choice(["a", "b", "a"]), "'a' occurs twice"),
    "repeated list": (lambda: choice([[1], (1,)]), "occurs twice"),
    "repeated number": (lambda: choice([1, 1.0]), "occurs twice"),
    "nan category": (lambda: choice([0.5, math.nan]), "cannot be written as JSON"),
    "object category": (lambda: choice([object()]), "cannot be written as JSON"),
    "dict with number keys": (lambda: choice([{1: 2}]), "cannot be written as JSON"),
    "unknown kind": (lambda: ordinal([1, 2], "near"), "'equal', 'nn' or 'nn-log'"),
    "unsorted": (lambda: ordinal([2, 1], "nn"), "strictly increasing"),
    "words": (lambda: ordinal(["a", "b"], "nn"), "strictly increasing"),
    "one number": (lambda: ordinal([1], "nn"), "two or more"),
    "log of category": (lambda: logordinal([0, 1]), "0 has no logarithm"),
    "one point": (lambda: finrange(0, 1, 1), "at least 2"),
    "fractional size": (lambda: finrange(0, 1, 2.5), "integer size"),
    "huge grid": (lambda: finrange(0, 1, 2**20 + 1), r"beyond 2\*\*20"),
    "point as grid": (lambda: finrange(1, 1, 3), "both 1"),
    "cast_int": (lambda: finrange(0, 1, 3, "yes"), "cast_int='yes'"),
    "unknown domain": (lambda: domain_from_json({"domain": "logunifrom", "lower": 1, "upper": 2}), "'loguniform'"),
    "no domain": (lambda: domain_from_json({"lower": 1}), "domain None"),
    "unknown argument": (lambda: domain_from_json({"domain": "uniform", "lowre": 1, "upper": 2}), "'lower'"),
    "missing argument": (lambda: domain_from_json({"domain": "finrange", "lower": 1, "upper": 2}), "lacks.*'size'"),
}


@pytest.mark.parametrize(("build", "message"), NOT_A_DOMAIN.values(), ids=NOT_A_DOMAIN)
def test_what_is_no_domain_is_refused_with_the_fix(build, message):
    with pytest.raises(SpaceError, match=message) as refused:
        build()
    assert any(verb in str(refused.value).rsplit(". ", 1)[-1] for verb in ("Give ", "Its arguments are", "Sort "))


def test_repr_is_the_constructor():
    assert repr(loguniform(0.1, 10)) == "loguniform(lower=0.1, upper=10.0)"
    assert repr(ordinal([1, 2, 8])) == "ordinal(categories=[1, 2, 8], kind='nn')"
