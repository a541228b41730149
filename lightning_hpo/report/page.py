"""One self-contained HTML page about a study: no script, no font, no image from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lightning_hpo.core.domains import FiniteRange, Float, Integer, Scale
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.folder import Report, StudyFolder, params, read_reports
from lightning_hpo.report.header import ending
from lightning_hpo.report.results import (
    best_rows,
    counts_line,
    disk_line,
    failure_lines,
    recorded_recommendation,
    spent_line,
)
from lightning_hpo.report.svg import Axis, Plot
from lightning_hpo.report.tally import Tally
from lightning_hpo.report.writing import check_target, write_atomically, write_where_asked

PAGE_NAME = "report.html"
MAX_CURVES = 300
MAX_POINTS = 2000
MAX_ROWS = 1000
_MAX_CATEGORIES = 12

_STYLE = """
:root { --ink:#1c2733; --paper:#fff; --soft:#667; --line:#dde3ea; --best:#0072b2; --completed:#009e73; --paused:#e69f00;
  --stopped:#a0a7b0; --failed:#d55e00; --running:#56b4e9 }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e6eaef; --paper:#14191f; --soft:#9aa5b1; --line:#2c3640; --best:#56b4e9 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1180px; padding: 0 1rem }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2.2rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.trials td, .trials th { white-space: nowrap } p.note, th { color: var(--soft); font-weight: normal }
svg { width: 100%; height: auto } svg text { fill: var(--soft); font-size: 11px; text-anchor: middle }
svg .title { fill: var(--ink); font-size: 13px } svg .end { text-anchor: end } .grid { stroke: var(--line) }
polyline { fill: none; stroke-width: 1.4; opacity: .75 } circle { opacity: .75 }
polyline.best { stroke: var(--best); stroke-width: 2.6; opacity: 1 } circle.best { fill: var(--best); opacity: 1 }
""" + "".join(
    f"polyline.{status.value} {{ stroke: var(--{colour}) }} circle.{status.value} {{ fill: var(--{colour}) }} "
    f"b.{status.value} {{ color: var(--{colour}) }}\n"
    for status, colour in {
        TrialStatus.COMPLETED: "completed",
        TrialStatus.PAUSED: "paused",
        TrialStatus.STOPPED: "stopped",
        TrialStatus.FAILED: "failed",
        TrialStatus.RUNNING: "running",
        TrialStatus.PAUSING: "running",
        TrialStatus.STOPPING: "running",
        TrialStatus.WAITING: "running",
    }.items()
)


def write_page(folder: Path, target: Path | None = None) -> Path:
    """Write the page; returns where it is.

    Args:
        folder: the study folder.
        target: the file, where a link is followed and a pipe written into; default: ``report.html`` in the study
            folder.

    Raises:
        StudyNotFound, StudyCorrupt: if the study cannot be read.
        StudyError: if the file is one of a study's own or cannot be written.
    """
    path = folder / PAGE_NAME if target is None else target
    check_target(path)
    write = write_atomically if target is None else write_where_asked
    write(path, page(*read_reports(folder)))
    return path


def page(study: StudyFolder, reports: Sequence[Report]) -> str:
    """The page's HTML.

    Args:
        reports: every accepted report, in the order of arrival.
    """
    state, unit = study.state, study.unit
    tally = Tally(state)
    name = study.path.resolve().name
    sections = [
        f"<h1>{escape(name)}: {escape(state.options.mode)} {escape(state.options.metric)}</h1>",
        _facts(study, tally),
        "<h2>Training</h2>",
        _legend(state),
        _plots([learning_curves(state, tally, unit), best_over_time(state, reports)], "training"),
        "<h2>Hyperparameters</h2>",
        f'<p class="note">Best value of every trial, at whatever {escape(unit)} it was reported; '
        "a larger point was trained longer.</p>",
        _plots([scatter(state, tally, n) for n in state.space.domains], "hyperparameter"),
        "<h2>Trials</h2>",
        _trials(state, tally, unit),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


# ------------------------------------------------------------------------------------------ plots


def learning_curves(state: StudyState, tally: Tally, unit: str) -> Plot:
    """The metric against the resource; the best trial stands out. Of many trials the best ones are shown."""
    shown = [state.trials[i] for i in tally.leaders(MAX_CURVES)]
    values = [v for trial in shown for v in trial.curve.values() if math.isfinite(v)]
    resources = [float(r) for trial in shown for r in trial.curve]
    y = Axis.of(state.options.metric, _without_outliers(state, values))
    x = Axis.of(unit, resources, is_log=len(state.scheduler.levels) > 1, marked=tuple(tally.rungs))
    plot = Plot("Learning curves", x, y)
    best = (state.best_full or state.best_any or (None,))[0]
    for trial in [*(t for t in reversed(shown) if t.id != best), *(t for t in shown if t.id == best)]:
        style = "best" if trial.id == best else trial.status.value
        points = [(float(r), v) for r, v in sorted(trial.curve.items())]
        plot.line(points, style, _hint(state, trial, tally))
    return plot


def _without_outliers(state: StudyState, values: Iterable[float]) -> list[float]:
    """The best 95 %: one diverged trial must not flatten all others."""
    ordered = sorted(values, key=state.criterion)
    return ordered[: max(math.ceil(len(ordered) * 0.95), 1)]


def best_over_time(state: StudyState, reports: Sequence[Report]) -> Plot:
    """The best value seen, and the best at full resource, against the time since the study began."""
    seen: list[tuple[float, float]] = []
    full: list[tuple[float, float]] = []
    for report in reports:
        is_end = report.resource == state.trials[report.trial_id].resource
        is_full = is_end and state.trials[report.trial_id].status is TrialStatus.COMPLETED
        for points in (seen, full) if is_full else (seen,):
            criterion = state.criterion(report.value)
            if math.isfinite(criterion) and (not points or criterion < state.criterion(points[-1][1])):
                points.append((report.time, report.value))
    end = max(state.progress.time, 1e-3)
    y = Axis.of(state.options.metric, _without_outliers(state, [v for _, v in (*seen, *full)]))
    plot = Plot("Best over time (points: at full resource)", Axis.of("seconds", [0.0, end], margin=0.02), y)
    if seen:
        plot.line([*seen, (end, seen[-1][1])], "best", "best seen", is_step=True)
    for time, value in full:
        plot.dot(time, value, TrialStatus.COMPLETED.value, f"at full resource: {formats.number(value)}", radius=4.0)
    return plot


def scatter(state: StudyState, tally: Tally, name: str) -> Plot:
    """Every trial's best value against one of its hyperparameters."""
    domain = state.space.domains[name]
    found = [(state.trials[i], tally.best_of(i, state)) for i in tally.leaders(MAX_POINTS)]
    results = [(trial, best[0], best[1]) for trial, best in found if best is not None]
    if isinstance(domain, (Float, Integer, FiniteRange)):
        values = [float(trial.config[name]) for trial, _, _ in results]
        x = Axis.of("", values, is_log=domain.scale is Scale.LOG)
        places = values
    else:
        members = list(domain.members or ())
        texts = [formats.shortened(formats.value(m), 14) for m in members]
        if len(members) > _MAX_CATEGORIES:
            x = Axis.of("position in the list", [0.0, len(members) - 1.0])
        else:
            x = Axis("", categories=tuple(texts))
        position = {domain.match_token(m): float(n) for n, m in enumerate(members)}
        places = [position[domain.match_token(trial.config[name])] for trial, _, _ in results]
    y = Axis.of(state.options.metric, _without_outliers(state, [value for _, value, _ in results]))
    plot = Plot(formats.shortened(formats.plain(name), 50), x, y, height=240)
    longest = max((resource for _, _, resource in results), default=1)
    for (trial, value, resource), place in reversed(list(zip(results, places, strict=True))):
        radius = 2.0 + 3.0 * math.log1p(resource) / math.log1p(longest)
        plot.dot(place, value, trial.status.value, _hint(state, trial, tally), radius=round(radius, 1))
    return plot


def _hint(state: StudyState, trial: Trial, tally: Tally) -> str:
    best = tally.best_of(trial.id, state)
    result = "" if best is None else f", best {formats.number(best[0])} at {best[1]}"
    config = formats.configuration(trial.config, formats.short_names(state.space.domains))
    return f"trial {trial.id}, {trial.status}{result}\n{config}"


def _plots(plots: Sequence[Plot], identity: str) -> str:
    return '<div class="plots">' + "".join(p.render(f"{identity}-{n}") for n, p in enumerate(plots)) + "</div>"


# ------------------------------------------------------------------------------------------- text


def _facts(study: StudyFolder, tally: Tally) -> str:
    state, unit = study.state, study.unit
    rows = [
        ("algorithm", f"{state.options.algorithm}, random_seed {state.options.random_seed}"),
        ("ends", ending(state.options)),
        *best_rows(state, unit, recorded_recommendation(study.path, state)),
        ("trials", counts_line(state)),
        ("spent", spent_line(state, tally, unit)),
        ("elapsed", formats.duration(state.progress.time)),
    ]
    disk = disk_line(state)
    if disk:
        rows.append(("checkpoints", disk))
    rows += [("failed", line.strip()) for line in failure_lines(state, study.path)]
    return _table(rows)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<div class="wide"><table>{cells}</table></div>'


def _legend(state: StudyState) -> str:
    present = dict.fromkeys(trial.status for trial in state.trials.values())
    marks = "".join(f' <b class="{status.value}">■</b> {status.value}' for status in present)
    total = len(state.trials)
    many = "" if total <= MAX_CURVES else f"; the best {MAX_CURVES} of {total} trials as curves, {MAX_POINTS} as points"
    return f'<p class="note">Colours:{marks}{many}</p>'


def _trials(state: StudyState, tally: Tally, unit: str) -> str:
    names = list(state.space.domains)
    titles = ["trial", "status", unit, state.options.metric, "best", "at", *names, "reason"]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    ordered = tally.ordered()
    known = set(ordered)
    ordered += [i for i in state.trials if i not in known]
    rows = []
    for trial_id in ordered[:MAX_ROWS]:
        trial = state.trials[trial_id]
        value, at = tally.best_of(trial_id, state) or (None, "")
        last = formats.number(trial.curve.get(trial.resource))
        cells = [str(trial_id), trial.status.value, str(trial.resource), last, formats.number(value), str(at)]
        cells += [formats.value(v) for v in params(state, trial_id).values()]
        cells.append(formats.error_line(trial.error) or trial.reason)
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    rest = len(ordered) - len(rows)
    note = f'<p class="note">{rest} more are in trials.csv.</p>' if rest else ""
    return f'<div class="wide"><table class="trials"><tr>{head}</tr>{"".join(rows)}</table></div>{note}'
