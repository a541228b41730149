"""Random numbers without generator state.

Every draw of a study comes from a generator made for the purpose: the stream says what the numbers
are for, the counter which draw it is. So a study has no generator state to save, and a replayed or
continued study draws what it would have drawn.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers are for. Values are part of the stored format: never renumber."""

    BRACKET = 0
    CONFIGURATION = 1
    SURROGATE = 2
    TRAINING = 3
    GRID = 4


def generator(seed: int, stream: Stream, *counter: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments.

    Args:
        seed: the study's ``random_seed``.
        stream: what the numbers are for.
        counter: which draw of the stream, e.g. the id of the trial it is for.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *counter)))


def child_seed(seed: int, stream: Stream, *counter: int) -> int:
    """A seed in ``[0, 2**31)`` for libraries that want an integer."""
    return int(np.random.SeedSequence(seed, spawn_key=(int(stream), *counter)).generate_state(1)[0] & 0x7FFFFFFF)
