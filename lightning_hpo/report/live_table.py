"""The table that is shown on a terminal while a study runs: at most 25 lines, whatever the study's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.results import best_rows, counts_line, spent_line
from lightning_hpo.report.tally import Tally

MAX_LINES = 25
_LEADERS = 5
"""Rows that running trials leave to the best ones."""
_STYLES = {
    TrialStatus.RUNNING: "cyan",
    TrialStatus.PAUSING: "cyan",
    TrialStatus.STOPPING: "cyan",
    TrialStatus.PAUSED: "yellow",
    TrialStatus.WAITING: "yellow",
    TrialStatus.COMPLETED: "green",
    TrialStatus.STOPPED: "dim",
    TrialStatus.FAILED: "red",
}


def live_table(
    state: StudyState,
    tally: Tally,
    folder: Path,
    unit: str,
    messages: Sequence[str],
    screen: ConsoleDimensions,
    elapsed: float,
) -> RenderableType:
    """Running trials and the best ones, then rungs, best trials, what was spent, free workers and the last messages.

    Args:
        tally: the figures of ``state``.
        folder: the study folder, as the user named it.
        unit: of resource.
        messages: the last ones, oldest first.
        screen: of the terminal.
        elapsed: seconds since the study began.
    """
    below = _figures(state, tally, unit)
    lines = min(MAX_LINES, screen.height - 1)
    rows = max(lines - 3 - below.row_count - len(messages), 1)  # 3: title, names of columns, the line below them
    trials = shown_trials(state, tally, rows)
    said = [Text(formats.plain(message), style="dim", overflow="ellipsis", no_wrap=True) for message in messages]
    return Group(_title(state, folder, elapsed), trial_table(state, tally, trials, unit), below, *said)


def shown_trials(state: StudyState, tally: Tally, count: int) -> list[int]:
    """Running trials, newest first, then the best of the others, in ``count`` rows; some rows are kept for the best."""
    running = sorted(state.live, reverse=True)
    best = [i for i in tally.leaders(count + len(running)) if i not in state.live]
    kept = min(len(best), max(count - len(running), min(_LEADERS, count // 2)))
    return (running[: count - kept] + best)[:count]


def _title(state: StudyState, folder: Path, elapsed: float) -> Text:
    options = state.options
    kind = f"{options.algorithm}, {options.mode} {formats.plain(options.metric)}"
    return Text.assemble(
        (formats.duration(elapsed), "bold"), "  ", (kind, "bold"), f"  {folder}", no_wrap=True, overflow="ellipsis"
    )


def trial_table(state: StudyState, tally: Tally, trials: Sequence[int], unit: str, is_complete: bool = False) -> Table:
    """One row per trial.

    Args:
        trials: their ids, in the order of the rows.
        is_complete: wrap a configuration that is too long instead of cutting it off.
    """
    names = formats.short_names(state.space.domains)
    rows = [_row(state, tally, i) for i in trials]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    titles = ("trial", "status", unit, formats.shortened(formats.plain(state.options.metric), 24), "best", "at")
    for title, *cells in zip(titles, *rows, strict=True):
        # Only the configuration gives way on a narrow screen.
        width = max(len(text) for text in (title, *cells))
        table.add_column(Text(title), justify="left" if title == "status" else "right", min_width=width, no_wrap=True)
    table.add_column("configuration", no_wrap=not is_complete, overflow="fold" if is_complete else "ellipsis")
    for (number, status, *figures), trial_id in zip(rows, trials, strict=True):
        trial = state.trials[trial_id]
        configuration = Text(formats.configuration(trial.config, names))
        table.add_row(number, Text(status, style=_STYLES[trial.status]), *figures, configuration)
    return table


def _row(state: StudyState, tally: Tally, trial_id: int) -> tuple[str, str, str, str, str, str]:
    trial = state.trials[trial_id]
    value, at = tally.best_of(trial_id, state) or (None, None)
    resource = tally.resource.get(trial_id, 0)
    goal = f"/{trial.milestone}" if trial.status.occupies_worker and state.scheduler.max_t is not None else ""
    last = formats.number(trial.curve.get(resource))
    return str(trial_id), trial.status.value, f"{resource}{goal}", last, formats.number(value), str(at or "")


def _figures(state: StudyState, tally: Tally, unit: str) -> Table:
    rows = []
    if len(tally.rungs) > 1:
        rows.append(("rungs", rung_line(tally)))
    rows += best_rows(state, unit)
    rows.append(("trials", counts_line(state)))
    rows.append(("spent", spent_line(state, tally, unit)))
    busy, workers = len(state.live), state.options.n_workers
    free = max(workers - busy, 0)
    rows.append(("workers", f"{busy} of {workers} busy" + (f", {free} free" if free else "")))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=max(len(name) for name, _ in rows))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table


def rung_line(tally: Tally) -> str:
    """``1: 14 trials, best 0.31 · 3: 5, best 0.2``: trials that reported at each level, and their best value."""
    parts: list[str] = []
    for level, rung in tally.rungs.items():
        trials = f"{rung.count} trial{'' if rung.count == 1 else 's'}" if not parts else str(rung.count)
        parts.append(f"{level}: {trials}" + ("" if rung.best is None else f", best {formats.number(rung.best)}"))
    return " · ".join(parts)
