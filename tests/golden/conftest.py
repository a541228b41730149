"""Replay of recorded vectors.

A test names the kind of record it replays and takes the argument ``record``; it then runs once per
record, whatever the names of the files that hold them::

    @pytest.mark.golden("traces", "traces_ratio_rule")
    def test_decisions(record): ...

Keyword arguments choose among records by the value of a field: ``golden("acquisition", kind="ei")``.
Where only some models have a test of their own: ``golden("gp", model=("matern52", "single"))``, any of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Golden(NamedTuple):
    """A recorded vector and where it comes from."""

    file: str
    id: str
    record: dict[str, Any]


@functools.cache
def read_folder(folder: Path) -> dict[str, list[Golden]]:
    """Every record of a folder, by the ``kind`` of its file."""
    found: dict[str, list[Golden]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if content["format"] != 1:
            raise pytest.UsageError(f"{path} has format {content['format']}. Only format 1 can be replayed.")
        records = found.setdefault(content["kind"], [])
        records += [Golden(path.name, f"{path.stem}-{i}", record) for i, record in enumerate(content["records"])]
    if not found:
        raise pytest.UsageError(f"There are no recorded vectors (*.json) in {folder}. Give their folder with --golden.")
    return found


def records(config: pytest.Config, *kinds: str, **fields: Any) -> Iterator[Golden]:
    """The records of some kinds, or those of them whose fields have the given values."""
    wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in fields.items()}
    folder = read_folder(config.getoption("--golden").resolve())
    for kind in kinds:
        for golden in folder.get(kind, []):
            if all(golden.record.get(name) in values for name, values in wanted.items()):
                yield golden


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(*kinds, **fields): run the test once per recorded vector of these kinds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        chosen = list(records(metafunc.config, *marker.args, **marker.kwargs))
        metafunc.parametrize("record", [golden.record for golden in chosen], ids=[golden.id for golden in chosen])
