"""Time from the start, and from the resume, of a trial to its first training step, against a fresh interpreter.

    python benchmarks/startup.py --json startup.json

The same Lightning script (``startup_script.py``) is run both ways in turn on the same machine. "Fresh" is
``python startup_script.py``, from the creation of the process. "Start" and "resume" are trials of one study with one
worker, from the launcher's decision to start the attempt; a resumed trial loads its checkpoint first. All three end
with the first training step. The first trial of the study, which also waits until the process that starts trials is
ready, is reported by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("startup_script.py")


def moments(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the script; what it noted."""
    path = folder / "moments.jsonl"
    path.unlink(missing_ok=True)
    environment = {**os.environ, "STARTUP_MOMENTS": str(path)}
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{SCRIPT.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def fresh(folder: Path) -> float:
    """Seconds from the creation of an interpreter to the first training step."""
    before = time.monotonic()
    return next(m["at"] for m in moments(folder) if m["what"] == "step") - before


def study(folder: Path, trials: int, start_method: str) -> tuple[list[float], list[float]]:
    """Seconds from decision to first step: of new trials, in order, and of resumed ones."""
    noted = moments(folder, "--study", str(folder / "study"), "--trials", str(trials), "--start-method", start_method)
    begun = {(m["trial"], m["attempt"]): m["at"] for m in noted if m["what"] == "start"}
    starts, resumes = [], []
    for m in noted:
        if m["what"] == "step":
            seconds = m["at"] - begun[m["trial"], m["attempt"]]
            (starts if m["attempt"] == "1" else resumes).append(seconds)
            assert (m["epoch"] > 0) == (m["attempt"] != "1"), "a resumed trial began at epoch 0"
    return starts, resumes


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "n": len(seconds),
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--repeats", type=int, default=3, help="fresh interpreters (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=16, help="trials of the study (default: %(default)s)")
    parser.add_argument("--start-method", default="auto", choices=["auto", "fork", "forkserver", "spawn"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = arguments.repeats // 2
        fresh_s = [fresh(folder) for _ in range(arguments.repeats - half)]
        starts, resumes = study(folder, arguments.trials, arguments.start_method)
        fresh_s += [fresh(folder) for _ in range(half)]
    slowest = max(statistics.median(starts[1:]), statistics.median(resumes))
    result = {
        "start_method": arguments.start_method,
        "fresh": summary(fresh_s),
        "first_trial_s": round(starts[0], 4),
        "start": summary(starts[1:]),
        "resume": summary(resumes),
        "times_faster": round(statistics.median(fresh_s) / slowest, 1),
        "machine": {"cores": os.cpu_count(), "load_1_min": os.getloadavg()[0], "python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
