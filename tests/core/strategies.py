"""Hypothesis strategies for domains and spaces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lightning_hpo.core.domains import (
    Domain,
    choice,
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
from lightning_hpo.core.space import SearchSpace

REALS = st.floats(-1e6, 1e6, allow_subnormal=False)
POSITIVE = st.floats(1e-9, 1e9)
MOMENTA = st.floats(0.0, 0.9999, allow_subnormal=False)
NAMES = st.text("abcXYZ_.0", min_size=1, max_size=4)


def bounds(numbers: st.SearchStrategy[Any], gap: float = 0.0) -> st.SearchStrategy[tuple[Any, Any]]:
    pairs = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))
    return pairs.filter(lambda pair: pair[1] - pair[0] > gap * abs(pair[1]) or gap == 0)


CATEGORIES = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(-5, 1000), min_size=1, max_size=6, unique=True),
    st.lists(REALS, min_size=1, max_size=4, unique=True),
    st.just([True, False]),
    st.just([None, "relu", "gelu"]),
    st.just([[64, 64], [128], []]),
    st.just([{"name": "sgd"}, {"name": "adam", "betas": [0.9, 0.99]}]),
)
INCREASING = st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True).map(sorted)

DOMAINS: st.SearchStrategy[Domain] = st.one_of(
    bounds(REALS).map(lambda b: uniform(*b)),
    bounds(POSITIVE).map(lambda b: loguniform(*b)),
    bounds(MOMENTA).map(lambda b: reverseloguniform(*b)),
    bounds(st.integers(-(2**40), 2**40)).map(lambda b: randint(*b)),
    bounds(st.integers(1, 2**40)).map(lambda b: lograndint(*b)),
    CATEGORIES.map(choice),
    CATEGORIES.map(lambda categories: ordinal(categories, "equal")),
    INCREASING.map(ordinal),
    INCREASING.map(logordinal),
    st.builds(lambda b, n, whole: finrange(*b, n, whole), bounds(REALS, 1e-3), st.integers(2, 40), st.booleans()),
    st.builds(lambda b, n, whole: logfinrange(*b, n, whole), bounds(POSITIVE, 1e-3), st.integers(2, 40), st.booleans()),
)
CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just([1, {"a": 2.5}]))

SPACES = st.dictionaries(NAMES, st.one_of(DOMAINS, CONSTANTS), max_size=6).map(SearchSpace)
