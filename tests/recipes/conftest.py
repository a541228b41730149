from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def recipes_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python recipes/train.py`` puts its folder first on the path; so do these tests."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
