"""Named places at which a test can make the program fail: every instant can be hit by name, not by luck.

A failpoint is a call that does nothing, ``failpoint("journal.before_commit")``. The environment variable
``LIGHTNING_HPO_FAILPOINTS`` makes some of them act::

    LIGHTNING_HPO_FAILPOINTS="journal.before_commit=exit@3,checkpoint.written=sleep:2"

that is ``name=action[:argument][@n]``, separated by commas; ``*`` stands for every name that is not listed. Actions:

=========  =============================================================================================
``exit``   the process ends at once, without a word, as after SIGKILL; argument: exit code, default 137
``raise``  raises ``OSError``; argument: name of the ``errno``, default ``EIO``
``sleep``  sleeps; argument: seconds, default 1
``pass``   nothing, but the hit is counted
=========  =============================================================================================

With ``@n`` only the n-th hit acts, without it every hit. Hits are counted in each process for itself, or in all
processes together if ``LIGHTNING_HPO_FAILPOINTS_FOLDER`` names a folder: the hits of a name are the bytes of the file
``<folder>/<name>``, so a failpoint acts once although trials are started again.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_hpo.errors import OptionError, did_you_mean

VARIABLE = "LIGHTNING_HPO_FAILPOINTS"
FOLDER_VARIABLE = "LIGHTNING_HPO_FAILPOINTS_FOLDER"
KILLED = 137
"""Exit code of a process that a shell saw die of SIGKILL."""

NAMES: Mapping[str, str] = {
    "journal.before_create": "a new study's file is complete under its temporary name",
    "journal.created": "the new study's file has its name",
    "journal.before_commit": "the turn's events are written, the transaction is open",
    "journal.committed": "the turn's events are on disk, nobody has been told",
    "journal.before_backup": "the copy of the journal is complete under its temporary name",
    "coordinator.turn": "the launcher's loop begins a turn",
    "coordinator.before_effects": "a turn is committed; answers, starts and deletions are due",
    "coordinator.before_reply": "a trial is about to be answered",
    "coordinator.before_start": "a trial's process is about to be asked for",
    "coordinator.started": "a trial's process was asked for",
    "coordinator.before_suggestion": "the searcher is about to be asked",
    "checkpoint.opened": "the temporary file exists and is empty",
    "checkpoint.written": "the temporary file is written, but not flushed to disk",
    "checkpoint.before_rename": "the temporary file is whole and on disk",
    "checkpoint.renamed": "the checkpoint has its name, nobody knows it",
    "checkpoint.before_remove": "a checkpoint that the journal has given up is about to be deleted",
    "checkpoint.removed": "it is deleted",
    "checkpoint.before_sweep": "a continued study is about to delete what a crash left behind",
    "channel.before_send": "a trial is about to say something",
    "channel.sent": "a trial has said something",
    "channel.answered": "a trial has heard the answer",
    "callback.before_report": "an epoch has ended, its metric is about to be reported",
    "callback.told_to_pause": "the trial knows that it is to pause",
    "callback.saved": "the checkpoint was announced to the launcher",
    "callback.resumed": "a trial goes on from its checkpoint, its first epoch comes next",
}
"""Every failpoint, and what is true where it lies."""

_ACTIONS = {"exit": str(KILLED), "raise": "EIO", "sleep": "1", "pass": ""}
_NUMBERS = {"exit": re.compile(r"[0-9]{1,3}"), "sleep": re.compile(r"[0-9]+(\.[0-9]+)?")}
_ENTRY = re.compile(r"(?P<name>[^=]+)=(?P<action>[a-z]+)(:(?P<argument>[^@]+))?(@(?P<hit>[1-9][0-9]*))?")


@dataclass(slots=True)
class _Armed:
    """A failpoint that acts."""

    name: str
    action: str
    argument: str
    hit: int | None
    """The hit that acts; None: every one."""
    folder: Path | None
    hits: int = 0

    def act(self) -> None:
        if self.hit not in (None, self._counted()):
            return
        if self.action == "exit":
            os._exit(int(self.argument))
        if self.action == "raise":
            raise OSError(getattr(errno, self.argument), f"failpoint {self.name}")
        if self.action == "sleep":
            time.sleep(float(self.argument))

    def _counted(self) -> int:
        """Which hit this is."""
        self.hits += 1
        if self.folder is None:
            return self.hits
        # The position after an append is this hit's own, whoever else appends.
        file = os.open(self.folder / self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, b".")
            return os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)


def parse(text: str, folder: Path | None = None) -> dict[str, _Armed]:
    """The failpoints that a value of the environment variable arms, by name.

    Raises:
        OptionError: if a name or an action is unknown or an argument unusable.
    """
    armed: dict[str, _Armed] = {}
    others: list[_Armed] = []
    for entry in filter(None, text.split(",")):
        one = _parsed(entry, folder)
        if one.name == "*":
            others.append(one)
        else:
            armed[one.name] = one
    for other in others:
        for name in NAMES:
            armed.setdefault(name, _Armed(name, other.action, other.argument, other.hit, folder))
    return armed


def _parsed(entry: str, folder: Path | None) -> _Armed:
    found = _ENTRY.fullmatch(entry)
    if found is None or found["action"] not in _ACTIONS:
        raise OptionError(
            f"{VARIABLE} has the entry {entry!r}. Write name=action, name=action:argument or name=action@n "
            f"with one of the actions {', '.join(_ACTIONS)}."
        )
    name, action, hit = found["name"], found["action"], found["hit"]
    if name != "*" and name not in NAMES:
        raise OptionError(f"There is no failpoint {name!r}.{did_you_mean(name, NAMES)} Use one of {', '.join(NAMES)}.")
    argument = found["argument"] or _ACTIONS[action]
    if action == "raise" and not isinstance(getattr(errno, argument, None), int):
        raise OptionError(f"{argument!r} is no errno (failpoint {name}). Use a name such as EIO or ENOSPC.")
    if action in _NUMBERS and not _NUMBERS[action].fullmatch(argument):
        raise OptionError(f"{argument!r} is no number (failpoint {name}). Give an exit code, or seconds to sleep.")
    return _Armed(name, action, argument, int(hit) if hit else None, folder)


def _from_environment() -> dict[str, _Armed] | None:
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    folder = os.environ.get(FOLDER_VARIABLE)
    return parse(text, Path(folder) if folder else None)


_armed = _from_environment()


def arm() -> None:
    """Read the environment again, in a process that was forked after the import and got another environment."""
    global _armed
    _armed = _from_environment()


def failpoint(name: str) -> None:
    """A place of :data:`NAMES`; does nothing unless the environment variable says so."""
    if _armed is None:
        return
    armed = _armed.get(name)
    if armed is not None:
        armed.act()
