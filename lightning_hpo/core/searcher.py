"""What a searcher gets and gives.

A searcher is a pure function: ``suggest(view, request)`` depends on the view, the request and the seed
alone. What it wants to remember (fitted parameters, counters) goes into :attr:`Suggestion.state` and
comes back as :attr:`SearchView.state`; it is stored with the study, so a searcher that was killed and
started anew proposes what the old one would have proposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lightning_hpo.core.events import Limit, Suggested
from lightning_hpo.core.trial import Config

if TYPE_CHECKING:  # the options reach this module, and Hydra reads them in every program: no numpy then
    from lightning_hpo.core.space import SearchSpace


class Observation(NamedTuple):
    """A value the searcher may learn from.

    ``value`` is minimised (the metric, negated for ``mode="max"``), finite, and at most 1e100 in size.
    """

    trial_id: int
    resource: int
    value: float


class Pending(NamedTuple):
    """A value that is being computed: the trial runs towards ``resource``."""

    trial_id: int
    resource: int


@dataclass(frozen=True, slots=True)
class SuggestRequest:
    """For which trial a configuration is wanted."""

    trial_id: int
    bracket: int = 0
    milestone: int = 1
    """First level at which the new trial will be judged."""
    slot: Slot | None = None
    wants_limits: bool = False
    """Trials are stopped at rungs where the searcher says so, ahead of their reports."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a rung of synchronous Hyperband; differential evolution needs it to find parents."""

    level: int
    target: int | None
    """Trial that holds the same slot of the previous bracket, if any."""
    parents: tuple[int, ...]
    """Trials from which mutation draws its three parents; may be too few."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A searcher's answer."""

    config: Config
    """Values of the searched hyperparameters, no constants."""
    reason: str
    """One line for people: ``EI 0.031 at rung 9, from 41 observations``."""
    origin: str = "random"
    """``random``, ``grid``, ``model``, ``evolution``."""
    bracket_weights: tuple[float, ...] | None = None
    state: dict[str, Any] | None = field(default=None, compare=False)
    resumes: int | None = None
    """A paused trial that is worth more than a new one; ``config`` is its configuration."""
    milestone: int | None = None
    """Rung or ``max_t`` at which the trial is to be judged next; None: the first one of its bracket."""
    limits: tuple[Limit, ...] | None = None
    """Of the new trial and those that run, if the request wants them."""


def suggested(time: float, trial_id: int, suggestion: Suggestion | None) -> Suggested:
    """A searcher's answer as an event.

    Args:
        time: seconds since the study began.
        trial_id: for which it was asked.
        suggestion: None: nothing is left to propose.
    """
    if suggestion is None:
        return Suggested(time, trial_id, None, "none", "nothing is left to propose")
    return Suggested(
        time,
        trial_id,
        suggestion.config,
        suggestion.origin,
        suggestion.reason,
        suggestion.bracket_weights,
        suggestion.state,
        suggestion.resumes,
        suggestion.milestone,
        suggestion.limits,
    )


class SearchView(Protocol):
    """Read-only view of a study, as a searcher sees it. Observations follow ``searcher_data``."""

    @property
    def space(self) -> SearchSpace: ...

    @property
    def seed(self) -> int: ...

    @property
    def mode(self) -> str:
        """``min`` or ``max``: the sense of the user's metric. Values of the view are minimised in any case."""

    @property
    def max_t(self) -> int: ...

    @property
    def rung_levels(self) -> tuple[int, ...]:
        """Levels below ``max_t``, increasing; empty for FIFO."""

    @property
    def default_bracket_weights(self) -> tuple[float, ...]: ...

    @property
    def observations(self) -> Sequence[Observation]:
        """In the order of arrival. FIFO: one per completed trial, its last report."""

    @property
    def pending(self) -> Sequence[Pending]:
        """In the order of registration."""

    @property
    def paused(self) -> Mapping[int, int]:
        """Trials that may go on -> the resource at which they wait, in the order of their start."""

    @property
    def failed(self) -> Set[int]: ...

    @property
    def infeasible(self) -> Mapping[int, int]:
        """Trials that came to nothing -> the resource at which that showed; no confirmations.

        They ended with a report that is not finite, or with an error before the first one (resource 1). What failed
        later could be trained, and where an attempt was lost with its process or machine, that says nothing of the
        configuration.
        """

    @property
    def configs(self) -> Mapping[int, Config]:
        """Searched values of every trial but confirmations, by trial id."""

    @property
    def initial_configs(self) -> Sequence[Config]:
        """``points_to_evaluate``, completed; they are proposed before a searcher is asked."""

    @property
    def taken(self) -> Set[str]:
        """Match keys (``SearchSpace.match_key``) of every configuration of a trial."""

    @property
    def taken_by_failed(self) -> Set[str]:
        """Match keys of the configurations of failed trials."""

    @property
    def state(self) -> Mapping[str, Any] | None:
        """What this searcher put into its last suggestion's ``state``."""

    @property
    def confirmations(self) -> Mapping[int, Sequence[int]]:
        """Trial -> complete trials that trained its configuration again; they are in no other answer of the view."""

    def curve(self, trial_id: int) -> Mapping[int, float]:
        """Every finite report of the trial: resource -> value to be minimised, at most 1e100 in size."""


class Searcher(Protocol):
    """Proposes configurations."""

    def suggest(self, view: SearchView, request: SuggestRequest) -> Suggestion | None:
        """The configuration for a new trial; None if nothing is left to propose.

        Called after the study's initial configurations are used up. Must not change ``view``.
        """
