"""The options of a study: one typed, commented dataclass is schema, default and help.

An algorithm is a scheduler and a searcher by name (:data:`ALGORITHMS`); options are flat and checked before anything
starts.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.core.confirmation import ConfirmOptions
from lightning_hpo.core.events import portable
from lightning_hpo.core.observations import KINDS
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.errors import OptionError, did_you_mean


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

    @property
    def has_types(self) -> bool:
        """Is there a choice of what happens at a rung?"""
        return self.scheduler == "hyperband"


ALGORITHMS: dict[str, Algorithm] = {
    "default": Algorithm(
        "hyperband",
        "bayesopt",
        "what the benchmarks show to be best: one GP per rung, fitted less often, weighted by promotion",
        presets={"type": "promotion"},
        search={
            "model": "gp_independent",
            "opt_skip_init_length": 60,
            "opt_skip_period": 5,
            "num_fantasy_samples": 10,
            "weigh_promotion": True,
        },
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

LIMITS = ("n_trials", "n_workers", "stop", "max_retries", "max_failures_in_a_row", "asynchronous", "confirm")
"""Options that may differ when a study is continued: they say how long and how wide, not what."""

ADDITIVE_MODELS = ("gp_expdecay", "gp_issm")
TYPES = ("stopping", "promotion", "pasha", "cost_promotion")


@dataclass(frozen=True)
class SearcherOptions:
    """Options of the searcher, ``searcher.<name>``. None: the searcher's own default, which the comment names."""

    # -- every searcher
    allow_duplicates: bool = False
    """May a configuration be tried again? Failed ones never are."""
    restrict_configurations: list[dict[str, Any]] | None = None
    """Only these configurations are proposed."""
    random_fraction: float | None = None
    """Share of random proposals among a model's; default 0.33 for density estimates, 0 for Gaussian processes."""
    debug_log: bool = False
    """Log how each suggestion was found."""
    # -- grid
    num_samples: dict[str, int] | int | None = None
    """Grid points of a float or large integer hyperparameter, by name or for all; default 5."""
    shuffle_config: bool = True
    """Visit the grid in random order."""
    # -- density estimates (bohb, sync_bohb)
    num_min_data_points: int | None = None
    """Smallest size of the good set; default: the number of hyperparameters."""
    top_n_percent: float = 15
    """Size of the good set, per cent of the observations."""
    min_bandwidth: float | None = None
    """Floor of all bandwidths; default 0.1 with rungs, 0.001 without."""
    num_candidates: int = 64
    """Candidates drawn from the density of the good."""
    bandwidth_factor: float = 3
    """Widening of the bandwidths when candidates are drawn."""
    # -- differential evolution (dehb)
    mutation_factor: float = 0.5
    """Weight F of the difference of two parents."""
    crossover_probability: float = 0.5
    """Probability that a hyperparameter comes from the mutant."""
    # -- Gaussian processes (bayesopt, mobster, hypertune)
    model: str | None = None
    """gp_multitask, gp_independent, gp_expdecay or gp_issm; default: the algorithm's."""
    gp_resource_kernel: str = "exp-decay-sum"
    """Covariance over resources in gp_multitask."""
    gp_base_kernel: str = "matern52-ard"
    """Covariance over configurations: matern52-ard or matern52-noard."""
    input_warping: bool = False
    """Learn a Kumaraswamy warping of every numeric hyperparameter."""
    boxcox_transform: bool = False
    """Learn a Box-Cox transform of (positive) targets."""
    normalize_targets: bool = True
    """Standardise the targets."""
    separate_noise_variances: bool = False
    """gp_independent: one noise variance per level."""
    expdecay_normalize_inputs: bool = False
    """gp_expdecay: scale resources to (0, 1)."""
    issm_gamma_one: bool = False
    """gp_issm: fix gamma to 1."""
    num_init_random: int | None = None
    """Configurations before the model is used; default 3 without rungs, 6 with. Workers + 2 is a good choice."""
    num_init_random_factor: float = 0.0
    """With rungs: at least so many for each hyperparameter."""
    num_init_candidates: int = 250
    """Random candidates scored before the local optimisation."""
    num_fantasy_samples: int = 20
    """Joint samples over which pending evaluations are averaged."""
    no_fantasizing: bool = False
    """Ignore pending evaluations (they are still not proposed again)."""
    initial_scoring: str = "thompson_indep"
    """How candidates are ranked: thompson_indep or acq_func."""
    skip_local_optimization: bool = False
    """Propose the best candidate as it is."""
    acq_function: str = "ei"
    """ei or lcb."""
    acq_function_kwargs: dict[str, float] = field(default_factory=dict)
    """xi of ei (default 0.01), kappa of lcb (default 1)."""
    xi_in_criterion_units: bool = False
    """xi in units of the metric instead of its standard deviation."""
    resource_acq: str = "bohb"
    """Level at which the acquisition function is evaluated: bohb, first or final."""
    resource_acq_bohb_threshold: int = 3
    """Observations a level needs for resource_acq=bohb."""
    weigh_promotion: bool = False
    """Weight the acquisition function by the probability that a trial gets past the rungs below its level."""
    opt_nstarts: int = 2
    """Starts of the likelihood's optimisation."""
    opt_maxiter: int = 50
    """Iterations per start."""
    opt_warmstart: bool = False
    """Begin at the last parameters instead of the initial ones."""
    opt_skip_init_length: int = 150
    """Refit every time below this many observations."""
    opt_skip_period: int = 1
    """Afterwards, refit at every so many new data sizes."""
    opt_skip_num_max_resource: bool = False
    """Afterwards, refit only when another trial has reached max_t."""
    max_size_data_for_model: int | None = 500
    """The model sees at most so many observations; null: all."""
    max_size_top_fraction: float = 0.25
    """Share of the best among them (single fidelity)."""
    map_reward: str = "1_minus_x"
    """How a metric to be maximised becomes a criterion: minus_x or <a>_minus_x. Matters to boxcox_transform only."""
    hypertune_distribution_num_samples: int = 50
    """Posterior samples per ranking loss."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        _check_types(self, "searcher.")
        self._check_map_reward()
        if self.restrict_configurations is not None and not self.restrict_configurations:
            raise OptionError(
                "searcher.restrict_configurations is empty: no configuration may be proposed. "
                "Name at least one, or leave it out to search the whole space."
            )
        _check_choice(self, "searcher.", "model", (None, "gp_multitask", "gp_independent", "gp_expdecay", "gp_issm"))
        kernels = (
            "exp-decay-sum", "exp-decay-combined", "exp-decay-delta1", "freeze-thaw",
            "matern52", "matern52-res-warp", "cross-validation",
        )  # fmt: skip
        _check_choice(self, "searcher.", "gp_resource_kernel", kernels)
        _check_choice(self, "searcher.", "gp_base_kernel", ("matern52-ard", "matern52-noard"))
        _check_choice(self, "searcher.", "initial_scoring", ("thompson_indep", "acq_func"))
        _check_choice(self, "searcher.", "acq_function", ("ei", "lcb"))
        _check_choice(self, "searcher.", "resource_acq", ("bohb", "first", "final"))
        device = self.device.split(":")[0]
        if device not in ("auto", "cpu", "cuda"):
            raise OptionError(f"searcher.device={self.device!r} is unknown. Choose auto, cpu or cuda.")
        for name in (
            "num_candidates", "num_init_candidates", "num_fantasy_samples", "opt_nstarts", "opt_maxiter",
            "opt_skip_period", "hypertune_distribution_num_samples", "resource_acq_bohb_threshold",
        ):  # fmt: skip
            _check_range(self, "searcher.", name, lower=1)
        for name in ("random_fraction", "crossover_probability", "max_size_top_fraction"):
            _check_range(self, "searcher.", name, lower=0, upper=1)
        for name in ("num_min_data_points", "num_init_random", "max_size_data_for_model"):
            _check_range(self, "searcher.", name, lower=1)
        _check_range(self, "searcher.", "num_init_random_factor", lower=0)
        _check_range(self, "searcher.", "top_n_percent", lower=0, upper=100)

    def reward_offset(self, mode: str) -> float:
        """What ``map_reward`` adds to the negated metric: ``a`` of ``<a>_minus_x``; 0 for ``mode="min"``."""
        text = self.map_reward.removesuffix("minus_x").removesuffix("_")
        return float(text) if mode == "max" and text else 0.0

    def _check_map_reward(self) -> None:
        try:
            fits = self.map_reward.endswith("minus_x") and math.isfinite(self.reward_offset("max"))
        except ValueError:
            fits = False
        if not fits:
            raise OptionError(
                f"searcher.map_reward={self.map_reward!r} is unknown. "
                "Set it to minus_x, or to 1_minus_x with any number."
            )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> SearcherOptions:
        """Options from plain data.

        Raises:
            OptionError: for an unknown name, a wrong type or a value out of range.
        """
        return cls(**_known(cls, given, "searcher."))


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study. None: the algorithm's default, which the comment names."""

    metric: str
    """Name of the logged metric."""
    mode: str = "min"
    """min or max."""
    algorithm: str = "default"
    """Scheduler and searcher by name."""
    type: str | None = None
    """stopping, promotion, pasha or cost_promotion, for algorithms with rungs; default stopping."""
    max_t: int | None = None
    """Largest resource of a trial."""
    grace_period: int | None = None
    """Lowest rung level; default 1."""
    reduction_factor: float | None = None
    """Ratio of neighbouring rung levels; default 3."""
    rung_increment: int | None = None
    """Difference of neighbouring rung levels, instead of a ratio."""
    rung_levels: list[int] | None = None
    """Explicit rung levels, instead of both."""
    brackets: int | None = None
    """Number of brackets; default 1, for synchronous Hyperband all."""
    rung_system_per_bracket: bool = False
    """Trials compete only within their bracket."""
    min_rung_entries: str = "ratio"
    """When a rung begins to judge: ratio (n >= eta) or two (n >= 2)."""
    late_reports: str = "count"
    """A report that jumped over a rung: count for it, or lost."""
    searcher_data: str | None = None
    """What the searcher learns from: rungs, all or rungs_and_last; default rungs, for gp_expdecay and gp_issm all."""
    register_pending_myopic: bool = False
    """Only the next unit of resource is pending."""
    points_to_evaluate: list[dict[str, Any]] | None = None
    """Configurations to begin with, may be partial; default: one of middle values; []: none."""
    random_seed: int = 0
    """Seed of everything random."""
    n_workers: int = 1
    """Trials at a time."""
    asynchronous: bool = True
    """False: trials start in batches of n_workers."""
    n_trials: int | None = None
    """Total number of trials."""
    max_retries: int = 2
    """How often a trial whose process was lost is tried again from its last checkpoint."""
    max_failures_in_a_row: int = 3
    """The study stops when so many first trials all failed with the same error."""
    stop: StopCriterion = field(default_factory=StopCriterion)
    """When the study ends."""
    confirm: ConfirmOptions = field(default_factory=ConfirmOptions)
    """Train the best configurations again before the study ends."""
    searcher: SearcherOptions = field(default_factory=SearcherOptions)
    """Options of the searcher."""

    def __post_init__(self) -> None:
        _check_types(self, "")
        if not self.metric:
            raise OptionError("metric is empty. Set metric to a name your LightningModule logs, such as val_loss.")
        if self.algorithm not in ALGORITHMS:
            raise OptionError(
                f"algorithm={self.algorithm!r} is unknown.{did_you_mean(self.algorithm, ALGORITHMS)} "
                f"Choose one of {', '.join(ALGORITHMS)}."
            )
        _check_choice(self, "", "mode", ("min", "max"))
        _check_choice(self, "", "type", (None, *TYPES))
        _check_choice(self, "", "min_rung_entries", ("ratio", "two"))
        _check_choice(self, "", "late_reports", ("count", "lost"))
        _check_choice(self, "", "searcher_data", (None, *KINDS))
        self._check_searcher_data()
        self._check_type()
        for name in ("max_t", "grace_period", "brackets", "n_workers", "rung_increment", "max_failures_in_a_row"):
            _check_range(self, "", name, lower=1)
        for name in ("n_trials", "max_retries"):
            _check_range(self, "", name, lower=0)
        _check_range(self, "", "random_seed", lower=0, upper=2**31 - 1)
        _check_range(self, "", "reduction_factor", lower=2)
        self._check_confirm()

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> StudyOptions:
        """Options from plain data, the algorithm's presets filled in.

        Raises:
            OptionError: for an unknown name, a wrong type or a value out of range.
        """
        values = _known(cls, given, "")
        if "metric" not in values or values["metric"] is None:
            raise OptionError("metric is not set. Set metric to a name your LightningModule logs, such as val_loss.")
        algorithm = ALGORITHMS.get(str(values.get("algorithm", "default")))
        search = values.get("searcher")
        search = {} if search is None else search
        if algorithm is not None:
            values = {
                **algorithm.presets,
                **{k: v for k, v in values.items() if v is not None or k not in algorithm.presets},
            }
            if isinstance(search, Mapping):
                search = {
                    **algorithm.search,
                    **{k: v for k, v in search.items() if v is not None or k not in algorithm.search},
                }
        values["searcher"] = search if isinstance(search, SearcherOptions) else SearcherOptions.from_mapping(search)
        stop = values.get("stop")
        values["stop"] = stop if isinstance(stop, StopCriterion) else StopCriterion.from_mapping(stop or {})
        values["confirm"] = _confirm_options(values.get("confirm"))
        defaults = {f.name for f in dataclasses.fields(cls) if f.default is not None}
        return cls(**{k: v for k, v in values.items() if v is not None or k not in defaults})

    @property
    def effective_searcher_data(self) -> str:
        return self.searcher_data or ("all" if self.searcher.model in ADDITIVE_MODELS else "rungs")

    @property
    def effective_type(self) -> str:
        return self.type or "stopping"

    def _check_searcher_data(self) -> None:
        model, kind = self.searcher.model, self.effective_searcher_data
        if model in ADDITIVE_MODELS and kind != "all":
            raise OptionError(
                f"searcher.model={model} learns from whole curves. Set searcher_data=all, or leave it out."
            )
        if model == "gp_independent" and kind != "rungs":
            raise OptionError(
                "searcher.model=gp_independent has one model per rung. Set searcher_data=rungs, or choose gp_multitask."
            )
        if model in ADDITIVE_MODELS and ALGORITHMS[self.algorithm].searcher == "hypertune":
            raise OptionError(
                f"searcher.model={model} does not work with Hyper-Tune. Choose algorithm=mobster, or another model."
            )

    def _check_confirm(self) -> None:
        trainings = self.confirm.trainings
        if not trainings:
            return
        if self.n_trials is None and self.stop == StopCriterion():
            raise OptionError(
                "confirm trains the best again before the study ends, but this study has no end. "
                "Set n_trials, or a limit of stop."
            )
        if self.n_trials is not None and self.n_trials <= trainings:
            raise OptionError(
                f"confirm takes {self.confirm.top} x {self.confirm.seeds} trials, which leaves none of "
                f"n_trials={self.n_trials} to the search. Raise n_trials, or lower confirm.top or confirm.seeds."
            )

    def _check_type(self) -> None:
        if self.algorithm == "pasha" and self.type != "pasha":
            raise OptionError(
                f"algorithm=pasha contradicts type={self.type}. Leave type out, or choose algorithm=asha."
            )
        if self.type is not None and not ALGORITHMS[self.algorithm].has_types:
            typed = ", ".join(name for name, algorithm in ALGORITHMS.items() if algorithm.has_types)
            raise OptionError(
                f"algorithm={self.algorithm} has no types, so type={self.type} would do nothing. "
                f"Leave type out, or choose an algorithm that has: {typed}."
            )

    def limits(self) -> dict[str, Any]:
        """The options that may change when the study is continued, as JSON data."""
        return {name: value for name, value in self.to_json().items() if name in LIMITS}

    def with_limits(self, limits: Mapping[str, Any]) -> StudyOptions:
        """These options with other limits (:meth:`limits`).

        Raises:
            OptionError: for a wrong type or a value out of range.
        """
        values = {name: value for name, value in limits.items() if name in LIMITS}
        if "stop" in values:
            values["stop"] = StopCriterion.from_mapping(values["stop"])
        if "confirm" in values:
            values["confirm"] = _confirm_options(values["confirm"])
        return dataclasses.replace(self, **values)

    def to_json(self) -> dict[str, Any]:
        """JSON data; :meth:`from_mapping` reads it."""
        data: dict[str, Any] = portable(dataclasses.asdict(self))
        return data


