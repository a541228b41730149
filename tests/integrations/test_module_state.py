"""What a module has beside its ``state_dict`` is the same in a module that was made anew."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import CatMetric, MaxMetric, Metric

from lightning_hpo.integrations.module_state import module_state, restore_module_state


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Saved, and loaded without executing anything."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def carried_over(module: nn.Module, new: nn.Module) -> None:
    restore_module_state(new, through_a_file(module_state(module)))


class Boxes(Metric):
    """Keeps what it is given; the metric of detection keeps tuples of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", [])

    def update(self, value: Any) -> None:
        self.seen.append(value)

    def compute(self) -> Any:
        return self.seen


def test_states_of_every_kind_are_loaded_without_executing_anything() -> None:
    metric, new = Boxes(), Boxes()
    for value in (torch.ones(2), (3, 4), (b"\x01\xff", (torch.ones(1), True)), "text", None, 0.5):
        metric.update(value)
    carried_over(metric, new)
    assert str(new.compute()) == str(metric.compute())
    assert new.update_count == 6


def test_a_metric_whose_state_only_pickle_can_load_begins_anew_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    module, new = (nn.ModuleDict({"boxes": Boxes(), "best": MaxMetric()}) for _ in range(2))
    module["boxes"].update(io.BytesIO())  # type: ignore[operator]
    module["best"].update(2.0)  # type: ignore[operator]
    carried_over(module, new)
    assert new["boxes"].compute() == []  # type: ignore[operator]
    assert new["best"].compute() == 2.0  # type: ignore[operator]
    assert "The metric boxes begins anew when this trial is resumed" in caplog.text and "BytesIO" in caplog.text


def test_what_was_computed_before_is_computed_again() -> None:
    new = MaxMetric()
    new.update(9.0)
    assert new.compute() == 9.0
    metric = MaxMetric()
    metric.update(2.0)
    carried_over(metric, new)
    assert new.compute() == 2.0


def test_a_restored_metric_does_not_change_what_was_loaded() -> None:
    metric, new = CatMetric(), CatMetric()
    metric.update(1.0)
    state = through_a_file(module_state(metric))
    restore_module_state(new, state)
    new.update(2.0)
    assert state["metrics"][""]["value"] == [torch.tensor(1.0)]


def test_parameters_and_modules_that_vanish_or_are_new_are_left_alone() -> None:
    module = nn.ModuleDict({"same": nn.Linear(1, 1), "gone": nn.BatchNorm1d(1), "kind": MaxMetric()})
    module.requires_grad_(False).eval()
    new = nn.ModuleDict({"same": nn.Linear(1, 1), "new": nn.BatchNorm1d(1), "kind": nn.Linear(1, 1)})
    carried_over(module, new)
    frozen = [name for name, parameter in new.named_parameters() if not parameter.requires_grad]
    assert frozen == ["same.weight", "same.bias"]
    assert new["new"].training and not new["same"].training


class Answering(nn.Module):
    """Answers for another module, which it has not loaded yet."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("no such file")


def test_modules_are_not_asked_for_what_they_might_not_have() -> None:
    module, new = (nn.ModuleList([Answering(), nn.BatchNorm1d(1)]) for _ in range(2))
    module[1].track_running_stats = False  # type: ignore[assignment]
    carried_over(module, new)
    assert new[1].track_running_stats is False


def test_without_torchmetrics_there_are_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(1, 1).requires_grad_(False)
    monkeypatch.delitem(sys.modules, "torchmetrics")
    new = nn.Linear(1, 1)
    carried_over(module, new)
    assert not new.weight.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_states_go_back_to_the_device_of_their_metric() -> None:
    metric, new = MaxMetric().cuda(), MaxMetric().cuda()
    metric.update(2.0)
    state = module_state(metric)
    assert state["metrics"][""]["max_value"].device.type == "cpu"
    restore_module_state(new, state)
    assert new.max_value.device.type == "cuda"
