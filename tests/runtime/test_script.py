from __future__ import annotations

import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime.script import FunctionReference, ScriptImport, dump_entry, refuse_nested_sweep


def decorate(function: Callable[[int], int]) -> Callable[[], str]:
    @functools.wraps(function)
    def wrapped() -> str:
        return "the decorated one"

    return wrapped  # type: ignore[return-value]


def plain(x: int) -> int:
    return x + 1


def _undecorated(x: int) -> int:
    return x + 2


_undecorated.__name__ = _undecorated.__qualname__ = "decorated"
decorated = decorate(_undecorated)


class Trainer:
    @staticmethod
    def run(x: int) -> int:
        return x + 3


def test_a_function_is_sent_by_its_name() -> None:
    data = pickle.dumps(FunctionReference(plain))
    assert b"plain" in data and __name__.encode() in data
    assert pickle.loads(data)(1) == 2
    assert pickle.loads(pickle.dumps(FunctionReference(Trainer.run)))(1) == 4


def test_the_function_behind_a_decorator_is_meant() -> None:
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(_undecorated)
    assert pickle.loads(pickle.dumps(FunctionReference(_undecorated)))(1) == 3


def test_a_function_without_a_name_of_its_own_is_sent_by_value() -> None:
    pytest.importorskip("cloudpickle")
    offset = 10
    reference = FunctionReference(lambda x: x + offset)
    assert reference(1) == 11
    assert pickle.loads(dump_entry(reference))(1) == 11


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A ``__main__`` that is no file."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("def train(job):\n    return job * 2", main.__dict__)
    yield main


def test_a_function_of_a_notebook_is_sent_by_value(notebook: Any) -> None:
    pytest.importorskip("cloudpickle")
    data = dump_entry(FunctionReference(notebook.train))
    del notebook.train
    assert pickle.loads(data)(4) == 8


def test_without_cloudpickle_the_error_names_the_cause_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(BackendError, match="lambda") as raised:
        dump_entry(lambda job: None)
    assert str(raised.value).endswith(
        "Define the training function at the top level of its module, and keep open files, locks and lambdas out of it."
    )


def test_a_function_inside_the_main_guard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(FunctionReference(plain))
    monkeypatch.delitem(globals(), "plain")
    with pytest.raises(BackendError, match="There is no 'plain' in the module"):
        pickle.loads(data)


def test_a_sweep_inside_the_import_of_the_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_nested_sweep()
    monkeypatch.setattr(ScriptImport, "nested", False)
    monkeypatch.setattr(ScriptImport, "running", True)
    with pytest.raises(BackendError, match="into `if __name__"):
        refuse_nested_sweep()
    assert ScriptImport.nested


def test_what_a_new_interpreter_needs_is_json_and_holds_no_key() -> None:
    import json

    description = ScriptImport.describe()
    assert json.loads(json.dumps(description)) == description
    assert "authkey" not in description
    assert description["sys_path"] and description["dir"]
