"""What every scheduler does: it says which trial goes on, and how far.

A scheduler knows nothing of workers, time or configurations. It sees values that are minimised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lightning_hpo.core.events import Limit, Verdict
from lightning_hpo.core.searcher import Slot


@dataclass(frozen=True, slots=True)
class Ruling:
    """The scheduler's answer to a report."""

    verdict: Verdict
    reason: str
    milestone: int | None = None
    """Next milestone if the trial continues past one; None if the report was not at a milestone."""
    level: int | None = None
    """Milestone the report counted for, if any."""
    completed: bool = False
    """The trial has reached ``max_t``."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial goes on."""

    trial_id: int
    from_resource: int
    milestone: int
    reason: str


class Scheduler(ABC):
    """Decides on continue, pause, stop and promotion.

    Attributes:
        levels: rung levels below ``max_t``, increasing; empty if trials are never compared.
        max_t: resource at which a trial is complete; None if trials end by themselves.
        bracket_weights: default probability of each bracket.
    """

    levels: tuple[int, ...] = ()
    max_t: int | None = None
    bracket_weights: tuple[float, ...] = (1.0,)
    learns_at_completion = False
    """True: the searcher learns from a trial's last report only (FIFO)."""

    is_searcher_led = False
    """True: the searcher also decides which trial goes on: which paused one, and at which rung it is judged next, or
    with which value past which rung."""
    wants_limits = False
    """True: the searcher says with which values trials go on past rungs (``is_searcher_led``)."""

    @abstractmethod
    def start(self, trial_id: int, bracket: int) -> int:
        """A new trial starts in the bracket; returns its first milestone."""

    def aim(self, trial_id: int, milestone: int) -> int:
        """The searcher wants the new trial to be judged there first (``is_searcher_led``); returns where it will be."""
        raise AssertionError("this scheduler decides on milestones itself")

    def first_milestone(self, bracket: int) -> int:
        """The milestone :meth:`start` would return."""
        return self._require_max_t()

    @abstractmethod
    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        """Judge a report of a running trial. ``value`` is minimised and may be non-finite."""

    def repeat(self, trial_id: int, resource: int, value: float) -> None:  # noqa: B027 - most schedulers have nothing to do
        """A resumed trial reported again what is known already."""

    def promote(self, bracket: int, is_paused: Callable[[int], bool]) -> Promotion | None:
        """The trial to resume, if there is one, marked as promoted; ``is_paused`` tells which trials can be resumed."""
        return None

    def last_resort(self, is_paused: Callable[[int], bool]) -> Promotion | None:
        """The trial to resume where the study would end without one that was trained to ``max_t``."""
        return None

    def resume(self, trial_id: int, milestone: int) -> Promotion | None:
        """The searcher wants this paused trial to go on; None if it cannot (``is_searcher_led``)."""
        raise AssertionError("this scheduler decides itself who goes on")

    def asked(self) -> None:  # noqa: B027 - most schedulers do not care
        """The searcher was asked for a suggestion; it has not answered yet."""

    def follow(self, origin: str, limits: Iterable[Limit]) -> None:  # noqa: B027 - most schedulers do not care
        """Where the last suggestion came from (``model``, ``random``, ...), and what it says of running trials."""

    def may_start(self) -> bool:
        """May a new trial be started now?"""
        return True

    def slot(self) -> Slot | None:
        """The place a new trial would take (synchronous Hyperband)."""
        return None

    def close(self) -> None:  # noqa: B027 - most schedulers have nothing to do
        """No new trial will be started any more: do not wait for one."""

    def reopen(self) -> None:  # noqa: B027 - most schedulers have nothing to do
        """New trials may be started again after :meth:`close`."""

    def fail(self, trial_id: int) -> None:  # noqa: B027 - most schedulers have nothing to do
        """The trial failed for good; its earlier values stay."""

    def may_promote(self, trial_id: int) -> bool:
        """Could this paused trial ever be resumed? If not, its checkpoint is not needed."""
        return False

    def promise(self, trial_id: int) -> float:
        """How close the paused trial is to promotion: rank / entries of its rung, in (0, 1]; small is good."""
        return 1.0

    def held_back(self, trial_id: int) -> str | None:
        """Why a paused trial that is among the best of its rung is not resumed, for people; None: it is not."""
        return None

    def _require_max_t(self) -> int:
        if self.max_t is None:
            raise AssertionError("this scheduler was built without max_t")
        return self.max_t
