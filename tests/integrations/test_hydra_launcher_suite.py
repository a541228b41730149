"""Hydra's own tests of launchers: under another sweeper ours is a plain, parallel one."""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import _UNSPECIFIED_, VersionBase

Plugins.instance()  # the suites restore Hydra's state to what it is before the first test: with every plugin's nodes


@pytest.fixture(autouse=True)
def _base_of_no_version():
    """Hydra remembers the ``version_base`` of the last program of this process; the suites are written for none."""
    before = VersionBase.instance().version_base
    VersionBase.instance().version_base = _UNSPECIFIED_
    yield
    VersionBase.instance().version_base = before


GRID = ["hydra/sweeper=basic", "hydra.launcher.n_workers=2"]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("hpo", GRID)])
class TestHpoLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("hpo", [*GRID, "hydra.sweeper.max_batch_size=2"])])
class TestHpoLauncherInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=hpo", "hydra/sweeper=basic"])]
)
class TestHpoLauncherInPrograms(IntegrationTestSuite):
    pass
