"""What of a script's own settings has changed since its study began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Changed: TypeAlias = Mapping[str, tuple[str, str]]
"""Name -> what it was and what it is, for people."""

_ABSENT = object()
_SHOWN = 5
"""So many changed settings are named."""
_LONGEST = 60
"""Characters of a value that are shown."""


def changed_settings(now: Mapping[str, Any], header: Mapping[str, Any]) -> Changed:
    """What was set otherwise when the study began, and what it was and is: another data set, or only more workers."""
    before = header.get("settings", now)
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
    return {name: (_shown(before, name), _shown(now, name)) for name in names}


def note_on_settings(changed: Changed) -> str | None:
    if not changed:
        return None
    shown = _first([f"{name}: {before} -> {now}" for name, (before, now) in changed.items()], "; ")
    return (
        f"The script's configuration is not that with which the study began: {shown}. "
        "If that changes what is trained, start a new study in another folder: trials are compared with each other."
    )


def remark_on_settings(changed: Changed) -> str:
    """Behind a command that trains a trial again: what may have been set otherwise for it; a shell passes over it."""
    if not changed:
        return ""
    shown = _first([f"{name}: {before}" for name, (before, _) in changed.items()], ", ")
    return f"  # with the settings of now; when the study began: {shown}"


def _first(texts: list[str], separator: str) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{separator.join(texts[:_SHOWN])}{more}"


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "absent"
    text = repr(settings[name])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
