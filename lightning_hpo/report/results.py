"""What a study leaves behind: ``optimization_results.yaml``, ``trials.csv`` and the closing summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Config, Trial, TrialStatus
from lightning_hpo.report import formats
from lightning_hpo.report.afterwards import all_failed_afterwards, how_it_failed
from lightning_hpo.report.folder import params, trial_log
from lightning_hpo.report.tally import Tally, counts
from lightning_hpo.report.writing import RESULTS_NAME, TRIALS_NAME, write_atomically
from lightning_hpo.study import Recommendation

_COLUMNS = (
    "trial", "status", "bracket", "origin", "resource", "last_value", "best_value", "best_resource", "value_at_max_t",
    "cost", "seconds", "attempts", "error", "reason",
)  # fmt: skip
_MAX_FAILED_SHOWN = 5


def write_results(
    folder: Path,
    state: StudyState,
    *,
    reason: str,
    recommendation: Recommendation | None = None,
) -> tuple[Path, Path]:
    """Write ``optimization_results.yaml`` and ``trials.csv``; each is replaced at once or not at all.

    Args:
        folder: the study folder.
        reason: why the study ended.
        recommendation: from :meth:`lightning_hpo.Study.recommend`, if there is one.

    Returns:
        The two paths.

    Raises:
        StudyError: if they cannot be written.
    """
    results, trials = folder / RESULTS_NAME, folder / TRIALS_NAME
    for left_over in (f for path in (results, trials) for f in folder.glob(f".{path.name}.*.partial")):
        left_over.unlink(missing_ok=True)  # of a launcher that was killed here
    write_atomically(results, results_yaml(state, reason, recommendation))
    write_atomically(trials, trials_csv(state))
    return results, trials


# ------------------------------------------------------------------------------------------- yaml


def results_yaml(state: StudyState, reason: str, recommendation: Recommendation | None = None) -> str:
    """The content of ``optimization_results.yaml``.

    ``best_params`` and ``best_value`` are those of the best trial at full resource; while no trial got that far, of the
    best one seen.
    """
    best = state.best_full or state.best_any
    tally = Tally(state)
    data: dict[str, Any] = {
        "name": "lightning_hpo",
        "best_params": {} if best is None else params(state, best[0]),
        "best_value": None if best is None else best[2],
        "metric": state.options.metric,
        "mode": state.options.mode,
        "algorithm": state.options.algorithm,
        "best_at_full_resource": _incumbent(state, state.best_full),
        "best_seen": _incumbent(state, state.best_any),
    }
    if recommendation is not None:
        data["recommended"] = recommended_json(state, recommendation)
    data |= {
        "trials": {"total": len(state.trials)} | {status.value: count for status, count in counts(state).items()},
        "resource": {"trained": tally.trained, "full_training": tally.full_training(state)},
        "elapsed_seconds": round(state.progress.time, 3),
        "ended": reason,
    }
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
    return str(text)


def recommended_json(state: StudyState, recommendation: Recommendation) -> dict[str, Any]:
    """A recommendation as the results name it."""
    return {
        "trial": recommendation.trial_id,
        "params": state.space.searched(recommendation.config),
        "expected_value": recommendation.mean,
        "standard_deviation": recommendation.std,
        "confirmations": recommendation.confirmations,
    }


def recorded_recommendation(folder: Path, state: StudyState) -> Recommendation | None:
    """What ``optimization_results.yaml`` recommends, if it was written when the study last stood as it does now."""
    try:
        data = yaml.safe_load((folder / RESULTS_NAME).read_text(encoding="utf-8"))
        found = data["recommended"]
        config = state.whole_config(state.trials[found["trial"]])
        values = (float(found["expected_value"]), float(found["standard_deviation"]), int(found["confirmations"]))
        is_current = data["elapsed_seconds"] == round(state.progress.time, 3)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None  # not written yet, or by somebody else
    return Recommendation(found["trial"], config, *values) if is_current else None


def _incumbent(state: StudyState, best: tuple[int, int, float] | None) -> dict[str, Any] | None:
    if best is None:
        return None
    trial_id, resource, value = best
    return {"trial": trial_id, "resource": resource, "value": value, "params": params(state, trial_id)}


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.2 and OmegaConf would read as numbers: ``1e-3``."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TEXT = "tag:yaml.org,2002:str"


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if not text.isprintable():
        return dumper.represent_scalar(_TEXT, text, style='"')  # only there are all characters escaped
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar(_TEXT, text, style="'")


_Dumper.add_representer(str, _represent_text)


# -------------------------------------------------------------------------------------------- csv


def trials_csv(state: StudyState) -> str:
    """The content of ``trials.csv``: one row per trial, the hyperparameters last, under the user's names."""
    names = list(state.space.domains)
    rows = ([*trial_row(state, trial).values(), *values_of(trial, names)] for trial in state.trials.values())
    return csv_text([*_COLUMNS, *column_names(names, _COLUMNS)], rows)


