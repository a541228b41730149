"""What Hydra finds: launcher, sweeper and their configuration. The work is done in ``lightning_hpo.integrations``.

Every program that uses Hydra imports this module, so what is heavy is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class HpoLauncher(Launcher):
    """Runs the jobs another sweeper hands over, in parallel and to their end.

    With ``hydra/launcher=hpo`` alone there is no other sweeper: :class:`HpoSweeper` takes the whole sweep.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from lightning_hpo.integrations.select_sweeper import check_sweeper

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        with _printed_by_hydra():
            check_sweeper(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lightning_hpo.integrations.batch import run_batch

        with _printed_by_hydra():
            return run_batch(self.hydra_context, self.task_function, self.config, job_overrides, initial_job_idx)


class HpoSweeper(Sweeper):
    """Searches the space which the overrides describe: trials start, pause, go on and stop as the algorithm decides."""

    def __init__(self, params: Any = None, replaced: Any = None, **others: Any) -> None:
        """What was given is read from the configuration.

        Args:
            params: overrides, ranges among them; those of the command line win.
            replaced: settings of the sweeper whose place this one has taken.
            others: settings of other sweepers, to be refused.
        """
        self.others = others

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from lightning_hpo.integrations.select_sweeper import begin_sweep

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        with _printed_by_hydra():
            begin_sweep(config, self.others)

    def sweep(self, arguments: list[str]) -> Any:
        from lightning_hpo.integrations.sweep import run_sweep

        assert self.hydra_context is not None and self.config is not None  # Hydra calls setup first
        with _printed_by_hydra():
            return run_sweep(self.hydra_context, self.task_function, self.config, arguments)


@contextmanager
def _printed_by_hydra() -> Iterator[None]:
    """Our errors end with what to do: Hydra shall print them as they are, without a traceback of ours.

    The error keeps its class for those who catch it.
    """
    from lightning_hpo.errors import HpoError

    try:
        yield
    except HpoError as error:
        kind = type(error)
        raise type(kind.__name__, (kind, CompactHydraException), {"__module__": kind.__module__})(
            *error.args
        ) from error


def _store_nodes() -> None:
    """``hydra/launcher=hpo`` and ``hydra/sweeper=hpo``; each brings the other along.

    Hydra expands its defaults list from right to left, and the sweeper stands right of the launcher: the sweeper can
    override the choice of the launcher, but not the other way round. So the launcher's node holds a callback, which
    changes the sweeper before it is made. Hydra 1.4 warns of any callback in a configuration, hence the node without.
    """
    from lightning_hpo.integrations.config import default_node

    launcher = OmegaConf.create({"_target_": f"{__name__}.{HpoLauncher.__name__}"} | default_node())
    # Unknown options are our own business: we know what may have been meant.
    OmegaConf.set_struct(launcher, False)
    callback = {"_target_": "lightning_hpo.integrations.select_sweeper.SelectSweeper"}
    sweeper = {
        "defaults": ["_self_", {"override /hydra/launcher@_global_.hydra.launcher": "hpo_no_callback"}],
        "_target_": f"{__name__}.{HpoSweeper.__name__}",
        "params": None,
    }
    store = ConfigStore.instance()
    store.store(
        group="hydra/launcher",
        name="hpo",
        package="_global_",
        node={"hydra": {"launcher": launcher, "callbacks": {"lightning_hpo": callback}}},
        provider="lightning_hpo",
    )
    store.store(group="hydra/launcher", name="hpo_no_callback", node=launcher, provider="lightning_hpo")
    store.store(group="hydra/sweeper", name="hpo", node=sweeper, provider="lightning_hpo")


_store_nodes()
