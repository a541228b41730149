"""Synchronous Hyperband, and the brackets of DEHB.

A bracket is a stack of rungs of fixed size. A rung is filled completely before the best of it go on to
the next one; free workers meanwhile fill later brackets, so they never wait.

Source: Li et al., arXiv:1603.06560 (Hyperband); Awad et al., arXiv:2105.09821 (DEHB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lightning_hpo.core.events import Verdict
from lightning_hpo.core.schedulers.base import Promotion, Ruling, Scheduler
from lightning_hpo.core.searcher import Slot
from lightning_hpo.errors import OptionError


@dataclass(slots=True)
class _Place:
    """A place in a rung: empty, occupied by a trial that trains, or filled with its value."""

    trial_id: int | None = None
    """Trial that is to fill the place; known before it trains if it was promoted."""
    is_training: bool = False
    value: float | None = None
    has_ended: bool = False
    """Its trial ended by itself after it had filled the place: the value counts, but there is nothing to resume."""

    @property
    def is_free(self) -> bool:
        return not self.is_training and self.value is None

    @property
    def can_go_on(self) -> bool:
        is_filled = self.trial_id is not None and self.value is not None and not math.isinf(self.value)
        return is_filled and not self.has_ended


@dataclass(slots=True)
class _Rung:
    level: int
    places: list[_Place]
    promotes: bool
    """Are its places filled by resuming the best of the rung below (or by new trials)?"""

    @property
    def is_filled(self) -> bool:
        return all(place.value is not None for place in self.places)

    def ranked(self) -> list[_Place]:
        """Best first, those that cannot go on last; ties to the earlier place."""
        return sorted(self.places, key=lambda p: p.value if p.value is not None and p.can_go_on else math.inf)


class _Bracket:
    def __init__(self, rungs: list[_Rung]) -> None:
        self.rungs = rungs
        self.current = 0

    @property
    def is_finished(self) -> bool:
        return self.current == len(self.rungs)

    @property
    def rung(self) -> _Rung:
        return self.rungs[self.current]


def hyperband_brackets(
    max_t: int, grace_period: int = 1, reduction_factor: float = 3, brackets: int | None = None
) -> list[list[tuple[int, int]]]:
    """Rungs ``(size, level)`` of every bracket of synchronous Hyperband.

    Bracket ``s`` of ``smax + 1``, rung ``k``: level ``round(r_min eta^(k+s))`` (the last one ``max_t``), size
    ``ceil((smax+1)/(smax-s+1) eta^(smax-s-k))``, with ``smax`` the smallest integer with ``r_min eta^smax >= max_t``.
    A fractional ``eta`` may round the level below the last one up to ``max_t``; that rung is left out.

    >>> hyperband_brackets(81)[3]
    [(8, 27), (3, 81)]
    >>> hyperband_brackets(16, reduction_factor=2.5)[2]
    [(11, 6), (2, 16)]
    """
    if max_t < grace_period or grace_period < 1 or reduction_factor < 2:
        raise OptionError(
            f"max_t={max_t}, grace_period={grace_period}, reduction_factor={reduction_factor} give no brackets. "
            "Choose 1 <= grace_period <= max_t and reduction_factor >= 2."
        )
    largest = 0
    while grace_period * reduction_factor**largest < max_t:
        largest += 1
    levels = [round(grace_period * reduction_factor**k) for k in range(largest)]
    count = largest + 1 if brackets is None else min(brackets, largest + 1)
    found = []
    for s in range(count):
        most = (largest + 1) / (largest - s + 1)
        sizes = [math.ceil(most * reduction_factor ** (largest - k) - 1e-9) for k in range(s, largest + 1)]
        inner = [rung for rung in zip(sizes[:-1], levels[s:], strict=True) if rung[1] < max_t]
        found.append([*inner, (sizes[-1], max_t)])
    return found


class SyncHyperband(Scheduler):
    """Synchronous Hyperband with pause and resume; the brackets are cycled for ever.

    Args:
        max_t, grace_period, reduction_factor, brackets: see :func:`hyperband_brackets`.
    """

    def __init__(
        self, max_t: int, grace_period: int = 1, reduction_factor: float = 3, brackets: int | None = None
    ) -> None:
        self.max_t: int = max_t
        self._shapes = hyperband_brackets(max_t, grace_period, reduction_factor, brackets)
        self.levels = tuple(sorted({level for shape in self._shapes for _, level in shape if level < max_t}))
        self._opened = 0
        self._open: list[_Bracket] = []
        self._places: dict[int, tuple[_Bracket, int, _Place]] = {}
        self._is_closed = False

    # -- places

    def _new_bracket(self) -> _Bracket:
        """The bracket that would be opened next."""
        shape = self._shapes[self._opened % len(self._shapes)]
        return _Bracket(
            [_Rung(level, [_Place() for _ in range(size)], promotes=k > 0) for k, (size, level) in enumerate(shape)]
        )

    def _free_places(self) -> Iterator[tuple[_Bracket, _Place]]:
        """Free places of open brackets, in the order in which they are to be filled."""
        for bracket in self._open:
            for place in bracket.rung.places:
                if place.is_free:
                    yield bracket, place

    def _next(self, is_paused: Callable[[int], bool]) -> tuple[_Bracket, _Place] | None:
        """The place to fill now. A promoted trial whose checkpoint is not written yet is passed over."""
        for bracket, place in self._free_places():
            if place.trial_id is None:
                if not self._is_closed:
                    return bracket, place
            elif is_paused(place.trial_id):
                return bracket, place
        return None

    def _place_for_new(self) -> tuple[_Bracket, _Place] | None:
        """The place a new trial would take; it may be in a bracket that is not open yet."""
        if self._is_closed:
            return None
        for bracket, place in self._free_places():
            if place.trial_id is None:
                return bracket, place
        bracket = self._new_bracket()
        return bracket, bracket.rung.places[0]

    # -- scheduler

    def promote(self, bracket: int, is_paused: Callable[[int], bool]) -> Promotion | None:
        found = self._next(is_paused)
        if found is None or found[1].trial_id is None:
            return None
        home, place = found
        trial_id = place.trial_id
        assert trial_id is not None
        below = home.rungs[home.current - 1]
        place.is_training = True
        self._places[trial_id] = (home, home.current, place)
        return Promotion(
            trial_id, below.level, home.rung.level, f"among the best {len(home.rung.places)} of rung {below.level}"
        )

    def may_start(self) -> bool:
        return self._place_for_new() is not None

    def first_milestone(self, bracket: int) -> int:
        found = self._place_for_new()
        return self.max_t if found is None else found[0].rung.level

    def start(self, trial_id: int, bracket: int) -> int:
        found = self._place_for_new()
        if found is None:  # attached from outside: it belongs to no bracket and trains to the end
            return self.max_t
        home, place = found
        if not any(home is known for known in self._open):
            self._open.append(home)
            self._opened += 1
        place.trial_id, place.is_training = trial_id, True
        self._places[trial_id] = (home, home.current, place)
        return home.rung.level

    def report(self, trial_id: int, resource: int, value: float, cost: float | None = None) -> Ruling:
        located = self._places.get(trial_id)
        if located is None:
            if resource >= self.max_t:
                return Ruling(Verdict.STOP, f"trained to max_t={self.max_t}", level=self.max_t, completed=True)
            return Ruling(Verdict.CONTINUE, "in no bracket: trains to the end")
        home, index, place = located
        level = home.rungs[index].level
        if resource < level:
            return Ruling(Verdict.CONTINUE, f"not at a rung; next at {level}")
        self._fill(home, place, value)
        places = home.rungs[index].places
        place_in_rung = f"rung {level}, {sum(p.value is not None for p in places)} of {len(places)} filled"
        if resource >= self.max_t:
            return Ruling(Verdict.STOP, f"trained to max_t={self.max_t}", level=self.max_t, completed=True)
        if not math.isfinite(value):
            return Ruling(Verdict.STOP, f"the metric is {value} at rung {level}", level=level)
        return Ruling(self._verdict_at_rung(home, index), place_in_rung, level=level)

    def _verdict_at_rung(self, bracket: _Bracket, index: int) -> Verdict:
        return Verdict.PAUSE

    def _fill(self, bracket: _Bracket, place: _Place, value: float) -> None:
        place.value = value if math.isfinite(value) else math.inf
        place.is_training = False
        while not bracket.is_finished and bracket.rung.is_filled:
            filled = bracket.rung
            self._settle(filled)
            bracket.current += 1
            if not bracket.is_finished:
                self._prepare(bracket, filled)
        self._open = [b for b in self._open if not b.is_finished]

    def _settle(self, rung: _Rung) -> None:
        """A rung has just been filled."""

    def _prepare(self, bracket: _Bracket, filled: _Rung) -> None:
        """Hand the places of the bracket's next rung to the best of the rung just filled that can go on."""
        for place, winner in zip(bracket.rung.places, filled.ranked(), strict=False):
            place.trial_id = winner.trial_id
            if not winner.can_go_on:
                place.value = math.inf

    def fail(self, trial_id: int) -> None:
        """The trial failed, or ended by itself.

        Either way it fills no rung it has not reached. What it reported at a rung counts there for good, but a place
        in the next one is for a trial that can be trained on.
        """
        located = self._places.get(trial_id)
        if located is None:
            return
        home, _, place = located
        if place.value is None:
            self._fill(home, place, math.inf)
        else:
            place.has_ended = True
            self._pass_on(home, trial_id)

    def _pass_on(self, bracket: _Bracket, trial_id: int) -> None:
        """If the trial was promoted already, the best one that was not takes its place in the rung.

        So that the same trials go on, whether its process ended before the rung below was filled or after.
        """
        if bracket.is_finished:
            return
        places = bracket.rung.places
        place = next((p for p in places if p.trial_id == trial_id and p.is_free), None)
        if place is None:
            return
        held = {p.trial_id for p in places}
        below = bracket.rungs[bracket.current - 1].ranked()
        heir = next((p for p in below if p.can_go_on and p.trial_id not in held), None)
        if heir is None:
            self._fill(bracket, place, math.inf)
        else:
            place.trial_id = heir.trial_id

    def close(self) -> None:
        self._is_closed = True
        for bracket in list(self._open):
            if not bracket.is_finished and not bracket.rung.promotes:
                for place in bracket.rung.places:
                    if place.is_free and place.trial_id is None:
                        self._fill(bracket, place, math.inf)

    def reopen(self) -> None:
        self._is_closed = False

    def may_promote(self, trial_id: int) -> bool:
        located = self._places.get(trial_id)
        if located is None:
            return False
        home, index, _ = located
        if home.current == index:
            return True  # its rung is still being filled
        return not home.is_finished and any(
            p.trial_id == trial_id and p.value is None for p in home.rungs[home.current].places
        )

    def promise(self, trial_id: int) -> float:
        located = self._places.get(trial_id)
        if located is None or located[2].value is None:
            return 1.0
        values = [p.value for p in located[0].rungs[located[1]].places if p.value is not None]
        return sum(v <= located[2].value for v in values) / len(values)


