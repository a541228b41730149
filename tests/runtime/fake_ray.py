"""Stands for the module ``ray`` where it is not installed, and where nodes must be lost at will.

Actors are objects of this process: each concurrency group is a thread, and the trial servers that hosts start are real.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


class ActorDiedError(Exception):
    pass


class ActorUnavailableError(Exception):
    pass


@dataclass
class Node:
    cpus: float
    gpus: float = 0


class FakeRay:
    """A cluster this process has joined already."""

    def __init__(self, **nodes: Node) -> None:
        self.alive = nodes
        self.actors: list[Actor] = []
        self.options: dict[str, Any] = {}
        self.broken: Exception | None = None
        """Raised instead of creating an actor's object."""
        self.is_shut_down = False
        self.util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        alive = [
            {"Alive": True, "Resources": {"CPU": node.cpus, "GPU": node.gpus, "memory": 1e9}}
            for node in self.alive.values()
        ]
        return [*alive, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, **options: Any) -> Any:
        self.options = options

        def actor_class(cls: type) -> Any:
            return SimpleNamespace(remote=lambda *arguments: self._make(cls, arguments))

        return actor_class

    def kill(self, actor: Actor) -> None:
        actor.die(ActorDiedError("killed"))
        self.schedule()

    def wait(self, references: list[Reference], num_returns: int, timeout: float) -> None:
        wait([reference.future() for reference in references], timeout)

    def shutdown(self) -> None:
        self.is_shut_down = True

    # ---- what happens to clusters

    def lose(self, name: str, error: Exception | None = None) -> None:
        """A node dies with all that is on it."""
        del self.alive[name]
        for actor in [a for a in self.actors if a.node == name and not a.is_dead]:
            actor.die(error or ActorDiedError("The actor died.\n\tits node died\n"))

    def join(self, name: str, node: Node) -> None:
        self.alive[name] = node
        self.schedule()

    def schedule(self) -> None:
        for actor in self.actors:
            if actor.node is None and not actor.is_dead:
                for name, node in self.alive.items():
                    taken = sum(a.cpus for a in self.actors if a.node == name and not a.is_dead)
                    if taken + actor.cpus <= node.cpus:
                        actor.settle(name)
                        break

    def _make(self, cls: type, arguments: tuple[Any, ...]) -> Actor:
        actor = Actor(cls, arguments, self.options, self.broken)
        self.actors.append(actor)
        self.schedule()
        return actor


class Actor:
    """Calls wait until it has a node; its object is made there."""

    def __init__(self, cls: type, arguments: tuple[Any, ...], options: dict[str, Any], broken: Exception | None):
        self.node: str | None = None
        self.is_dead = False
        self.cpus = options["num_cpus"]
        self._broken = broken
        self._create = lambda: cls(*arguments)
        self._object: Any = None
        self._placed = threading.Event()
        self._outstanding: list[Future[Any]] = []
        self._threads = {name: ThreadPoolExecutor(n) for name, n in options["concurrency_groups"].items()}

    def __getattr__(self, method: str) -> Any:
        def options(concurrency_group: str) -> Any:
            return SimpleNamespace(remote=lambda *arguments: self._call(concurrency_group, method, arguments))

        return SimpleNamespace(options=options)

    def settle(self, node: str) -> None:
        self.node = node
        if self._broken is not None:
            self.die(self._broken)
            return
        self._object = self._create()
        self._placed.set()

    def die(self, error: Exception) -> None:
        self.is_dead = True
        self._placed.set()
        for future in self._outstanding:
            self._answer(future, error=error)
        if self._object is not None:
            self._object._server.kill()
            self._object._server.wait()
        for thread in self._threads.values():
            thread.shutdown(wait=False)

    def _call(self, group: str, method: str, arguments: tuple[Any, ...]) -> Reference:
        future: Future[Any] = Future()
        if self.is_dead:
            self._answer(future, error=self._broken or ActorDiedError("it is dead"))
            return Reference(future)
        self._outstanding.append(future)

        def run() -> None:
            self._placed.wait()
            if not self.is_dead:
                self._answer(future, getattr(self._object, method)(*arguments))

        self._threads[group].submit(run)
        return Reference(future)

    def _answer(self, future: Future[Any], result: Any = None, error: Exception | None = None) -> None:
        with contextlib.suppress(Exception):  # it was answered before
            future.set_exception(error) if error is not None else future.set_result(result)


class Reference:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        return self._future
