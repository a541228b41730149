"""The Ray cluster as the launcher sees it: joining it or starting one, and how many trials fit on its nodes."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime.backends.slots import available_cores

Resources: TypeAlias = Mapping[str, float]
"""What a node has, as Ray names it: ``CPU``, ``GPU``."""

_OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's own default is a third of the memory; nothing large is stored."""
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on the loopback interface only, as on systems other than Linux
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing to Ray's makers
}
"""Settings of a cluster that the launcher starts; the user's own come first."""
_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": "."}
"""Lines of Ray's that are not printed; read when Ray is imported."""


def room_on(node: Resources, cpus: int, gpus: float) -> int:
    """How many trials fit on a node at a time.

    Args:
        node: its resources, as Ray names them: ``CPU``, ``GPU``.
        cpus: of one trial.
        gpus: of one trial; a share lies on one GPU.
    """
    room = math.floor(node.get("CPU", 0) / cpus)
    if gpus >= 1:
        room = min(room, math.floor(node.get("GPU", 0) / gpus))
    elif gpus > 0:
        room = min(room, math.floor(node.get("GPU", 0)) * math.floor(1 / gpus + 1e-9))
    return room


def import_ray() -> Any:
    """The module; what Ray itself would print into the launcher's table stays in Ray's logs.

    Raises:
        BackendError: if it is not installed.
    """
    try:
        with _environment(_QUIET):
            import ray
    except ImportError as problem:
        raise BackendError(
            f'backend=ray needs the package ray ({problem}). Install it with: pip install "hydra-lightning-hpo[ray]"'
        ) from problem
    return ray


def join(ray: Any, cpus: int) -> tuple[bool, bool]:
    """Join a cluster, or start one on this machine with at least so many CPUs.

    Returns:
        Whether this call connected to Ray, and whether it started a cluster.
    """
    if ray.is_initialized():
        return False, False
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise BackendError(
            f"RAY_ADDRESS={address} is that of a Ray Client, through which nodes cannot reach the launcher. "
            "Start the launcher on a node of the cluster, for example with: ray job submit."
        )
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address != "local":
            try:
                ray.init(address="auto", **quiet)
                return True, False
            except ConnectionError:
                if address:
                    raise
        with _private_cluster():
            ray.init(
                address="local",
                num_cpus=max(cpus, available_cores()),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
        return True, True
    except Exception as problem:
        where = f"the cluster at RAY_ADDRESS={address}" if address else "Ray"
        raise BackendError(
            f"The launcher cannot use {where}: {gist(problem)}. "
            "Start a cluster with `ray start --head`, correct RAY_ADDRESS, or set backend=local."
        ) from problem


@contextlib.contextmanager
def _private_cluster() -> Iterator[None]:
    """A cluster that is started meanwhile is for this launcher only: see :data:`_PRIVATE`."""
    import ray._private.ray_constants as constants

    # Ray reads this setting when it is imported, which was too early; its processes read the variable now.
    cluster = getattr(constants, "ENABLE_RAY_CLUSTER", True)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(_PRIVATE):
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = cluster


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables meanwhile, but for those that are set already."""
    ours = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def describe(nodes: Sequence[Resources], is_ours: bool) -> str:
    if is_ours:
        return "no cluster was found, so Ray was started on this machine"
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {total['CPU']:g} CPU, {total['GPU']:g} GPU"


def no_room(cpus: int, gpus: float, nodes: Sequence[Resources]) -> str:
    largest = ", ".join(f"{max(node.get(kind, 0) for node in nodes):g} {kind}" for kind in ("CPU", "GPU"))
    return (
        f"A trial takes {cpus} CPU and {gpus:g} GPU of one node, and no node of the Ray cluster has both (at most "
        f"{largest}). Add such a node, or lower gpus_per_trial or ranks_per_trial."
    )


def gist(problem: object) -> str:
    """One line of an error of Ray, whose messages are long: the cause stands at their end."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(problem, str) else f"{type(problem).__name__}: {text}".rstrip(": .")
