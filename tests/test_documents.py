"""What the documents say about options, algorithms, files and commands is so."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import lightning_hpo
from lightning_hpo.core import options, space
from lightning_hpo.core.confirmation import ConfirmOptions
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.integrations.config import LauncherOptions

ROOT = Path(__file__).parents[1]
OPTIONS = (ROOT / "docs" / "options.md").read_text()
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

LAUNCHER_SECTIONS = ("What is tuned", "Algorithm", "How much", "Where it runs")


def section(title: str) -> str:
    return re.split(r"\n## ", OPTIONS.split(f"\n## {title}\n")[1])[0]


def rows(text: str) -> dict[str, str]:
    """Option -> the cell of its default, from every table of options in ``text``."""
    cells = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| `")]
    return {row[1].strip(" `"): row[3].strip(" `") for row in cells}


def default_of(field: dataclasses.Field) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return {}
    return field.default


CASES = [
    pytest.param(LauncherOptions, "".join(map(section, LAUNCHER_SECTIONS)), id="launcher"),
    pytest.param(options.SearcherOptions, section("Searcher options"), id="searcher"),
    pytest.param(StopCriterion, section("Stop criterion"), id="stop"),
    pytest.param(ConfirmOptions, section("Confirmation"), id="confirm"),
]


@pytest.mark.parametrize(("schema", "text"), CASES)
def test_every_option_is_documented_and_no_other(schema: type, text: str):
    assert set(rows(text)) == {f.name for f in dataclasses.fields(schema)}


@pytest.mark.parametrize(("schema", "text"), CASES)
def test_the_documented_defaults_are_the_defaults(schema: type, text: str):
    documented = {name: None if cell == "required" else yaml.safe_load(cell) for name, cell in rows(text).items()}
    actual = {f.name: default_of(f) for f in dataclasses.fields(schema)}
    actual = {name: None if value is dataclasses.MISSING else value for name, value in actual.items()}
    assert documented == actual


def test_every_algorithm_is_documented_and_no_other():
    listed = [line.split("|")[1].strip(" `") for line in section("Algorithms").splitlines() if line.startswith("| `")]
    assert listed[1:] == list(options.ALGORITHMS)


def test_every_domain_is_documented():
    named = section("Search space").split("with the domains")[1]
    constructors = re.findall(r"`(\w+)`", named)
    assert all(callable(getattr(space, name)) for name in constructors)
    assert len(constructors) == 10


def test_the_documented_spellings_of_the_grammar_are_understood():
    from lightning_hpo.integrations.hydra_space import read_space

    cells = [line.split("|")[1] for line in section("Search space").splitlines() if line.startswith("| `")]
    spellings = [spelling for cell in cells for spelling in re.findall(r"`([^`]+)`", cell)]
    assert len(spellings) >= 9
    for spelling in spellings:
        assert read_space(None, [spelling]).space.names == (spelling.split("=")[0],)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path):
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", document.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{text}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{text}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_named_in_documents_exist(document: Path):
    known = {f.name for f in dataclasses.fields(LauncherOptions)}
    parts = {"searcher": options.SearcherOptions, "stop": StopCriterion}
    for name in re.findall(r"hydra\.launcher\.([a-z_.]+[a-z])", document.read_text()):
        first, _, second = name.partition(".")
        assert first in known, name
        if second:
            assert second in {f.name for f in dataclasses.fields(parts[first])}, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_and_presets_named_in_documents_exist(document: Path):
    text = document.read_text()
    for recipe in re.findall(r"\brecipe=(\w+)", text):
        assert (ROOT / "recipes" / f"{recipe}.yaml").exists()
    for preset in re.findall(r"(?<!/)\bhpo=([a-z_0-9]+)", text.replace("launcher=hpo", "").replace("sweeper=hpo", "")):
        assert (ROOT / "conf" / "hpo" / f"{preset}.yaml").exists()


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_documents_imports_public_names(document: Path):
    for block in python_blocks(document):
        for node in ast.walk(ast.parse(block.replace("...", "None"))):
            if isinstance(node, ast.ImportFrom) and node.module == "lightning_hpo":
                assert {alias.name for alias in node.names} <= set(lightning_hpo.__all__)


def test_the_readmes_study_runs():
    (block,) = [block for block in python_blocks(ROOT / "README.md") if "Study.create" in block]
    names: dict = {}
    exec(block, names)
    assert isinstance(names["work"], lightning_hpo.Start)
    assert names["verdict"] in ("continue", "pause", "stop")
