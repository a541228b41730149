"""What ``lightning-hpo status``, ``trials`` and ``best`` show of a study folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.folder import StudyFolder, params, trial_log
from lightning_hpo.report.header import ending
from lightning_hpo.report.live_table import rung_line, shown_trials, trial_table
from lightning_hpo.report.results import (
    advice_on_full_training,
    best_rows,
    counts_line,
    disk_line,
    failure_lines,
    recommended_json,
    recorded_recommendation,
    spent_line,
    table,
    trial_row,
)
from lightning_hpo.report.tally import Tally, counts

SORT_KEYS = ("id", "value", "resource")
_STATUS_ROWS = 10


def status(study: StudyFolder) -> list[Text]:
    """Where the study stands: who works on it, the best, the running and leading trials, failures."""
    state, unit = study.state, study.unit
    options = state.options
    tally = Tally(state)
    algorithm = f"{options.algorithm} ({ALGORITHMS[options.algorithm].summary})"
    rows = [
        ("algorithm", f"{algorithm}, {options.mode} {formats.plain(options.metric)}"),
        ("space", formats.space(state.space)),
        ("ends", ending(options)),
    ]
    if len(tally.rungs) > 1:
        rows.append(("rungs", rung_line(tally)))
    rows += best_rows(state, unit, recorded_recommendation(study.path, state))
    rows += [("trials", counts_line(state)), ("spent", spent_line(state, tally, unit))]
    disk = disk_line(state)
    if disk:
        rows.append(("checkpoints", disk))
    rows.append(("elapsed", formats.duration(state.progress.time)))
    shown = shown_trials(state, tally, _STATUS_ROWS)
    lines = trial_table(state, tally, shown, unit) if shown else []
    failures = failure_lines(state, study.path)
    if failures:
        lines.append(Text("\n" + "\n".join(failures), style="red"))
    why_ended = study.why_ended()  # the last question, it uses the state up
    if study.continue_command is not None and not study.is_running and why_ended is None:
        rows.append(("continue", study.continue_command))
    if advice := advice_on_full_training(state, unit):
        lines.append(Text(f"\n{advice}"))
    return [Text(f"Study {study.path} {_standing(study, why_ended)}\n{table(rows)}\n"), *lines]


def _standing(study: StudyFolder, why_ended: str | None) -> str:
    if study.holder is not None:
        return f"is worked on by {study.holder}"
    if why_ended is not None:
        return f"has ended: {why_ended}"
    if study.cut_off:
        left = formats.amount(len(study.cut_off), "running trial")
        return f"was interrupted with {left}. Continued, it tries them again from their last checkpoints"
    return "is not running and can be continued"


def trials(study: StudyFolder, chosen: Sequence[int]) -> list[Text]:
    """The table of the chosen trials, with whole configurations."""
    return trial_table(study.state, Tally(study.state), chosen, study.unit)


def choose_trials(
    study: StudyFolder, sort: str = "id", status: str | None = None, limit: int | None = None
) -> list[int]:
    """Trials in the order of one of :data:`SORT_KEYS`: by number, best value first, or largest resource first."""
    state = study.state
    wanted = [i for i, trial in state.trials.items() if status is None or trial.status is TrialStatus(status)]
    if sort == "value":
        place = {trial_id: n for n, trial_id in enumerate(Tally(state).ordered())}
        wanted.sort(key=lambda i: place.get(i, len(place)))
    elif sort == "resource":
        wanted.sort(key=lambda i: -state.trials[i].resource)
    return wanted if limit is None else wanted[:limit]


def best(study: StudyFolder) -> list[Text]:
    """The best trials in both senses and the recommended one, with whole configurations."""
    state = study.state
    recommended = recorded_recommendation(study.path, state)
    parts = [Text(table(best_rows(state, study.unit, recommended)))]
    found = [best[0] for best in (state.best_full, state.best_any) if best is not None]
    if recommended is not None:
        found.append(recommended.trial_id)
    for trial_id in dict.fromkeys(found):
        config = state.whole_config(state.trials[trial_id])
        rows = [(formats.plain(name), formats.plain(formats.exact(item))) for name, item in config.items()]
        parts.append(Text(f"\ntrial {trial_id}\n{table(rows)}" if rows else f"\ntrial {trial_id}"))
    return parts


# ------------------------------------------------------------------------------------------- json


def trials_json(study: StudyFolder, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """The chosen trials as JSON data: the columns of ``trials.csv``, the log, configuration and curve."""
    found = []
    for trial_id in chosen:
        trial = study.state.trials[trial_id]
        log = trial_log(study.path, trial)
        row = {k: formats.json_value(v) for k, v in trial_row(study.state, trial).items()}
        curve = {str(resource): formats.json_value(value) for resource, value in trial.curve.items()}
        found.append(row | {"log": None if log is None else str(log), "config": trial.config, "curve": curve})
    return found


def best_json(study: StudyFolder) -> dict[str, Any]:
    """Both incumbents and the recommendation as JSON data, None where there is none."""
    state = study.state
    found: dict[str, Any] = {"metric": state.options.metric, "mode": state.options.mode}
    for name, incumbent in (("best_at_full_resource", state.best_full), ("best_seen", state.best_any)):
        if incumbent is None:
            found[name] = None
            continue
        trial_id, resource, value = incumbent
        config = params(state, trial_id)
        found[name] = {"trial": trial_id, "resource": resource, "value": value, "params": config}
    recommended = recorded_recommendation(study.path, state)
    values = {} if recommended is None else recommended_json(state, recommended)
    found["recommended"] = {name: formats.json_value(item) for name, item in values.items()} or None
    return found


def status_json(study: StudyFolder) -> dict[str, Any]:
    """Where the study stands, as JSON data."""
    state = study.state
    tally = Tally(state)
    found = {
        "study": str(study.path),
        "algorithm": state.options.algorithm,
        "is_running": study.is_running,
        "worked_on_by": study.holder,
        "cut_off": list(study.cut_off),
        "continue_command": study.continue_command,
        **best_json(study),
        "trials": {"total": len(state.trials)} | {status.value: n for status, n in counts(state).items()},
        "resource": {"trained": tally.trained, "full_training": tally.full_training(state)},
        "rungs": {str(level): {"trials": rung.count, "best": rung.best} for level, rung in tally.rungs.items()},
        "elapsed_seconds": round(state.progress.time, 3),
    }
    return found | {"ended": study.why_ended()}
