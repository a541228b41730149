"""Scheduler by the options of a study."""

from __future__ import annotations

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.rungs import rung_levels
from lightning_hpo.core.schedulers.base import Scheduler
from lightning_hpo.core.schedulers.fifo import Fifo
from lightning_hpo.core.schedulers.hyperband import AsynchronousHyperband, CostPromotion, PromotionAsha, StoppingAsha
from lightning_hpo.core.schedulers.median import MedianStopping
from lightning_hpo.core.schedulers.pasha import Pasha
from lightning_hpo.core.schedulers.searcher_led import SearcherLedPromotion, SearcherLedStopping
from lightning_hpo.core.schedulers.synchronous import (
    DifferentialEvolutionHyperband,
    SyncHyperband,
    hyperband_brackets,
)
from lightning_hpo.errors import OptionError

_HYPERBAND: dict[str, type[AsynchronousHyperband]] = {
    "stopping": StoppingAsha,
    "promotion": PromotionAsha,
    "cost_promotion": CostPromotion,
}


def make_scheduler(options: StudyOptions) -> Scheduler:
    """The scheduler of ``options.algorithm``.

    Raises:
        OptionError: if options are missing or contradict each other.
    """
    kind = ALGORITHMS[options.algorithm].scheduler
    if kind == "fifo":
        return Fifo(options.max_t)
    if options.max_t is None:
        raise OptionError(
            f"algorithm={options.algorithm} needs to know how far a trial can be trained. "
            "Set max_t to what a full training takes: the Trainer's max_epochs, or the number of its validations."
        )
    if kind == "median":
        return MedianStopping(options.max_t, options.grace_period or 1)
    if kind in ("sync_hyperband", "dehb"):
        cls = SyncHyperband if kind == "sync_hyperband" else DifferentialEvolutionHyperband
        ladder = (options.max_t, options.grace_period or 1, options.reduction_factor or 3)
        _check_brackets(options, len(hyperband_brackets(*ladder)))
        return cls(*ladder, options.brackets)
    levels = rung_levels(
        options.max_t, options.grace_period, options.reduction_factor, options.rung_increment, options.rung_levels
    )
    _check_brackets(options, len(levels) + 1)
    common = (
        options.max_t,
        levels,
        options.brackets or 1,
        options.rung_system_per_bracket,
        options.min_rung_entries,
        options.late_reports,
        options.improvement_probability,
        options.delayed_promotion,
    )
    if options.promotion_rule == "searcher":
        if options.effective_type == "stopping":
            return SearcherLedStopping(*common, in_batches=not options.asynchronous)
        return SearcherLedPromotion(*common)
    if options.effective_type == "pasha":
        return Pasha(*common, mode=options.mode)
    return _HYPERBAND[options.effective_type](*common)


def _check_brackets(options: StudyOptions, most: int) -> None:
    """Every bracket begins at another rung, the last one at ``max_t``."""
    if options.brackets is not None and options.brackets > most:
        raise OptionError(
            f"brackets={options.brackets}, but between the lowest rung and max_t={options.max_t} there is room for "
            f"{most}. Set brackets to at most {most}, or raise max_t."
        )
