"""Places where trials run: CPU slots, whole GPUs, groups of GPUs, shares of a GPU.

Devices are found without CUDA, because a process that has touched CUDA cannot fork trials, and because merely looking
would take a few hundred megabytes on every device.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.errors import BackendError, OptionError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_DEVICE_LINE = re.compile(r"^(?P<indent>\s*)(?:GPU|MIG)\b.*\(UUID:\s*(?P<uuid>[^)\s]+)\)")
_UUID_LINE = re.compile(r"^GPU UUID:\s*(?P<uuid>GPU-\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one trial."""

    index: int
    devices: tuple[str, ...] = ()
    """Ids or UUIDs of the GPUs it may use; empty on the CPU."""
    share: int = 0
    """Which of the trials on this GPU, if the GPU is shared."""
    name: str = ""
    """For people: ``cpu:0``, ``gpu:1``, ``gpu:0,1``, ``gpu:0/2`` (third share of the first GPU)."""

    @property
    def environment(self) -> dict[str, str]:
        """What makes the trial see its devices and no others."""
        return {VISIBLE_DEVICES: ",".join(self.devices)}


class SlotPool:
    """Hands out slots and takes them back.

    Args:
        n_workers: trials at a time; None for as many as the devices allow, on the CPU one per core.
        gpus_per_trial: 0 for CPU trials, a whole number of GPUs, or a share such as 0.25: then ``floor(1 / share)``
            trials live on each GPU. None takes one GPU per trial where there is one.
        devices: ids or UUIDs of the GPUs to use; None looks for those this process may see.

    Raises:
        OptionError: if ``gpus_per_trial`` or ``n_workers`` is not usable as such.
        BackendError: if there are too few GPUs for one trial.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        gpus_per_trial: float | None = None,
        devices: Sequence[str | int] | None = None,
    ) -> None:
        if n_workers is not None and n_workers < 1:
            raise OptionError(
                f"n_workers must be at least 1, not {n_workers}. Set n_workers to how many trials may run at a time."
            )
        found = tuple(str(d) for d in devices) if devices is not None else None
        if gpus_per_trial is None:
            found = visible_devices() if found is None else found
            gpus_per_trial = 1 if found else 0
        check_share(gpus_per_trial)
        if gpus_per_trial == 0:
            slots = [Slot(i, name=f"cpu:{i}") for i in range(n_workers or available_cores())]
        else:
            slots = _gpu_slots(visible_devices() if found is None else found, gpus_per_trial)
        self.gpus_per_trial = gpus_per_trial
        self.wanted = n_workers
        self._slots = tuple(slots[:n_workers])
        self._free = set(range(len(self._slots)))

    @property
    def capacity(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def note(self) -> str | None:
        """Set if fewer trials than wanted can run at a time."""
        if self.wanted is None or self.wanted <= self.capacity:
            return None
        return (
            f"{self.capacity} instead of {self.wanted} trials run at a time: "
            f"each takes {self.gpus_per_trial:g} GPU and there are no more. Lower gpus_per_trial to run more of them."
        )

    def acquire(self) -> Slot | None:
        """A free slot on the devices that have the fewest trials; None if all are taken."""
        if not self._free:
            return None
        busy = Counter(self._slots[i].devices for i in range(self.capacity) if i not in self._free)
        index = min(self._free, key=lambda i: (busy[self._slots[i].devices], i))
        self._free.remove(index)
        return self._slots[index]

    def release(self, slot: Slot) -> None:
        """Take a slot back. Only once every process that used it is gone."""
        self._free.add(slot.index)


def visible_devices(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The GPUs this process may use, found without initialising CUDA.

    ``CUDA_VISIBLE_DEVICES`` decides if it is set, with CUDA's own rule: what follows the first entry that is no device
    is not visible. Otherwise ``nvidia-smi`` or, without it, the driver's files are asked. A GPU that is split (MIG)
    is replaced by its parts.
    """
    listed = (os.environ if environment is None else environment).get(VISIBLE_DEVICES)
    if listed is not None:
        entries: list[str] = []
        for entry in (part.strip() for part in listed.split(",")):
            if not re.fullmatch(r"\d+|GPU-\S+|MIG-\S+", entry):
                break
            entries.append(entry)
        return tuple(entries)
    return _from_nvidia_smi() or _from_driver()


def available_cores() -> int:
    """CPU cores this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def parse_nvidia_smi(listing: str) -> tuple[str, ...]:
    """UUIDs in the output of ``nvidia-smi -L``; the parts of a split GPU stand for it."""
    devices: list[list[str]] = []
    for line in listing.splitlines():
        match = _DEVICE_LINE.match(line)
        if match is None:
            continue
        if match["indent"] and devices:
            devices[-1].append(match["uuid"])
        else:
            devices.append([match["uuid"]])
    return tuple(uuid for device in devices for uuid in (device[1:] or device))


def _from_nvidia_smi() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(answer.stdout)


def _from_driver(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    devices = []
    for information in sorted(root.glob("*/information")):
        match = _UUID_LINE.search(information.read_text(errors="replace"))
        if match:
            devices.append(match["uuid"])
    return tuple(devices)


def check_share(gpus_per_trial: float) -> None:
    """
    Raises:
        OptionError: if it is neither 0, nor a share of one GPU, nor a whole number of them.
    """
    if math.isfinite(gpus_per_trial) and (0 <= gpus_per_trial <= 1 or gpus_per_trial == int(gpus_per_trial) >= 1):
        return
    raise OptionError(
        f"gpus_per_trial must be 0, a share below 1 or a whole number of GPUs, not {gpus_per_trial}. "
        "Set it to 0 for CPU trials, 0.5 for two trials per GPU, or 1, 2, ... GPUs per trial."
    )


def _gpu_slots(devices: Sequence[str], gpus_per_trial: float) -> list[Slot]:
    if gpus_per_trial < 1:
        shares = math.floor(1 / gpus_per_trial + 1e-9)
        # One share of every GPU before the second of any, so that few trials spread over all GPUs.
        places = [(share, number) for share in range(shares) for number in range(len(devices))]
        slots = [
            Slot(index, (devices[number],), share, f"gpu:{number}/{share}")
            for index, (share, number) in enumerate(places)
        ]
    else:
        size = int(gpus_per_trial)
        starts = range(0, len(devices) - size + 1, size)
        slots = [
            Slot(index, tuple(devices[i : i + size]), name="gpu:" + ",".join(str(n) for n in range(i, i + size)))
            for index, i in enumerate(starts)
        ]
    if not slots:
        raise BackendError(
            f"A trial needs {gpus_per_trial:g} GPU and {len(devices)} can be seen"
            + (f" ({VISIBLE_DEVICES}={os.environ[VISIBLE_DEVICES]!r})" if VISIBLE_DEVICES in os.environ else "")
            + ". Lower gpus_per_trial, or set it to 0 to train on the CPU."
        )
    return slots
