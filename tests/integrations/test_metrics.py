"""Logged metrics: what is fresh, what is a number."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.errors import MetricInvalid
from lightning_hpo.integrations.metrics import as_number, freshly_logged, missing_metric, numbers

NUMBERS = [
    (torch.tensor(0.5), 0.5),
    (torch.tensor([[0.5]]), 0.5),
    (torch.tensor(3), 3.0),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (torch.tensor(0.5, requires_grad=True), 0.5),
    (np.float32(0.5), 0.5),
    (np.array([2]), 2.0),
    (7, 7.0),
    (Fraction(1, 4), 0.25),
]
OTHERS: list[Any] = [
    torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor(1j), torch.tensor(True), np.array([1.0, 2.0]),
    np.bool_(True), np.array("a"), "0.5", b"1", True, None, 1j, [0.5], {"a": 1.0}, Decimal("0.5"), Ellipsis,
]  # fmt: skip


@pytest.mark.parametrize(("value", "number"), NUMBERS)
def test_scalars_of_every_library_are_numbers(value: Any, number: float) -> None:
    assert as_number("acc", value) == number


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_everything_else_is_refused_with_its_type(value: Any) -> None:
    with pytest.raises(MetricInvalid) as caught:
        as_number("acc", value)
    assert type(value).__name__ in str(caught.value)
    assert str(caught.value).endswith("Log a scalar: self.log('acc', value).")


@given(st.floats())
def test_every_float_is_sent_as_it_is(value: float) -> None:
    number = as_number("acc", torch.tensor(value, dtype=torch.float64))
    assert number == value or (math.isnan(number) and math.isnan(value))


def test_a_value_logged_again_is_fresh_even_if_it_is_equal() -> None:
    old, new = torch.tensor(0.5), torch.tensor(0.5)
    assert freshly_logged({"a": old, "b": new, "c": new}, {"a": old, "b": old}) == {"b": new, "c": new}


def test_other_metrics_that_are_no_numbers_are_left_out() -> None:
    assert numbers({"a": torch.tensor(1.5), "b": torch.ones(2), "c": "text"}) == {"a": 1.5}


def test_a_flood_of_metrics_is_cut() -> None:
    assert len(numbers({str(i): float(i) for i in range(5000)})) == 1000


def test_a_missing_metric_lists_what_was_logged() -> None:
    message = str(missing_metric("val_acc", {"train_loss": 1, "val_accuracy": 2}, "in epoch 1"))
    assert "'val_acc' was not logged in epoch 1" in message
    assert "Logged: 'train_loss', 'val_accuracy'. Did you mean 'val_accuracy'?" in message


def test_nothing_logged_is_said_so() -> None:
    assert "Logged: nothing." in str(missing_metric("val_acc", {}, "in epoch 1"))
