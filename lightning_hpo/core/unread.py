"""Options that were set although nothing of the algorithm reads them.

They are no mistake, for one configuration may serve several algorithms, but nobody should believe that they do
something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import ADDITIVE_MODELS, StudyOptions
from lightning_hpo.core.searcher_options import DEFAULT_MODELS, SearcherOptions

_RUNGS = frozenset(
    ("grace_period", "reduction_factor", "rung_increment", "rung_levels", "brackets", "rung_system_per_bracket",
     "min_rung_entries", "late_reports")
)  # fmt: skip
_READ_BY_SCHEDULER = {
    "fifo": frozenset[str](),
    "median": frozenset({"grace_period"}),
    "hyperband": _RUNGS,
    "sync_hyperband": frozenset({"grace_period", "reduction_factor", "brackets"}),
    "dehb": frozenset({"grace_period", "reduction_factor", "brackets"}),
}
_LEARNING = frozenset({"searcher_data", "register_pending_myopic"})
"""What a searcher learns from; of the study's options, because the study shows it."""

_EVERY_SEARCHER = frozenset({"allow_duplicates", "restrict_configurations", "debug_log"})
_READ_BY_SEARCHER = {
    "random": frozenset[str](),
    "grid": frozenset({"num_samples", "shuffle_config"}),
    "kde": frozenset(
        ("random_fraction", "num_min_data_points", "top_n_percent", "min_bandwidth", "num_candidates",
         "bandwidth_factor")
    ),
    "differential_evolution": frozenset({"mutation_factor", "crossover_probability"}),
}  # fmt: skip
_RESOURCE_ACQ = frozenset({"resource_acq", "resource_acq_bohb_threshold", "weigh_promotion"})
_OF_A_MODEL = {
    "separate_noise_variances": "gp_independent",
    "expdecay_normalize_inputs": "gp_expdecay",
    "issm_gamma_one": "gp_issm",
    "gp_resource_kernel": "gp_multitask",
}
"""Option -> the one model with rungs that has it."""
_NOT_LED = _RESOURCE_ACQ | {
    "acq_function", "acq_function_kwargs", "xi_in_criterion_units", "num_fantasy_samples", "initial_scoring",
    "skip_local_optimization",
}  # fmt: skip
"""The rate of improvement has no such choices: :mod:`lightning_hpo.searchers.rate_choice`."""
_WITH_RUNGS = _RESOURCE_ACQ | {"model", "num_init_random_factor", "opt_skip_num_max_resource"}


def unread(options: StudyOptions) -> list[str]:
    """Names of options that differ from their defaults and do nothing, ``searcher.model`` and the like.

    What the algorithm presets is not among them.
    """
    algorithm = ALGORITHMS[options.algorithm].chosen(options.promotion_rule)
    study = _unread_by_the_scheduler(options, algorithm.scheduler)
    search = _unread_by_the_searcher(options, algorithm.scheduler, algorithm.searcher)
    return [
        *_set(options, study, algorithm.presets),
        *(f"searcher.{name}" for name in _set(options.searcher, search, algorithm.search)),
    ]


def note_on_unread(options: StudyOptions) -> str | None:
    """The same as a sentence for the user; None if every option that was set is read."""
    names = unread(options)
    if not names:
        return None
    return (
        f"With algorithm={options.algorithm}, and the other options as they are, nothing reads {', '.join(names)}. "
        "Leave out what is not meant for another algorithm."
    )


def _set(options: Any, names: Iterable[str], presets: Any) -> list[str]:
    chosen = set(names)
    found = []
    for f in dataclasses.fields(options):
        factory = f.default_factory
        default = f.default if factory is dataclasses.MISSING else factory()
        value = getattr(options, f.name)
        if f.name in chosen and value != default and value != presets.get(f.name):
            found.append(f.name)
    return found


def _unread_by_the_scheduler(options: StudyOptions, scheduler: str) -> set[str]:
    names = set(_RUNGS - _READ_BY_SCHEDULER[scheduler])
    if scheduler == "fifo" or options.searcher_name not in {*DEFAULT_MODELS, "kde"}:
        names |= _LEARNING
    elif options.searcher_name == "kde" or options.effective_searcher_data == "rungs":
        names.add("register_pending_myopic")
    if scheduler == "hyperband":
        if options.rung_levels is not None:
            names |= {"grace_period", "reduction_factor", "rung_increment"}
        elif options.reduction_factor is not None:
            names.add("rung_increment")
        if options.effective_type == "cost_promotion":
            names.add("min_rung_entries")
        if options.promotion_rule == "searcher" or (options.brackets or 1) == 1:
            names.add("rung_system_per_bracket")
    return names


def _unread_by_the_searcher(options: StudyOptions, scheduler: str, searcher: str) -> set[str]:
    every = {f.name for f in dataclasses.fields(SearcherOptions)} - _EVERY_SEARCHER
    if searcher not in DEFAULT_MODELS:
        return every - _READ_BY_SEARCHER[searcher]
    names = set[str]().union(*_READ_BY_SEARCHER.values()) - {"random_fraction"}
    search = options.searcher
    has_rungs = scheduler != "fifo"
    model = (search.model or DEFAULT_MODELS[searcher]) if has_rungs else None
    names |= {option for option, of in _OF_A_MODEL.items() if of != model}
    if not has_rungs:
        names |= _WITH_RUNGS
    elif model != "gp_rungs":
        names.add("max_size_top_fraction")
    if searcher == "freeze_thaw":
        names |= _NOT_LED
    if model in ADDITIVE_MODELS:
        names |= _RESOURCE_ACQ | {"max_size_data_for_model"}
    if model == "gp_multitask" and search.gp_resource_kernel.startswith("matern52"):
        names.add("gp_base_kernel")
    if searcher != "hypertune":
        names.add("hypertune_distribution_num_samples")
    if options.mode == "min" or not search.boxcox_transform:
        names.add("map_reward")
    if search.approximation == "none":
        names.add("num_inducing")
    return names
