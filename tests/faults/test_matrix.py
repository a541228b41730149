"""The table of faults in ``docs/reliability.md`` is complete, and its tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lightning_hpo.runtime.failpoints import FOLDER_VARIABLE, VARIABLE

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)
]


def test_every_fault_has_a_promise_and_tests():
    assert [int(row[0]) for row in ROWS] == list(range(1, 40))
    for number, fault, promise, tests in ROWS:
        assert fault and promise, number
        assert re.fullmatch(r"`[a-z_/]+\.py::[a-z0-9_]+`(, `[a-z_/]+\.py::[a-z0-9_]+`)*", tests), number


def test_every_test_that_the_page_names_exists():
    for file, name in re.findall(r"`([a-z_/]+\.py)::([a-z0-9_]+)`", PAGE):
        functions = {n.name for n in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(n, ast.FunctionDef)}
        assert f"test_{name}" in functions, f"{file}::{name}"


def test_the_page_spells_the_variables_of_the_failpoints_right():
    assert set(re.findall(r"LIGHTNING_HPO_FAILPOINTS\w*", PAGE)) == {VARIABLE, FOLDER_VARIABLE}
