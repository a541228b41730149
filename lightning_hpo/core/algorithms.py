"""Algorithms by name: each is a scheduler and a searcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A scheduler and a searcher by name, and what they preset."""

    scheduler: str
    """``fifo``, ``hyperband``, ``sync_hyperband``, ``dehb`` or ``median``."""
    searcher: str
    summary: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    """Options of the study this algorithm presets; the user's win."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """Options of the searcher it presets; the user's win."""
    by_rank: Algorithm | None = None
    """What it is where trials are promoted or stopped by rank; None: the same."""

    def chosen(self, promotion_rule: str) -> Algorithm:
        """The algorithm under a promotion rule."""
        return self.by_rank if self.by_rank is not None and promotion_rule == "rank" else self

    @property
    def has_types(self) -> bool:
        """Is there a choice of what happens at a rung?"""
        return self.scheduler == "hyperband"


_DEFAULT_BY_RANK = Algorithm(
    "hyperband",
    "bayesopt",
    "the default by rank: one GP per rung, two brackets, and few promotions",
    presets={"type": "promotion", "brackets": 2, "improvement_probability": 0.4, "delayed_promotion": True},
    search={
        "model": "gp_independent",
        "opt_skip_init_length": 60,
        "opt_skip_period": 5,
        "num_fantasy_samples": 10,
        "weigh_promotion": True,
        "limit_outliers": True,
        "avoid_infeasible": True,
        "gp_lengthscale_prior": "log_normal",
        "initial_scoring": "acq_func",
        "skip_local_optimization": True,
    },
)

ALGORITHMS: dict[str, Algorithm] = {
    "default": Algorithm(
        "hyperband",
        "freeze_thaw",
        "one GP over all rungs decides what starts and what goes on",
        presets={"type": "promotion", "promotion_rule": "searcher"},
        search={
            "model": "gp_rungs",
            "num_init_random_factor": 1.3,
            "gp_lengthscale_prior": "log_normal",
            "boxcox_transform": True,
            "limit_outliers": True,
            "avoid_infeasible": True,
            "opt_nstarts": 1,
            "opt_warmstart": True,
            "opt_maxiter": 25,
            "opt_skip_init_length": 20,
            "opt_skip_period": 10,
        },
        by_rank=_DEFAULT_BY_RANK,
    ),
    "random": Algorithm("fifo", "random", "random search, every trial to the end"),
    "grid": Algorithm("fifo", "grid", "all combinations of a grid, every trial to the end"),
    "bayesopt": Algorithm("fifo", "bayesopt", "Bayesian optimisation, every trial to the end"),
    "median": Algorithm("median", "random", "random search with the median stopping rule"),
    "asha": Algorithm("hyperband", "random", "asynchronous successive halving, random search"),
    "pasha": Algorithm("hyperband", "random", "ASHA with a growing ceiling", {"type": "pasha"}),
    "bohb": Algorithm("hyperband", "kde", "asynchronous BOHB: density estimates"),
    "mobster": Algorithm(
        "hyperband", "bayesopt", "GP over configurations and epochs", search={"model": "gp_multitask"}
    ),
    "mobster_indep": Algorithm("hyperband", "bayesopt", "one GP per rung", search={"model": "gp_independent"}),
    "hypertune": Algorithm(
        "hyperband", "hypertune", "Hyper-Tune: ensemble of rung GPs", search={"model": "gp_independent"}
    ),
    "hypertune_joint": Algorithm(
        "hyperband", "hypertune", "Hyper-Tune on a joint GP", search={"model": "gp_multitask"}
    ),
    "sync_hyperband": Algorithm("sync_hyperband", "random", "synchronous Hyperband"),
    "sync_bohb": Algorithm(
        "sync_hyperband", "kde", "synchronous Hyperband with density estimates (the published BOHB)"
    ),
    "sync_mobster": Algorithm(
        "sync_hyperband", "bayesopt", "synchronous Hyperband with a joint GP", search={"model": "gp_multitask"}
    ),
    "dehb": Algorithm("dehb", "differential_evolution", "synchronous Hyperband with differential evolution"),
}
