"""The table "Who may import what" of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_hpo"


@dataclass(frozen=True)
class Import:
    """One imported module."""

    file: Path
    module: str
    inside_function: bool
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)} imports {self.module}"


@dataclass(frozen=True)
class Layer:
    """A row of the table: what its files may import of ours, and of others' heavy packages."""

    ours: frozenset[str]
    heavy: frozenset[str] = frozenset()
    heavy_inside_functions: frozenset[str] = frozenset()
    ours_inside_functions: frozenset[str] = frozenset()


def some(*names: str) -> frozenset[str]:
    return frozenset(names)


ALL = some("errors", "core", "surrogates", "searchers", "runtime", "study", "integrations", "report", "cli", "__init__")
LAYERS = {
    "errors": Layer(ours=some()),
    "core": Layer(ours=some("errors", "core"), heavy=some("numpy")),
    "surrogates": Layer(
        ours=some("errors", "surrogates"),
        heavy=some("torch", "gpytorch", "linear_operator", "scipy", "numpy", "threadpoolctl"),
    ),
    "searchers": Layer(
        ours=some("errors", "core", "searchers"),
        heavy=some("numpy"),
        ours_inside_functions=some("surrogates"),
        heavy_inside_functions=some("torch", "gpytorch", "scipy"),
    ),
    "runtime": Layer(
        ours=some("errors", "core", "runtime"),
        heavy=some("numpy"),
        heavy_inside_functions=some("torch", "ray", "cloudpickle"),
    ),
    "study": Layer(
        ours=some("errors", "core", "searchers", "runtime"),
        heavy=some("numpy"),
    ),
    "integrations": Layer(
        ours=ALL,
        heavy=some("lightning", "hydra", "omegaconf", "numpy", "torch"),
        heavy_inside_functions=some("ray", "cloudpickle"),
    ),
    "report": Layer(
        ours=some("errors", "core", "runtime", "report", "study"),
        heavy=some("rich", "numpy", "yaml"),
        heavy_inside_functions=some("plotly", "optuna"),
    ),
    "cli": Layer(
        ours=some("errors", "core", "runtime", "report", "study"),
        heavy=some("rich"),
        ours_inside_functions=ALL,
    ),
    "_hydra": Layer(
        ours=some(),
        heavy=some("hydra", "omegaconf"),
        ours_inside_functions=some("errors", "integrations"),
    ),
    "__init__": Layer(ours=some(), ours_inside_functions=some("errors")),
}
"""By place below ``lightning_hpo/``."""

RAY_FILE = PACKAGE / "runtime" / "backends" / "ray.py"


def place(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(file: Path) -> Iterator[Import]:
    """Every import statement of a file; one under ``if TYPE_CHECKING`` is marked as such."""

    def visit(node: ast.AST, inside: bool, types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, alias.name, inside, types)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: imports are absolute here"
                assert child.module is not None
                # ``from lightning_hpo.core import trial`` names the module ``lightning_hpo.core.trial``.
                folder = PACKAGE.parent.joinpath(*child.module.split("."))
                for alias in child.names:
                    names_module = child.module == "lightning_hpo" or (folder / f"{alias.name}.py").is_file()
                    module = f"{child.module}.{alias.name}" if names_module else child.module
                    yield Import(file, module, inside, types)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, inside, True)
            else:
                deeper = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, deeper, types)

    yield from visit(ast.parse(file.read_text()), False, False)


def is_allowed(found: Import) -> bool:
    if found.for_types_only:
        return True
    layer = LAYERS[place(found.file)]
    root, _, rest = found.module.partition(".")
    if root == "lightning_hpo":
        allowed = layer.ours | (layer.ours_inside_functions if found.inside_function else some())
        part = rest.partition(".")[0]
        is_part = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
        return (part if is_part else "__init__") in allowed
    if root in sys.stdlib_module_names or root == "hydra_plugins":
        return True
    if root == "ray":
        return found.file == RAY_FILE or (found.inside_function and root in layer.heavy_inside_functions)
    return root in layer.heavy | (layer.heavy_inside_functions if found.inside_function else some())


def needs_torch(file: Path) -> bool:
    """Is this a module of ``searchers/`` that imports torch, or what is built on it, when it is imported?"""
    layer = LAYERS["searchers"]
    heavy = layer.heavy_inside_functions | {f"lightning_hpo.{part}" for part in layer.ours_inside_functions}
    return place(file) == "searchers" and any(
        found.module == name or found.module.startswith(f"{name}.")
        for found in imports_of(file)
        for name in heavy
        if not (found.inside_function or found.for_types_only)
    )


@pytest.mark.parametrize("file", python_files(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_place_allows(file: Path):
    assert place(file) in LAYERS, f"docs/architecture.md has no row for {file.relative_to(ROOT)}"
    # A module of searchers/ that needs torch at its top may have it; the next test says who may import that module.
    lenient = needs_torch(file)
    found = [replace(one, inside_function=one.inside_function or lenient) for one in imports_of(file)]
    assert sorted({str(one) for one in found if not is_allowed(one)}) == []


def test_modules_of_searchers_that_need_torch_are_imported_inside_functions():
    heavy = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in python_files() if needs_torch(file)}
    light = [file for file in python_files() if not needs_torch(file)]
    at_the_top = [one for file in light for one in imports_of(file) if not (one.inside_function or one.for_types_only)]
    assert [str(one) for one in at_the_top if one.module in heavy] == []


def test_searchers_without_a_model_import_no_torch():
    program = (
        "import sys\n"
        "from lightning_hpo.searchers import make_searcher\n"
        "for name in ('random', 'grid', 'kde', 'differential_evolution'):\n"
        "    make_searcher(name)\n"
        "print([m for m in ('torch', 'gpytorch', 'lightning') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_check_sees_a_forbidden_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tests.test_architecture as this

    monkeypatch.setattr(this, "ROOT", tmp_path)
    monkeypatch.setattr(this, "PACKAGE", tmp_path / "lightning_hpo")
    core = tmp_path / "lightning_hpo" / "core"
    core.mkdir(parents=True)
    (tmp_path / "lightning_hpo" / "runtime").mkdir()
    file = core / "study.py"
    file.write_text(
        "import numpy\nimport torch\nfrom lightning_hpo.runtime import journal\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gpytorch\n"
        "def f():\n    import lightning\n"
    )
    refused = [one.module for one in imports_of(file) if not is_allowed(one)]
    assert refused == ["torch", "lightning_hpo.runtime", "lightning"]


def test_the_documents_table_has_these_rows():
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Who may import what")[1].split("\n## ")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    places = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    rows = {name.removesuffix(".py").split("/")[0] for name in places}
    assert rows == set(LAYERS) - {"__init__"}


FOREIGN_PLACES = re.compile(
    r"(?<![\w.])/(work|tmp|root|home|opt|mnt)/\w|pypi\.org|index-url|extra-index|artifactory|file:///"
)


def text_files() -> list[Path]:
    folders = ("lightning_hpo", "conf", "recipes", "tests", "benchmarks", "docs", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    texts = {".py", ".md", ".yaml", ".toml", ""}
    return [p for p in files if p.is_file() and p.suffix in texts and p != Path(__file__)]


def test_no_file_names_a_place_of_some_machine():
    found = []
    for file in text_files():
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if FOREIGN_PLACES.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
