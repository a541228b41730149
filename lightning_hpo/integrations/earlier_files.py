"""Files of a trial's earlier attempts that Lightning takes for another run's.

Every attempt runs the script in the same folder. What one of them has written there the next one finds.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

_log = logging.getLogger(__name__)


def let_config_be_saved_again(trainer: Trainer) -> None:
    """Let ``LightningCLI`` replace the configuration that an earlier attempt has saved, which is the trial's too.

    It refuses to, unless it is told to overwrite. All ranks must call it, before the callbacks that come after
    ``HPOCallback`` are set up: ``LightningCLI`` puts its own last.
    """
    # Importing it takes long, and who has made such a callback has imported it.
    cli = sys.modules.get("lightning.pytorch.cli")
    for callback in trainer.callbacks:
        if cli is not None and isinstance(callback, cli.SaveConfigCallback):
            callback.overwrite = True


def logged_rows(trainer: Trainer, trial: Path) -> list[dict[str, Any]]:
    """What every ``CSVLogger`` has logged so far, for :func:`put_rows_back`.

    Relies on its writer's ``metrics_file_path`` and on ``_fs``, through which it reads and writes.
    """
    found = []
    for logger in _csv_loggers(trainer):
        try:
            logger.save()
            writer: Any = logger.experiment
            if writer._fs.isfile(writer.metrics_file_path):
                with writer._fs.open(writer.metrics_file_path, "r", newline="") as file:
                    found.append({"places": _places(logger, trial), "text": file.read()})
        except (OSError, AttributeError) as problem:
            _log.warning("The rows of %s will be missing in the next attempt's: %s", logger.log_dir, problem)
    return found


def put_rows_back(trainer: Trainer, trial: Path, logged: Sequence[dict[str, Any]]) -> None:
    """Let a ``CSVLogger`` with a fixed ``version`` go on with the rows of before the pause.

    It deletes the file that it finds in its folder, when the script or the Trainer first uses it. A logger that numbers
    its versions has another folder now, and the rows are in the old one. What the script has logged before this fit it
    had logged before the first one too.

    Relies on its writer's ``metrics``, which are not written yet, and ``metrics_keys``, the header of the file.
    """
    for logger in _csv_loggers(trainer):
        places = _places(logger, trial)
        for rows in logged:
            if not set(places) & set(rows["places"]):
                continue
            try:
                writer: Any = logger.experiment
                with writer._fs.open(writer.metrics_file_path, "w", newline="") as file:
                    file.write(rows["text"])
                writer.metrics.clear()
                writer.metrics_keys = next(csv.reader(io.StringIO(rows["text"])), [])
            except (OSError, AttributeError) as problem:
                _log.warning("The rows of before the pause are missing in %s: %s", logger.log_dir, problem)


def _csv_loggers(trainer: Trainer) -> Iterator[CSVLogger]:
    """On the rank that logs."""
    if trainer.is_global_zero:
        yield from (logger for logger in trainer.loggers if isinstance(logger, CSVLogger))


def _places(logger: CSVLogger, trial: Path) -> list[str]:
    """Names of its folder: as it is, and as seen from the trial's, which holds in a study that was moved."""
    if "://" in logger.log_dir:
        return [logger.log_dir]
    place = os.path.realpath(logger.log_dir)
    return [place, os.path.relpath(place, trial.resolve())]
