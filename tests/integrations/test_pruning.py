"""The weights to which pruning goes back are carried over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from lightning_hpo.integrations.pruning import rewinds_to, set_rewinds_to


def pruner(module: nn.Module) -> Any:
    callback: Any = ModelPruning("l1_unstructured", amount=0.3)
    trainer = SimpleNamespace(callbacks=[callback])
    callback.setup(trainer, module, "fit")
    return trainer


@pytest.mark.parametrize("rewinds", [0, 1, 2])
def test_lottery_tickets_are_those_of_the_first_process_if_another_one_draws_its_weights_anew(rewinds: int) -> None:
    module, new = nn.Linear(3, 2), nn.Linear(3, 2)
    trainer, new_trainer = pruner(module), pruner(new)
    for _ in range(rewinds):
        trainer.callbacks[0]._run_pruning(0)
    kept = rewinds_to(trainer)
    assert [value is None for value in kept] == [rewinds > 0] * 2
    if rewinds:
        new_trainer.callbacks[0]._run_pruning(0)
    set_rewinds_to(new_trainer, kept)
    for one, its_trainer in ((module, trainer), (new, new_trainer)):
        if rewinds:
            one.weight_orig.data.fill_(0.7)  # type: ignore[union-attr]
        its_trainer.callbacks[0]._run_pruning(1)
    assert torch.equal(new.weight_orig, module.weight_orig)  # type: ignore[arg-type]


def test_without_lottery_tickets_there_is_nothing_to_keep() -> None:
    trainer: Any = SimpleNamespace(callbacks=[ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False)])
    assert rewinds_to(trainer) == []
    set_rewinds_to(trainer, [torch.ones(1)])
