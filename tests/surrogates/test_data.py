"""Observations."""

from __future__ import annotations

import pytest
import torch

from lightning_hpo.errors import ShapeError
from lightning_hpo.surrogates.data import Observations, fidelity

ROWS = [[0.9, 0.1], [0.2, 0.2], [0.9, 0.1], [0.2, 0.2], [0.5, 0.5]]


def test_configurations_are_stored_once_in_the_order_of_appearance() -> None:
    data = Observations.from_rows(ROWS, [1.0, 2.0, 3.0, 4.0, 5.0], [1, 1, 3, 1, 1])
    assert data.x.tolist() == [[0.9, 0.1], [0.2, 0.2], [0.5, 0.5]]
    assert data.config.tolist() == [0, 1, 0, 1, 2]
    assert data.rows.tolist() == ROWS
    resources, level = data.levels()
    assert resources.tolist() == [1, 3]
    assert level.tolist() == [0, 0, 1, 0, 0]


def test_one_level_keeps_order_and_drops_other_configurations() -> None:
    data = Observations.from_rows(ROWS, [1.0, 2.0, 3.0, 4.0, 5.0], [1, 3, 3, 1, 1]).at(1)
    assert data.y.tolist() == [1.0, 4.0, 5.0]
    assert data.rows.tolist() == [ROWS[0], ROWS[3], ROWS[4]]


def test_no_observations() -> None:
    data = Observations.from_rows(torch.zeros(0, 3), torch.zeros(0))
    assert len(data) == 0
    assert data.x.shape == (0, 3)


def test_fidelity_is_the_encoding_of_an_integer() -> None:
    # (r - 0.5) / max_resource, up to the margin of 1e-8 at both ends
    assert fidelity(torch.tensor([1, 9]), 9).tolist() == pytest.approx([0.5 / 9, 8.5 / 9], abs=1e-8)


@pytest.mark.parametrize(
    ("x", "y", "resource"),
    [
        (ROWS, [1.0], None),
        (ROWS, [1.0] * 5, [1, 2]),
        ([[0.1, float("nan")]], [1.0], None),
        (ROWS[:1], [float("inf")], None),
    ],
)
def test_what_does_not_fit_is_refused(x: list[list[float]], y: list[float], resource: list[int] | None) -> None:
    with pytest.raises(ShapeError):
        Observations.from_rows(x, y, resource)
