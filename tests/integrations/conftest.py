"""Trials in real processes, without a launcher: the test itself answers over the real channel."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import ChannelError
from lightning_hpo.runtime.channel_server import ChannelServer
from lightning_hpo.runtime.messages import Answer, Hello, Message, Problem, Report, Saved, Welcome

ROOT = Path(__file__).parents[2]


class Zygote:
    """See ``zygote.py``."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_HPO_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.zygote"],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.answer()

    def ask(self, runs: list[dict[str, Any]]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"runs": runs}) + "\n")

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote died"
        return json.loads(line)

    @property
    def output(self) -> Any:
        return self._process.stdout

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        # Nothing is left to do for it, and taking torch apart is slow.
        self._process.kill()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@dataclass
class Attempt:
    """What one process of a trial did."""

    results: list[dict[str, Any]]
    """One per rank: ``returned``, or ``raised`` and ``message``."""
    messages: list[Message]
    errors: list[ChannelError]
    exit_codes: list[int]
    log: str

    @property
    def returned(self) -> dict[str, Any]:
        assert "returned" in self.results[0], self.log
        returned: dict[str, Any] = self.results[0]["returned"]
        return returned

    @property
    def reports(self) -> dict[int, float]:
        return {m.resource: m.value for m in self.messages if isinstance(m, Report)}

    @property
    def problems(self) -> list[str]:
        return [m.kind for m in self.messages if isinstance(m, Problem)]

    @property
    def checkpoint(self) -> Checkpoint:
        (checkpoint,) = (m.checkpoint for m in self.messages if isinstance(m, Saved))
        return checkpoint


@dataclass
class Trials:
    """Runs functions of ``training.py`` and ``unusual_training.py`` as attempts of one trial."""

    zygote: Zygote
    folder: Path
    welcome: Welcome = field(default_factory=lambda: Welcome(metric="val_loss", mode="min", max_t=4))
    decide: Callable[[Report], str] = field(default=lambda _: "continue")
    answer_problem: Callable[[Problem], str] = field(default=lambda _: "stop")
    environment: dict[str, str] = field(default_factory=dict)
    attempt: int = 0

    def plain(self, function: str = "train", **arguments: Any) -> Attempt:
        """Without a launcher."""
        return self._run(function, arguments, None, ranks=1)

    def run(self, function: str = "train", *, ranks: int = 1, **arguments: Any) -> Attempt:
        """With this test as the launcher; answers to reports come from ``decide``."""
        with ChannelServer() as server:
            return self._run(function, arguments, server, ranks)

    def pause_at(self, resource: int, function: str = "train", *, ranks: int = 1, **arguments: Any) -> Attempt:
        """Run until the launcher pauses the trial, and keep its checkpoint for the next run."""
        self.decide = lambda report: "pause" if report.resource >= resource else "continue"
        attempt = self.run(function, ranks=ranks, **arguments)
        assert attempt.results[0].get("returned") or attempt.results[0].get("raised"), attempt.log
        saved = attempt.checkpoint
        self.welcome = replace(
            self.welcome,
            from_resource=saved.resource,
            checkpoint_path=saved.path,
            checkpoint_sha256=saved.sha256,
        )
        self.decide = lambda _: "continue"
        return attempt

    def _run(self, function: str, arguments: dict[str, Any], server: ChannelServer | None, ranks: int) -> Attempt:
        self.attempt += 1
        folder = self.folder / "trial"
        folder.mkdir(exist_ok=True)
        port = _free_port() if ranks > 1 else 0
        runs = []
        for rank in range(ranks):
            environment = self.environment | (server.environment(0, self.attempt, folder) if server else {})
            if ranks > 1:
                environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            runs.append(
                {
                    "function": function,
                    "arguments": arguments | {"folder": str(folder)},
                    "environment": environment,
                    "log": str(self.folder / f"log-{self.attempt}-{rank}"),
                    "result": str(self.folder / f"result-{self.attempt}-{rank}"),
                }
            )
        self.zygote.ask(runs)
        messages: list[Message] = []
        errors: list[ChannelError] = []
        exit_codes = None
        while exit_codes is None:
            waitables = [self.zygote.output, *(server.waitables() if server else [])]
            ready_now = wait(waitables, timeout=60)
            assert ready_now, "the trial hangs"
            for ready in sorted(ready_now, key=lambda r: r is self.zygote.output):
                if ready is self.zygote.output:
                    exit_codes = self.zygote.answer()
                elif server:
                    self._serve(server, ready, messages, errors)
        results = [json.loads(Path(run["result"]).read_text()) if Path(run["result"]).exists() else {} for run in runs]
        log = "\n".join(Path(run["log"]).read_text() for run in runs)
        return Attempt(results, messages, errors, exit_codes, log)

    def _serve(self, server: ChannelServer, ready: Any, messages: list[Message], errors: list[ChannelError]) -> None:
        try:
            for message in server.receive(ready):
                messages.append(message)
                if isinstance(message, Hello):
                    server.reply(ready, self.welcome)
                elif isinstance(message, Report):
                    server.reply(ready, Answer(self.decide(message), "the test says so"))
                elif isinstance(message, Problem):
                    server.reply(ready, Answer(self.answer_problem(message)))
        except ChannelError as error:
            errors.append(error)

    def anew(self, name: str) -> Trials:
        """Another trial with the same options."""
        folder = self.folder / name
        folder.mkdir()
        return replace(self, folder=folder, attempt=0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def trials(zygote: Zygote, tmp_path: Path) -> Iterator[Trials]:
    yield Trials(zygote, tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    """Hydra configures the root logger, for all tests that come later in this process."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in before and not type(h).__module__.startswith("_pytest")]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def compose_sweep(hydra_restore_singletons, hydra_sweep_runner, tmp_path):
    """``compose_sweep(*overrides)``: Hydra composes a multirun of its own test suite's script, with ``foo=10`` and
    ``bar=100``, and hands it to whoever has been put in place of the search."""

    def compose(*overrides: str, folder: Path = tmp_path) -> None:
        with hydra_sweep_runner(
            calling_file=None,
            calling_module="hydra.test_utils.a_module",
            task_function=None,
            config_path="configs",
            config_name="compose.yaml",
            overrides=list(overrides),
            temp_dir=folder,
        ):
            pass

    return compose
