"""The resource level of the acquisition function against recorded answers."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_hpo.surrogates.acquisition import acquisition_resource


@pytest.mark.golden("acquisition_resource")
def test_largest_level_with_enough_observations(record: dict[str, Any]) -> None:
    counts = {int(r): n for r, n in record["counts"].items()}
    assert acquisition_resource(counts, "bohb", record["threshold"]) == record["resource"]
