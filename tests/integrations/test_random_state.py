"""Random numbers after a restore are those after the snapshot."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.errors import CheckpointError
from lightning_hpo.integrations.random_state import random_state, restore_random_state

CPU = torch.device("cpu")


def draws(generators: dict[str, torch.Generator]) -> list[Any]:
    return [
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.randn(),
        random.random(),
        random.gauss(0.0, 1.0),
        *(torch.rand(2, generator=generator).tolist() for generator in generators.values()),
    ]


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 3))
def test_draws_repeat_after_a_restore_in_a_safe_file(seed: int, already_drawn: int) -> None:
    generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("first", "second"))}
    torch.manual_seed(seed), np.random.seed(seed % 2**32), random.seed(seed)
    for _ in range(already_drawn):
        # An odd number of normal draws leaves a second one in store, in numpy and in Python.
        draws(generators)
    state = random_state(CPU, generators)
    first = draws(generators)
    draws(generators)
    restore_random_state(through_a_file(state), CPU, generators)
    assert draws(generators) == first


def test_taking_a_snapshot_draws_nothing() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws({})
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    random_state(CPU)
    assert draws({}) == expected


def test_a_script_with_other_generators_than_before_gets_what_fits() -> None:
    first, second, third = (torch.Generator().manual_seed(seed) for seed in range(3))
    state = random_state(CPU, {"first": first, "second": second})
    expected = torch.rand(2, generator=second).tolist(), torch.rand(2, generator=third).tolist()
    third.manual_seed(2), second.manual_seed(9)
    restore_random_state(state, CPU, {"third": third, "second": second, "first": random.Random(1)})
    assert (torch.rand(2, generator=second).tolist(), torch.rand(2, generator=third).tolist()) == expected


def test_generators_without_names_are_refused() -> None:
    state = random_state(CPU)
    restore_random_state(state | {"generators": []}, CPU)
    with pytest.raises(CheckpointError, match=r"earlier version .* start again from the beginning\.$"):
        restore_random_state(state | {"generators": [torch.Generator().get_state()]}, CPU)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64, np.random.Philox])
def test_old_generators_of_numpy_go_on_whatever_they_draw_their_bits_from(kind: Any) -> None:
    generator: Any = np.random.RandomState(kind(1))
    generator.randn()  # leaves a second one in store
    state = through_a_file(random_state(CPU, {"old": generator}))
    first = generator.randn(3).tolist()
    restore_random_state(state, CPU, {"old": generator})
    assert generator.randn(3).tolist() == first
    another = random_state(CPU, {"old": np.random.default_rng(1)})
    restore_random_state(another, CPU, {"old": generator})
    assert generator.randn(3).tolist() != first, "a state of another kind is none for it"


def test_the_state_of_numpy_is_understood_as_earlier_versions_have_read_it() -> None:
    generator = np.random.RandomState(1)
    name, key, position, has_gauss, gauss = generator.get_state()
    earlier = [name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, gauss]
    first = np.random.RandomState(1).rand(3).tolist()
    state = random_state(CPU)
    restore_random_state(state | {"numpy": earlier, "generators": {"old": earlier}}, CPU, {"old": generator})
    assert np.random.rand(3).tolist() == first == generator.rand(3).tolist()
