from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.integrations.programs import ProgramServer

# A shared machine may be slow at any moment; pytest has its own time limit.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# Under nohup it is ignored, by the programs that tests start too; tests send it to them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in golden/: pytest reads options only from the conftest files above its arguments.
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "golden" / "data",
        help="folder of recorded vectors that tests/golden replays (default: tests/golden/data)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def programs() -> Iterator[ProgramServer]:
    """Runs users' programs, one at a time. To import torch and Lightning takes seconds, so all tests share one."""
    programs = ProgramServer()
    yield programs
    programs.close()
