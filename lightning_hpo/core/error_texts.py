"""When the errors of two trials are the same: what in their texts belongs to one trial alone."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"\d+")


def without_names(error: str, folder: str | None) -> str:
    """An error without addresses of objects and the name of the trial's folder.

    Args:
        folder: as it is named in paths; None: it has none yet.
    """
    if folder is not None:
        error = re.sub(rf"(?<=/){re.escape(folder)}(?![^/'\"\s:])", "*", error)
    return _ADDRESS.sub("*", error)


def without_numbers(message: str) -> str:
    """What messages of one kind have in common: they differ in figures, process ids and addresses."""
    return _NUMBER.sub("#", _ADDRESS.sub("#", message))
