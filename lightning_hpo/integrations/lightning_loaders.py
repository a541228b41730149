"""Data loaders of a fit that goes on: made, and advanced, as those of a fit that was never paused.

Lightning makes loaders when it first needs them, and again at every reload. Scripts may draw random numbers there, or
look at the epoch or at what their data module remembers; a new process makes them at another time. So it is remembered
what it was like then.

As :mod:`~lightning_hpo.integrations.lightning_internals`, which tells how an epoch begins, this relies on parts of
Lightning that Lightning does not promise to keep: ``setup_data`` and ``_combined_loader`` of its loops,
``_run_sanity_check``, ``on_run_start`` of the epoch loop, the fetcher, and ``_resuming_from_checkpoint`` (2.5.5 and
later; before, Lightning made the epoch's iterator anyway).
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import lightning
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer

from lightning_hpo.integrations.generators import Generator, generators_of
from lightning_hpo.integrations.random_state import RandomState, drawing_as, random_state, restore_random_state

_TRAINING, _VALIDATION = "training", "validation"
_LAST_RELOAD = {_TRAINING: "_last_train_dl_reload_epoch", _VALIDATION: "_last_val_dl_reload_epoch"}
"""Where a loop keeps the epoch in which its loaders count as made."""

_log = logging.getLogger(__name__)


class Loaders:
    """The training and validation loaders of one fit, and all random numbers of its process.

    Args:
        trainer: its loops are watched until :meth:`leave_alone`.
        resumes: the fit restores a checkpoint of ours.
        inside_epochs: it may be paused inside an epoch.
    """

    def __init__(self, trainer: Trainer, *, resumes: bool, inside_epochs: bool) -> None:
        self._trainer = trainer
        self._loops = {_TRAINING: trainer.fit_loop, _VALIDATION: trainer.fit_loop.epoch_loop.val_loop}
        self._waits = resumes
        """Nothing is made yet that had not been made before the pause, and nothing reloaded."""
        self._made: dict[str, dict[str, Any]] = {}
        """Loop -> what it was like before its loaders were made last: random state, epoch, the data module's state."""
        self._then: dict[str, dict[str, Any]] = {}
        """The same before the pause."""
        self._streams: list[Any] = []
        self._at_epoch_start: RandomState | None = None
        self._data_at_epoch_start: dict[str, Any] = {}
        self._iterated_anew = False
        """The epoch has an iterator of its own, and not the one that was made with the loaders."""
        self._goes_on_inside = False
        self._watched: list[tuple[Any, str]] = []
        for name, loop in self._loops.items():
            self._watch(loop, "setup_data", lambda make, name=name: self._set_up(name, make))
        if inside_epochs:
            self._watch(trainer.fit_loop.epoch_loop, "on_run_start", self._start_epoch)
        if resumes:
            # The sanity check has passed in the first attempt.
            self._watch(trainer, "_run_sanity_check", lambda check: None)

    def _watch(self, owner: Any, name: str, instead: Callable[..., None]) -> None:
        original = getattr(owner, name, None)
        if original is not None:
            setattr(owner, name, lambda *arguments: instead(original, *arguments))
            self._watched.append((owner, name))

    def leave_alone(self) -> None:
        """Nothing is watched any more."""
        for owner, name in self._watched:
            vars(owner).pop(name, None)
        self._watched = []

    # ----------------------------------------------------------------------------------- while it trains

    def _set_up(self, name: str, make: Callable[[], None]) -> None:
        loop = self._loops[name]
        before = loop._combined_loader
        if self._waits:
            if before is None and name in self._then:
                then = self._made[name] = self._then[name]
                with (
                    self._with_data(then.get("data", {})),
                    drawing_as(then["random"], self._device, self._generators()),
                    self._in_epoch(then["epoch"]),
                ):
                    make()
            elif before is None and name == _TRAINING:
                make()
            return
        if before is not None and not self._trainer.reload_dataloaders_every_n_epochs:
            make()  # Lightning only looks whether there is something to do
            return
        epoch, data = self._trainer.current_epoch, self._data_state()
        now = {"random": self.random_state(), "epoch": epoch, "data": data}
        make()
        if loop._combined_loader is not before:
            self._made[name] = now

    def _start_epoch(self, start: Callable[..., None], *arguments: Any) -> None:
        if self._goes_on_inside:
            self._goes_on_inside = False
            start(*arguments)
            return
        self._at_epoch_start, self._data_at_epoch_start = self.random_state(), self._data_state()
        before = self._iterator()
        start(*arguments)
        self._iterated_anew = self._iterator() is not before

    def _iterator(self) -> Any:
        return getattr(self._trainer.fit_loop._combined_loader, "_iterator", None)

    @property
    def _device(self) -> Any:
        return self._trainer.strategy.root_device

    @contextlib.contextmanager
    def _in_epoch(self, epoch: int) -> Iterator[None]:
        progress = self._trainer.fit_loop.epoch_progress.current
        now = progress.processed, progress.completed
        progress.processed = progress.completed = epoch
        try:
            yield
        finally:
            progress.processed, progress.completed = now

    def _data_state(self) -> dict[str, Any]:
        """Of the data module, empty if it has none."""
        data = self._trainer.datamodule
        try:
            return copy.deepcopy(data.state_dict()) if data is not None else {}
        except Exception:  # whatever a user's method raises when it is called before there are loaders
            return {}

    @contextlib.contextmanager
    def _with_data(self, state: dict[str, Any]) -> Iterator[None]:
        """The data module has this state, and afterwards the one it has now."""
        now = self._data_state() if state else {}
        if not now:
            yield
            return
        self._trainer.datamodule.load_state_dict(copy.deepcopy(state))
        try:
            yield
        finally:
            self._trainer.datamodule.load_state_dict(now)

    # --------------------------------------------------------------------------------- saving, restoring

    def state(self) -> dict[str, Any]:
        """Of this rank: what :meth:`make_again` and :meth:`go_on_inside_epoch` need."""
        loaders = _loaders(self._loops[_VALIDATION])
        return {
            "made": dict(self._made),
            "reloaded": {name: getattr(self._loops[name], last, 0) for name, last in _LAST_RELOAD.items()},
            "iterated": [getattr(loader, "_iterator", None) is not None for loader in loaders],
            "random_at_epoch_start": self._at_epoch_start,
            "data_at_epoch_start": self._data_at_epoch_start,
            "iterated_anew": self._iterated_anew,
        }

    def will_be_restored(self, state: dict[str, Any], streams: list[Any]) -> None:
        """Call it before any loader is made.

        Args:
            state: of before the pause.
            streams: states of those training loaders that have one.
        """
        self._then = state.get("made", {})
        self._streams = streams

    def make_again(self, state: dict[str, Any]) -> None:
        """Call it in ``on_train_start``: the validation loaders are made, if they had been, and when they are reloaded
        is known.

        A persistent worker draws from the main process when its loader is iterated for the first time only.
        """
        val_loop = self._loops[_VALIDATION]
        if _VALIDATION in self._then and val_loop._combined_loader is None:
            self._trainer.validating = True
            val_loop.setup_data()
            self._trainer.training = True
        for loader, was_iterated in zip(_loaders(val_loop), state.get("iterated", ()), strict=False):
            if was_iterated and getattr(loader, "_iterator", None) is None:
                iter(loader)
        for name, epoch in state.get("reloaded", {}).items():
            setattr(self._loops[name], _LAST_RELOAD[name], epoch)

    def begin_epoch(self) -> None:
        """Call it in the first ``on_train_epoch_start`` after a pause between epochs, with the random state restored.

        Reloads the loaders if they would have been reloaded now, and lets Lightning make the epoch's iterator anew, as
        in any other epoch.
        """
        fit_loop = self._trainer.fit_loop
        self._waits = False
        # Lightning has made an iterator already, and to know whether a stream has an end, it fetched from it.
        stateful = [loader for loader in _loaders(fit_loop) if _has_state(loader)]
        for loader, state in zip(stateful, self._streams, strict=False):
            if sized_len(loader) is None:
                loader.load_state_dict(state)
        fit_loop.setup_data()
        _set_epoch(self._trainer)
        fit_loop._resuming_from_checkpoint = False

    def go_on_inside_epoch(self, state: dict[str, Any]) -> None:
        """Call it in ``on_train_start`` after a pause inside an epoch.

        Fetches and throws away the batches that were trained before the pause, so that samplers, workers and
        augmentation come to where they were. A loader that keeps its own state (``state_dict`` and
        ``load_state_dict``) was restored by Lightning and is left alone. The first epoch of a fit has the iterator
        that was made with the loaders, and Lightning has just made it.
        """
        self._waits, self._goes_on_inside = False, True
        self._at_epoch_start = state["random_at_epoch_start"]
        self._data_at_epoch_start = state.get("data_at_epoch_start", {})
        self._iterated_anew = state.get("iterated_anew", self._trainer.current_epoch > 0)
        fit_loop = self._trainer.fit_loop
        if all(map(_has_state, _loaders(fit_loop))):
            return
        fetcher = getattr(fit_loop, "_data_fetcher", None)
        if fetcher is None:
            _log.warning("Lightning %s hides its loaders: this epoch repeats some batches.", lightning.__version__)
            return
        self.restore_random_state(state["random_at_epoch_start"])
        _set_epoch(self._trainer)
        trained = fit_loop.epoch_loop.batch_progress.current.completed
        # Of a step that fetches for itself, the fetcher hands out what it fetches from.
        batches = getattr(fetcher, "iterator_wrapper", fetcher)
        with self._with_data(self._data_at_epoch_start):
            if self._iterated_anew:
                iter(fetcher)
            for _ in range(trained):
                next(batches)
        # The epoch loop adds the batches done to the counter by itself.
        fetcher.fetched -= trained

    def only_some_have_states(self) -> bool:
        """Whether some training loaders keep a state of their own and others do not."""
        return len({_has_state(loader) for loader in _loaders(self._trainer.fit_loop)}) > 1

    def random_state(self) -> RandomState:
        """Of this process, with the generators that loaders and what is in them, the module, the data module and
        callbacks keep for themselves."""
        return random_state(self._device, self._generators())

    def restore_random_state(self, state: RandomState) -> None:
        """Set what :meth:`random_state` has read."""
        restore_random_state(state, self._device, self._generators())

    def _generators(self) -> dict[str, Generator]:
        owners: dict[str, Any] = {name: _loaders(loop) for name, loop in self._loops.items()}
        owners["module"], owners["data module"] = self._trainer.lightning_module, self._trainer.datamodule
        owners["callbacks"] = self._trainer.callbacks
        found: dict[str, Generator] = {}
        for name, owner in owners.items():
            found |= generators_of(owner, f"[{name!r}]")
        return found


def _loaders(loop: Any) -> list[Any]:
    combined = getattr(loop, "_combined_loader", None)
    return list(combined.flattened) if combined is not None else []


def _has_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _set_epoch(trainer: Trainer) -> None:
    for loader in _loaders(trainer.fit_loop):
        for part in _samplers(loader):
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(trainer.current_epoch)


def _samplers(loader: Any) -> Iterator[Any]:
    """The loader itself, its sampler and batch sampler, and what is inside of these."""
    yield loader
    for name in ("sampler", "batch_sampler"):
        sampler = getattr(loader, name, None)
        if sampler is not None:
            yield sampler
            if (inner := getattr(sampler, "sampler", None)) is not None:
                yield inner
