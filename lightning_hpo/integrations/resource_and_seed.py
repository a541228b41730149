"""What a study reads from the configuration of its jobs: the resource of a full training, and the training seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_hpo.core.confirmation import SEED_ATTRS
from lightning_hpo.errors import OptionError, ResourceMismatch
from lightning_hpo.integrations.config import MAX_RESOURCE_ATTRS, PREFIX, LauncherOptions
from lightning_hpo.integrations.job import hydra_config


def resolve_max_t(composed: DictConfig, options: LauncherOptions, searched: Sequence[str] = ()) -> int | None:
    """The resource of a full training.

    Args:
        composed: a job's configuration, as :meth:`HydraJob.compose` returns it.
        options: the launcher's.
        searched: names in the search space.

    Returns:
        ``max_t``, else the number in the job's configuration below ``max_resource_attr``; None if there is none.

    Raises:
        OptionError: if the number is not a positive integer, is searched, or is not where it should be.
        ResourceMismatch: if ``max_t`` differs from what the job's configuration tells the Trainer.
    """
    named = options.max_resource_attr
    if named is None and options.resource != "epoch":
        return options.max_t
    found = _first_number(composed, MAX_RESOURCE_ATTRS if named is None else (named,))
    if found is None:
        if named is not None:
            raise OptionError(
                f"The job's configuration has no {named}, which {PREFIX}.max_resource_attr names. "
                f"Correct {PREFIX}.max_resource_attr, or set {PREFIX}.max_t."
            )
        return options.max_t
    name, value = found
    if name in searched:
        raise OptionError(
            f"{name} is searched, but it is the resource of a full training, which is the same for all trials. "
            f"Give it one value, or set {PREFIX}.max_resource_attr to the key of the real one."
        )
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        if named is None and options.max_t is not None:
            return options.max_t
        raise OptionError(
            f"{name} is {value!r} in the job's configuration; it says how long a full training is. "
            "Set it to a whole number of at least 1; a training that is limited by steps alone is tuned with "
            f"{PREFIX}.resource=validation, {PREFIX}.max_t being the number of its validations."
        )
    if options.max_t is not None and options.max_t != value and name in (named, MAX_RESOURCE_ATTRS[0]):
        raise ResourceMismatch(
            f"{PREFIX}.max_t is {options.max_t}, but {name} is {value} in the job's configuration. "
            f"Leave {PREFIX}.max_t out, or set {name}={options.max_t}."
        )
    return options.max_t if options.max_t is not None else value


def resolve_seed(
    composed: DictConfig, options: LauncherOptions, searched: Sequence[str] = ()
) -> tuple[str, int] | None:
    """Key and value of the training seed in a job's configuration, of which every confirmation gets another.

    Returns:
        That of ``confirm.seed_attr``, else the first of ``seed``, ``random_seed`` that is an integer; None if there is
        none, or nothing is to be confirmed: then the seed that every trial's process begins with makes the difference.

    Raises:
        OptionError: if ``confirm.seed_attr`` is no integer in the job's configuration.
    """
    named = options.confirm.seed_attr
    if not options.confirm.trainings:
        return None
    for name in SEED_ATTRS if named is None else (named,):
        found = None if name in searched else _first_number(composed, (name,))
        if found is not None and type(found[1]) is int:
            return found
    if named is not None:
        raise OptionError(
            f"{PREFIX}.confirm.seed_attr is {named}, which is no integer in the job's configuration. "
            "Name the key of the training seed, or leave it out."
        )
    return None


def _first_number(composed: DictConfig, names: Sequence[str]) -> tuple[str, Any] | None:
    with hydra_config(composed):
        for name in names:
            value = OmegaConf.select(composed, name, throw_on_missing=False)
            if value is not None and not isinstance(value, Mapping | DictConfig):
                return name, value
    return None
