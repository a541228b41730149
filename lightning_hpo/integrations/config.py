"""The options below ``hydra.launcher``: those of the study, and where and how it runs.

Hydra holds them as an untyped mapping that takes unknown keys, so that a typing error reaches :func:`read_options`,
which answers with a suggestion, and not Hydra's own message. Every program that uses Hydra imports this module: it must
stay light.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.checks import check_choice, check_range
from lightning_hpo.core.confirmation import ConfirmOptions
from lightning_hpo.core.options import LADDER, StudyOptions, preset_brackets
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.errors import OptionError

PREFIX = "hydra.launcher"
"""Where the options stand in Hydra's configuration."""

MAX_RESOURCE_ATTRS = ("trainer.max_epochs", "max_epochs", "epochs")
"""Keys of the job's configuration that are read for ``max_t``, in this order, if ``max_resource_attr`` is not set."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_CHOICES = {
    "resource": ("epoch", "validation"),
    "backend": ("local", "ray"),
    "start_method": ("auto", "fork", "forkserver", "spawn"),
}
_LEAST = {"ranks_per_trial": 1, "n_workers": 1, "gpus_per_trial": 0}


@dataclass(frozen=True)
class LauncherOptions(StudyOptions):
    """Options of ``hydra/launcher=hpo``: those of a study and those of a run. None: chosen as the comment says."""

    random_seed: int | None = None  # type: ignore[assignment]
    """Seed of everything random; default: drawn, printed and stored with the study."""
    n_workers: int | None = None  # type: ignore[assignment]
    """Trials at a time; default: one per GPU slot, without GPUs one per CPU core."""
    space: dict[str, Any] = field(default_factory=dict)
    """Richer domains than Hydra's grammar has: {model.width: {domain: logfinrange, lower: 16, upper: 512, size: 6}}."""
    max_resource_attr: str | None = None
    """Key of the job's configuration that holds max_t; default: the first of trainer.max_epochs, max_epochs, epochs."""
    resource: str = "epoch"
    """What is counted as resource: epoch, or validation for training by steps."""
    study: str | None = None
    """Folder of a study to continue; default: hydra.sweep.dir."""
    backend: str = "local"
    """Where trials run: local or ray."""
    gpus_per_trial: float | None = None
    """2, 1, 0.5, 0.25, ... or 0; default: 1 if there are GPUs."""
    devices: list[Any] | None = None
    """GPUs to use, as in CUDA_VISIBLE_DEVICES; default: all that are visible."""
    ranks_per_trial: int = 1
    """Processes of one trial that the launcher starts (distributed training)."""
    start_method: str = "auto"
    """How trial processes begin: auto, fork, forkserver or spawn."""
    epoch_timeout: float | None = None
    """Seconds without a report after which a trial counts as hung; default: never."""
    trial_timeout: float | None = None
    """Seconds an attempt may run; default: no limit."""
    max_disk: int | float | str | None = None
    """Space for checkpoints, such as 20GB; default: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            check_choice(self, "", name, allowed)
        for name, least in _LEAST.items():
            check_range(self, "", name, lower=least)
        for name in ("epoch_timeout", "trial_timeout"):
            check_range(self, "", name, lower=0, lower_open=True)
        _ = self.disk_limit

    @property
    def disk_limit(self) -> int | None:
        """``max_disk`` in bytes: GB is 1000 ** 3, GiB is 1024 ** 3; None without limit."""
        if self.max_disk is None:
            return None
        match = _SIZE.fullmatch(str(self.max_disk))
        if match is None:
            raise OptionError(
                f"max_disk={self.max_disk!r} is not a size. Set max_disk to one like 500MB, 20GB or 1.5TiB."
            )
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))

    def study_options(self, random_seed: int, n_workers: int, max_t: int | None) -> StudyOptions:
        """The part that belongs to the study, with what has been found out about the run."""
        names = [f.name for f in dataclasses.fields(StudyOptions)]
        values = {name: getattr(self, name) for name in names}
        values |= {"random_seed": random_seed, "n_workers": n_workers, "max_t": max_t}
        if self.brackets is None:
            algorithm = ALGORITHMS[self.algorithm].chosen(self.promotion_rule)
            values["brackets"] = preset_brackets(algorithm, [values[name] for name in LADDER])
        return StudyOptions(**values)


def default_node() -> dict[str, Any]:
    """Every option with its default, as plain data for Hydra's ConfigStore.

    What some algorithm presets is None here, so that a user's value is always told from the default.
    """
    every = [a for algorithm in ALGORITHMS.values() for a in (algorithm, algorithm.by_rank) if a is not None]
    presets = {name for algorithm in every for name in algorithm.presets}
    search = {name for algorithm in every for name in algorithm.search}
    node = {"metric": None} | _defaults(LauncherOptions, presets)
    node["searcher"] = _defaults(SearcherOptions, search)
    node["stop"] = _defaults(StopCriterion, set())
    node["confirm"] = _defaults(ConfirmOptions, set())
    return node


def read_options(mapping: Mapping[str, Any], tunes: bool = True) -> LauncherOptions:
    """The options below ``hydra.launcher``, checked.

    Args:
        mapping: plain data; entries that begin with an underscore are Hydra's.
        tunes: False if jobs are only run, for which no metric is needed.

    Raises:
        OptionError: for an unknown name, a wrong type or a value out of range, or if the metric is not set.
    """
    defaults = default_node()
    given = _given(mapping, defaults)
    for part in ("searcher", "stop", "confirm"):
        value = mapping.get(part)
        if isinstance(value, Mapping):
            given[part] = _given(value, defaults[part])
        elif value is not None:
            entry = f"{PREFIX}.{part}.{next(iter(defaults[part]))}"
            raise OptionError(f"{PREFIX}: {part}={value!r} is not a mapping. Set its entries, such as {entry}=...")
    if not tunes:
        given.setdefault("metric", "none")
    try:
        options = LauncherOptions.from_mapping(given)
    except OptionError as problem:
        raise OptionError(f"{PREFIX}: {problem}") from None
    assert isinstance(options, LauncherOptions)
    return options


def _defaults(cls: type, preset: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        factory = f.default_factory
        value = f.default if factory is dataclasses.MISSING else factory()
        if value is not dataclasses.MISSING:
            values[f.name] = None if f.name in preset else value
    return values


def _given(mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the default; what Hydra needs for itself is left out."""
    return {
        name: value
        for name, value in mapping.items()
        if not str(name).startswith("_") and not (name in defaults and _same(value, defaults[name]))
    }


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)
