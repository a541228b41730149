"""The state of every random number generator that a training process draws from.

It is made of tensors, lists and numbers only, so that a checkpoint with it loads with ``weights_only=True``.

Not included, because it dies with its process: generators inside DataLoader workers. Workers are seeded from
the main process when an epoch's iterator is made, so they repeat exactly, unless ``persistent_workers=True``
keeps them and their generators over several epochs and the dataset draws random numbers in them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

RandomState = dict[str, Any]
Generator: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | random.Random"
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def random_state(device: torch.device, generators: Sequence[Generator] = ()) -> RandomState:
    """The state of torch, numpy and Python, of the device and of the given generators.

    Args:
        device: the rank's device; its generator is included if it has one of its own.
        generators: further generators, in an order that :func:`restore_random_state` will repeat.
    """
    state: RandomState = {
        "torch": torch.get_rng_state(),
        "numpy": _legacy_state(np.random),
        "python": _python_state(random),
        "generators": [_generator_state(generator) for generator in generators],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: RandomState, device: torch.device, generators: Sequence[Generator] = ()) -> None:
    """Set what :func:`random_state` read. Of a state from another kind of device, what fits is set."""
    torch.set_rng_state(state["torch"].cpu())
    _set_legacy_state(np.random, state["numpy"])
    _set_python_state(random, state["python"])
    for generator, saved in zip(generators, state["generators"], strict=False):
        _set_generator_state(generator, saved)
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


@contextlib.contextmanager
def drawing_as(state: RandomState, device: torch.device) -> Iterator[None]:
    """Random numbers go on from this state, and afterwards from where they were."""
    now = random_state(device)
    restore_random_state(state, device)
    try:
        yield
    finally:
        restore_random_state(now, device)


def generators_of(owner: Any, known: Sequence[Generator] = ()) -> list[Generator]:
    """The generators among an object's attributes, whatever their names, but for those that are known already."""
    found: list[Generator] = []
    for value in getattr(owner, "__dict__", {}).values():
        if isinstance(value, _GENERATORS) and all(value is not other for other in (*known, *found)):
            found.append(value)
    return found


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
    elif isinstance(state, list):
        if isinstance(generator, np.random.RandomState) and len(state) == 5:
            _set_legacy_state(generator, state)
        elif isinstance(generator, random.Random) and len(state) == 3:
            _set_python_state(generator, state)


def _legacy_state(generator: Any) -> list[Any]:
    """Of numpy's module of random numbers, or of one of its old generators."""
    name, keys, position, has_gauss, gauss = generator.get_state(legacy=True)
    return [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)]


def _set_legacy_state(generator: Any, state: list[Any]) -> None:
    name, keys, position, has_gauss, gauss = state
    generator.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))


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
