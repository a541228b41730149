"""Goals of a study that its trials cannot reach, because they log no metric of that name."""

from __future__ import annotations

from lightning_hpo.core.events import Event, Reported
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import did_you_mean


class Goals:
    """Looks at the first report of a run."""

    def __init__(self) -> None:
        self._is_checked = False

    def warning(self, event: Event, state: StudyState) -> str | None:
        """One line, if the first report lacks a metric that ``max_metric_value`` or ``min_metric_value`` names."""
        if self._is_checked or not isinstance(event, Reported):
            return None
        self._is_checked = True
        logged = {state.options.metric, *event.metrics}
        missing = [
            f"stop.{option} names {metric!r}, which the first report does not hold.{did_you_mean(metric, logged)}"
            for option, metric in state.options.stop.metrics()
            if metric not in logged
        ]
        if not missing:
            return None
        return f"{' '.join(missing)} A value that no trial logs ends no study. It logs: {', '.join(sorted(logged))}."
