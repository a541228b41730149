"""A study for other programs: every report as CSV, everything as JSON, or a study of Optuna."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_hpo.core.domains import Domain, Float, Integer, Scale
from lightning_hpo.core.trial import Trial, TrialStatus
from lightning_hpo.errors import StudyError
from lightning_hpo.report import formats
from lightning_hpo.report.folder import Report, StudyFolder, read_reports
from lightning_hpo.report.overview import status_json, trials_json
from lightning_hpo.report.results import column_names, csv_text, values_of
from lightning_hpo.report.writing import check_target, filling, write_where_asked

if TYPE_CHECKING:
    import optuna

_COLUMNS = ("trial", "attempt", "resource", "value", "seconds", "cost")


def export(folder: Path, kind: str, target: Path) -> None:
    """Write the study to a file.

    Args:
        folder: the study folder.
        kind: a key of :data:`KINDS`.
        target: the file; an older one is replaced, a link followed, a pipe written into.

    Raises:
        StudyNotFound, StudyCorrupt: if the study cannot be read.
        StudyError: if the file is one of a study's own or cannot be written, or Optuna is not installed.
    """
    check_target(target)
    KINDS[kind](*read_reports(folder), target)


def to_csv(study: StudyFolder, reports: list[Report], target: Path) -> None:
    """One row per report: the other metrics and the hyperparameters follow our columns, under the user's names."""
    metrics = list(dict.fromkeys(name for report in reports for name in report.metrics))
    names = list(study.state.space.domains)
    metric_columns = [f"metric.{name}" if name in _COLUMNS else name for name in metrics]
    header = [*_COLUMNS, *metric_columns, *column_names(names, [*_COLUMNS, *metric_columns])]
    configs = {i: values_of(trial, names) for i, trial in study.state.trials.items()}
    rows = (
        [r.trial_id, r.attempt, r.resource, r.value, round(r.time, 6), r.cost]
        + [r.metrics.get(name) for name in metrics]
        + configs[r.trial_id]
        for r in reports
    )
    write_where_asked(target, csv_text(header, rows))


def to_json(study: StudyFolder, reports: list[Report], target: Path) -> None:
    """Space, options, trials and reports. NaN and infinities are the strings ``nan``, ``inf``, ``-inf``."""
    state = study.state
    data: dict[str, Any] = {
        "name": "lightning_hpo",
        "space": state.space.to_json(),
        "options": state.options.to_json(),
        "trials": trials_json(study, list(state.trials)),
        "reports": [
            {
                "trial": r.trial_id,
                "attempt": r.attempt,
                "resource": r.resource,
                "value": formats.json_value(r.value),
                "seconds": r.time,
                "cost": formats.json_value(r.cost),
                "metrics": {name: formats.json_value(value) for name, value in r.metrics.items()},
            }
            for r in reports
        ],
        "status": status_json(study),
    }
    write_where_asked(target, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


# ----------------------------------------------------------------------------------------- optuna


def to_optuna(study: StudyFolder, reports: list[Report], target: Path) -> None:
    """A study of Optuna in an SQLite file, for its dashboard and its plots.

    A trial that reached its end is complete, a failed one has failed, every other one that does not run is pruned; all
    have their intermediate values. Values that are neither text nor number become JSON text.
    """
    try:
        import optuna
    except ImportError:
        raise StudyError("Optuna is not installed. Install it with: pip install optuna") from None
    state = study.state
    direction = "minimize" if state.options.mode == "min" else "maximize"
    previous = optuna.logging.get_verbosity()
    with filling(target) as temporary:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            made = optuna.create_study(
                storage=f"sqlite:///{temporary.resolve()}", study_name=study.path.resolve().name, direction=direction
            )
            for trial in state.trials.values():
                if not trial.status.occupies_worker:
                    made.add_trial(_optuna_trial(study, trial))
        finally:
            optuna.logging.set_verbosity(previous)


def _optuna_trial(study: StudyFolder, trial: Trial) -> optuna.trial.FrozenTrial:
    import optuna

    State = optuna.trial.TrialState
    states = {TrialStatus.COMPLETED: State.COMPLETE, TrialStatus.FAILED: State.FAIL}
    outcome = states.get(trial.status, State.PRUNED)
    last = trial.curve.get(trial.resource, math.nan)
    if outcome is State.COMPLETE and not math.isfinite(last):
        outcome = State.FAIL  # Optuna knows no complete trial without a value
    domains = study.state.space.domains
    return optuna.trial.create_trial(
        state=outcome,
        value=last if outcome is State.COMPLETE else None,
        params={name: _optuna_value(trial.config[name]) for name in domains},
        distributions={name: _optuna_distribution(domain) for name, domain in domains.items()},
        intermediate_values=dict(trial.curve),
        user_attrs={"trial": trial.id, "origin": trial.origin, "reason": trial.reason, "status": trial.status.value},
    )


def _optuna_distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if isinstance(domain, Float):
        return distributions.FloatDistribution(domain.lower, domain.upper, log=domain.scale is Scale.LOG)
    if isinstance(domain, Integer):
        return distributions.IntDistribution(int(domain.lower), int(domain.upper), log=domain.scale is Scale.LOG)
    return distributions.CategoricalDistribution([_optuna_value(member) for member in domain.members or ()])


def _optuna_value(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else formats.exact(value)


KINDS = {"csv": to_csv, "json": to_json, "optuna": to_optuna}
