"""The user's program as a command line, for people to copy."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_hpo.integrations.hidden import without_secret
from lightning_hpo.integrations.job import HydraJob, config_flags
from lightning_hpo.integrations.select_sweeper import written_overrides
from lightning_hpo.report.folder import STUDY_OPTION, naming_study

_CONFIG_DIR = re.compile(r"(--config-d(?:i|ir)?|-cd)(?:=(.*))?", re.DOTALL)
"""As Hydra's parser of arguments takes it: abbreviated, and with its value behind ``=`` or in the next argument."""
_OF_THE_SWEEP = frozenset({"launcher", "sweeper", "sweep", "run", "mode"})
"""Parts of Hydra's own configuration that say how jobs are started and where they write, not what they do."""
_MULTIRUN = "hydra.mode=MULTIRUN"


class Program:
    """The program that runs here. Its command lines show no secrets: what is printed and kept is read by others.

    Args:
        hydra_job: of its sweep.
    """

    def __init__(self, hydra_job: HydraJob) -> None:
        self._argv = hydra_job.argv
        self._start = start_of(self._argv[0])
        self._hydra = written_overrides(hydra_job.config, "hydra")

    def continued(self, folder: Path) -> str:
        """The command line that continues the study in a folder: the one of this sweep, and the folder."""
        arguments = [a for a in with_absolute_folder(self._argv[1:]) if not a.lstrip("+").startswith(STUDY_OPTION)]
        return shlex.join([*self._start, *map(without_secret, arguments), naming_study(str(folder))])

    def single(self, overrides: Sequence[str]) -> str:
        """The command line that runs one job alone, with these overrides."""
        kept = [override for override in self._hydra if _part(override) not in _OF_THE_SWEEP]
        mode = ["hydra.mode=RUN"] if self._may_be_multirun_by_itself() else []
        shown = map(without_secret, (*kept, *overrides))
        return shlex.join([*self._start, *config_flags(self._argv), *shown, *mode])

    def _may_be_multirun_by_itself(self) -> bool:
        """Whether the configuration's own ``hydra.mode`` may be ``MULTIRUN``, which then needs no ``-m``.

        Hydra adds the override for ``-m`` only where the mode is another one.
        """
        is_written = any(_part(argument) == "mode" for argument in self._argv[1:])
        return is_written or _MULTIRUN not in self._hydra


def start_of(program: str) -> list[str]:
    """How a command line begins that starts the running program again.

    Args:
        program: its ``sys.argv[0]``.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # With -m, Python puts the module's file there. What runs as __main__ may also be a tool that started the program.
    if spec is not None and spec.origin == program:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    path = os.path.abspath(program) if os.path.exists(program) else program
    return [path] if _is_command(path) else ["python", path]


def with_absolute_folder(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with a ``--config-dir`` that holds in any folder; ``--config-path`` is relative to the script."""
    is_folder = False
    for argument in arguments:
        match = None if is_folder else _CONFIG_DIR.fullmatch(argument)
        if match is not None and match[2] is not None:
            yield f"{match[1]}={os.path.abspath(match[2])}"
        else:
            yield os.path.abspath(argument) if is_folder else argument
        is_folder = match is not None and match[2] is None


def _is_command(path: str) -> bool:
    """Whether it is started by its name alone, as the script that an installed package has for its entry point."""
    if path.endswith(".py") or not os.path.isfile(path) or not os.access(path, os.X_OK):
        return False
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _part(override: str) -> str | None:
    """``launcher`` of ``hydra/launcher=hpo`` and ``+hydra.launcher.metric=loss``; None if it is not Hydra's own."""
    match = re.match(r"[+~]*hydra[./]([^./=@]+)", override)
    return match and match[1]
