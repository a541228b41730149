"""The table that is shown on a terminal while a study runs: at most 25 lines, whatever the study's size.

It is drawn several times per second in the process that answers the trials' reports. Hence its columns are padded here:
laying out a table with rich takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import ConsoleDimensions
from rich.text import Text

from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.results import best_rows, counts_line, spent_line
from lightning_hpo.report.tally import Tally

MAX_LINES = 25
_LEADERS = 5
"""Rows that running trials leave to the best ones."""
_METRIC_WIDTH = 24
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
) -> Text:
    """Running trials and the best ones, then rungs, best trials, what was spent, free workers and the last messages.

    Args:
        tally: the figures of ``state``.
        folder: the study folder, as the user named it.
        unit: of resource.
        messages: the last ones, oldest first.
        screen: size of the terminal; longer lines are cut off.
        elapsed: seconds since the study began.
    """
    below = _figures(state, tally, unit) + [Text(formats.plain(message), style="dim") for message in messages]
    above = [_title(state, folder, elapsed)]
    room = min(MAX_LINES, screen.height - 1) - len(above) - len(below) - 1  # 1: the names of the columns
    lines = above + trial_table(state, tally, shown_trials(state, tally, max(room, 1)), unit) + below
    for line in lines:
        line.truncate(screen.width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def shown_trials(state: StudyState, tally: Tally, count: int) -> list[int]:
    """Running trials, newest first, then the best of the others, in ``count`` rows; some rows are kept for the best."""
    running = sorted(state.live, reverse=True)
    best = [i for i in tally.leaders(count + len(running)) if i not in state.live]
    kept = min(len(best), max(count - len(running), min(_LEADERS, count // 2)))
    return (running[: count - kept] + best)[:count]


def trial_table(state: StudyState, tally: Tally, trials: Sequence[int], unit: str) -> list[Text]:
    """A line with the names of the columns, and one line per trial.

    Args:
        trials: their ids, in the order of the lines.
    """
    names = formats.short_names(state.space.domains)
    metric = formats.shortened(formats.plain(state.options.metric), _METRIC_WIDTH)
    titles = ("trial", "status", unit, metric, "best", "at")
    rows = [_row(state, tally, trial_id) for trial_id in trials]
    widths = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [Text(_padded(titles, widths) + "configuration", style="underline")]
    for row, trial_id in zip(rows, trials, strict=True):
        trial = state.trials[trial_id]
        line = Text(_padded(row, widths) + formats.configuration(trial.config, names))
        line.stylize(_STYLES[trial.status], widths[0] + 2, widths[0] + 2 + widths[1])
        lines.append(line)
    return lines


def _row(state: StudyState, tally: Tally, trial_id: int) -> tuple[str, str, str, str, str, str]:
    trial = state.trials[trial_id]
    value, at = tally.best_of(trial_id, state) or (None, None)
    resource = tally.resource.get(trial_id, 0)
    goal = f"/{trial.milestone}" if trial.status.occupies_worker and state.scheduler.max_t is not None else ""
    last = formats.number(trial.curve.get(resource))
    return str(trial_id), trial.status.value, f"{resource}{goal}", last, formats.number(value), str(at or "")


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells aligned to the right, the second one, the status, to the left."""
    padding = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    return "".join(
        f"{cell}{space}  " if n == 1 else f"{space}{cell}  "
        for n, (cell, space) in enumerate(zip(cells, padding, strict=True))
    )


def _title(state: StudyState, folder: Path, elapsed: float) -> Text:
    options = state.options
    kind = f"{options.algorithm}, {options.mode} {formats.plain(options.metric)}"
    return Text.assemble((f"{formats.duration(elapsed)}  {kind}", "bold"), f"  {formats.plain(formats.path(folder))}")


def _figures(state: StudyState, tally: Tally, unit: str) -> list[Text]:
    rows = []
    if len(tally.rungs) > 1:
        rows.append(("rungs", rung_line(tally)))
    rows += best_rows(state, unit)
    rows.append(("trials", counts_line(state)))
    rows.append(("spent", spent_line(state, tally, unit)))
    busy, workers = len(state.live), state.options.n_workers
    free = max(workers - busy, 0)
    rows.append(("workers", f"{busy} of {workers} busy" + (f", {free} free" if free else "")))
    width = max(len(name) for name, _ in rows)
    return [Text.assemble((f"{name:<{width}}  ", "bold"), text) for name, text in rows]


def rung_line(tally: Tally) -> str:
    """``1: 14 trials, best 0.31 · 3: 5, best 0.2``: trials that reported at each level, and their best value."""
    parts: list[str] = []
    for level, rung in tally.rungs.items():
        trials = f"{rung.count} trial{'' if rung.count == 1 else 's'}" if not parts else str(rung.count)
        parts.append(f"{level}: {trials}" + ("" if rung.best is None else f", best {formats.number(rung.best)}"))
    return " · ".join(parts)
