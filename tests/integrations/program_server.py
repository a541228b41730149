"""A process that has imported torch, Lightning and Hydra once, and forks a child for every program it is to run.

Started as ``python -m tests.integrations.program_server``. Reads one JSON request per line::

    {"program": PATH, "arguments": [...], "folder": WORKING_FOLDER, "output": PATH, "environment": {...}}

and writes two lines for each: ``{"pid": ...}`` when the program runs, ``{"code": ...}`` when it has ended. The
program runs as ``__main__``, in a session of its own, as if a shell had started it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any

import hydra  # noqa: F401 - what every program needs
import lightning.pytorch  # noqa: F401
import torch  # noqa: F401

import lightning_hpo.integrations.callback
import lightning_hpo.integrations.sweep  # noqa: F401
from lightning_hpo.runtime import failpoints


def run_program(request: dict[str, Any]) -> int:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    failpoints.arm()
    sys.argv = [request["program"], *request["arguments"]]
    sys.path[0] = os.path.dirname(request["program"])
    try:
        runpy.run_path(request["program"], run_name="__main__")
        return 0
    except SystemExit as request_to_exit:
        code = request_to_exit.code
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("{}", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            code = 1
            try:
                code = run_program(request)
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), file=answers)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), file=answers)


if __name__ == "__main__":
    main()
