"""Hyper-Tune's weights by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_hpo.surrogates.ensemble import (
    bracket_distribution,
    ensemble_weights,
    folds,
    highest_supported,
    level_losses,
    level_weights,
    ranking_losses,
)
from lightning_hpo.surrogates.models import IndependentModel, JointModel, multitask
from tests.surrogates.problems import LEVELS, random_theta, rungs


def test_wrong_pairs_are_counted() -> None:
    targets = torch.tensor([0.1, 0.2, 0.3])
    samples = torch.tensor([[1.0, 3.0, 1.0], [2.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    # right order; reversed; only the last pair exchanged
    assert ranking_losses(samples, targets).tolist() == pytest.approx([0.0, 1.0, 1 / 3])


def test_ties_are_compared_by_less_than() -> None:
    targets = torch.tensor([0.5, 0.5])
    # not less in the targets: wrong only if the sample's first is less
    assert ranking_losses(torch.tensor([[1.0, 2.0, 1.0], [2.0, 1.0, 1.0]]), targets).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("n", "sizes"), [(6, [2, 2, 2]), (7, [2, 2, 3]), (9, [2, 2, 2, 3]), (10, [2] * 5), (13, [2, 2, 3, 3, 3])]
)
def test_folds_are_contiguous_with_the_longer_ones_last(n: int, sizes: list[int]) -> None:
    blocks = folds(n)
    assert [len(range(n)[b]) for b in blocks] == sizes
    assert [i for b in blocks for i in range(n)[b]] == list(range(n))


@pytest.mark.parametrize(
    ("counts", "expected"), [([40, 12, 6, 5], 3), ([5, 5, 5], 1), ([40, 5, 6], 3), ([3], 1), ([9, 6], 2)]
)
def test_highest_level_with_six_observations(counts: list[int], expected: int) -> None:
    assert highest_supported(counts) == expected


def test_ties_count_for_every_level() -> None:
    losses = torch.tensor([[0.1, 0.3, 0.2, 0.5], [0.1, 0.2, 0.3, 0.4]])
    # level 1 wins samples 1 and 3, level 2 wins 1, 2 and 4
    assert level_weights(losses).tolist() == pytest.approx([2 / 5, 3 / 5])


def test_small_weights_leave_the_ensemble() -> None:
    weights = {1: 0.01, 3: 0.29, 9: 0.7}
    assert ensemble_weights(weights, renormalize=False) == {3: 0.29, 9: 0.7}
    assert ensemble_weights(weights) == pytest.approx({3: 0.29 / 0.99, 9: 0.7 / 0.99})


def test_brackets_share_the_mass_of_the_supported_levels() -> None:
    default = [0.5510, 0.2449, 0.1224, 0.0816]
    found = bracket_distribution({1: 0.6173, 3: 0.3827}, default)
    # 0.6173 / 1 against 0.3827 / 3, of the mass 0.5510 + 0.2449
    assert found == pytest.approx([0.6596, 0.1363, 0.1224, 0.0816], abs=5e-5)
    assert bracket_distribution({1: 0.5, 3: 0.25, 9: 0.25}, [1.0]) == [1.0]
    assert bracket_distribution({1: 0.0, 3: 0.0}, [0.7, 0.3]) == [1.0, 0.0]


@pytest.mark.parametrize("model", [multitask(3, 9), IndependentModel(3, LEVELS)])
def test_losses_of_a_model_that_knows_better_than_chance(model: JointModel | IndependentModel) -> None:
    data = rungs(24)
    theta = random_theta(model)[0]
    generator = torch.Generator().manual_seed(0)
    drawn: list[int] = []

    def normals(n: int) -> torch.Tensor:
        drawn.append(n)
        return torch.randn(n, 50, dtype=torch.float64, generator=generator)

    # 24, 8 and 2 observations: two levels are supported
    losses = level_losses(model, data, theta, model.posterior(data, theta), (1, 3), normals)
    assert losses.shape == (2, 50)
    assert drawn == [8, 2, 2, 2, 2]
    assert float(losses[0].mean()) < 0.4
    assert ((losses >= 0.0) & (losses <= 1.0)).all()
