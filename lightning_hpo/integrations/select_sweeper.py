"""``hydra/launcher=hpo`` alone is enough: a Hydra callback puts our sweeper in the place of Hydra's default one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lightning_hpo.errors import OptionError, SpaceError
from lightning_hpo.runtime import garbage

LAUNCHER = "hydra_plugins.lightning_hpo.launcher.HpoLauncher"
SWEEPER = "hydra_plugins.lightning_hpo.launcher.HpoSweeper"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class SelectSweeper(Callback):
    """Takes the sweep over, unless the user has chosen a sweeper.

    Hydra's basic sweeper counts as chosen only by ``hydra/sweeper=basic`` on the command line: in the configuration the
    choice looks like the default.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if _target(config, "launcher") != LAUNCHER or _target(config, "sweeper") != BASIC_SWEEPER:
            return
        if chose_basic_sweeper(config):
            return
        basic = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
        assert isinstance(basic, dict)
        ours = {**basic, "_target_": SWEEPER, "_recursive_": False, "replaced": basic}
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweeper = OmegaConf.create(ours)


def as_composed(config: DictConfig) -> DictConfig:
    """The multirun's configuration as it was before :class:`SelectSweeper` changed it.

    Hydra 1.4 composes no job whose sweeper differs from that of the multirun.
    """
    replaced = config.hydra.sweeper.get("replaced")
    if replaced is None:
        return config
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweeper = replaced
    return config


def chose_basic_sweeper(config: DictConfig) -> bool:
    """Was Hydra's basic sweeper asked for on the command line?"""
    return "hydra/sweeper=basic" in written_overrides(config, "hydra")


def written_overrides(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line as they were written, interpolations unresolved.

    Args:
        kind: ``hydra`` or ``task``.
    """
    overrides = OmegaConf.to_container(config.hydra.overrides[kind], resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def check_sweeper(config: DictConfig) -> None:
    """Complain about what Hydra's basic sweeper cannot do, before it says so in its own words.

    Raises:
        OptionError: if the basic sweeper runs though nobody chose it.
        SpaceError: if it was chosen for a sweep with ranges.
    """
    if _target(config, "sweeper") != BASIC_SWEEPER:
        return
    if not chose_basic_sweeper(config):
        raise OptionError(
            "hydra/launcher=hpo came too late to take over the sweep: its callback did not run or failed (Hydra shows "
            "that as a warning), or the launcher was chosen by a swept config group. Add hydra/sweeper=hpo to the "
            "command line, or hydra/sweeper=basic for a plain grid."
        )
    ranges = _ranges(config)
    if ranges:
        raise SpaceError(
            f"hydra/sweeper=basic runs a grid, but {ranges[0]} is a range. "
            "Remove hydra/sweeper=basic to search the space, or write choice(...) or range(...) instead."
        )


def begin_sweep(config: DictConfig, others: Mapping[str, Any]) -> None:
    """What comes before all that takes time: see :func:`check_launcher`, which it calls.

    By now the script has imported what it needs, and much more will be imported and composed.
    """
    garbage.set_aside()
    check_launcher(config, others)


def check_launcher(config: DictConfig, others: Mapping[str, Any]) -> None:
    """Complain about settings our sweeper cannot work with.

    Args:
        config: Hydra's.
        others: settings of ``hydra.sweeper`` besides ``params``.

    Raises:
        OptionError: if another launcher was chosen, or there are settings of another sweeper.
    """
    if _target(config, "launcher") != LAUNCHER:
        other = _target(config, "launcher")
        raise OptionError(f"hydra/sweeper=hpo works with its own launcher, not with {other}. Add hydra/launcher=hpo.")
    for name, value in others.items():
        if name == "max_batch_size" and value is None:
            continue
        hint = "hydra.launcher.n_workers says how many trials run at a time" if name == "max_batch_size" else ""
        raise OptionError(
            f"hydra.sweeper.{name} is not a setting of this sweeper{': ' + hint if hint else ''}. "
            f"Remove hydra.sweeper.{name}; the search is set up in hydra.launcher."
        )


def _target(config: DictConfig, plugin: str) -> str | None:
    node = config.hydra.get(plugin)
    return node.get("_target_") if isinstance(node, DictConfig) else None


def _ranges(config: DictConfig) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = OmegaConf.to_container(config.hydra.sweeper, resolve=True).get("params") or {}  # type: ignore[union-attr]
    lines = [f"{name}={value}" for name, value in params.items()] + written_overrides(config, "task")
    overrides = OverridesParser.create().parse_overrides(lines)
    return [str(override.input_line) for override in overrides if override.is_interval_sweep()]
