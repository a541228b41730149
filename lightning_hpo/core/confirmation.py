"""Confirmation: before a study ends, its best configurations are trained again with other seeds.

The lowest of many noisy reports is lower than what its configuration gives when it is trained again (the optimism of
a selected minimum: Smith and Winkler, *The Optimizer's Curse*, Management Science 52(3), 2006). A mean over trainings
that took no part in the selection is not.

A confirmation is a trial like any other, of a configuration that another trial has had: it has another training seed,
is trained to ``max_t`` whatever it reports, and teaches neither scheduler nor searcher.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_hpo.core.stopping import Progress
from lightning_hpo.core.trial import Config
from lightning_hpo.errors import OptionError

if TYPE_CHECKING:  # the options are read before numpy is needed
    from lightning_hpo.core.space import SearchSpace

SEED_ATTRS = ("seed", "random_seed")
"""Keys under which a training seed is looked for, in this order, if ``confirm.seed_attr`` is not set."""
_WINDOW = 5
"""Units of resource over which reports are averaged, at most."""


@dataclass(frozen=True)
class ConfirmOptions:
    """Options of the confirmation, ``confirm.<name>``.

    Raises:
        OptionError: for a value out of range.
    """

    top: int = 0
    """So many of the best configurations are trained again before the study ends; 0: none."""
    seeds: int = 3
    """Trainings of each of them, every one with another seed."""
    seed_attr: str | None = None
    """Key of the config that holds the training seed; default: the first of seed, random_seed."""

    def __post_init__(self) -> None:
        for name, least in (("top", 0), ("seeds", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(
                    f"confirm.{name}={value!r} is not an integer of at least {least}. Set confirm.{name} to one."
                )
        if self.seed_attr is not None and not (isinstance(self.seed_attr, str) and self.seed_attr):
            raise OptionError(
                f"confirm.seed_attr={self.seed_attr!r} names no key. Set it to one, such as seed, or leave it out."
            )

    @property
    def trainings(self) -> int:
        """Confirmations in all."""
        return self.top * self.seeds


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training to ``max_t`` takes at most, as far as the study can tell."""

    resource: int = 0
    """Units of resource."""
    seconds: float = 0.0
    cost: float = 0.0
    """As the trials report it."""

    def times(self, trainings: int, n_workers: int, before: Progress) -> Progress:
        """The progress once so many more trainings have ended, ``n_workers`` at a time.

        And once what is decided on by then has happened: another start, and another report of every worker.
        """
        rounds, unit = math.ceil(trainings / n_workers), 1.0 / max(self.resource, 1)
        return dataclasses.replace(
            before,
            time=before.time + (rounds + unit) * self.seconds,
            evaluations=before.evaluations + trainings * self.resource + n_workers,
            started=before.started + trainings + 1,
            completed=before.completed + trainings + n_workers,
            finished=before.finished + trainings + n_workers,
            cost=before.cost + (trainings + n_workers * unit) * self.cost,
        )


class Confirmation:
    """Which trials are trained again, and which of these trainings comes next.

    Attributes:
        chosen: the trials, best first, once they are chosen; None while the search goes on.
    """

    def __init__(self, options: ConfirmOptions) -> None:
        self.options = options
        self.chosen: tuple[int, ...] | None = None
        self._replicates: dict[int, list[int]] = {}
        """Trial -> its confirmations."""

    def __bool__(self) -> bool:
        return self.options.top > 0

    @property
    def of(self) -> Mapping[int, Sequence[int]]:
        """Trial -> the trials that train its configuration again, in the order of their start."""
        return self._replicates

    def next(self) -> tuple[int, int] | None:
        """``(trial, replicate)`` of the next training; replicates count from 1. None if no training is left.

        Every configuration has its first training before one has its second: what is cut short stays balanced.
        """
        for replicate in range(1, self.options.seeds + 1):
            for trial_id in self.chosen or ():
                if len(self._replicates.get(trial_id, ())) < replicate:
                    return trial_id, replicate
        return None

    def start(self, confirmed: int, trial_id: int) -> None:
        """``trial_id`` trains the configuration of ``confirmed`` again."""
        self._replicates.setdefault(confirmed, []).append(trial_id)

    def reopen(self, options: ConfirmOptions) -> None:
        """The search goes on: what is best will be chosen anew. Trainings that were started count then, too."""
        self.options = options
        self.chosen = None


