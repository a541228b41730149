"""From the files of :mod:`matrix` to figures: JSON data, Markdown tables, curves as SVG."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import DATA

REFERENCE = "st-asha-promotion"
"""The method others are compared with, pair by pair of the same seed; where it was not run, ours."""
OWN_REFERENCE = "asha-promotion"
GRID = np.linspace(0.005, 1.0, 200)
"""Fractions of the budget at which curves are compared."""
QUARTERS = (0.25, 0.5, 1.0)

Run = dict[str, Any]
Runs = dict[str, dict[int, Run]]
"""Method -> seed -> run."""


def recorded(seeds: Collection[int] | None = None) -> list[Run]:
    """Runs that come with the benchmark: Optuna 5.0.0 with seeds 0 to 9, Syne Tune 0.13.0 with 0 to 19 for the most.

    Live there are those of their methods that need seconds with seeds 800 to 829 too.

    Args:
        seeds: only these; None: all.
    """
    data: list[Run] = json.loads(gzip.decompress((DATA / "recorded.json.gz").read_bytes()))
    return [run for run in data if seeds is None or run["seed"] in seeds]


def load(folder: Path) -> list[Run]:
    """What :mod:`matrix` wrote."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def grouped(runs: Iterable[Run]) -> tuple[dict[tuple[str, str, int], Runs], list[str]]:
    """Runs by (kind, task, workers), and the names of runs that failed; of equal ones the last counts."""
    groups: dict[tuple[str, str, int], Runs] = defaultdict(lambda: defaultdict(dict))
    failed = []
    for run in runs:
        if "failed" in run:
            failed.append(f"{run['kind']} {run['task']} {run['workers']} {run['method']} {run['seed']}")
        else:
            groups[run["kind"], run["task"], run["workers"]][run["method"]][run["seed"]] = run
    return {key: dict(methods) for key, methods in groups.items()}, failed


