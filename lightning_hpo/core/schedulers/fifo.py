"""First in, first out: every trial is trained to the end."""

from __future__ import annotations

from lightning_hpo.core.events import Verdict
from lightning_hpo.core.schedulers.base import Ruling, Scheduler

_WITHOUT_END = 2**31 - 1


class Fifo(Scheduler):
    """Never stops or pauses a trial. The searcher learns from each trial's last report, when it is complete."""

    learns_at_completion = True

    def __init__(self, max_t: int | None = None) -> None:
        self.max_t = max_t

    def first_milestone(self, bracket: int) -> int:
        return _WITHOUT_END if self.max_t is None else self.max_t

    def start(self, trial_id: int, bracket: int) -> int:
        return self.first_milestone(bracket)

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        if self.max_t is not None and resource >= self.max_t:
            return Ruling(Verdict.STOP, f"trained to max_t={self.max_t}", level=self.max_t, completed=True)
        return Ruling(Verdict.CONTINUE, "every trial is trained to the end")
