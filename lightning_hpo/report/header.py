"""The first lines of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.study import StudyState
from lightning_hpo.report import formats
from lightning_hpo.report.folder import LOG_NAME
from lightning_hpo.report.results import table
from lightning_hpo.report.writing import RESULTS_NAME, TRIALS_NAME


def header_text(
    state: StudyState,
    folder: Path,
    *,
    workers: int,
    start_method: str = "",
    unit: str = "epoch",
    continue_command: str | None = None,
    first_folder: str = "0",
) -> str:
    """What is about to happen, where results go, how to stop and how to continue.

    Args:
        folder: the study folder, as the user named it.
        workers: trials at a time.
        start_method: how trial processes begin, and why: ``fork: CUDA is untouched``.
        unit: of resource.
        continue_command: the command line that continues the study.
        first_folder: name of the first trial's folder, or with ``${`` the pattern of the names of all.
    """
    options = state.options
    known = len(state.trials)
    title = f"Study {formats.path(folder)}" + (f" goes on: {known} trials so far" if known else "")
    at_a_time = f"{workers} trial{'' if workers == 1 else 's'} at a time"
    others = "one for every trial" if "${" in first_folder else "and one for every other trial"
    rows = [
        ("algorithm", _algorithm(options)),
        ("goal", f"{options.mode} {formats.plain(options.metric)}"),
        ("space", formats.space(state.space)),
        ("resource", _ladder(state, unit)),
        ("ends", ending(options)),
        ("workers", ", ".join(filter(None, (at_a_time, start_method)))),
        ("results", f"{formats.path(folder / RESULTS_NAME)}, {TRIALS_NAME}"),
        ("logs", f"{formats.path(folder / first_folder / LOG_NAME)}, {others}"),
        ("stop", "Ctrl-C pauses the running trials and stops, twice stops now"),
    ]
    if continue_command is not None:
        rows.append(("continue", continue_command))
    return f"{title}\n{table(rows)}"


def _algorithm(options: StudyOptions) -> str:
    algorithm = ALGORITHMS[options.algorithm]
    kind = f", type {options.effective_type}" if algorithm.scheduler == "hyperband" else ""
    return f"{options.algorithm} ({algorithm.summary}){kind}, random_seed {options.random_seed}"


def _ladder(state: StudyState, unit: str) -> str:
    max_t = state.scheduler.max_t
    if max_t is None:
        return "every trial ends by itself"
    up_to = f"up to {formats.amount(max_t, unit)}"
    levels = state.scheduler.levels
    return f"{up_to}, rungs at {', '.join(map(str, levels))}" if levels else f"{up_to}, no rungs"


def ending(options: StudyOptions) -> str:
    """When the study ends: its number of trials and its stop criterion."""
    parts = [] if options.n_trials is None else [f"{options.n_trials} trials"]
    for field in dataclasses.fields(options.stop):
        limit = getattr(options.stop, field.name)
        if limit is not None:
            parts.append(f"{field.name} {formats.value(limit)}")
    return ", or ".join(parts) if parts else "when you stop it"
