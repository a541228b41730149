"""Search spaces: encodings, defaults, equality of configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_hpo.core.domains import Domain
from lightning_hpo.core.space import SearchSpace

pytestmark = pytest.mark.golden("space")


class RecordedSpace:
    """The space of a record. A resource attribute, if there is one, is encoded behind the others."""

    def __init__(self, record: dict[str, Any]) -> None:
        entries = {name: spelled(domain) for name, domain in record["space"]}
        self.last: str | None = record["name_last_pos"]
        self.whole = SearchSpace.parse(entries)
        self.searched = SearchSpace.parse({name: entry for name, entry in entries.items() if name != self.last})

    @property
    def resource(self) -> Domain | None:
        return None if self.last is None else self.whole.domains[self.last]

    def encode(self, config: dict[str, Any]) -> np.ndarray:
        encoded = self.searched.encode(config)
        return encoded if self.resource is None else np.append(encoded, self.resource.encode(config[self.last]))

    def decode(self, vector: list[float]) -> dict[str, Any]:
        config = self.searched.decode(np.array(vector[: self.searched.width]))
        return config if self.resource is None else config | {self.last: self.resource.decode(vector[-1])}

    def columns(self, name: str) -> list[int]:
        if name == self.last:
            return [self.searched.width, self.searched.width + 1]
        return [self.searched.columns(name).start, self.searched.columns(name).stop]

    @property
    def names(self) -> list[str]:
        return [*self.searched.encoded_names, *([] if self.last is None else [self.last])]

    @property
    def bounds(self) -> np.ndarray:
        return (
            self.searched.bounds if self.resource is None else np.vstack([self.searched.bounds, self.resource.bounds])
        )


def spelled(domain: dict[str, Any]) -> Any:
    arguments = dict(domain)
    name = arguments.pop("type")
    return arguments["value"] if name == "const" else {"domain": name, **arguments}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-9)
        else:
            assert found[name] == value and type(found[name]) is type(value)


def test_layout_of_the_vector(record):
    space = RecordedSpace(record)

    assert space.names == record["internal_order"]
    assert len(space.bounds) == record["size"]
    assert {name: space.columns(name) for name in space.names} == record["ranges"]
    np.testing.assert_allclose(space.bounds, record["bounds"], rtol=0, atol=1e-9)


def test_configurations_to_the_cube_and_back(record):
    space = RecordedSpace(record)
    for case in record["to_unit"]:
        np.testing.assert_allclose(space.encode(case["config"]), case["vector"], rtol=0, atol=1e-9)
        assert_same(space.decode(case["vector"]), case["decoded"])


def test_any_point_of_the_cube_is_a_configuration(record):
    space = RecordedSpace(record)
    for case in record["from_unit"]:
        assert_same(space.decode(case["vector"]), case["config"])


def test_initial_configurations_are_completed(record):
    space = RecordedSpace(record)
    for case in record["points_to_evaluate"]:
        completed = space.whole.complete(case["input"])
        assert len(completed) == len(case["output"])
        for found, expected in zip(completed, case["output"], strict=True):
            assert_same(found, expected)


def test_equality_of_configurations(record):
    space = RecordedSpace(record).whole
    for first, second, same in record["duplicates"]:
        assert (space.match_key(first) == space.match_key(second)) is same
