"""Notices a forgotten callback when the training begins, not when it is over.

A trial's script may train other things too: a network that is to be fine-tuned, a baseline. So a Trainer without
``HPOCallback`` is no mistake by itself. A fit without it is refused only if no callback was made before, and if

* it trains for ``max_t`` epochs, as the trial's own training does, or
* neither a function of the script nor its configuration makes the callback, so that none will come later.

A Trainer whose strategy trains in children of this process is refused here too, before it starts them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from lightning_hpo.errors import CallbackMissing, StrategyUnsupported
from lightning_hpo.integrations.trainer_classes import with_trainers
from lightning_hpo.runtime.channel import TrialChannel

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_LINE = "from lightning_hpo import HPOCallback; Trainer(callbacks=[HPOCallback()], ...)"
_PACKAGE = __name__.partition(".")[0]


def guarding_fits(channel: TrialChannel, callback_is_configured: bool = False) -> AbstractContextManager[None]:
    """While it lasts, ``Trainer.fit`` raises ``CallbackMissing`` or ``StrategyUnsupported`` and tells the launcher, as
    the module says.

    Args:
        channel: the trial's; this process is the first rank.
        callback_is_configured: the configuration names the callback.
    """

    def guarded(fit: Callable[..., None]) -> Callable[..., None]:
        def guarded_fit(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            _check(trainer, channel, callback_is_configured)
            fit(trainer, *args, **kwargs)

        return guarded_fit

    return with_trainers("fit", guarded)


def never_trained() -> CallbackMissing:
    """The error for a script that has ended without a fit that reports."""
    return CallbackMissing(
        "The script ended without training a Trainer that has the callback of this package, so nothing was reported. "
        f"Add it to the Trainer's list: {_LINE}"
    )


def _check(trainer: Trainer, channel: TrialChannel, callback_is_configured: bool) -> None:
    from lightning_hpo.integrations.callback import HPOCallback
    from lightning_hpo.integrations.lightning_internals import refuse_child_processes

    has_callback = any(isinstance(callback, HPOCallback) for callback in trainer.callbacks)
    if has_callback and not channel.callback_seen:
        try:
            refuse_child_processes(trainer)
        except StrategyUnsupported as refusal:
            channel.problem(type(refusal).__name__, str(refusal))
            raise
    # If it was unpickled, it was never made here.
    if channel.callback_seen or HPOCallback.has_been_made or has_callback:
        return
    comes_later = callback_is_configured or will_be_made(HPOCallback, list(sys.modules.values()))
    if comes_later and channel.hello(trainer.max_epochs).max_t != trainer.max_epochs:
        return
    error = CallbackMissing(
        "This Trainer has no HPOCallback, so the study would learn nothing from its training, which was not begun. "
        f"Add the callback to the Trainer's list: {_LINE} - or, if this fit only prepares the one to be tuned, make "
        "that one's HPOCallback before it."
    )
    channel.problem(type(error).__name__, str(error))
    raise error


def will_be_made(callback: type, modules: Iterable[ModuleType]) -> bool:
    """Does a function of a module that knows the callback, or of the script itself, use it by name?"""
    package = sys.modules[_PACKAGE]
    for module in modules:
        known = list(vars(module).items()) if isinstance(module, ModuleType) else []
        if not known or module.__name__.partition(".")[0] == _PACKAGE:
            continue
        names = {name for name, value in known if value is callback}
        if names or module.__name__ == "__main__" or any(value is package for _, value in known):
            names.add(callback.__name__)
            own = (value for _, value in known if getattr(value, "__module__", None) == module.__name__)
            if any(names & _names_used(code) for value in own for code in _code_of(value)):
                return True
    return False


def _code_of(defined: Any) -> Iterator[CodeType]:
    """The code of a function, decorated or not, or of a class's methods."""
    if isinstance(defined, type):
        for member in vars(defined).values():
            if not isinstance(member, type):
                yield from _code_of(getattr(member, "__func__", member))
    elif callable(defined):
        function = inspect.unwrap(defined)
        if isinstance(function, FunctionType):
            yield function.__code__


def _names_used(code: CodeType) -> set[str]:
    inner = (_names_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)
