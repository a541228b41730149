"""The configurations of a sweep's jobs: composed by Hydra, or copied from one that was, with other values.

Composing reads files and parses texts: a tenth of a second, in every attempt of every trial. Jobs that differ in plain
values only need it once.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

_PATH = re.compile(r"\+{0,2}([A-Za-z_]\w*(?:\.\w+)*)")


@dataclass(frozen=True)
class _Template:
    """A composed configuration that is copied for other jobs."""

    overrides: tuple[str, ...]
    config: DictConfig
    changeable: frozenset[str]
    """Left sides of overrides that may get another value, as they are written: ``model.lr``, ``+seed``."""


class Composer:
    """Composes the configurations of jobs.

    Args:
        loader: Hydra's.
        config: the configuration of the multirun.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader = loader
        self._config = config
        self._template: _Template | None = None

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration of a job, ``hydra`` included; the caller may change it.

        Raises:
            hydra.errors.HydraException: if an override does not fit the configuration.
        """
        return self._copied(tuple(overrides)) or self._composed(overrides)

    def learn(self, first: Sequence[str], second: Sequence[str]) -> None:
        """Keep the configuration of one job as a template for others.

        Nothing is kept unless copying it gives for another job exactly what Hydra composes.

        Args:
            first, second: overrides of two jobs of the sweep, best with different values everywhere.

        Raises:
            hydra.errors.HydraException: if an override of the first does not fit the configuration.
        """
        self._template = None
        config = self._composed(first)
        if config.hydra.job.env_copy:  # read anew from the environment of every trial
            return
        changeable = frozenset(key for key in map(_key, first) if self._is_value(key, first))
        self._template = _Template(tuple(first), config, changeable)
        try:
            copied = self._copied(tuple(second))
            trusted = copied is not None and _content(copied) == _content(self._composed(second))
        except (HydraException, OmegaConfBaseException):  # the second job's own trouble, told when it runs
            trusted = False
        if not trusted:
            self._template = None

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._config, list(overrides))

    def _is_value(self, key: str, overrides: Sequence[str]) -> bool:
        """Not a config group, and no other override writes to the same place."""
        match = _PATH.fullmatch(key)
        if match is None or self._loader.get_group_options(match[1]):
            return False
        others = [_key(other).lstrip("+~") for other in overrides if _key(other) != key]
        return not any(f"{match[1]}.".startswith(f"{o}.") or o.startswith(f"{match[1]}.") for o in others)

    def _copied(self, overrides: tuple[str, ...]) -> DictConfig | None:
        """The template with other values; None if the jobs differ in more than that."""
        template = self._template
        if template is None or list(map(_key, overrides)) != list(map(_key, template.overrides)):
            return None
        changed = [new for old, new in zip(template.overrides, overrides, strict=True) if old != new]
        if not template.changeable.issuperset(map(_key, changed)):
            return None
        config = copy.deepcopy(template.config)
        for override in OverridesParser.create().parse_overrides(changed):
            value: Any = override.value()
            if isinstance(value, (dict, list)) or OmegaConf.is_config(
                OmegaConf.select(config, override.key_or_group, throw_on_resolution_failure=False)
            ):
                return None  # Hydra would merge it with what the configuration files say
            OmegaConf.update(config, override.key_or_group, value, merge=True, force_add=True)
        with read_write(config.hydra), open_dict(config.hydra):
            job = config.hydra.job
            config.hydra.overrides.task = list(overrides)
            config.hydra.runtime.cwd = os.getcwd()
            if not OmegaConf.is_interpolation(job, "override_dirname"):  # Hydra 1.4 works it out when it is asked for
                style = job.config.override_dirname
                named = sorted(o for o in overrides if _key(o).lstrip("+") not in style.exclude_keys)
                job.override_dirname = style.item_sep.join(named).replace("=", style.kv_sep)
        return config


def _key(override: str) -> str:
    return override.partition("=")[0]


def _content(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)
