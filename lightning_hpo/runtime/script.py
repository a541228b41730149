"""Finding the user's code again in a new interpreter: functions by reference, the script as a module."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing.process
import multiprocessing.spawn
import pickle
import sys
from collections.abc import Callable
from typing import Any

from lightning_hpo.errors import BackendError
from lightning_hpo.runtime.backends.base import Entry, WarmUp


class FunctionReference:
    """A function that is pickled as its module and name, found again by importing the module.

    A decorated function cannot be pickled by itself, because its name leads to what the decorator made of it
    (``hydra.main`` does this). The reference follows ``__wrapped__`` to the function meant. A function that cannot be
    found by its name is pickled like any other object, which cloudpickle can do.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        module = getattr(self.function, "__module__", None) or ""
        name = getattr(self.function, "__qualname__", None) or ""
        importable = name != "" and module != "" and (module != "__main__" or main_is_importable())
        if importable and _find(module, name) is inspect.unwrap(self.function):
            return _load_reference, (module, name)
        return FunctionReference, (self.function,)


def _load_reference(module: str, name: str) -> FunctionReference:
    found = _find(module, name)
    if found is None:
        raise BackendError(
            f"There is no {name!r} in the module {module!r}, as imported by a new process. "
            'Define it at the top level, outside of `if __name__ == "__main__":`.'
        )
    return FunctionReference(found)


def _find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return None if found is None else inspect.unwrap(found)


def main_is_importable() -> bool:
    """Whether a new interpreter can import the script that runs here: not in a notebook or an interactive session."""
    main = sys.modules["__main__"]
    return getattr(main, "__file__", None) is not None or getattr(main, "__spec__", None) is not None


def dump_entry(entry: Entry | WarmUp | None) -> bytes:
    """The entry for another interpreter: by pickle, or by cloudpickle if that is installed and pickle cannot.

    Raises:
        BackendError: if neither can.
    """
    try:
        if main_is_importable():
            return pickle.dumps(entry)
        reason: object = "the script is not a file, and cloudpickle is not installed"
    except Exception as problem:
        reason = problem
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(entry))
    except Exception as problem:
        raise BackendError(
            f"What the trials run cannot be sent to a new process: {reason}. "
            "Define the training function at the top level of its module, "
            "and keep open files, locks and lambdas out of it."
        ) from problem


class ScriptImport:
    """Imports the user's script in a new interpreter, as ``multiprocessing`` does.

    It notices if that starts a sweep, which would start another, and so on.
    """

    running = False
    """The script is being imported now, in this process."""
    nested = False
    """While it was, it tried to start a sweep."""

    @staticmethod
    def describe() -> dict[str, Any]:
        """What a new interpreter needs to import the script that runs here, as JSON data."""
        data = multiprocessing.spawn.get_preparation_data("lightning_hpo")
        return {key: value for key, value in data.items() if key not in ("authkey", "name")}

    @classmethod
    def run(cls, description: dict[str, Any]) -> None:
        """Import the script.

        Raises:
            BackendError: if it has no main guard or cannot be imported.
        """
        cls.running = True
        current: Any = multiprocessing.process.current_process()
        current._inheriting = True  # lets multiprocessing itself refuse to start processes now
        try:
            multiprocessing.spawn.prepare(description)
        except BaseException as problem:
            if not cls.nested:
                raise BackendError(
                    "A new process that imported the script to run its trials failed with "
                    f"{type(problem).__name__}: {problem}. "
                    'Put what must run only once into `if __name__ == "__main__":`.'
                ) from problem
        finally:
            cls.running = False
            del current._inheriting
        if cls.nested:
            raise BackendError(NO_MAIN_GUARD)


NO_MAIN_GUARD = (
    "The script starts the sweep when it is imported, and every new process must import it to run a trial. "
    'Put the call that starts the sweep into `if __name__ == "__main__":`.'
)


def refuse_nested_sweep() -> None:
    """Call before anything of a sweep is made.

    Raises:
        BackendError: if this process only imports the script in order to run trials.
    """
    if ScriptImport.running:
        ScriptImport.nested = True
        raise BackendError(NO_MAIN_GUARD)
