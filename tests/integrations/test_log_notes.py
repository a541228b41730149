"""Who watches a study learns what its scripts leave undone, or do slowly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.programs import PROGRAM, ProgramServer

FIT = "trainer.fit(Model(config), loader, loader)"
STUDY = ["-m", "hydra/launcher=hpo", "model.lr=interval(0.001,0.1)"]
OPTIONS = ["metric=val_loss", "algorithm=random", "random_seed=1", "n_workers=1"]


def warnings(programs: ProgramServer, folder: Path, old: str, new: str, *options: str) -> list[str]:
    """Of a study whose script has ``new`` in place of ``old``."""
    program = folder / "program.py"
    assert old in PROGRAM
    program.write_text(PROGRAM.replace(old, new, 1))
    settings = [f"hydra.launcher.{option}" for option in (*OPTIONS, *options)]
    ended = programs.run(program, *STUDY, *settings, folder=folder)
    assert ended.code == 0, ended.output
    return [line for line in ended.output.splitlines() if line.startswith("Warning: ")]


def test_the_screen_says_that_one_fit_of_each_trial_is_tuned(programs: ProgramServer, tmp_path: Path) -> None:
    folds = f"for fold in range(3): L.Trainer(max_epochs=3, logger=False, callbacks=[HPOCallback()]).{FIT[8:]}"
    (line,) = warnings(programs, tmp_path, FIT, f"{FIT}; callback = None\n    {folds}", "n_trials=2")
    assert line.startswith(
        "Warning: Trial 0: another fit with HPOCallback begins, and a study takes only the first one"
    )
    assert line.endswith("tune one, or report their mean with Study.ask and Study.tell.")


@pytest.mark.slow
def test_the_screen_says_that_the_launcher_would_start_the_ranks_faster(
    programs: ProgramServer, tmp_path: Path
) -> None:
    devices = 'max_epochs=config.trainer.max_epochs, strategy="ddp", devices=2,'
    (line,) = warnings(programs, tmp_path, "max_epochs=config.trainer.max_epochs,", devices, "n_trials=1")
    assert line.endswith("Set hydra.launcher.ranks_per_trial=2: then the launcher starts them.")
