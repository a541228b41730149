"""Drives a launcher in a process of its own, and counts what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("scripted_launcher.py")
MARK = "LIGHTNING_HPO_TEST_MARK"


class Launcher:
    """A running ``scripted_launcher.py``, or another script that talks like it."""

    def __init__(
        self, folder: Path, script: Path = SCRIPT, environment: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        options.setdefault("preload", [])
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(environment or {}), MARK: self.mark},
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self._events.put(json.loads(line))
        self._events.put(None)

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def start(self, trial_id: int, attempt: int = 1, ranks: int = 1, seed: int | None = None, **payload: Any) -> Path:
        """Ask for an attempt; returns its folder."""
        folder = self.folder / str(trial_id)
        job = {
            "trial_id": trial_id,
            "attempt": attempt,
            "folder": str(folder),
            "log": str(folder / "trial.log"),
            "environment": {"OF_THE_JOB": "yes"},
            "payload": payload,
            "ranks": ranks,
            "seed": seed,
        }
        self.send(op="start", job=job)
        return folder

    def next(self, event: str, timeout_s: float = 30.0, **fields: Any) -> dict[str, Any]:
        """The next event of this kind with these fields; others are skipped."""
        deadline = time.monotonic() + timeout_s
        seen = []
        while True:
            try:
                message = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} {fields} within {timeout_s} s, but {seen}") from None
            assert message is not None, f"the launcher ended without {event} {fields}, after {seen}"
            seen.append(message)
            if message["event"] == event and all(message[name] == value for name, value in fields.items()):
                return message

    def run(self, trial_id: int, **arguments: Any) -> tuple[Path, dict[str, Any]]:
        """Start an attempt and wait for its end."""
        folder = self.start(trial_id, **arguments)
        return folder, self.next("Exit", trial_id=trial_id)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def processes(self) -> list[int]:
        """Every process that descends from the launcher, wherever it went, the launcher included."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                # The environment a process began with survives forks; that of a zombie is empty.
                with contextlib.suppress(OSError):
                    if needle in Path(entry.path, "environ").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)

    def end(self) -> None:
        """End the launcher and whatever a failed test has left."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
