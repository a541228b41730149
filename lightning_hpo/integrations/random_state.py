"""The state of every random number generator that a training process draws from.

It is made of tensors, lists and numbers only, so that a checkpoint with it loads with ``weights_only=True``.

Not included, because it dies with its process: generators inside DataLoader workers. Workers are seeded from
the main process when an epoch's iterator is made, so they repeat exactly, unless ``persistent_workers=True``
keeps them and their generators over several epochs and the dataset draws random numbers in them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def random_state(device: torch.device, generators: Sequence[torch.Generator] = ()) -> RandomState:
    """The state of torch, numpy and Python, of the device and of the given generators.

    Args:
        device: the rank's device; its generator is included if it has one of its own.
        generators: further generators, in an order that :func:`restore_random_state` will repeat.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    state: RandomState = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), next_gauss],
        "generators": [generator.get_state() for generator in generators],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: RandomState, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
    """Set what :func:`random_state` read. Of a state from another kind of device, what fits is set."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    for generator, saved in zip(generators, state["generators"], strict=False):
        generator.set_state(saved.cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())
