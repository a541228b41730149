"""A study on disk: its header, how it is read, and whether it may go on with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.events import Event, StudyContinued
from lightning_hpo.core.options import LIMITS, StudyOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import HpoError, StudyCorrupt, StudyMismatch
from lightning_hpo.runtime.journal import Journal


def study_header(space: SearchSpace, options: StudyOptions) -> dict[str, Any]:
    """What a journal keeps besides events."""
    return {"space": space.to_json(), "options": options.to_json()}


def state_from_header(header: Mapping[str, Any]) -> StudyState:
    """The state before the first event.

    Raises:
        StudyCorrupt: if the header is none of a study.
        OptionError, SpaceError: if this version does not know what it says.
    """
    try:
        return StudyState(SearchSpace.from_json(header["space"]), StudyOptions.from_json(header["options"]))
    except HpoError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise StudyCorrupt(
            f"This is not the header of a study: {str(dict(header))[:200]} ({problem!r}). "
            "Open the study with the version that wrote it, or restore its backup."
        ) from problem


def continued_state(journal: Journal, options: StudyOptions | None = None) -> tuple[StudyState, list[Event]]:
    """The study of a journal, ready to go on: attempts that ran when it was left are gone.

    Args:
        journal: gets a :class:`StudyContinued` if it has events already.
        options: whose limits are in force from now on; None: those of the last time.

    Returns:
        The state, and the events that led to it.

    Raises:
        StudyCorrupt: if the journal cannot be read.
    """
    state = state_from_header(journal.header)
    events = list(journal.events())
    for event in events:
        state.handle(event)
    limits = None if options is None or options.limits() == state.options.limits() else options.limits()
    if events or limits is not None:
        continued = StudyContinued(state.progress.time, limits)
        state.handle(continued)
        journal.append([continued])
        events.append(continued)
    return state, events


def check_same_study(header: Mapping[str, Any], space: SearchSpace, options: StudyOptions) -> None:
    """Refuse to continue a study with settings that would change what it means.

    Raises:
        StudyMismatch: naming every difference.
    """
    # Read and written again, so that options which are newer than the study are there, and off.
    old, new = _flat(StudyOptions.from_json(header["options"])), _flat(options)
    changed = [name for name, value in sorted(old.items()) if value != new[name]]
    changes = [f"{name}: {old[name]!r} -> {new[name]!r}" for name in changed]
    can_be_preset = _preset_by(old["algorithm"]) | _preset_by(new["algorithm"])
    hint = ""
    if not can_be_preset.isdisjoint(changed):
        hint = "What you did not set is a preset of the algorithm in this version. "
        if "promotion_rule" in changed and "algorithm" not in changed:
            hint += f"Those of the study are had by promotion_rule={old['promotion_rule']}. "
    changes += _changes_of_space(header["space"], space.to_json())
    if changes:
        raise StudyMismatch(
            "The study was created with other settings:\n  " + "\n  ".join(changes) + "\n"
            f"{hint}Use the settings on the left, or start a new study in another folder."
        )


def _changes_of_space(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """What differs between two spaces, entry by entry."""
    old, new = ({entry["name"]: _described(entry) for entry in space} for space in (before, now))
    names = list(dict.fromkeys((*old, *new)))
    changes = [
        f"space: {name}: {old.get(name, 'was not there')} -> {new.get(name, 'is not there')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if not changes and before != now:
        changes = [f"space: order: {', '.join(old)} -> {', '.join(new)}"]
    return changes


def _described(entry: Mapping[str, Any]) -> str:
    return repr(entry["constant"]) if "constant" in entry else repr(entry["domain"])


def _preset_by(name: str) -> set[str]:
    """Names, as :func:`_flat` gives them, of the options that an algorithm presets."""
    algorithm = ALGORITHMS[name]
    variants = [algorithm] if algorithm.by_rank is None else [algorithm, algorithm.by_rank]
    return {n for a in variants for n in (*a.presets, *(f"searcher.{option}" for option in a.search))}


def _flat(options: StudyOptions) -> dict[str, Any]:
    """Values by name, ``searcher.model`` and the like; without limits."""
    data = {name: value for name, value in options.to_json().items() if name not in LIMITS}
    searcher = {name: value for name, value in data.pop("searcher").items() if name != "device"}
    return data | {f"searcher.{name}": value for name, value in searcher.items()}
