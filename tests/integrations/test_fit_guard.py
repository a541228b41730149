"""A training that nobody would hear of is refused when it begins; other trainings of the script are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_hpo.errors import CallbackMissing, StrategyUnsupported
from lightning_hpo.integrations import fit_guard
from lightning_hpo.integrations.callback import HPOCallback
from lightning_hpo.integrations.fit_guard import guarding_fits, will_be_made


class Channel(SimpleNamespace):
    """A launcher whose study trains for 9 epochs."""

    def __init__(self) -> None:
        super().__init__(callback_seen=False, problems=[])

    def hello(self, max_epochs: int | None) -> Any:
        return SimpleNamespace(max_t=9)

    def problem(self, kind: str, message: str) -> None:
        self.problems.append(kind)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The Trainers whose fit began."""
    begun: list[Trainer] = []
    monkeypatch.setattr(Trainer, "fit", lambda trainer: begun.append(trainer))
    monkeypatch.setattr(HPOCallback, "has_been_made", False)
    return begun


@pytest.fixture
def channel(fits: list[Trainer]) -> Iterator[Any]:
    channel = Channel()
    with guarding_fits(channel):
        yield channel


def trainer(max_epochs: int, *callbacks: Any, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(max_epochs=max_epochs, accelerator="cpu", callbacks=list(callbacks), **quiet | options)


@pytest.fixture
def script_without_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_guard, "will_be_made", lambda *_: False)


@pytest.mark.usefixtures("script_without_callback")
@pytest.mark.parametrize("max_epochs", [9, 1])
def test_a_script_that_never_makes_the_callback_cannot_train_at_all(
    channel: Any, fits: list[Trainer], max_epochs: int
) -> None:
    with pytest.raises(CallbackMissing, match=r"Trainer\(callbacks=\[HPOCallback\(\)\], \.\.\.\)"):
        trainer(max_epochs).fit()  # type: ignore[call-arg]
    assert fits == []
    assert channel.problems == ["CallbackMissing"]


def test_a_full_training_without_the_callback_is_refused_even_if_the_script_knows_it(
    channel: Any, fits: list[Trainer]
) -> None:
    with pytest.raises(CallbackMissing):
        trainer(9).fit()  # type: ignore[call-arg]
    assert fits == []


def test_a_training_of_another_length_that_comes_first_is_let_pass(channel: Any, fits: list[Trainer]) -> None:
    first = trainer(2)
    first.fit()  # type: ignore[call-arg]
    assert fits == [first]
    assert channel.problems == []


@pytest.mark.usefixtures("script_without_callback")
def test_a_callback_that_the_configuration_names_may_come_later(fits: list[Trainer]) -> None:
    channel: Any = Channel()
    with guarding_fits(channel, callback_is_configured=True):
        first = trainer(2)
        first.fit()  # type: ignore[call-arg]
        with pytest.raises(CallbackMissing):
            trainer(9).fit()  # type: ignore[call-arg]
    assert fits == [first]


@pytest.mark.usefixtures("script_without_callback")
def test_once_a_callback_is_made_any_other_training_is_let_pass(channel: Any, fits: list[Trainer]) -> None:
    own, other = trainer(9, HPOCallback()), trainer(9)
    other.fit()  # type: ignore[call-arg]
    own.fit()  # type: ignore[call-arg]
    assert fits == [other, own]


@pytest.mark.usefixtures("script_without_callback")
def test_after_the_trials_own_training_others_are_let_pass(channel: Any, fits: list[Trainer]) -> None:
    channel.callback_seen = True
    trainer(9).fit()  # type: ignore[call-arg]
    assert len(fits) == 1


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_a_strategy_that_trains_in_child_processes_is_refused_before_it_starts_them(
    channel: Any, fits: list[Trainer], strategy: str
) -> None:
    with pytest.raises(StrategyUnsupported, match=r"Pass Trainer\(strategy='ddp'\)\.$"):
        trainer(9, HPOCallback(), strategy=strategy, devices=2).fit()  # type: ignore[call-arg]
    assert fits == []
    assert channel.problems == ["StrategyUnsupported"]


def test_a_training_that_is_not_tuned_may_use_any_strategy(channel: Any, fits: list[Trainer]) -> None:
    HPOCallback()
    trainer(9, strategy="ddp_fork", devices=2).fit()  # type: ignore[call-arg]
    trainer(9, HPOCallback(), strategy="ddp", devices=2).fit()  # type: ignore[call-arg]
    channel.callback_seen = True
    trainer(9, HPOCallback(), strategy="ddp_fork", devices=2).fit()  # type: ignore[call-arg]
    assert len(fits) == 3
    assert channel.problems == []


def test_the_trainer_is_left_as_it_was(fits: list[Trainer]) -> None:
    before = Trainer.fit
    with guarding_fits(Channel()):  # type: ignore[arg-type]
        assert Trainer.fit is not before
    assert Trainer.fit is before


def test_the_trainer_of_the_other_distribution_is_guarded_too(
    fits: list[Trainer], monkeypatch: pytest.MonkeyPatch, script_without_callback: None
) -> None:
    class OtherTrainer:
        callbacks: tuple[Any, ...] = ()
        max_epochs = 9

        def fit(self) -> None:
            raise AssertionError("it trains")

    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(Trainer=OtherTrainer))  # type: ignore[arg-type]
    with guarding_fits(Channel()), pytest.raises(CallbackMissing):  # type: ignore[arg-type]
        OtherTrainer().fit()


def module(source: str, name: str = "users_script") -> ModuleType:
    made = ModuleType(name)
    exec(source, made.__dict__)
    return made


IMPORTED = "from lightning_hpo import HPOCallback\n"


@pytest.mark.parametrize(
    "source",
    [
        IMPORTED + "def main():\n    return HPOCallback()",
        IMPORTED + "class Task:\n    def run(self):\n        return [HPOCallback() for _ in range(1)]",
        IMPORTED + "class Task:\n    @staticmethod\n    def run():\n        return HPOCallback()",
        IMPORTED.replace("\n", " as Tell\n") + "def main():\n    return Tell()",
        IMPORTED + "import functools\n@functools.lru_cache\ndef main():\n    return HPOCallback()",
        IMPORTED + "def outer():\n    def main():\n        return HPOCallback()\n    return main",
        "import lightning_hpo\ndef main():\n    return lightning_hpo.HPOCallback()",
    ],
)
def test_a_function_that_makes_the_callback_is_found(source: str) -> None:
    assert will_be_made(HPOCallback, [module(source)])


@pytest.mark.parametrize(
    "source",
    [
        "def main():\n    pass",
        IMPORTED + "def main():\n    pass  # [HPOCallback()]",
        "def main():\n    return HPOCallback",
    ],
)
def test_a_script_that_makes_none_is_told_from_one_that_does(source: str) -> None:
    assert not will_be_made(HPOCallback, [module(source)])


def test_in_the_main_module_an_import_inside_the_function_is_enough() -> None:
    source = "def main():\n    from lightning_hpo import HPOCallback\n    return HPOCallback()"
    assert will_be_made(HPOCallback, [module(source, "__main__")])


def test_this_package_and_modules_of_other_libraries_count_for_nothing() -> None:
    own = [m for name, m in sys.modules.items() if name.startswith("lightning_hpo")]
    assert own
    assert not will_be_made(HPOCallback, [*own, sys.modules["lightning.pytorch"], sys.modules["json"]])
