from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.space import (
    SearchSpace,
    choice,
    finrange,
    logfinrange,
    lograndint,
    loguniform,
    ordinal,
    randint,
    uniform,
)
from lightning_hpo.errors import SpaceError
from tests.core.strategies import SPACES

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture
def mlp() -> SearchSpace:
    """Two layers, as in the classic benchmark, and a constant between."""
    return SearchSpace(
        {
            "n_units": lograndint(4, 1024),
            "epochs": 81,
            "batch_size": lograndint(8, 128),
            "activation": choice(["relu", "gelu", "tanh"]),
            "learning_rate": loguniform(1e-6, 1),
        }
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestOrder:
    def test_of_the_mapping_is_kept(self, mlp):
        assert mlp.names == ("n_units", "epochs", "batch_size", "activation", "learning_rate")
        assert list(mlp.domains) == list(mlp.sample(rng())) == ["n_units", "batch_size", "activation", "learning_rate"]

    def test_of_the_vector_is_by_name(self, mlp):
        assert mlp.encoded_names == ("activation", "batch_size", "learning_rate", "n_units")
        assert mlp.width == 6
        assert mlp.columns("activation") == slice(0, 3) and mlp.columns("n_units") == slice(5, 6)

    def test_of_the_mapping_is_that_of_the_draws(self):
        a, b = uniform(0, 1), randint(0, 9)
        generator = rng()
        assert SearchSpace({"z": a, "a": b}).sample(rng()) == {"z": a.sample(generator), "a": b.sample(generator)}

    def test_of_the_mapping_is_part_of_the_identity(self):
        a, b = uniform(0, 1), randint(0, 9)
        assert SearchSpace({"x": a, "y": b}) != SearchSpace({"y": b, "x": a})


class TestEverySpace:
    @given(SPACES, SEEDS)
    def test_a_configuration_survives_the_cube_and_the_check(self, space, seed):
        configs = space.sample_many(rng(seed), 3)
        encoded = space.encode_many(configs)
        assert encoded.shape == (3, space.width)
        assert np.all((space.bounds[:, 0] <= encoded) & (encoded <= space.bounds[:, 1]))
        for config, vector in zip(configs, encoded, strict=True):
            assert space.check(config) == config
            assert np.array_equal(space.encode(config), vector)
            space.check(space.decode(vector))

    @given(SPACES, SEEDS)
    def test_draws_in_the_cube_are_the_draws_of_configurations(self, space, seed):
        configs = space.sample_many(rng(seed), 4)
        np.testing.assert_allclose(space.sample_encoded(rng(seed), 4), space.encode_many(configs), atol=1e-9)

    @given(SPACES)
    def test_json_gives_an_equal_space(self, space):
        read = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
        assert read == space and read.names == space.names and read.constants == space.constants
        assert hash(read) == hash(space) and read.fingerprint == space.fingerprint

    @given(SPACES, SEEDS)
    def test_the_key_tells_configurations_apart(self, space, seed):
        first, second = space.sample_many(rng(seed), 2)
        tokens = [[d.match_token(c[name]) for name, d in space.domains.items()] for c in (first, second)]
        assert (space.match_key(first) == space.match_key(second)) == (tokens[0] == tokens[1])
        assert space.match_key(space.with_constants(first)) == space.match_key(first)

    @given(SPACES, SEEDS)
    def test_constants_come_and_go(self, space, seed):
        config = space.sample(rng(seed))
        whole = space.with_constants(config)
        assert tuple(whole) == space.names
        assert space.searched(whole) == config
        assert {name: whole[name] for name in space.constants} == space.constants

    @given(SPACES)
    def test_the_default_is_in_the_space(self, space):
        assert space.check(space.default()) == space.default()


class TestSize:
    def test_is_the_product(self):
        assert SearchSpace({"a": randint(1, 6), "b": choice(["x", "y"]), "c": 7}).size == 12

    def test_is_unknown_if_infinite_or_large(self, mlp):
        assert mlp.size is None
        assert SearchSpace({"a": randint(1, 2**10), "b": randint(1, 2**10)}).size == 2**20
        assert SearchSpace({"a": randint(1, 2**10), "b": randint(0, 2**10)}).size is None

    def test_of_constants_alone_is_one(self):
        space = SearchSpace({"epochs": 3})
        assert (space.size, space.width, space.bounds.shape, space.encode({}).shape) == (1, 0, (0, 2), (0,))
        assert space.sample_many(rng(), 2) == [{}, {}] and space.complete(None) == [{}]


class TestDraw:
    def test_avoids_what_is_excluded_and_ends_when_nothing_is_left(self):
        space = SearchSpace({"b": randint(1, 3), "a": choice(["x", "y"])})
        found: list[str] = []
        while (config := space.draw(rng(len(found)), set(found))) is not None:
            assert list(config) == ["b", "a"] and space.check(config) == config
            found.append(space.match_key(config))
        assert len(set(found)) == len(found) == 6

    def test_finds_the_last_configuration_of_many(self):
        space = SearchSpace({"a": randint(1, 99), "b": randint(1, 99), "c": logfinrange(1, 10, 10, cast_int=True)})
        last = {"a": 17, "b": 71, "c": 8}
        everything = {
            space.match_key({"a": a, "b": b, "c": c})
            for a in range(1, 100)
            for b in range(1, 100)
            for c in space.domains["c"].members
        }
        assert len(everything) == space.size == 99 * 99 * 8
        assert space.draw(rng(), everything - {space.match_key(last)}) == last
        assert space.draw(rng(), everything) is None

    def test_is_uniform_over_the_rest(self):
        space = SearchSpace({"a": randint(0, 9999)})
        excluded = {space.match_key({"a": a}) for a in range(9998)}
        found = [space.draw(rng(seed), excluded) for seed in range(60)]
        # 100 tries rarely hit one of the two, so nearly all of these come from the list.
        assert 12 <= sum(config == {"a": 9999} for config in found) <= 48

    def test_gives_up_on_an_infinite_space_without_distinguishable_values(self):
        space = SearchSpace({"a": uniform(1, 1 + 1e-9)})
        assert space.draw(rng(), {space.match_key({"a": 1.0})}) is None

    def test_of_the_empty_space_happens_once(self):
        space = SearchSpace({"epochs": 3})
        assert space.draw(rng(), set()) == {}
        assert space.draw(rng(), {space.match_key({})}) is None


class TestInitialConfigurations:
    def test_none_is_the_default(self, mlp):
        # Geometric means: 2 ** 6, 2 ** 5, 1e-3
        (config,) = mlp.complete(None)
        assert config == {"n_units": 64, "batch_size": 32, "activation": "relu", "learning_rate": pytest.approx(1e-3)}

    def test_an_empty_list_is_none_at_all(self, mlp):
        assert mlp.complete([]) == []

    def test_missing_values_are_completed_and_repetitions_dropped(self, mlp):
        points = [{"n_units": 64.0}, {"activation": "gelu", "epochs": 3}, {}, {"activation": "gelu"}]
        assert [(c["n_units"], c["activation"]) for c in mlp.complete(points)] == [(64, "relu"), (64, "gelu")]

    def test_values_move_to_the_grid(self):
        assert SearchSpace({"a": finrange(0, 1, 5)}).complete([{"a": 0.3}, {"a": 0.2}]) == [{"a": 0.25}]

    def test_a_wrong_value_is_refused_by_name(self, mlp):
        with pytest.raises(SpaceError, match="'n_units': 2048 lies outside"):
            mlp.complete([{"n_units": 2048}])

    def test_an_unknown_name_is_refused(self, mlp):
        with pytest.raises(SpaceError, match=r"'learning_rat' is not .* Did you mean 'learning_rate'"):
            mlp.complete([{"learning_rat": 0.1}])

    def test_a_point_is_a_mapping(self, mlp):
        with pytest.raises(SpaceError, match="no mapping"):
            mlp.complete([0.1])


class TestCheck:
    def test_casts(self, mlp):
        config = {"n_units": np.int64(5), "batch_size": 8.0, "activation": "tanh", "learning_rate": 1, "epochs": 81}
        checked = mlp.check(config)
        assert checked == {"n_units": 5, "batch_size": 8, "activation": "tanh", "learning_rate": 1.0}
        assert [type(value) for value in checked.values()] == [int, int, str, float]

    def test_nothing_may_be_missing(self, mlp):
        with pytest.raises(SpaceError, match="lacks 'batch_size'"):
            mlp.check({"n_units": 5})

    def test_constants_stay(self, mlp):
        with pytest.raises(SpaceError, match="'epochs' is the constant 81, not 3"):
            mlp.check({**mlp.default(), "epochs": 3})


class TestParse:
    def test_domains_as_configuration_files_spell_them(self):
        space = SearchSpace.parse(
            {
                "width": {"domain": "logfinrange", "lower": 16, "upper": 512, "size": 6, "cast_int": True},
                "depth": {"domain": "ordinal", "categories": [1, 2, 8]},
                "momentum": {"domain": "reverseloguniform", "lower": 0.5, "upper": 0.99},
                "lr": loguniform(1e-4, 1),
                "optimizer": {"name": "sgd"},
                "layers": [64, 64],
            }
        )
        assert space.domains["width"] == logfinrange(16, 512, 6, cast_int=True)
        assert space.domains["depth"] == ordinal([1, 2, 8], "nn")
        assert space.domains["lr"] == loguniform(1e-4, 1)
        assert space.constants == {"optimizer": {"name": "sgd"}, "layers": [64, 64]}

    def test_a_space_is_left_as_it_is(self, mlp):
        assert SearchSpace.parse(mlp) is mlp

    @pytest.mark.parametrize(
        ("spelling", "message"),
        [
            ({"domain": "logunifrom", "lower": 1, "upper": 2}, "'lr': There is no domain 'logunifrom'. Did you mean"),
            (
                {"domain": "uniform", "lower": 1, "uper": 2},
                "'lr': uniform has no argument 'uper'. Did you mean 'upper'",
            ),
            ({"domain": "loguniform", "lower": 0, "upper": 2}, "'lr': loguniform: lower=0 has no logarithm"),
            ({"domian": "uniform", "lower": 1, "upper": 2}, "Did you mean 'domain'"),
            ({"domain": ["uniform"], "lower": 1, "upper": 2}, "'lr': There is no domain \\['uniform'\\]"),
        ],
    )
    def test_mistakes_are_named(self, spelling, message):
        with pytest.raises(SpaceError, match=message):
            SearchSpace.parse({"lr": spelling})


class TestWhatIsNoSpace:
    @pytest.mark.parametrize("name", [3, "", None])
    def test_names_are_strings(self, name):
        with pytest.raises(SpaceError, match="Use a non-empty string"):
            SearchSpace({name: uniform(0, 1)})

    @pytest.mark.parametrize("constant", [object(), float("nan"), {1: 2}, b"bytes"])
    def test_constants_are_json(self, constant):
        with pytest.raises(SpaceError, match="constant 'c' cannot be written as JSON"):
            SearchSpace({"c": constant})

    def test_a_list_is_refused(self):
        with pytest.raises(SpaceError, match="Give a mapping"):
            SearchSpace([uniform(0, 1)])

    @pytest.mark.parametrize("data", [[{"name": "a"}], ["a"], 3])
    def test_damaged_data_is_refused(self, data):
        with pytest.raises(SpaceError, match="Restore the file"):
            SearchSpace.from_json(data)


def test_equality_is_not_pythons():
    assert SearchSpace({"a": choice([True, False])}) != SearchSpace({"a": choice([1, 0])})
    assert SearchSpace({"a": 1}) != SearchSpace({"a": True})
    assert SearchSpace({"a": 1}) != {"a": 1}


def test_a_space_travels_between_processes(mlp):
    copy = pickle.loads(pickle.dumps(mlp))
    assert copy == mlp and copy.sample(rng(3)) == mlp.sample(rng(3))


def test_numpy_constants_become_pythons():
    assert type(SearchSpace({"a": np.float64(0.5)}).constants["a"]) is float