def errors_at(run: Run, fractions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Lowest error reported until these fractions of the budget; 1 before the first report."""
    times = np.array([entry[0] for entry in run["trace"]]) / run["budget_seconds"]
    errors = np.array([entry[1] for entry in run["trace"]])
    last = np.searchsorted(times, fractions, side="right") - 1
    return np.where(last >= 0, errors[np.maximum(last, 0)], 1.0)


def standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def mean_ranks(errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Rank among the methods, 1 is best, ties share theirs; mean over seeds."""
    table = np.stack(list(errors.values()))
    below = (table[None] < table[:, None]).sum(1)
    equal = (table[None] == table[:, None]).sum(1)
    return dict(zip(errors, (below + (equal + 1) / 2).mean(1).tolist(), strict=True))


def time_to(curves: np.ndarray, target: float) -> float | None:
    """Fraction of the budget at which the mean of the curves (seeds, grid) reaches ``target``; None if never."""
    reached = np.nonzero(curves.mean(0) <= target + 1e-9)[0]
    return float(GRID[reached[0]]) if len(reached) else None


def figures(methods: Runs, min_seeds: int) -> list[dict[str, Any]]:
    """One row per method that has enough seeds, the best first. Ranks are over the seeds all of them have."""
    kept = {name: runs for name, runs in methods.items() if len(runs) >= min_seeds}
    if not kept:
        return []
    common = sorted(set.intersection(*(set(runs) for runs in kept.values())))
    ranks = mean_ranks({name: np.array([errors_at(runs[s], [1.0])[0] for s in common]) for name, runs in kept.items()})
    name = REFERENCE if REFERENCE in kept else OWN_REFERENCE
    rows = [_row(method, runs, kept.get(name), ranks[method]) for method, runs in kept.items()]
    return sorted(rows, key=lambda row: float(row["error_100"]))


def _row(method: str, runs: dict[int, Run], reference: dict[int, Run] | None, rank: float) -> dict[str, Any]:
    seeds = sorted(runs)
    row: dict[str, Any] = {"method": method, "seeds": seeds, "rank_100": rank}
    at = np.array([errors_at(runs[seed], QUARTERS) for seed in seeds])
    for column, percent in enumerate((25, 50, 100)):
        row[f"error_{percent}"] = float(at[:, column].mean())
        row[f"error_{percent}_se"] = standard_error(at[:, column])
    row["worst_100"] = float(at[:, 2].max())
    if reference is not None:
        paired = [seed for seed in seeds if seed in reference]
        own, other = (np.array([errors_at(of[s], [1.0])[0] for s in paired]) for of in (runs, reference))
        row["minus_asha"], row["minus_asha_se"] = float((own - other).mean()), standard_error(own - other)
        row["wins_ties_losses"] = [int((own < other).sum()), int((own == other).sum()), int((own > other).sum())]
        row["time_to_asha"] = time_to(np.array([errors_at(runs[s], GRID) for s in paired]), float(other.mean()))
    for key in ("tuner_cpu_seconds", "trials", "completed", "epochs"):
        row[key] = float(np.mean([run[key] for run in runs.values()]))
    for key in ("outcome", "recommended"):
        if all("retrained_test" in run.get(key, {}) for run in runs.values()):
            test = np.array([np.mean(runs[seed][key]["retrained_test"]) for seed in seeds])
            row[f"{key}_test"], row[f"{key}_test_se"] = float(test.mean()), standard_error(test)
    return row


def _percent(row: Mapping[str, Any], key: str, sign: str = "") -> str:
    if key not in row:
        return ""
    return f"{100 * row[key]:{sign}.2f} ± {100 * row[key + '_se']:.2f}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in per cent, mean ± standard error."""
    head = (
        "method", "seeds", "25 %", "50 %", "100 %", "worst seed", "rank", "minus ASHA, paired (win/tie/loss)",
        "time to ASHA's end", "re-trained test: lowest report", "recommended", "trials (full)", "tuner CPU s",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        counts = "/".join(map(str, row.get("wins_ties_losses", ())))
        reached = row.get("time_to_asha")
        cells = (
            row["method"], str(len(row["seeds"])), *(_percent(row, f"error_{p}") for p in (25, 50, 100)),
            f"{100 * row['worst_100']:.1f}", f"{row['rank_100']:.1f}", f"{_percent(row, 'minus_asha', '+')} ({counts})",
            "–" if reached is None else f"{reached:.2f}",
            _percent(row, "outcome_test"), _percent(row, "recommended_test"),
            f"{row['trials']:.0f} ({row['completed']:.0f})", f"{row['tuner_cpu_seconds']:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pairs(methods: Runs) -> list[dict[str, Any]]:
    """Ours beside Syne Tune's of the same name, over the seeds both have: final errors, difference, CPU seconds."""
    rows = []
    for name in sorted(methods):
        own, other = methods[name], methods.get(f"st-{name}", {})
        seeds = sorted(set(own) & set(other))
        if not seeds:
            continue
        row: dict[str, Any] = {"method": name, "seeds": seeds}
        ends = {
            who: np.array([errors_at(runs[seed], [1.0])[0] for seed in seeds])
            for who, runs in (("own", own), ("other", other))
        }
        for who, values in {**ends, "difference": ends["own"] - ends["other"]}.items():
            row[who], row[f"{who}_se"] = float(values.mean()), standard_error(values)
        for who, runs in (("own", own), ("other", other)):
            row[f"{who}_cpu_seconds"] = float(np.mean([runs[seed]["tuner_cpu_seconds"] for seed in seeds]))
        rows.append(row)
    return rows


def pairs_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of :func:`pairs` in per cent, mean ± standard error; CPU in seconds a run."""
    head = ("method", "seeds", "ours", "Syne Tune's", "difference, paired", "CPU s: ours", "Syne Tune's")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = (
            row["method"], str(len(row["seeds"])), _percent(row, "own"), _percent(row, "other"),
            _percent(row, "difference", "+"), f"{row['own_cpu_seconds']:.2f}", f"{row['other_cpu_seconds']:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 360, 50, 20


def svg(methods: Mapping[str, dict[int, Run]], title: str) -> str:
    """Mean curves with a band of one standard error, from 5 % of the budget on."""
    start = int(np.searchsorted(GRID, 0.05))
    curves = {
        name: 100 * np.array([errors_at(run, GRID) for run in runs.values()])[:, start:]
        for name, runs in methods.items()
    }
    low = min(c.mean(0).min() for c in curves.values()) - 0.5
    high = float(np.median([c.mean(0)[0] for c in curves.values()])) + 2.0
    xs = _LEFT + (_WIDTH - 220) * GRID[start:]

    def y(values: np.ndarray) -> np.ndarray:
        return np.clip(_TOP + (_HEIGHT - 60) * (high - values) / (high - low), _TOP, _HEIGHT - 40)

    def points(at: np.ndarray, values: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(at, values, strict=True))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{_LEFT}" y="14">{title}</text>',
        f'<text x="{_LEFT + 130}" y="{_HEIGHT - 6}">share of the budget</text>',
    ]
    for tick in np.arange(np.ceil(low), high, max(1.0, np.round((high - low) / 8))):
        at = float(y(np.array([tick]))[0])
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 170}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 30}" y="{at + 4:.1f}">{tick:.0f} %</text>')
    for share in (0.25, 0.5, 0.75, 1.0):
        parts.append(f'<text x="{_LEFT + (_WIDTH - 220) * share - 10:.0f}" y="{_HEIGHT - 24}">{share:.0%}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        mean, error = curve.mean(0), curve.std(0, ddof=1) / np.sqrt(len(curve)) if len(curve) > 1 else 0.0 * curve[0]
        band = points(np.concatenate([xs, xs[::-1]]), np.concatenate([y(mean - error), y(mean + error)[::-1]]))
        parts.append(f'<polygon points="{band}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{points(xs, y(mean))}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{_WIDTH - 160}" y="{_TOP + 14 + 15 * i}" fill="{colour}">{name} ({len(curve)})</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
