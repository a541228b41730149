from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.brackets import default_distribution, draw_bracket, milestones, num_brackets
from lightning_hpo.core.rungs import rung_levels
from lightning_hpo.errors import OptionError


def test_there_are_not_more_brackets_than_levels_allow():
    assert num_brackets(1, (1, 3, 9)) == 1
    assert num_brackets(4, (1, 3, 9)) == 4
    assert num_brackets(9, (1, 3, 9)) == 4
    with pytest.raises(OptionError, match="Set it to 1"):
        num_brackets(0, (1, 3, 9))


def test_a_bracket_skips_the_lowest_levels():
    assert [milestones((1, 3, 9), 27, b) for b in range(4)] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,)]


@pytest.mark.parametrize(
    ("max_t", "brackets", "weights"),
    [
        (81, 5, (0.5694, 0.2373, 0.1054, 0.0527, 0.0351)),
        (27, 4, (0.5510, 0.2449, 0.1224, 0.0816)),
        (3, 2, (0.6, 0.4)),
        (10, 4, (0.484, 0.215, 0.108, 0.194)),
    ],
)
def test_small_brackets_are_as_likely_as_their_share_in_hyperband(max_t, brackets, weights):
    assert default_distribution(rung_levels(max_t), max_t, brackets) == pytest.approx(weights, abs=6e-4)


@given(st.integers(3, 500), st.integers(1, 8))
def test_probabilities_sum_to_one(max_t, brackets):
    levels = rung_levels(max_t)
    weights = default_distribution(levels, max_t, num_brackets(brackets, levels))
    assert sum(weights) == pytest.approx(1.0) and min(weights) > 0


def test_brackets_are_drawn_with_their_probabilities():
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_bracket((0.6, 0.0, 0.4), rng) for _ in range(4000)], minlength=3)
    assert counts[1] == 0
    assert counts[0] / 4000 == pytest.approx(0.6, abs=0.03)  # four standard deviations


def test_weights_need_not_be_normalised():
    rng = np.random.default_rng(0)
    assert {draw_bracket((0.0, 5.0), rng) for _ in range(50)} == {1}


def test_a_single_bracket_costs_no_random_number():
    rng = np.random.default_rng(0)
    assert draw_bracket((1.0,), rng) == 0
    assert rng.random() == np.random.default_rng(0).random()
