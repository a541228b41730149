"""Promises of the package as a whole."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_hpo

ROOT = Path(__file__).parents[1]


def fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=True)


def test_importing_the_package_imports_neither_torch_nor_lightning():
    timing = fresh_python("-X", "importtime", "-c", "import lightning_hpo").stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in timing.splitlines() if line.startswith("import time:")}
    assert "lightning_hpo" in imported
    heavy = {"torch", "lightning", "gpytorch", "numpy", "scipy", "hydra"}
    assert not {name for name in imported if name.split(".")[0] in heavy}


@pytest.mark.parametrize("name", lightning_hpo.__all__)
def test_every_public_name_resolves(name: str):
    assert getattr(lightning_hpo, name) is not None


def test_all_names_each_name_once_and_dir_lists_them():
    assert len(set(lightning_hpo.__all__)) == len(lightning_hpo.__all__)
    assert set(dir(lightning_hpo)) == set(lightning_hpo.__all__)


def test_the_type_checker_sees_every_public_name():
    # Names resolved on first use must also stand under TYPE_CHECKING, or editors and mypy do not know them.
    source = (ROOT / "lightning_hpo" / "__init__.py").read_text()
    declared = source.split("if TYPE_CHECKING:")[1].split("def __getattr__")[0]
    for name in set(lightning_hpo.__all__) - {"__version__"}:
        assert f"{name} as {name}" in declared, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HPOCalback'"):
        lightning_hpo.HPOCalback  # noqa: B018


def test_the_version_is_the_distributions():
    assert importlib.metadata.version("hydra-lightning-hpo") == lightning_hpo.__version__


def test_the_package_is_typed():
    assert (ROOT / "lightning_hpo" / "py.typed").exists()


def test_hydra_finds_the_launcher_by_its_entry_point():
    (entry,) = importlib.metadata.entry_points(group="hydra.plugins", name="lightning_hpo")
    assert entry.load().__name__ == "HpoLauncher"


def test_hydras_scan_for_plugins_imports_neither_torch_nor_lightning():
    program = (
        "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); "
        "assert 'hydra_plugins.lightning_hpo.launcher' in sys.modules, 'plugin not found'; "
        "print([m for m in ('torch', 'lightning', 'gpytorch') if m in sys.modules])"
    )
    assert fresh_python("-c", program).stdout.strip() == "[]"


def test_the_changelog_speaks_of_this_version():
    assert f"## {lightning_hpo.__version__}" in (ROOT / "CHANGELOG.md").read_text()
