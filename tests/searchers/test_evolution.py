from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.searcher import Slot
from lightning_hpo.core.space import SearchSpace, choice, uniform
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.evolution import cross, mutate, parent_pool
from tests.searchers.test_random import TINY, proposals
from tests.searchers.views import View

SQUARE = SearchSpace({"x": uniform(0, 1), "y": uniform(0, 1)})


def population(*points, rung_levels=(1, 3)):
    view = View(SQUARE, rung_levels=rung_levels)
    for x, y in points:
        view.add({"x": x, "y": y}, x + y)
    return view


def test_the_mutant_is_a_plus_f_times_b_minus_c():
    parents = np.array([[0.5, 0.5], [0.6, 0.1], [0.2, 0.3]])
    assert mutate(parents, 0.5, np.random.default_rng(0)) == pytest.approx([0.7, 0.4])


@given(st.integers(0, 1000), st.floats(0, 2))
def test_mutants_stay_in_the_cube(seed, factor):
    rng = np.random.default_rng(seed)
    mutant = mutate(rng.uniform(size=(3, 5)), factor, rng)
    assert ((mutant >= 0) & (mutant <= 1)).all()


def test_only_coordinates_outside_are_drawn_anew():
    parents = np.array([[0.9, 0.5], [0.9, 0.5], [0.1, 0.5]])
    drawn = np.array([mutate(parents, 0.5, np.random.default_rng(seed)) for seed in range(100)])
    assert (drawn[:, 1] == 0.5).all()
    assert drawn[:, 0].min() < 0.1 < 0.9 < drawn[:, 0].max()


@given(st.integers(0, 1000), st.floats(0, 1))
def test_crossover_takes_whole_hyperparameters_and_at_least_one(seed, probability):
    columns = [slice(0, 3), slice(3, 4), slice(4, 5)]
    offspring = cross(np.zeros(5), np.ones(5), columns, probability, np.random.default_rng(seed))
    taken = [set(offspring[c].tolist()) for c in columns]
    assert all(len(values) == 1 for values in taken)
    assert {1.0} in taken


def test_crossover_probability_zero_takes_exactly_one_and_one_takes_all():
    columns = [slice(i, i + 1) for i in range(6)]
    rng = np.random.default_rng(0)
    assert all(cross(np.zeros(6), np.ones(6), columns, 0.0, rng).sum() == 1 for _ in range(20))
    assert cross(np.zeros(6), np.ones(6), columns, 1.0, rng).sum() == 6


def test_the_first_population_is_uniform_in_the_cube():
    assert proposals("differential_evolution", View(SQUARE), 5) == proposals("random_encoded", View(SQUARE), 5)


def test_offspring_come_from_target_and_parents():
    view = population((0.2, 0.2), (0.4, 0.4), (0.6, 0.5), (0.5, 0.6))
    slot = Slot(level=1, target=0, parents=(1, 2, 3))
    suggestion = make_searcher("differential_evolution", {}).suggest(view, view.request(slot=slot))
    assert suggestion.origin == "evolution"
    assert suggestion.reason.startswith("offspring of trial 0 and a mutant of trials ")
    # Parents' differences are at most 0.2, so mutants lie within half of it around a parent.
    for value in suggestion.config.values():
        assert value == pytest.approx(0.2) or 0.3 <= value <= 0.7


def test_one_coordinate_comes_from_the_target_with_crossover_probability_zero():
    view = population((0.2, 0.2), (0.4, 0.4), (0.6, 0.5), (0.5, 0.6))
    slot = Slot(level=1, target=0, parents=(1, 2, 3))
    searcher = make_searcher("differential_evolution", {"crossover_probability": 0.0})
    config = searcher.suggest(view, view.request(slot=slot)).config
    assert sum(value == pytest.approx(0.2) for value in config.values()) == 1


def test_too_few_parents_are_filled_up_from_the_level_and_then_from_anywhere():
    view = population((0.1, 0.1), (0.2, 0.2), (0.3, 0.3))
    view.add({"x": 0.4, "y": 0.4}, 1.0, 1.0, 1.0)
    assert parent_pool(view, Slot(1, 0, (1, 2, 3))) == [1, 2, 3]
    assert parent_pool(view, Slot(1, 0, (2,))) == [2, 0, 1, 3]
    assert parent_pool(view, Slot(3, 0, (2,))) == [2, 3, 0, 1]


def test_without_three_parents_random():
    view = population((0.1, 0.1), (0.2, 0.2))
    suggestion = make_searcher("differential_evolution", {}).suggest(view, view.request(slot=Slot(1, 0, (1,))))
    assert (suggestion.origin, suggestion.reason) == ("random", "random: too few parents")


def test_where_only_some_configurations_may_be_proposed_the_reason_says_why_they_are_random():
    view = population((0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.4, 0.4))
    allowed = [{"x": 0.6, "y": 0.6}, {"x": 0.7, "y": 0.7}]
    searcher = make_searcher("differential_evolution", {"restrict_configurations": allowed})
    suggestion = searcher.suggest(view, view.request(slot=Slot(1, 0, (1, 2, 3))))
    assert suggestion.config in allowed
    assert suggestion.reason == "random: offspring are not among restrict_configurations"


def test_an_exhausted_space_gives_none():
    view = View(TINY, rung_levels=(1, 3))
    for a in (1, 2, 3):
        for b in ("x", "y"):
            view.add({"a": a, "b": b}, 1.0)
    slot = Slot(level=1, target=0, parents=(1, 2, 3))
    assert make_searcher("differential_evolution", {}).suggest(view, view.request(slot=slot)) is None
    allowed = make_searcher("differential_evolution", {"allow_duplicates": True})
    assert allowed.suggest(view, view.request(slot=slot)).config["a"] in (1, 2, 3)


def test_categories_are_crossed_as_a_whole():
    space = SearchSpace({"act": choice(["a", "b", "c", "d"]), "x": uniform(0, 1)})
    view = View(space, rung_levels=(1, 3))
    for i, act in enumerate("abbb"):
        view.add({"act": act, "x": 0.1 * i}, 1.0)
    slot = Slot(level=1, target=0, parents=(1, 2, 3))
    searcher = make_searcher("differential_evolution", {})
    drawn = set()
    for seed in range(40):
        view.seed = seed
        drawn.add(searcher.suggest(view, view.request(slot=slot)).config["act"])
    assert drawn <= {"a", "b"}
