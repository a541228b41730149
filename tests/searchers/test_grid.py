from __future__ import annotations

import pytest

from lightning_hpo.core.space import SearchSpace, choice, finrange, loguniform, ordinal, randint, uniform
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers.grid import grid_axes
from tests.searchers.test_random import TINY, proposals
from tests.searchers.views import View


def test_points_lie_at_the_centres_of_equal_cells_of_the_encoded_range():
    space = SearchSpace({"u": uniform(0, 10), "l": loguniform(1e-5, 1.0), "i": randint(0, 99)})
    axes = grid_axes(space, None)
    assert axes["u"] == pytest.approx([1, 3, 5, 7, 9])
    assert axes["l"] == pytest.approx([10**-4.5, 10**-3.5, 10**-2.5, 10**-1.5, 10**-0.5])
    # 100 integers own [-0.5, 99.5]; fifths of it are centred at 9.5, 29.5, .., which round to the even neighbour.
    assert axes["i"] == pytest.approx([9.5, 29.5, 49.5, 69.5, 89.5], abs=0.51)


def test_num_samples_by_name_or_for_all():
    space = SearchSpace({"u": uniform(0, 1), "v": uniform(0, 1)})
    assert {name: len(axis) for name, axis in grid_axes(space, {"u": 2}).items()} == {"u": 2, "v": 5}
    assert {name: len(axis) for name, axis in grid_axes(space, 3).items()} == {"u": 3, "v": 3}


def test_finite_domains_give_all_their_values():
    space = SearchSpace(
        {"c": choice(list("abcdefg")), "o": ordinal([1, 2, 4, 8, 16, 32]), "f": finrange(0, 1, 7), "i": randint(3, 6)}
    )
    assert [len(axis) for axis in grid_axes(space, None).values()] == [7, 6, 7, 4]


def test_every_point_once_in_random_order():
    configs = proposals("grid", View(TINY), 100)
    everything = [(a, b) for a in (1, 2, 3) for b in ("x", "y")]
    assert sorted((c["a"], c["b"]) for c in configs) == everything
    orders = {tuple((c["a"], c["b"]) for c in proposals("grid", View(TINY, seed=s), 100)) for s in range(5)}
    assert len(orders) > 1


def test_without_shuffling_the_last_hyperparameter_changes_fastest():
    configs = proposals("grid", View(TINY), 100, shuffle_config=False)
    assert [(c["a"], c["b"]) for c in configs] == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]


def test_points_tried_before_the_grid_began_are_left_out():
    view = View(TINY)
    view.add({"a": 2, "b": "x"})
    configs = proposals("grid", view, 100, shuffle_config=False)
    assert {"a": 2, "b": "x"} not in configs
    assert len(configs) == 5


def test_a_lost_state_does_not_repeat_points():
    view = View(TINY)
    first = proposals("grid", view, 3)
    view.state = None
    assert not [c for c in proposals("grid", view, 10) if c in first]


def test_a_grid_too_large_to_list_is_visited_without_repetition():
    space = SearchSpace({f"x{i}": uniform(0, 1) for i in range(12)})
    configs = proposals("grid", View(space), 50)
    assert len({tuple(c.values()) for c in configs}) == 50


def test_restricted_configurations_are_refused():
    with pytest.raises(OptionError, match="num_samples"):
        proposals("grid", View(TINY), 1, restrict_configurations=[{"a": 1, "b": "x"}])
