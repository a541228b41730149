"""What every searcher promises, on random spaces and random studies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.searcher import Slot, SuggestRequest
from lightning_hpo.core.space import (
    SearchSpace,
    choice,
    finrange,
    logfinrange,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from lightning_hpo.searchers import SEARCHERS, make_searcher
from tests.searchers.views import View

DOMAINS = [
    uniform(-1.0, 2.0), uniform(3.0, 3.0), loguniform(1e-6, 1.0), reverseloguniform(0.0, 0.99), randint(0, 1),
    randint(-5, 40), lograndint(1, 1000), choice(["a"]), choice([True, False]), choice(["a", "b", "c"]),
    ordinal([1, 2, 8]), ordinal(["s", "m", "l"]), finrange(0.0, 1.0, 5), logfinrange(8, 512, 7, cast_int=True),
]  # fmt: skip
CHEAP = {"opt_maxiter": 3, "opt_nstarts": 1, "num_init_candidates": 20, "num_fantasy_samples": 3, "num_init_random": 2}

studies = st.builds(
    dict,
    domains=st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=6),
    seed=st.integers(0, 2**31 - 1),
    has_rungs=st.booleans(),
    values=st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=25),
    num_pending=st.integers(0, 4),
    num_failed=st.integers(0, 2),
)


def build(domains, seed, has_rungs, values, num_pending, num_failed):
    space = SearchSpace({f"p{i}": domain for i, domain in enumerate(domains)} | {"epochs": 9})
    view = View(space, seed=seed, rung_levels=(1, 3) if has_rungs else ())
    rng = np.random.default_rng(seed)
    for i, value in enumerate(values):
        view.add(space.sample(rng), *[value] * ((1, 3, 9)[i % 3] if has_rungs else 9))
    for _ in range(num_pending):
        view.add(space.sample(rng), pending=1 if has_rungs else 9)
    for _ in range(num_failed):
        view.add(space.sample(rng), failed=True)
    return view


def request(view):
    slot = Slot(1, 0, tuple(view.configs)[:4]) if len(view.configs) > 4 else None
    return SuggestRequest(len(view.configs), 0, 1, slot)


def check(name, story, options):
    view = build(**story)
    suggestion = make_searcher(name, options).suggest(view, request(view))
    again = make_searcher(name, options).suggest(build(**story), request(view))
    assert suggestion == again
    if suggestion is None:
        assert view.space.size is None or len(view.taken) >= (view.space.size if name != "grid" else 1)
        return
    assert list(suggestion.config) == list(view.space.domains)
    for hyperparameter, value in suggestion.config.items():
        assert view.space.domains[hyperparameter].contains(value)
    assert view.space.match_key(suggestion.config) not in view.taken
    assert json.loads(json.dumps(suggestion.config)) == suggestion.config
    assert suggestion.reason and "\n" not in suggestion.reason
    assert suggestion.origin in ("random", "grid", "model", "evolution")


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in ("bayesopt", "hypertune")])
@settings(max_examples=30, deadline=None)
@given(story=studies)
def test_a_new_valid_configuration_which_depends_on_the_data_alone(name, story):
    check(name, story, {"random_fraction": 0.0})


@pytest.mark.parametrize(
    ("name", "model"),
    [("bayesopt", "gp_multitask"), ("bayesopt", "gp_independent"), ("bayesopt", "gp_issm"), ("hypertune", None)],
)
@settings(max_examples=12, deadline=None)
@given(story=studies)
def test_the_same_with_models(name, model, story):
    torch.set_num_threads(1)
    check(name, story, {**CHEAP, "model": model})