def _confirm_options(given: Any) -> ConfirmOptions:
    if isinstance(given, ConfirmOptions):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"confirm={given!r} is no mapping. Set confirm.top and confirm.seeds.")
    return ConfirmOptions(**_known(ConfirmOptions, given or {}, "confirm."))


def _known(cls: type, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls)]
    for name in given:
        if name not in names:
            near = did_you_mean(str(name), names).strip()
            fix = f"{near} Correct the name." if near else f"Use one of: {', '.join(sorted(names))}."
            raise OptionError(f"{prefix}{name} is not an option. {fix}")
    return dict(given)


def _check_types(options: Any, prefix: str) -> None:
    hints = typing.get_type_hints(type(options))
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if not _fits(value, hints[f.name]):
            raise OptionError(
                f"{prefix}{f.name}={value!r} has the wrong type. Set {prefix}{f.name} to a value of type "
                f"{_spelling(hints[f.name])}."
            )


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is Any:
        return True
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is list:
        item = typing.get_args(hint)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, item) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spelling(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")  # type: ignore[return-value]


def _check_choice(options: Any, prefix: str, name: str, allowed: Sequence[Any]) -> None:
    value = getattr(options, name)
    if value not in allowed:
        names = [a for a in allowed if a is not None]
        raise OptionError(
            f"{prefix}{name}={value!r} is unknown.{did_you_mean(str(value), names)} Choose one of {', '.join(names)}."
        )


def _check_range(options: Any, prefix: str, name: str, lower: float, upper: float | None = None) -> None:
    value = getattr(options, name)
    if value is None:
        return
    if not value >= lower or (upper is not None and value > upper):
        allowed = f"at least {lower}" if upper is None else f"between {lower} and {upper}"
        raise OptionError(f"{prefix}{name}={value!r} is out of range. Set {prefix}{name} to a value {allowed}.")
