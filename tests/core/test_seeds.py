from __future__ import annotations

import numpy as np

from lightning_hpo.core.seeds import Stream, child_seed, generator


def test_a_draw_depends_on_seed_stream_and_counter_only():
    first = generator(7, Stream.CONFIGURATION, 3).random(4)
    generator(7, Stream.BRACKET, 3).random(100)
    assert np.array_equal(generator(7, Stream.CONFIGURATION, 3).random(4), first)


def test_seeds_streams_and_counters_give_different_draws():
    draws = {
        generator(seed, stream, counter).random()
        for seed in (0, 1)
        for stream in (Stream.BRACKET, Stream.TRAINING)
        for counter in (0, 1)
    }
    assert len(draws) == 8


def test_streams_are_part_of_the_stored_format():
    assert {s.name: s.value for s in Stream} == {
        "BRACKET": 0, "CONFIGURATION": 1, "SURROGATE": 2, "TRAINING": 3, "GRID": 4,
    }  # fmt: skip
    # Numbers of a study that was started once must be those of a study continued years later (numpy's PCG64).
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence(5, spawn_key=(0, 2)))).random()
    assert generator(5, Stream.BRACKET, 2).random() == expected


def test_child_seeds_fit_other_libraries():
    seeds = [child_seed(0, Stream.TRAINING, i) for i in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