def with_seed(config: Config, seed_attr: str | None, replicate: int) -> Config:
    """The configuration with the seed of a replicate: the search's own seed plus ``replicate``.

    Args:
        config: searched values and constants. As it is if it holds no seed: whoever makes the jobs has that then.
        seed_attr: key of the seed; None: the first of :data:`SEED_ATTRS` that is an integer, if there is one.
    """
    names = SEED_ATTRS if seed_attr is None else (seed_attr,)
    found = [name for name in names if _is_seed(config.get(name))]
    return {**config, **{name: config[name] + replicate for name in found[:1]}} if replicate else config


def check_seed(options: ConfirmOptions, space: SearchSpace, must_be_there: bool = False) -> None:
    """Whether the key of the training seed can be one.

    Args:
        must_be_there: the space holds all that a trial is given.

    Raises:
        OptionError: if it is searched, or is no integer.
    """
    name = options.seed_attr
    given = {**space.constants, **space.domains}
    used = name or next((attr for attr in SEED_ATTRS if options.trainings and attr in given), None)
    if used in space.domains:
        raise OptionError(
            f"{used} is searched, but every confirmation trains with a seed of its own. "
            "Name the key of the training seed with confirm.seed_attr, or take it out of the space."
        )
    if name is None:
        return
    if name in space.constants and not _is_seed(space.constants[name]):
        raise OptionError(
            f"confirm.seed_attr={name} is {space.constants[name]!r} in the space. "
            "Give it an integer, or name the key of the training seed."
        )
    if must_be_there and name not in space.constants:
        raise OptionError(
            f"confirm.seed_attr={name} is not in the space. Add it with an integer, or leave confirm.seed_attr out."
        )


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def window(max_t: int) -> int:
    """Units of resource in a moving average: up to five, at most a third of a full training."""
    return max(1, min(_WINDOW, max_t // 3))


def moving_average(curve: Mapping[int, float], width: int) -> list[float]:
    """Mean of the reports within the ``width`` units up to each report from ``width`` on, in the order of resources.

    Units and not reports: where a trial reports now and then, its last report says more than those long before it.

    Args:
        curve: resource -> value; if it ends before ``width``, the mean of all is the only entry.
    """
    resources = sorted(curve)
    values = [curve[resource] for resource in resources]
    first = bisect.bisect_left(resources, width)
    windows = [
        values[bisect.bisect_right(resources, resources[last] - width) : last + 1]
        for last in range(first, len(resources))
    ]
    return [math.fsum(window) / len(window) for window in windows or [values]]


def furthest(curves: Mapping[int, Mapping[int, float]], levels: Sequence[int], max_t: int) -> list[int]:
    """The trials that were trained furthest: to the highest or second highest level that any trial has reached.

    Without levels every trial that is as good as complete, unless none is.

    Args:
        curves: trial -> resource -> finite value; trials without a report are left out.
        levels: rung levels below ``max_t``, increasing.
    """
    passed = {
        trial_id: sum(max(curve) >= level for level in (*levels, max_t)) for trial_id, curve in curves.items() if curve
    }
    least = max(passed.values(), default=0) - (1 if levels else 0)
    return [trial_id for trial_id, number in passed.items() if number >= least]


def leading(
    curves: Mapping[int, Mapping[int, float]], levels: Sequence[int], max_t: int, count: int
) -> tuple[int, ...]:
    """The trials with the lowest moving averages among those that were trained furthest, best first.

    Args:
        curves: trial -> resource -> finite value to be minimised.
        levels: rung levels below ``max_t``, increasing.
        count: so many, where there are.
    """
    lowest = {i: min(moving_average(curves[i], window(max_t))) for i in furthest(curves, levels, max_t)}
    return tuple(sorted(lowest, key=lambda i: (lowest[i], i))[:count])
