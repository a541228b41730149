"""The state of every random number generator that a training process draws from.

It is made of tensors, lists and numbers only, so that a checkpoint with it loads with ``weights_only=True``.

Not included, because it dies with its process: generators inside DataLoader workers. Workers are seeded from
the main process when an epoch's iterator is made, so they repeat exactly, unless ``persistent_workers=True``
keeps them and their generators over several epochs and the dataset draws random numbers in them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from lightning_hpo.errors import CheckpointError
from lightning_hpo.integrations.generators import Generator

RandomState = dict[str, Any]
_NONE: Mapping[str, Generator] = MappingProxyType({})


def random_state(device: torch.device, generators: Mapping[str, Generator] = _NONE) -> RandomState:
    """The state of torch, numpy and Python, of the device and of the given generators.

    Args:
        device: the rank's device; its generator is included if it has one of its own.
        generators: further generators, by names under which :func:`restore_random_state` will find them.
    """
    state: RandomState = {
        "torch": torch.get_rng_state(),
        "numpy": _legacy_state(np.random),
        "python": _python_state(random),
        "generators": {name: _generator_state(generator) for name, generator in generators.items()},
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: RandomState, device: torch.device, generators: Mapping[str, Generator] = _NONE) -> None:
    """Set what :func:`random_state` read. Of a state from another kind of device, what fits is set.

    Raises:
        CheckpointError: if it was read by an earlier version, which did not name the generators.
    """
    if isinstance(state["generators"], list) and state["generators"]:
        raise CheckpointError(
            "The trial was paused by an earlier version of lightning_hpo, which did not note to which of the script's "
            "random generators a state belongs. Let the trial start again from the beginning."
        )
    torch.set_rng_state(state["torch"].cpu())
    _set_legacy_state(np.random, state["numpy"])
    _set_python_state(random, state["python"])
    for name, generator in generators.items():
        if name in state["generators"]:
            _set_generator_state(generator, state["generators"][name])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


@contextlib.contextmanager
def drawing_as(state: RandomState, device: torch.device, generators: Mapping[str, Generator] = _NONE) -> Iterator[None]:
    """Random numbers go on from this state, and afterwards from where they were."""
    now = random_state(device, generators)
    restore_random_state(state, device, generators)
    try:
        yield
    finally:
        restore_random_state(now, device, generators)


def _generator_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _legacy_state(generator) if isinstance(generator, np.random.RandomState) else _python_state(generator)


def _set_generator_state(generator: Generator, state: Any) -> None:
    """A generator of another kind than the one that was saved is left as it is."""
    if isinstance(generator, torch.Generator):
        if isinstance(state, torch.Tensor):
            generator.set_state(state.cpu())
    elif isinstance(generator, np.random.Generator):
        if isinstance(state, dict) and state["bit_generator"] == generator.bit_generator.state["bit_generator"]:
            generator.bit_generator.state = _numpy(state, generator.bit_generator.state)
    elif isinstance(generator, np.random.RandomState):
        if isinstance(state, dict) or (isinstance(state, list) and len(state) == 5):
            _set_legacy_state(generator, state)
    elif isinstance(state, list) and len(state) == 3:
        _set_python_state(generator, state)


def _legacy_state(generator: Any) -> Any:
    """Of numpy's module of random numbers, or of one of its old generators."""
    return _plain(generator.get_state(legacy=False))


def _set_legacy_state(generator: Any, state: Any) -> None:
    now = generator.get_state(legacy=False)
    if isinstance(state, list):  # as earlier versions have read it: the order of numpy's own tuple
        name, key, position, has_gauss, gauss = state
        bits = {"key": key.tolist(), "pos": position}
        state = {"bit_generator": name, "state": bits, "has_gauss": has_gauss, "gauss": gauss}
    if state.keys() == now.keys() and state["bit_generator"] == now["bit_generator"]:
        generator.set_state(_numpy(state, now))


def _python_state(generator: Any) -> list[Any]:
    version, words, next_gauss = generator.getstate()
    return [version, list(words), next_gauss]


def _set_python_state(generator: Any, state: list[Any]) -> None:
    version, words, next_gauss = state
    generator.setstate((version, tuple(words), next_gauss))


def _plain(value: Any) -> Any:
    """Arrays of unsigned words as lists of numbers."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _numpy(value: Any, like: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numpy(inner, like[key]) for key, inner in value.items()}
    return np.array(value, like.dtype) if isinstance(like, np.ndarray) else value
