"""A process that has imported torch and Lightning once and forks a child for every training run.

Started as ``python -m tests.integrations.zygote``. Reads one JSON request per line from its standard input::

    {"runs": [{"function": "train", "arguments": {...}, "environment": {...}, "log": PATH, "result": PATH}]}

forks one child per run, waits for all of them and writes their exit codes as one JSON line to its standard
output. A child writes to ``result`` what the function returned, or the exception's class and message.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning_hpo.runtime import failpoints
from tests.integrations import training, unusual_training


def run_child(run: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(run["environment"])
    failpoints.arm()
    try:
        module = training if hasattr(training, run["function"]) else unusual_training
        result = {"returned": getattr(module, run["function"])(**run["arguments"])}
    except BaseException as raised:
        traceback.print_exc()
        result = {"raised": type(raised).__name__, "message": str(raised)}
    Path(run["result"]).write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("{}", file=answers)
    for line in sys.stdin:
        pids = []
        for run in json.loads(line)["runs"]:
            pid = os.fork()
            if pid == 0:
                run_child(run)
                os._exit(0)
            pids.append(pid)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), file=answers)


if __name__ == "__main__":
    main()
