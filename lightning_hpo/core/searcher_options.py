"""The options of the searchers."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_hpo.core.checks import check_choice, check_range, check_types, known
from lightning_hpo.errors import OptionError, SpaceError, did_you_mean

if TYPE_CHECKING:  # Hydra reads the options in every program: no numpy then
    from lightning_hpo.core.space import SearchSpace
    from lightning_hpo.core.trial import Config

DEFAULT_MODELS = {"bayesopt": "gp_multitask", "hypertune": "gp_independent", "freeze_thaw": "gp_rungs"}
"""Searchers that fit Gaussian processes -> what they model rungs by, unless ``model`` says something else."""


@dataclass(frozen=True)
class SearcherOptions:
    """Options of the searcher, ``searcher.<name>``. None: the searcher's own default, which the comment names."""

    # -- every searcher
    allow_duplicates: bool = False
    """May a configuration be tried again? Failed ones never are."""
    restrict_configurations: list[dict[str, Any]] | None = None
    """Only these configurations are proposed; points_to_evaluate that are not among them are left out."""
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
    """gp_multitask, gp_independent, gp_expdecay or gp_issm; default: the algorithm's (gp_rungs: default only)."""
    gp_resource_kernel: str = "exp-decay-sum"
    """Covariance over resources in gp_multitask."""
    gp_base_kernel: str = "matern52-ard"
    """Covariance over configurations: matern52-ard or matern52-noard."""
    gp_lengthscale_prior: str = "uniform"
    """Prior of the length scales: uniform (of their inverses) or log_normal (near 1, the width of the unit cube)."""
    input_warping: bool = False
    """Learn a Kumaraswamy warping of every numeric hyperparameter."""
    boxcox_transform: bool = False
    """Learn a Box-Cox transform of (positive) targets."""
    normalize_targets: bool = True
    """Standardise the targets."""
    limit_outliers: bool = False
    """Bring targets near that are far worse than the median of their level, as of trials that diverged."""
    avoid_infeasible: bool = False
    """Propose last what lies where the nearest trials diverged or failed."""
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
    """Starts of a full optimisation of the likelihood, beside the last parameters."""
    opt_maxiter: int = 50
    """Iterations per start."""
    opt_warmstart: bool = False
    """Begin at and around the last parameters, and never at the initial ones."""
    opt_skip_init_length: int = 150
    """Refit every time below this many observations."""
    opt_skip_period: int = 1
    """Afterwards, refit at every so many new data sizes."""
    opt_skip_num_max_resource: bool = False
    """Afterwards, refit only when another trial has reached max_t."""
    max_size_data_for_model: int | None = 500
    """The model sees at most so many observations, those at rungs first; null: all."""
    max_size_top_fraction: float = 0.25
    """Share of the best among them (single fidelity, gp_rungs)."""
    approximation: str = "none"
    """inducing: single fidelity and gp_multitask see more than num_inducing observations through inducing points."""
    num_inducing: int = 300
    """Inducing points of approximation=inducing."""
    map_reward: str = "1_minus_x"
    """How a metric to be maximised becomes a criterion: minus_x or <a>_minus_x. Matters to boxcox_transform only."""
    hypertune_distribution_num_samples: int = 50
    """Posterior samples per ranking loss."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        check_types(self, "searcher.")
        self._check_map_reward()
        if self.restrict_configurations is not None and not self.restrict_configurations:
            raise OptionError(
                "searcher.restrict_configurations is empty: no configuration may be proposed. "
                "Name at least one, or leave it out to search the whole space."
            )
        models = ("gp_multitask", "gp_independent", "gp_expdecay", "gp_issm", "gp_rungs")
        check_choice(self, "searcher.", "model", (None, *models))
        kernels = (
            "exp-decay-sum", "exp-decay-combined", "exp-decay-delta1", "freeze-thaw",
            "matern52", "matern52-res-warp", "cross-validation",
        )  # fmt: skip
        check_choice(self, "searcher.", "gp_resource_kernel", kernels)
        check_choice(self, "searcher.", "gp_base_kernel", ("matern52-ard", "matern52-noard"))
        check_choice(self, "searcher.", "gp_lengthscale_prior", ("uniform", "log_normal"))
        check_choice(self, "searcher.", "initial_scoring", ("thompson_indep", "acq_func"))
        check_choice(self, "searcher.", "acq_function", ("ei", "lcb"))
        check_choice(self, "searcher.", "resource_acq", ("bohb", "first", "final"))
        check_choice(self, "searcher.", "approximation", ("none", "inducing"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise OptionError(
                f"searcher.device={self.device!r} is unknown. Choose auto, cpu or cuda; cuda:1 is the second GPU."
            )
        for name in (
            "num_candidates", "num_init_candidates", "num_fantasy_samples", "opt_nstarts", "opt_maxiter",
            "opt_skip_period", "hypertune_distribution_num_samples", "resource_acq_bohb_threshold", "num_inducing",
        ):  # fmt: skip
            check_range(self, "searcher.", name, lower=1)
        for name in ("random_fraction", "crossover_probability", "max_size_top_fraction"):
            check_range(self, "searcher.", name, lower=0, upper=1)
        for name in ("num_min_data_points", "num_init_random", "max_size_data_for_model"):
            check_range(self, "searcher.", name, lower=1)
        for name in ("num_init_random_factor", "opt_skip_init_length"):
            check_range(self, "searcher.", name, lower=0)
        # A bandwidth is also the weight a kernel gives to the other categories: all of it at 1.
        check_range(self, "searcher.", "min_bandwidth", lower=0, upper=1, lower_open=True)
        check_range(self, "searcher.", "bandwidth_factor", lower=0, lower_open=True)
        check_range(self, "searcher.", "mutation_factor", lower=0, upper=2)
        check_range(self, "searcher.", "top_n_percent", lower=0, upper=99)
        self._check_acquisition_arguments()
        self._check_num_samples()
        limit = self.max_size_data_for_model
        if self.approximation == "inducing" and limit is not None and limit <= self.num_inducing:
            raise OptionError(
                f"searcher.approximation=inducing has no effect: the model sees at most {limit} observations "
                f"(max_size_data_for_model) and up to {self.num_inducing} (num_inducing) are treated exactly. "
                "Set searcher.max_size_data_for_model to null or to thousands."
            )

    def check_space(self, space: SearchSpace) -> None:
        """What depends on the space.

        Raises:
            OptionError, SpaceError: if an option names what is not searched, or a configuration that is not of the
                space.
        """
        for config in self.restrict_configurations or ():
            try:
                space.check(config)
            except SpaceError as problem:
                raise SpaceError(f"searcher.restrict_configurations: {problem}") from problem
        for name in self.num_samples if isinstance(self.num_samples, Mapping) else ():
            if name not in space.domains:
                hint = did_you_mean(name, space.domains)
                raise OptionError(
                    f"searcher.num_samples names {name!r}, which is not searched.{hint} Remove the entry."
                )

    def check_searcher(self, name: str) -> None:
        """What depends on the searcher.

        Raises:
            OptionError: if the searcher with this name cannot do what an option says.
        """
        if name == "grid" and self.restrict_configurations is not None:
            raise OptionError(
                "searcher.restrict_configurations has no meaning for grid search. "
                "Choose algorithm=random, or limit the grid by searcher.num_samples."
            )
        if name not in DEFAULT_MODELS:
            return
        model = self.model or DEFAULT_MODELS[name]
        if (model == "gp_rungs") != (name == "freeze_thaw"):
            raise OptionError(
                f"searcher.model={model} cannot be had here: gp_rungs belongs to promotion_rule=searcher, and only "
                "that. Leave searcher.model out."
            )
        if self.approximation == "inducing" and model != "gp_multitask":
            raise OptionError(
                f"searcher.approximation=inducing cannot be had with the model {model}. "
                "Set searcher.model to gp_multitask."
            )

    def restricted(self, space: SearchSpace) -> Sequence[tuple[str, Config]] | None:
        """Match key and checked values of every one of ``restrict_configurations``, in their order; None without them.

        There may be tens of thousands, which every suggestion needs: they are looked at once.
        """
        if self.restrict_configurations is None:
            return None
        if space.fingerprint not in self._restricted:
            checked = [space.check(space.searched(config)) for config in self.restrict_configurations]
            self._restricted[space.fingerprint] = [(space.match_key(config), config) for config in checked]
        return self._restricted[space.fingerprint]

    @functools.cached_property
    def _restricted(self) -> dict[str, list[tuple[str, Config]]]:
        return {}

    def permitted(self, space: SearchSpace, configs: Iterable[Config]) -> list[Config]:
        """Those of the configurations that ``restrict_configurations`` leaves."""
        restricted = self.restricted(space)
        if restricted is None:
            return list(configs)
        keys = {key for key, _ in restricted}
        return [config for config in configs if space.match_key(config) in keys]

    def reward_offset(self, mode: str) -> float:
        """What ``map_reward`` adds to the negated metric: ``a`` of ``<a>_minus_x``; 0 for ``mode="min"``."""
        text = self.map_reward.removesuffix("minus_x").removesuffix("_")
        return float(text) if mode == "max" and text else 0.0

    def _check_acquisition_arguments(self) -> None:
        argument = {"ei": "xi", "lcb": "kappa"}[self.acq_function]
        for name, value in self.acq_function_kwargs.items():
            full = f"searcher.acq_function_kwargs.{name}"
            if name != argument:
                raise OptionError(f"{full} has no meaning for {self.acq_function}. Use {argument}, or remove it.")
            if not 0 <= value < math.inf:
                raise OptionError(f"{full}={value!r} is out of range. Set {full} to a value at least 0.")

    def _check_num_samples(self) -> None:
        numbers = self.num_samples if isinstance(self.num_samples, Mapping) else {"": self.num_samples}
        for name, number in numbers.items():
            if number is not None and number < 1:
                where = f" for {name!r}" if name else ""
                raise OptionError(f"searcher.num_samples is {number}{where}. Set it to at least 1.")

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
        if not isinstance(given, Mapping):
            raise OptionError(
                f"searcher={given!r} is no mapping. Write an option by its name, e.g. searcher.num_init_random=8."
            )
        return cls(**known(cls, given, "searcher."))
