"""Random generators are found wherever an object keeps them."""

from __future__ import annotations

import functools
import random
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler, StackDataset, Subset

from lightning_hpo.integrations.generators import generators_of
from tests.integrations.training import Points


@dataclass(slots=True)
class Augmentation:
    rng: Any = field(default_factory=lambda: np.random.default_rng(1))

    def collate(self, batch: Any) -> Any:
        return batch


class Proxy:
    """Answers nobody who asks for anything."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"unbound: {name}")


class Unbound:
    """As thread-local proxies of web frameworks: its attributes are those of another object, which is not there."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("working outside of a request")


class FetchedList(list[Any]):
    """Stores places, and opens what is there when it is asked for an item, or for their number."""

    def __len__(self) -> int:
        raise OSError("no such file")

    def __iter__(self) -> Any:
        raise OSError("no such file")


class FetchedDict(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("no such file")


class Unusual(random.Random):
    """What its state is made of only it knows."""

    def getstate(self) -> Any:
        return "a text"


def augmented(transform: Any) -> Points:
    points: Any = Points(4, seed=1)
    points.transform = transform
    return points


def test_in_all_parts_of_a_loader() -> None:
    transform, collate = Augmentation(), Augmentation()
    first, second = Augmentation(), Augmentation()
    several = SimpleNamespace(transforms=[first, {"flip": second}])
    stacked = StackDataset(augmented(transform), Subset(augmented(several), [0, 1, 2, 3]))
    order = torch.Generator()
    sampler = BatchSampler(RandomSampler(stacked, generator=order), 2, drop_last=False)
    loader = DataLoader(ConcatDataset([stacked]), batch_sampler=sampler, collate_fn=collate.collate)
    expected = {
        ".batch_sampler.sampler.generator": order,
        ".collate_fn.__self__.rng": collate.rng,
        ".dataset.datasets[0].datasets[0].transform.rng": transform.rng,
        ".dataset.datasets[0].datasets[1].dataset.transform.transforms[0].rng": first.rng,
        ".dataset.datasets[0].datasets[1].dataset.transform.transforms[1]['flip'].rng": second.rng,
    }
    found = generators_of(loader)
    assert found.keys() == expected.keys() and all(found[path] is expected[path] for path in expected)


def test_of_every_kind_and_under_each_of_its_names() -> None:
    kept = SimpleNamespace(old=np.random.RandomState(1), python=random.Random(1), torch=torch.Generator())
    kept.again = kept.old
    bound = functools.partial(print, kept.python, end=kept.torch)
    assert generators_of({"kept": kept}) == {f"['kept'].{name}": value for name, value in vars(kept).items()}
    assert generators_of([bound]) == {"[0].args[0]": kept.python, "[0].keywords['end']": kept.torch}


def test_objects_that_refer_to_each_other_are_looked_at_once() -> None:
    owner = SimpleNamespace(rng=random.Random(1))
    owner.inner = SimpleNamespace(back=owner, rng=random.Random(2))
    owner.inner.inner = [owner.inner]
    assert generators_of(owner) == {".rng": owner.rng, ".inner.rng": owner.inner.rng}


def test_not_behind_what_belongs_to_others() -> None:
    trainer: Any = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.rng = random.Random(1)
    proxies = [Proxy(), weakref.proxy(trainer)]
    assert generators_of(SimpleNamespace(trainer=trainer, module=random, kind=Augmentation, proxies=proxies)) == {}


def test_nothing_is_asked_that_might_open_a_file() -> None:
    rng = random.Random(1)
    assert generators_of([FetchedList([rng]), FetchedDict(a=rng)]) == {"[0][0]": rng, "[1]['a']": rng}
    assert generators_of([Unbound()]) == {}


@pytest.mark.parametrize("generator", [random.SystemRandom(), Unusual()])
def test_not_those_that_have_no_state_or_one_of_their_own(generator: random.Random) -> None:
    assert generators_of([generator]) == {}


def test_not_among_data() -> None:
    rows = [SimpleNamespace(row=[i]) for i in range(1000)]
    near = random.Random(1)
    assert generators_of({"rows": [rows] * 30, "data": [near] * 1001, "near": near}) == {"['near']": near}
    endless: Any = SimpleNamespace(rng=near)
    for _ in range(50_000):
        endless = SimpleNamespace(inner=endless)
    assert generators_of(endless) == {}