class DifferentialEvolutionHyperband(SyncHyperband):
    """The brackets of DEHB: the first works as synchronous Hyperband, later ones evolve its populations.

    Bracket ``s`` has the rungs of bracket 0 without the first ``s``, same sizes per level. In later brackets every
    place is filled by a new trial, made from parents (:meth:`slot`); the trial that held the place keeps it unless
    the new one is strictly better.
    """

    def __init__(
        self, max_t: int, grace_period: int = 1, reduction_factor: float = 3, brackets: int | None = None
    ) -> None:
        super().__init__(max_t, grace_period, reduction_factor, brackets)
        first = self._shapes[0]
        # Bracket 0 has one rung less than there are brackets where a level was rounded up to max_t.
        self._shapes = [first[s:] for s in range(min(len(self._shapes), len(first)))]
        self._populations: dict[int, list[tuple[int, float]]] = {}
        """Level -> ``(trial, value)`` of the last bracket that filled the level, by place."""

    def _new_bracket(self) -> _Bracket:
        is_first = self._opened == 0
        bracket = super()._new_bracket()
        if not is_first:
            for rung in bracket.rungs:
                rung.promotes = False
        return bracket

    def slot(self) -> Slot | None:
        found = self._place_for_new()
        if found is None or found[0].rungs[-1].promotes:
            return None
        home, place = found
        level = home.rung.level
        population = self._populations.get(level, [])
        index = next(i for i, p in enumerate(home.rung.places) if p is place)
        target = population[index][0] if index < len(population) else None
        if home.current == 0:
            parents = [trial for trial, _ in population]
        else:
            below = home.rungs[home.current - 1]
            ranked = sorted(self._populations.get(below.level, []), key=lambda entry: entry[1])
            parents = [trial for trial, _ in ranked[: len(home.rung.places)]]
        return Slot(level, target, tuple(parents))

    def _verdict_at_rung(self, bracket: _Bracket, index: int) -> Verdict:
        promotes_next = index + 1 < len(bracket.rungs) and bracket.rungs[index + 1].promotes
        return Verdict.PAUSE if promotes_next else Verdict.STOP

    def _settle(self, rung: _Rung) -> None:
        before = self._populations.get(rung.level, [])
        population = []
        for index, place in enumerate(rung.places):
            value = math.inf if place.value is None else place.value
            # Not the target of the time when the trial started: a bracket beside this one may have replaced it since.
            if index < len(before) and before[index][1] <= value:
                population.append(before[index])
            elif place.trial_id is not None:
                population.append((place.trial_id, value))
        self._populations[rung.level] = population

    def _prepare(self, bracket: _Bracket, filled: _Rung) -> None:
        if bracket.rung.promotes:
            super()._prepare(bracket, filled)
