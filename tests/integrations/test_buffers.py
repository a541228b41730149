"""Buffers find room where there was none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_hpo.integrations.buffers import digests, make_room_when_loaded, restore_buffers, unsaved_buffers


def holder(value: torch.Tensor | None, *, persistent: bool = True) -> nn.Module:
    module = nn.ModuleDict({"inner": nn.Linear(1, 1)})
    module["inner"].register_buffer("seen", value, persistent=persistent)
    return module


@pytest.mark.parametrize("before", [None, torch.zeros(0, 3), torch.zeros(2)], ids=["none", "empty", "other shape"])
def test_a_buffer_is_loaded_whatever_it_was_at_first(before: torch.Tensor | None) -> None:
    loaded, restored, value = holder(before), holder(before), torch.arange(6.0).reshape(2, 3)
    make_room_when_loaded(loaded)
    loaded.load_state_dict(holder(value).state_dict())
    restore_buffers(restored, {"inner.seen": value, "inner.gone": value})
    assert all(torch.equal(module.get_buffer("inner.seen"), value) for module in (loaded, restored))


def test_only_the_next_state_finds_room() -> None:
    module = holder(torch.zeros(2))
    make_room_when_loaded(module)
    module.load_state_dict(holder(torch.ones(3)).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict(holder(torch.ones(4)).state_dict())


ODD = {
    "sparse": torch.eye(3).to_sparse(),
    "conjugate": torch.tensor([1j, 2.5]).conj(),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "without values": torch.zeros(0, 2),
}


@pytest.mark.parametrize("name", ODD)
def test_what_has_changed_is_saved_whatever_its_kind(name: str) -> None:
    value = ODD[name]
    module = holder(value, persistent=False)
    at_start = digests(module, persistent_too=False)
    assert unsaved_buffers(module, at_start) == {}
    changed = value * 2 if value.numel() else torch.ones(1, 2)
    module.get_submodule("inner").seen = changed
    saved = unsaved_buffers(module, at_start)
    restored = holder(value, persistent=False)
    restore_buffers(restored, saved)
    assert saved.keys() == {"inner.seen"}
    assert torch.equal(restored.get_buffer("inner.seen").to_dense(), changed.to_dense())
