"""Our algorithms and other libraries' under one neutral driver, in simulated time.

    python benchmarks/peers.py --json peers.json --work /path/to/envs --live mlp_digits,rff_digits_rot --seeds 0-9 \\
        --peer-python syne_tune=ENV/bin/python --peer-python optuna=ENV/bin/python

Every library runs in its own virtual environment, given by ``--peer-python``; without any, only ours runs, and
``--recorded`` compares it with what the others reached before. Runs that are in the work folder already are kept, so a
matrix can be continued and extended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(HERE))
from summary import figures, grouped, load, markdown, pairs, pairs_markdown, recorded, svg  # noqa: E402

LIBRARIES = ("lightning_hpo", "syne_tune", "optuna")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--work", type=Path, default=Path("peers-work"), help="folder of runs and trained curves")
    parser.add_argument("--tables", default="", help="mlp_digits, rff_digits_rot: recorded curves")
    parser.add_argument("--live", default="", help="the same names: trained when proposed; or task files")
    parser.add_argument("--emulated", default="", help="the same names: answered by a smooth model of the table")
    parser.add_argument("--methods", default="", help="of ours; default: all")
    parser.add_argument("--peer-methods", default="", help="of the others; default: all")
    parser.add_argument("--workers", default="4", help="numbers of simulated workers")
    parser.add_argument("--seeds", default="0-9", help="first-last")
    parser.add_argument("--full-runs", type=float, help="budget of task files, in average full trainings")
    parser.add_argument("--min-seeds", type=int, default=3, help="methods with fewer are left out")
    parser.add_argument("--peer-python", action="append", default=[], metavar="LIBRARY=PYTHON")
    parser.add_argument("--recorded", action="store_true", help="compare with recorded runs of the other libraries")
    parser.add_argument("--markdown", type=Path, help="where to write tables")
    parser.add_argument("--plots", type=Path, help="folder for curves")
    parser.add_argument("--plot-methods", default="", help="methods in the plots, at most 8")
    given = parser.parse_args()
    given.pythons = {"lightning_hpo": sys.executable}
    for entry in given.peer_python:
        library, _, python = entry.partition("=")
        if library not in LIBRARIES[1:] or not python:
            parser.error(f"--peer-python {entry} is not understood. Give syne_tune=PYTHON or optuna=PYTHON.")
        given.pythons[library] = python
    return given


def run(library: str, python: str, given: argparse.Namespace) -> None:
    """The library's part of the matrix, in its own interpreter."""
    prefixes = {"syne_tune": "st-", "optuna": "optuna-"}
    methods = given.methods
    if library != "lightning_hpo":
        wanted = [name for name in given.peer_methods.split(",") if name]
        chosen = [name for name in wanted if name.startswith(prefixes[library])]
        if wanted and not chosen:
            return
        methods = ",".join(chosen)
    command = [
        python, str(HERE / "matrix.py"), "--library", library, "--methods", methods, "--tables", given.tables,
        "--live", given.live, "--emulated", given.emulated, "--workers", given.workers, "--seeds", given.seeds,
        "--trainer-python", sys.executable,
        "--cache", str(given.work / "curves"), "--out", str(given.work / "runs"),
    ]  # fmt: skip
    if given.full_runs is not None:
        command += ["--full-runs", str(given.full_runs)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    subprocess.run(command, check=True, env={**os.environ, **one_thread, "PYTHONWARNINGS": "ignore"})


def main() -> None:
    given = parse()
    for library, python in given.pythons.items():
        run(library, python, given)
    first, _, last = given.seeds.partition("-")
    others = recorded(range(int(first), int(last or first) + 1)) if given.recorded else ()
    groups, failed = grouped([*others, *load(given.work / "runs")])
    blocks: list[dict[str, Any]] = []
    texts = []
    for (kind, task, workers), methods in sorted(groups.items()):
        rows = figures(methods, given.min_seeds)
        twins = pairs(methods)
        blocks.append({"kind": kind, "task": task, "workers": workers, "methods": rows, "pairs": twins})
        texts.append(f"### {kind}: {task}, {workers} workers\n\n{markdown(rows)}\n")
        if twins:
            texts.append(f"Ours and Syne Tune's of the same name, the same seeds:\n\n{pairs_markdown(twins)}\n")
        if given.plots is not None:
            named = [name for name in given.plot_methods.split(",") if name] or [row["method"] for row in rows[:8]]
            shown = {name: methods[name] for name in named if name in methods}
            given.plots.mkdir(parents=True, exist_ok=True)
            drawn = svg(shown, f"{task} ({kind}, {workers} workers): lowest validation error")
            (given.plots / f"{kind}_{task}_{workers}.svg").write_text(drawn)
    given.json.write_text(json.dumps({"blocks": blocks, "failed": failed}, indent=1) + "\n")
    if given.markdown is not None:
        given.markdown.write_text("\n".join(texts))
    print("\n".join(texts))
    if failed:
        print("failed:", ", ".join(failed))


if __name__ == "__main__":
    main()
