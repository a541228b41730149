from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.errors import BackendError, OptionError
from lightning_hpo.runtime.backends import slots
from lightning_hpo.runtime.backends.slots import Slot, SlotPool, parse_nvidia_smi, visible_devices


def take_all(pool: SlotPool) -> list[Slot]:
    taken = []
    while (slot := pool.acquire()) is not None:
        taken.append(slot)
    return taken


# -------------------------------------------------------------------------------------------- slots


def test_cpu_slots_are_the_workers_and_hide_all_gpus() -> None:
    pool = SlotPool(3, gpus_per_trial=0)
    taken = take_all(pool)
    assert [slot.name for slot in taken] == ["cpu:0", "cpu:1", "cpu:2"]
    assert {slot.environment["CUDA_VISIBLE_DEVICES"] for slot in taken} == {""}


def test_without_a_number_of_workers_there_is_one_per_core() -> None:
    assert SlotPool(gpus_per_trial=0).capacity == slots.available_cores() >= 1


def test_whole_gpus_are_handed_out_in_groups() -> None:
    taken = take_all(SlotPool(gpus_per_trial=2, devices=["GPU-a", "GPU-b", "GPU-c", "GPU-d", "GPU-e"]))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in taken] == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    assert [slot.name for slot in taken] == ["gpu:0,1", "gpu:2,3"]


def test_shares_of_a_gpu_fill_all_gpus_evenly() -> None:
    taken = take_all(SlotPool(gpus_per_trial=0.25, devices=[0, 1], n_workers=6))
    assert [slot.devices for slot in taken] == [("0",), ("1",), ("0",), ("1",), ("0",), ("1",)]
    assert taken[4].name == "gpu:0/2"


def test_a_share_of_a_third_gives_three_trials_per_gpu() -> None:
    assert SlotPool(gpus_per_trial=1 / 3, devices=["0"]).capacity == 3
    assert SlotPool(gpus_per_trial=0.3, devices=["0"]).capacity == 3


def test_a_new_trial_goes_to_the_gpu_with_the_fewest_trials() -> None:
    pool = SlotPool(gpus_per_trial=0.5, devices=["a", "b"])
    on_a, on_b, also_on_a, also_on_b = take_all(pool)
    assert (on_a.devices, on_b.devices, also_on_a.devices, also_on_b.devices) == (("a",), ("b",), ("a",), ("b",))
    for slot in (on_a, on_b, also_on_b):
        pool.release(slot)
    following = pool.acquire()
    assert following is not None and following.devices == ("b",)


def test_more_workers_than_gpus_is_said_not_hidden() -> None:
    pool = SlotPool(4, gpus_per_trial=1, devices=["0", "1"])
    assert pool.capacity == 2
    assert pool.note is not None and pool.note.startswith("2 instead of 4 trials run at a time")
    assert SlotPool(2, gpus_per_trial=1, devices=["0", "1"]).note is None


def test_one_gpu_per_trial_is_the_default_where_there_are_gpus() -> None:
    assert SlotPool(devices=["0", "1"]).capacity == 2
    assert take_all(SlotPool(1, devices=[]))[0].name == "cpu:0"


def test_too_few_gpus_for_one_trial_is_an_error_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(BackendError) as raised:
        SlotPool(gpus_per_trial=2)
    assert str(raised.value) == (
        "A trial needs 2 GPU and 1 can be seen (CUDA_VISIBLE_DEVICES='3'). "
        "Lower gpus_per_trial, or set it to 0 to train on the CPU."
    )


@pytest.mark.parametrize("share", [-1, 1.5, float("nan"), float("inf")])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match=r"Set it to 0 for CPU trials, 0\.5 for two trials per GPU, or 1, 2, "):
        SlotPool(gpus_per_trial=share, devices=["0"])


def test_no_workers_are_refused() -> None:
    with pytest.raises(OptionError, match="Set n_workers to how many trials may run at a time"):
        SlotPool(0, gpus_per_trial=0)


@given(
    st.integers(1, 8),
    st.sampled_from([0.1, 0.25, 0.3, 0.5, 1, 2, 3]),
    st.integers(3, 8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=60),
)
def test_no_device_is_ever_given_more_trials_than_fit(
    workers: int, share: float, n_devices: int, steps: list[tuple[bool, int]]
) -> None:
    pool = SlotPool(workers, share, [f"GPU-{i}" for i in range(n_devices)])
    taken: list[Slot] = []
    for take, which in steps:
        if take:
            slot = pool.acquire()
            assert (slot is None) == (len(taken) == pool.capacity)
            if slot is not None:
                taken.append(slot)
        elif taken:
            pool.release(taken.pop(which % len(taken)))
        assert pool.free == pool.capacity - len(taken)
        load = {f"GPU-{i}": 0.0 for i in range(n_devices)}
        for slot in taken:
            for device in slot.devices:
                load[device] += min(share, 1)
        assert max(load.values()) <= 1 + 1e-9
        assert len({slot.index for slot in taken}) == len(taken) <= workers


# ---------------------------------------------------------------------------------------- discovery


@pytest.mark.parametrize(
    ("listed", "devices"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2", ("2",)),
        ("1, 0", ("1", "0")),
        ("0,-1,1", ("0",)),
        ("GPU-8f6e,MIG-12ab", ("GPU-8f6e", "MIG-12ab")),
    ],
)
def test_visible_devices_follow_the_rule_of_cuda(listed: str, devices: tuple[str, ...]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": listed}) == devices


LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-7834b7b5-8a5f-4a4e-9c83-d21a0b3b4a51)
"""


def test_the_parts_of_a_split_gpu_stand_for_it() -> None:
    assert parse_nvidia_smi(LISTING) == (
        "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
        "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
        "GPU-7834b7b5-8a5f-4a4e-9c83-d21a0b3b4a51",
    )
    assert parse_nvidia_smi("No devices were found\n") == ()


def test_nvidia_smi_is_asked_when_the_environment_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<END\n{LISTING}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert len(visible_devices({})) == 3


def test_a_broken_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slots, "_from_driver", lambda: ())
    assert visible_devices({}) == ()


def test_without_nvidia_smi_the_driver_lists_the_gpus(tmp_path: Path) -> None:
    for address, uuid in (("0000:65:00.0", "GPU-b"), ("0000:17:00.0", "GPU-a")):
        (tmp_path / address).mkdir()
        information = f"Model: \t\t NVIDIA A100\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
        (tmp_path / address / "information").write_text(information)
    assert slots._from_driver(tmp_path) == ("GPU-a", "GPU-b")
    assert slots._from_driver(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("9000000 100000", 8)]
)
def test_the_quota_of_a_container_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(slots, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert slots.available_cores() == cores
