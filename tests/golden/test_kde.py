"""The density model of BOHB against recorded vectors, from the recorded features on.

The feature map of the original is not ours (it is linear for log domains and inconsistent for integers), and it counts
the categories present in the data instead of those of the domain; with its count the densities must agree.
"""

from __future__ import annotations

import numpy as np
import pytest

from lightning_hpo.searchers.density import (
    FeatureKind,
    ProductKernelDensity,
    density_ratio,
    is_usable,
    num_good,
    split,
)
from lightning_hpo.searchers.kde import largest_usable_level


def _present_categories(data):
    return [len(np.unique(column)) for column in data.T]


@pytest.mark.golden("kde")
def test_density_model(record):
    options = record["options"]
    num_min, percent = record["num_min_data_points"], options.get("top_n_percent", 15)
    features = np.asarray(record["features"])
    kinds = [FeatureKind(letter) for letter in record["var_types"]]
    epochs = [observation.get("epoch", 1) for observation in record["observations"]]
    level = largest_usable_level(epochs, len(kinds), num_min, percent)
    assert (level is not None) is record["fitted"]
    if not record["fitted"]:
        return
    if record["multi_fidelity"]:
        assert level == record["resource_used"]
    sign = 1.0 if record["mode"] == "min" else -1.0
    used = [i for i, epoch in enumerate(epochs) if epoch == level]
    size = num_good(len(used), num_min, percent)
    assert size == record["num_good"]
    assert is_usable(len(used), size, len(kinds))
    parts = split([sign * record["observations"][i]["metric"] for i in used], size)
    densities = []
    for name, part in zip(("good", "bad"), parts, strict=True):
        positions = [used[i] for i in part]
        assert sorted(positions) == record[name]
        data = features[positions]
        density = ProductKernelDensity.fit(data, kinds, _present_categories(data), record["min_bandwidth"])
        np.testing.assert_allclose(density.bandwidths, record[f"{name}_bandwidth"], rtol=0, atol=1e-12)
        densities.append(density)
    _check_candidates(record, *densities)


def _check_candidates(record, good, bad):
    points = np.asarray([candidate["features"] for candidate in record["candidates"]])
    ours = zip(good(points), bad(points), density_ratio(good, bad, points), strict=True)
    for candidate, (good_density, bad_density, score) in zip(record["candidates"], ours, strict=True):
        if candidate["score"] is not None:
            assert good_density == pytest.approx(candidate["good_density"], rel=1e-8, abs=0)
            assert bad_density == pytest.approx(candidate["bad_density"], rel=1e-8, abs=0)
            assert score == pytest.approx(candidate["score"], rel=1e-8, abs=0)
