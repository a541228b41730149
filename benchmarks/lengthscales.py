"""How well does a Gaussian process predict rows of the recorded tables it has not seen, from a few that it has?

Prints, for every table, level, number of rows seen and prior of the length scales: Spearman's correlation of the
posterior mean with the value at this level, and the lowest error to the end of the curve of the row that looks best
among 250.

    python benchmarks/lengthscales.py --json lengthscales.json
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fit import FitOptions, fit
from lightning_hpo.surrogates.models import single_fidelity
from lightning_hpo.surrogates.targets import Normalisation

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from tables import Table, to_unit

CASES = ((1, 15), (1, 40), (1, 100), (9, 8), (9, 15), (9, 40))
"""Level, rows seen."""
MODELS = {
    "uniform": ("uniform", False),
    "uniform, warped": ("uniform", True),
    "log_normal": ("log_normal", False),
    "log_normal, warped": ("log_normal", True),
}
CHOICES_OF_250 = 8


@functools.cache
def encoded(table: Table) -> tuple[np.ndarray, tuple[int, ...]]:
    """Rows in the unit cube, choices as indicators, and which columns are numbers."""
    columns, numbers = [], []
    configs = [table.config(i) for i in range(len(table.val_error))]
    for name, spec in table.space.items():
        if spec["type"] == "choice":
            columns += [[float(config[name] == category) for config in configs] for category in spec["categories"]]
        else:
            numbers.append(len(columns))
            columns.append([to_unit(spec, config[name]) for config in configs])
    return np.array(columns).T, tuple(numbers)


def measure(table: Table, level: int, seen: int, prior: str, is_warped: bool, seed: int) -> tuple[float, float]:
    """Correlation, and mean error of the choices, for one draw of rows."""
    x, numbers = encoded(table)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    known, unknown = order[:seen], order[seen:]
    y = table.val_error[known, level - 1].astype(np.float64)
    model = single_fidelity(x.shape[1], numbers if is_warped else (), lengthscale_prior=prior)
    data = Observations.from_rows(torch.from_numpy(x[known]), torch.from_numpy(Normalisation.of(y).forward(y)))
    theta = fit(model, data, FitOptions(), np.random.default_rng(seed)).theta
    with torch.no_grad():
        mean = model.posterior(data, theta).predict(torch.from_numpy(x[unknown]), 1).mean[:, 0].numpy()
    correlation = float(spearmanr(mean, table.val_error[unknown, level - 1]).statistic)
    best = table.val_error.min(1)[unknown]
    drawn = (rng.choice(len(unknown), 250, replace=False) for _ in range(CHOICES_OF_250))
    return correlation, float(np.mean([best[rows[np.argmin(mean[rows])]] for rows in drawn]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--seeds", type=int, default=20, help="draws of the rows seen")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("One draw has no standard error. Set --seeds to 2 or more.")
    rows = []
    for task in ("mlp_digits", "rff_digits_rot"):
        table = Table(task)
        for level, seen in CASES:
            for name, (prior, is_warped) in MODELS.items():
                found = np.array([measure(table, level, seen, prior, is_warped, seed) for seed in range(given.seeds)])
                mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
                rows.append({"task": task, "level": level, "seen": seen, "model": name, "correlation": mean[0],
                             "correlation_se": error[0], "choice": mean[1], "choice_se": error[1]})  # fmt: skip
                print(
                    f"{task}, epoch {level}, {seen} rows, {name}: correlation {mean[0]:.2f} ± {error[0]:.2f}, "
                    f"chosen {100 * mean[1]:.1f} ± {100 * error[1]:.1f} %",
                    flush=True,
                )
    given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
