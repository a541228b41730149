from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in golden/: pytest reads options only from the conftest files above its arguments.
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "golden" / "data",
        help="folder of recorded vectors that tests/golden replays (default: tests/golden/data)",
    )
