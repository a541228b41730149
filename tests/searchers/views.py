"""A view of a study, written down by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_hpo.core.searcher import Observation, Pending, Slot, Suggestion, SuggestRequest
from lightning_hpo.core.space import SearchSpace


@dataclass
class View:
    """FIFO unless ``rung_levels`` are given."""

    space: SearchSpace
    seed: int = 0
    mode: str = "min"
    max_t: int = 9
    rung_levels: tuple[int, ...] = ()
    default_bracket_weights: tuple[float, ...] = (1.0,)
    observations: list[Observation] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    infeasible: dict[int, int] = field(default_factory=dict)
    configs: dict[int, dict[str, Any]] = field(default_factory=dict)
    initial_configs: list[dict[str, Any]] = field(default_factory=list)
    state: Mapping[str, Any] | None = None
    curves: dict[int, dict[int, float]] = field(default_factory=dict)
    confirmations: dict[int, list[int]] = field(default_factory=dict)
    paused: dict[int, int] = field(default_factory=dict)

    @property
    def taken(self) -> set[str]:
        return {self.space.match_key(config) for config in self.configs.values()}

    @property
    def taken_by_failed(self) -> set[str]:
        return {self.space.match_key(self.configs[i]) for i in self.failed}

    def curve(self, trial_id: int) -> dict[int, float]:
        return self.curves.get(trial_id, {})

    # -- telling the story of a study

    def add(self, config: dict[str, Any], *curve: float, failed: bool = False, pending: int | None = None) -> int:
        """A trial with this configuration, the values it reported after 1, 2, .. units, and what it runs towards.

        It is infeasible with a last value that is not finite, and if it failed without any.
        """
        trial_id = len(self.configs)
        self.configs[trial_id] = config
        if curve and not math.isfinite(curve[-1]):
            self.infeasible[trial_id] = len(curve)
            curve = curve[:-1]
        self.curves[trial_id] = dict(enumerate(curve, 1))
        if self.rung_levels:
            for resource in (*self.rung_levels, self.max_t):
                if resource <= len(curve):
                    self.observations.append(Observation(trial_id, resource, curve[resource - 1]))
        elif curve:
            self.observations.append(Observation(trial_id, len(curve), curve[-1]))
        if pending is not None:
            self.pending.append(Pending(trial_id, pending))
        if failed:
            self.failed.add(trial_id)
            if not curve:
                self.infeasible[trial_id] = 1
        return trial_id

    def confirm(self, trial_id: int, *curves: Sequence[float]) -> None:
        """The trial's configuration was trained again, with these curves."""
        for curve in curves:
            again = 1000 + len(self.curves)
            self.curves[again] = dict(enumerate(curve, 1))
            self.confirmations.setdefault(trial_id, []).append(again)

    def request(self, milestone: int | None = None, bracket: int = 0, slot: Slot | None = None) -> SuggestRequest:
        first = milestone or (self.rung_levels[0] if self.rung_levels else self.max_t)
        return SuggestRequest(len(self.configs), bracket, first, slot)

    def accept(self, suggestion: Suggestion, *curve: float, **more: Any) -> int:
        """Start the suggested trial and keep the searcher's state."""
        if suggestion.state is not None:
            self.state = suggestion.state
        return self.add(suggestion.config, *curve, **more)
