"""A checkpoint's file is deleted only after it is on disk that it is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from lightning_hpo.core.events import AttemptEnded, CheckpointSaved, DropCheckpoint, Outcome, Reported, WorkerReady
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.errors import CheckpointError
from lightning_hpo.runtime.retention import Retention


class Kept:
    """Paused trials with a checkpoint of 10 bytes each, worst first: trial ``i`` of ``n`` reported ``n - i``."""

    def __init__(self, trials: int, max_disk: int | None = None) -> None:
        configs = [{"x": 0.1 * i} for i in range(trials)]
        options = {"metric": "m", "algorithm": "asha", "type": "promotion", "max_t": 9, "points_to_evaluate": configs}
        self.state = StudyState(SearchSpace({"x": uniform(0, 1)}), StudyOptions.from_mapping(options))
        self.happened: list[str] = []
        self.effects: list[Callable[[], None]] = []
        for i in range(trials):
            self.state.handle(WorkerReady(0.0))
            self.state.handle(Reported(1.0, i, 1, 1, float(trials - i)))
            self.state.handle(CheckpointSaved(1.0, i, 1, Checkpoint(1, f"{i}/a.ckpt", "0" * 64, 10)))
        for i in range(trials):
            self.state.handle(AttemptEnded(1.0, i, 1, Outcome.PAUSED))
        store = SimpleNamespace(max_disk=max_disk, remove=self.remove, over_budget=self.over_budget, sweep=self.sweep)
        self.retention = Retention(
            self.state,
            store,  # type: ignore[arg-type]
            lambda trial: Path(str(trial.id)),
            self.removed,
            self.effects.append,
            lambda message: self.happened.append(f"warned: {message}"),
        )

    def remove(self, checkpoint: Checkpoint) -> bool:
        self.happened.append(f"deleted {checkpoint.path}")
        return True

    def sweep(self, folders: list[Path], recorded: list[Checkpoint]) -> None:
        self.happened.append(f"swept {folders[0]}, kept {[c.path for c in recorded]}")

    def over_budget(self, paused: dict[int, Checkpoint], promise: Callable[[int], float], used: int) -> list[int]:
        self.happened.append(f"used {used}")
        excess = used + sum(c.size for c in paused.values()) - 20
        return sorted(paused, key=promise)[: max(0, -(-excess // 10))]

    def removed(self, trial_id: int, reason: str) -> None:
        self.happened.append(f"recorded {trial_id}: {reason}")
        self.state.trials[trial_id].checkpoint = None

    def commit(self) -> None:
        self.happened.append("committed")
        for effect in self.effects:
            effect()


def checkpoint(kept: Kept, trial_id: int) -> Checkpoint:
    found = kept.state.trials[trial_id].checkpoint
    assert found is not None
    return found


def test_what_is_dropped_is_recorded_committed_and_deleted_in_this_order() -> None:
    kept = Kept(1)
    kept.retention.drop(DropCheckpoint(0, checkpoint(kept, 0), "the trial is stopped"))
    kept.commit()
    assert kept.happened == ["recorded 0: the trial is stopped", "committed", "deleted 0/a.ckpt"]


def test_an_older_checkpoint_goes_without_a_record_as_the_trial_still_has_one() -> None:
    kept = Kept(1)
    kept.retention.drop(DropCheckpoint(0, Checkpoint(1, "0/older.ckpt", "0" * 64, 10), "a newer checkpoint is saved"))
    kept.commit()
    assert kept.happened == ["committed", "deleted 0/older.ckpt"]
    assert checkpoint(kept, 0).path == "0/a.ckpt"


def test_the_budget_is_kept_at_the_cost_of_the_least_promising() -> None:
    kept = Kept(4, max_disk=20)
    kept.retention.keep_within_budget()
    kept.commit()
    assert kept.happened[0] == "used 0"
    assert [line for line in kept.happened if line.startswith("deleted")] == ["deleted 0/a.ckpt", "deleted 1/a.ckpt"]


def test_without_a_budget_nothing_goes() -> None:
    kept = Kept(4)
    kept.retention.keep_within_budget()
    kept.commit()
    assert kept.happened == ["committed"]


def test_what_a_dead_process_left_is_swept_but_for_the_recorded_checkpoint() -> None:
    kept = Kept(1)
    kept.retention.sweep_after(0)
    kept.commit()
    assert kept.happened == ["committed", "swept 0, kept ['0/a.ckpt']"]


def test_a_file_that_cannot_be_deleted_is_a_warning() -> None:
    kept = Kept(1)

    def refuse(checkpoint: Checkpoint) -> bool:
        raise CheckpointError("It is busy. Try again.")

    kept.retention._store.remove = refuse  # type: ignore[method-assign]
    kept.retention.drop(DropCheckpoint(0, checkpoint(kept, 0), "the trial is stopped"))
    kept.commit()
    assert kept.happened[-1] == "warned: It is busy. Try again."
