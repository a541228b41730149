from __future__ import annotations

import numpy as np

from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, randint, uniform
from lightning_hpo.searchers.candidates import Candidates
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})
GRID = SearchSpace({"n": randint(1, 4)})


def of(space, values, excluded=()):
    name = next(iter(space.domains))
    keys = {space.match_key({name: value}) for value in excluded}
    return Candidates(space, keys, space.encode_many([{name: value} for value in values]))


def test_the_lowest_score_wins_and_ties_go_to_the_first():
    candidates = of(LINE, [0.1, 0.2, 0.3])
    assert candidates.choose(np.array([2.0, 1.0, 1.0]), None)["x"] == 0.2


def test_the_refined_point_is_proposed_in_place_of_the_best_candidate():
    candidates = of(LINE, [0.1, 0.2])
    assert candidates.choose(np.array([0.0, 1.0]), lambda x: x + 0.5)["x"] == 0.6


def test_a_known_refined_point_falls_back_to_its_candidate_and_then_to_the_next_one():
    assert of(GRID, [2, 3], excluded=[4]).choose(np.array([0.0, 1.0]), lambda x: np.ones(1)) == {"n": 2}
    assert of(GRID, [2, 3], excluded=[4, 2]).choose(np.array([0.0, 1.0]), lambda x: np.ones(1)) == {"n": 3}
    assert of(GRID, [2, 3], excluded=[4, 2, 3]).choose(np.array([0.0, 1.0]), lambda x: np.ones(1)) is None


def test_refinement_is_not_tried_for_every_candidate_of_an_exhausted_space():
    calls = []
    of(GRID, [1, 2, 3, 4] * 20, excluded=[1, 2, 3, 4]).choose(np.arange(80.0), lambda x: calls.append(x) or x)
    assert len(calls) == 5


def test_restricted_configurations_come_back_exactly_and_are_not_refined():
    allowed = [{"x": 0.1 + 0.2}, {"x": 1 / 3}, {"x": 0.7}]
    view = View(LINE)
    view.add({"x": 0.7})
    options = SearcherOptions(restrict_configurations=allowed)
    candidates = Candidates.draw(view, options, view.taken, np.random.default_rng(0))
    assert len(candidates.encoded) == 2
    assert candidates.choose(-candidates.encoded[:, 0], lambda x: x + 0.1) == {"x": 1 / 3}


def test_as_many_random_candidates_as_asked_for():
    options = SearcherOptions(num_init_candidates=17)
    candidates = Candidates.draw(View(LINE), options, set(), np.random.default_rng(0))
    assert candidates.encoded.shape == (17, 1)
    assert ((candidates.encoded >= 0) & (candidates.encoded <= 1)).all()