def trial_row(state: StudyState, trial: Trial) -> dict[str, Any]:
    """What ``trials.csv`` tells of a trial besides its hyperparameters: column -> value."""
    finite = [(state.criterion(v), r) for r, v in trial.curve.items() if math.isfinite(v)]
    criterion, resource = min(finite, default=(None, None))
    max_t = state.scheduler.max_t
    values = (
        trial.id,
        trial.status.value,
        trial.bracket,
        trial.origin,
        trial.resource,
        trial.curve.get(trial.resource),
        None if criterion is None else state.criterion(criterion),
        resource,
        None if max_t is None else trial.curve.get(max_t),
        trial.cost or None,
        round(state.busy_seconds(trial.id), 3),
        trial.attempt,
        formats.error_line(trial.error) or None,
        trial.reason,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def column_names(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Names of the hyperparameters' columns: their own; ``config.<name>`` for one that is a column of ours already."""
    used = {*taken, *names}
    found = []
    for name in names:
        column = name
        while column in taken or (column != name and column in used):
            column = f"config.{column}"
        used.add(column)
        found.append(column)
    return found


def values_of(trial: Trial, names: Sequence[str]) -> list[Any]:
    """Values of the hyperparameters for a table: lists, dicts and booleans as in JSON, None empty."""
    values = [trial.config.get(name) for name in names]
    return [item if item is None or isinstance(item, float) else formats.exact(item) for item in values]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values with a line of column names; None is empty, not-a-number ``nan``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- summary


def summary(
    state: StudyState,
    folder: Path,
    *,
    reason: str,
    unit: str = "epoch",
    recommendation: Recommendation | None = None,
    retrain: Callable[[Config], str] | None = None,
    continue_command: str | None = None,
    log_of: Callable[[int], Path] | None = None,
) -> str:
    """The closing words of a study.

    Args:
        folder: the study folder, as the user named it.
        reason: why the study ended.
        unit: of resource.
        recommendation: from :meth:`lightning_hpo.Study.recommend`, if there is one.
        retrain: configuration with constants -> the command line that trains it alone.
        continue_command: the command line that continues the study.
        log_of: trial id -> the log of a failed trial; default: looked for in ``folder``.
    """
    tally = Tally(state)
    rows = best_rows(state, unit, recommendation)
    rows += [("trials", counts_line(state)), ("spent", spent_line(state, tally, unit))]
    disk = disk_line(state)
    if disk:
        rows.append(("checkpoints", disk))
    rows.append(("results", f"{formats.path(folder / RESULTS_NAME)}, {TRIALS_NAME}"))
    text = f"\nThe study ended after {formats.duration(state.progress.time)}: {reason}.\n" + table(rows)
    for advice in (advice_on_full_training(state, unit), advice_on_seeds(state)):
        if advice:
            text += f"\n\n  {advice}"
    failures = failure_lines(state, folder, log_of)
    if failures:
        text += "\n\n" + "\n".join(failures)
    best = state.best_full or state.best_any
    commands = [("look", f"lightning-hpo status {formats.quoted(formats.path(folder))}")]
    if continue_command is not None:
        commands.insert(0, ("continue", continue_command))
    if retrain is not None and best is not None:
        chosen = recommendation.trial_id if recommendation is not None else best[0]
        config = state.whole_config(state.trials[chosen])
        commands.insert(0, (f"train trial {chosen}", retrain(config)))
    return f"{text}\n\n{table(commands)}"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first one as wide as its longest entry."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def best_rows(state: StudyState, unit: str, recommendation: Recommendation | None = None) -> list[tuple[str, str]]:
    """Best at full resource, best seen, and what is recommended, each named as such."""
    full, seen = state.best_full, state.best_any
    if seen is None:
        return [("best", "no trial has reported a finite value")]
    rows = [("best seen", _best_line(state, seen, unit))]
    if full is None:
        rows.insert(0, ("best at full resource", "no trial was trained to the end"))
    else:
        rows.insert(0, ("best at full resource", _best_line(state, full, unit)))
    if recommendation is not None:
        rows.append(("recommended", _recommended(state, recommendation)))
    return rows


def _best_line(state: StudyState, best: tuple[int, int, float], unit: str) -> str:
    trial_id, resource, value = best
    config = formats.configuration(params(state, trial_id), formats.short_names(state.space.domains))
    result = f"{formats.plain(state.options.metric)}={formats.number(value)}"
    return f"{result}  {unit} {resource}  trial {trial_id}  {config}"


def advice_on_full_training(state: StudyState, unit: str) -> str:
    """What to do if a study that has ended trained no trial to the end, as all were paused on the way; else empty.

    A rung at ``r`` lets ``r / r'`` of its trials go on to the next one at ``r'``, so that about ``first rung / max_t``
    of all get to the end.
    """
    levels, max_t = state.scheduler.levels, state.scheduler.max_t
    if state.ended is None or state.best_full is not None or state.best_any is None or not levels or max_t is None:
        return ""
    needed = math.ceil(max_t / levels[0])
    rungs = f"with rungs at {', '.join(map(str, levels))}, about one trial in {needed} gets there"
    limit = state.options.n_trials
    if state.options.stop.threshold_reason(state.progress) is not None:
        fix = "Continue the study without the goal that it has reached, or with one that is harder to reach."
    elif limit is None or limit >= needed:
        fix = "Continue the study with more time or trials."
    else:
        promotes = ALGORITHMS[state.options.algorithm].has_types and state.options.effective_type != "stopping"
        other = "type=stopping" if promotes else "fewer rungs"
        fix = f"Continue the study with n_trials={needed} or more, or begin another one with {other}."
    return f"No trial was trained to the end, {formats.amount(max_t, unit)}: {rungs}. {fix}"


def advice_on_seeds(state: StudyState) -> str:
    """What to do if confirmations repeated the very values they were to confirm; else empty."""
    again = [trial for trial in state.trials.values() if trial.confirms is not None and trial.curve]
    repeated = [trial for trial in again if _repeats(trial.curve, state.trials[trial.confirms or 0].curve)]
    if not again or len(repeated) < len(again):
        return ""
    numbers = ", ".join(str(trial.id) for trial in repeated)
    return (
        f"The confirmations ({numbers}) reported the very values of the trials they confirm: the script fixes its "
        "seed. Take the seed from the configuration, and name its key with confirm.seed_attr."
    )


def _repeats(curve: Mapping[int, float], known: Mapping[int, float]) -> bool:
    common = curve.keys() & known.keys()
    return bool(common) and all(curve[resource] == known[resource] for resource in common)


def _recommended(state: StudyState, recommendation: Recommendation) -> str:
    names = formats.short_names(state.space.domains)
    config = formats.configuration(state.space.searched(recommendation.config), names)
    # Reports that lie on a straight line show no noise; that is no certainty.
    spread = f" ± {recommendation.std:.2g}" if 0.0 < recommendation.std < math.inf else ""
    again = formats.amount(recommendation.confirmations, "other training")
    source = f", the mean of the best epochs of {again}" if recommendation.confirmations else ""
    return f"expected {formats.number(recommendation.mean)}{spread}{source}  trial {recommendation.trial_id}  {config}"


def counts_line(state: StudyState) -> str:
    """``20: 12 paused, 7 stopped, 1 completed``."""
    parts = ", ".join(f"{count} {status}" for status, count in counts(state).items())
    return f"{len(state.trials)}: {parts}" if parts else "none"


def spent_line(state: StudyState, tally: Tally, unit: str) -> str:
    """What was trained, against training every trial to the end."""
    trained, full = tally.trained, tally.full_training(state)
    if not full or full <= trained:
        return formats.amount(trained, unit)
    saved = formats.share(full - trained, full)
    return f"{formats.amount(trained, unit)} instead of {full:,} for full training: {saved} saved"


def disk_line(state: StudyState) -> str:
    """Number and size of the recorded checkpoints; empty if there are none."""
    sizes = [trial.checkpoint.size for trial in state.trials.values() if trial.checkpoint and trial.checkpoint.path]
    return f"{len(sizes)}, {formats.size(sum(sizes))}" if sizes else ""


def failure_lines(state: StudyState, folder: Path, log_of: Callable[[int], Path] | None = None) -> list[str]:
    """The first different failures: the line that names the problem, who had it, and a log if there is one.

    Those of scripts that failed after their training come last.
    """
    failed = {trial.id: trial.error for trial in state.trials.values() if trial.status is TrialStatus.FAILED}

    def log(trial_id: int) -> Path | None:
        return log_of(trial_id) if log_of is not None else trial_log(folder, state.trials[trial_id])

    look = f"lightning-hpo trials {formats.quoted(formats.path(folder))} --status failed"
    lines = _alike(failed, "failed", log, look)
    for status, errors in all_failed_afterwards(state, folder).items():
        lines += _alike(errors, how_it_failed(status), log, f"the errors in {TRIALS_NAME}")
    return lines


def _alike(errors: Mapping[int, str | None], what: str, log_of: Callable[[int], Path | None], look: str) -> list[str]:
    """One line per error, and where to look for those that are too many."""
    alike: dict[str, list[int]] = {}
    for trial_id, error in errors.items():
        alike.setdefault(formats.error_line(error) or "no error was told", []).append(trial_id)
    lines = []
    for error, trials in list(alike.items())[:_MAX_FAILED_SHOWN]:
        log = log_of(trials[0])
        where = f"  ({formats.path(log)})" if log is not None else ""
        others = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
        lines.append(f"  trial {trials[0]}{others} {what}: {error}{where}")
    hidden = sum(map(len, list(alike.values())[_MAX_FAILED_SHOWN:]))
    return [*lines, f"  {hidden} more {what}: {look}"] if hidden else lines
