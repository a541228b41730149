"""The options of a study: one typed, commented dataclass is schema, default and help.

Options are flat and checked before anything starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.core.algorithms import ALGORITHMS, Algorithm
from lightning_hpo.core.checks import check_choice, check_range, check_types, known
from lightning_hpo.core.confirmation import ConfirmOptions
from lightning_hpo.core.events import portable
from lightning_hpo.core.observations import KINDS
from lightning_hpo.core.rungs import rung_levels
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.errors import OptionError, did_you_mean

LIMITS = ("n_trials", "n_workers", "stop", "max_retries", "max_failures_in_a_row", "asynchronous", "confirm")
"""Options that may differ when a study is continued: they say how long and how wide, not what."""

LADDER = ("max_t", "grace_period", "reduction_factor", "rung_increment", "rung_levels")
"""Options that make the rungs, in the order of :func:`rung_levels`."""
MAX_T = 10**9
"""Largest ``max_t``: more than anybody trains for, and far below what a float cannot hold."""
RESOURCE_CONSTANTS = ("epochs", "max_t", "max-t", "max_epochs", "max-epochs")
"""Constants of a space that are read for ``max_t``, in this order, if it is not set."""
ADDITIVE_MODELS = ("gp_expdecay", "gp_issm")
TYPES = ("stopping", "promotion", "pasha", "cost_promotion")
_LED_TYPES = ("promotion", "stopping")


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
    """A report that jumped over a rung: count for it, or lost (an error where trials pause)."""
    improvement_probability: float = 0.0
    """A trial goes past a rung only if it improves on the best value with at least this probability; 0: its rank
    decides alone; the algorithm default presets 0.4."""
    delayed_promotion: bool = False
    """No more than the quantile of a rung ever go on, even if better ones keep coming; the algorithm default presets
    true."""
    promotion_rule: str = "rank"
    """Who says which trials go on past a rung: rank, their place in it; or searcher, its model; the algorithm default
    presets searcher for type=promotion and type=stopping."""
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
    """The study ends when so many first trials all failed with the same error; later, or if the errors differ in
    numbers, when so many or 20, whichever is more, did so one after the other, no trial having reported in between."""
    stop: StopCriterion = field(default_factory=StopCriterion)
    """When the study ends."""
    confirm: ConfirmOptions = field(default_factory=ConfirmOptions)
    """Train the best configurations again before the study ends."""
    searcher: SearcherOptions = field(default_factory=SearcherOptions)
    """Options of the searcher."""

    def __post_init__(self) -> None:
        check_types(self, "")
        if not self.metric:
            raise OptionError("metric is empty. Set metric to a name your LightningModule logs, such as val_loss.")
        if self.algorithm not in ALGORITHMS:
            raise OptionError(
                f"algorithm={self.algorithm!r} is unknown.{did_you_mean(self.algorithm, ALGORITHMS)} "
                f"Choose one of {', '.join(ALGORITHMS)}."
            )
        check_choice(self, "", "mode", ("min", "max"))
        check_choice(self, "", "type", (None, *TYPES))
        check_choice(self, "", "min_rung_entries", ("ratio", "two"))
        check_choice(self, "", "late_reports", ("count", "lost"))
        check_choice(self, "", "promotion_rule", ("rank", "searcher"))
        check_choice(self, "", "searcher_data", (None, *KINDS))
        self._check_searcher_data()
        self._check_type()
        self.searcher.check_searcher(self.searcher_name)
        if (self.max_t or 1) > MAX_T:
            # Not shown: it may have more digits than Python writes.
            raise OptionError(f"max_t is out of range. Set max_t to a value between 1 and {MAX_T}.")
        for name in ("max_t", "grace_period", "brackets", "n_workers", "rung_increment", "max_failures_in_a_row"):
            check_range(self, "", name, lower=1)
        for name in ("n_trials", "max_retries"):
            check_range(self, "", name, lower=0)
        check_range(self, "", "random_seed", lower=0, upper=2**31 - 1)
        check_range(self, "", "reduction_factor", lower=2)
        check_range(self, "", "improvement_probability", lower=0, upper=1)
        self._check_confirm()

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> StudyOptions:
        """Options from plain data, the algorithm's presets filled in.

        Raises:
            OptionError: for an unknown name, a wrong type or a value out of range.
        """
        values = known(cls, given, "")
        if "metric" not in values or values["metric"] is None:
            raise OptionError("metric is not set. Set metric to a name your LightningModule logs, such as val_loss.")
        algorithm = ALGORITHMS.get(str(values.get("algorithm", "default")))
        if algorithm is not None and algorithm.by_rank is not None:
            algorithm = algorithm if _is_led(values) else algorithm.by_rank
        search = values.get("searcher")
        search = {} if search is None else search
        if algorithm is not None:
            values = {
                **_presets(algorithm, values),
                **{k: v for k, v in values.items() if v is not None or k not in algorithm.presets},
            }
            if isinstance(search, Mapping):
                search = {
                    **algorithm.search,
                    **{k: v for k, v in search.items() if v is not None or k not in algorithm.search},
                }
        values["searcher"] = search if isinstance(search, SearcherOptions) else SearcherOptions.from_mapping(search)
        stop = {} if values.get("stop") is None else values["stop"]
        values["stop"] = stop if isinstance(stop, StopCriterion) else StopCriterion.from_mapping(stop)
        values["confirm"] = _confirm_options(values.get("confirm"))
        defaults = {f.name for f in dataclasses.fields(cls) if f.default is not None}
        return cls(**{k: v for k, v in values.items() if v is not None or k not in defaults})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudyOptions:
        """Options from what :meth:`to_json` gave, of an earlier version too: options it did not have are off, even if
        the algorithm presets them by now, so that an old study goes on as it was.

        Raises:
            OptionError: for an unknown name, a wrong type or a value out of range.
        """
        values = known(cls, data, "")
        searcher, stop = values.get("searcher") or {}, values.get("stop") or {}
        values["searcher"] = SearcherOptions.from_mapping(searcher)
        values["stop"] = StopCriterion.from_mapping(stop)
        values["confirm"] = _confirm_options(values.get("confirm"))
        return cls(**values)

    @property
    def searcher_name(self) -> str:
        """The searcher of the algorithm."""
        return ALGORITHMS[self.algorithm].chosen(self.promotion_rule).searcher

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
        if model in ("gp_independent", "gp_rungs") and kind != "rungs":
            raise OptionError(
                f"searcher.model={model} models the values at rungs. Set searcher_data=rungs, or choose gp_multitask."
            )
        if model in ADDITIVE_MODELS and self.searcher_name == "hypertune":
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
        if self.promotion_rule == "searcher":
            self._check_searcher_led()
        elif self.searcher.model == "gp_rungs":
            raise OptionError(
                "searcher.model=gp_rungs says which trial goes on, which promotion by rank does not ask for. "
                "Leave searcher.model out, or set promotion_rule=searcher."
            )
        for name in ("improvement_probability", "delayed_promotion"):
            if getattr(self, name) and not ALGORITHMS[self.algorithm].has_types:
                raise OptionError(
                    f"algorithm={self.algorithm} promotes nothing by rank, so {name} would do nothing. "
                    "Leave it out, or choose an algorithm with asynchronous rungs, such as asha."
                )

    def _check_searcher_led(self) -> None:
        if self.searcher_name != "freeze_thaw":
            raise OptionError(
                f"promotion_rule=searcher needs a searcher that says who goes on, and that of {self.algorithm} does "
                "not. Set promotion_rule=rank, or choose algorithm=default."
            )
        if self.effective_type not in _LED_TYPES:
            raise OptionError(
                f"promotion_rule=searcher contradicts type={self.effective_type}, which goes by rank only. "
                "Set promotion_rule=rank, or type=promotion or stopping."
            )
        if self.searcher.model not in (None, "gp_rungs") or self.searcher.approximation != "none":
            raise OptionError(
                "promotion_rule=searcher has a model of its own, gp_rungs, without approximation. "
                "Leave searcher.model and searcher.approximation out, or set promotion_rule=rank."
            )
        if (self.brackets or 1) > 1:
            raise OptionError(
                f"brackets={self.brackets} would do nothing: with promotion_rule=searcher the first rung judges every "
                "trial first. Leave brackets out, or set promotion_rule=rank."
            )

    def limits(self) -> dict[str, Any]:
        """The options that may change when the study is continued, as JSON data; ``searcher.device`` is ``device``."""
        limits = {name: value for name, value in self.to_json().items() if name in LIMITS}
        return limits | {"device": self.searcher.device}

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
        if "device" in limits:  # of the machine, which may be another one now
            values["searcher"] = dataclasses.replace(self.searcher, device=limits["device"])
        return dataclasses.replace(self, **values)

    def to_json(self) -> dict[str, Any]:
        """JSON data; :meth:`from_json` reads it."""
        data: dict[str, Any] = portable(dataclasses.asdict(self))
        return data


def _is_led(given: Mapping[str, Any]) -> bool:
    """Does the searcher lead, unless the user says or needs something else?"""
    if given.get("promotion_rule") is not None:
        return bool(given["promotion_rule"] == "searcher")
    search = given.get("searcher")
    model = search.get("model") if isinstance(search, Mapping) else getattr(search, "model", None)
    return given.get("type") in (None, *_LED_TYPES) and model in (None, "gp_rungs")


def max_t_among(constants: Mapping[str, Any], algorithm: str, named: str | None = None) -> int | None:
    """The resource of a full training, if the constants of a space say it.

    Args:
        constants: of the space.
        algorithm: its name; one without rungs need not know.
        named: the constant it is; None: the first of :data:`RESOURCE_CONSTANTS` that is a positive integer.

    Raises:
        OptionError: if the constant that is named is none, or no positive integer.
    """
    if named is None and (algorithm not in ALGORITHMS or ALGORITHMS[algorithm].scheduler == "fifo"):
        return None
    for name in RESOURCE_CONSTANTS if named is None else (named,):
        value = constants.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
    if named is not None:
        raise OptionError(
            f"max_resource_attr={named}, but {named} is no constant of the space that is a positive integer. "
            "Add it to the space, or set max_t."
        )
    return None


def preset_brackets(algorithm: Algorithm, ladder: Sequence[Any]) -> int | None:
    """The brackets the algorithm presets, but for a second one where it would begin at ``max_t``.

    Args:
        ladder: the arguments of :func:`rung_levels`. None while it is not known how far a trial is trained.
    """
    # What is wrong with these options is said later, when all are checked.
    with contextlib.suppress(OptionError, TypeError):
        if ladder[0] is not None and len(rung_levels(*ladder)) >= 2:
            return algorithm.presets.get("brackets")
    return None


def _presets(algorithm: Algorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the algorithm presets."""
    return {**algorithm.presets, "brackets": preset_brackets(algorithm, [given.get(name) for name in LADDER])}


def _confirm_options(given: Any) -> ConfirmOptions:
    if isinstance(given, ConfirmOptions):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"confirm={given!r} is no mapping. Set confirm.top and confirm.seeds.")
    return ConfirmOptions(**known(ConfirmOptions, given or {}, "confirm."))
