"""A trial that was paused and resumed in a new process ends bit by bit like one that never paused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from lightning_hpo.runtime.messages import Saved
from tests.integrations.conftest import Attempt, Trials

SCRIPTS: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "cosine": {"scheduler": "cosine"},
    "one cycle": {"scheduler": "one_cycle"},
    "plateau of a validation metric": {"scheduler": "plateau"},
    "plateau of a training metric": {"scheduler": "plateau_train"},
    "plateau by steps": {"scheduler": "plateau_step", "val_check_interval": 0.5},
    "validation twice per epoch": {"val_check_interval": 0.5, "scheduler": "plateau"},
    "no validation": {"validation": False, "metric_from": "epoch_end"},
    "accumulation": {"accumulate_grad_batches": 4, "scheduler": "one_cycle"},
    "weight averaging": {"callbacks": ["averaging"]},
    "stochastic weight averaging": {"callbacks": ["swa"]},
    "learning rate finder": {"callbacks": ["lr_finder"], "scheduler": "cosine"},
    "random numbers in the main process": {"noise": "torch numpy python"},
    "workers": {"workers": 2, "noise": "torch numpy python"},
    "persistent workers": {"workers": 2, "persistent": True},
    "the user's own generators": {"own_generators": True},
    "the user's own generators, workers": {"own_generators": True, "workers": 1, "noise": "torch"},
    "callbacks that draw": {"callbacks": ["drawing"]},
    "data module with a random split": {"data_module": True},
    "loaders reloaded each epoch": {"data_module": True, "reload_dataloaders_every_n_epochs": 1},
    "loaders reloaded every 2nd epoch": {"data_module": True, "reload_dataloaders_every_n_epochs": 2},
    "hyperparameters from Hydra": {"config": "hydra"},
    "hyperparameters that cannot be pickled": {"config": "lambda"},
    "bfloat16": {"precision": "bf16-mixed"},
    "gradient clipping": {"gradient_clip_val": 0.1},
    "max_steps too": {"max_steps": 24, "scheduler": "one_cycle"},
    "max_steps inside the last epoch": {"max_steps": 21},
    "a stream without length": {"stream": True},
    "min_epochs": {"min_epochs": 4},
    "limited batches": {"limit_train_batches": 5},
    "ModelCheckpoint saves all": {"saving": {"save_top_k": -1, "save_last": True}},
    "a logger": {"logger": "csv"},
    "a backbone unfrozen by BackboneFinetuning": {"frozen_by": "callback", "callbacks": ["backbone_finetuning"]},
    "a backbone unfrozen by a BaseFinetuning": {"frozen_by": "callback", "callbacks": ["base_finetuning"]},
    "a backbone unfrozen by the module": {"frozen_by": "module"},
    "a backbone frozen by the module": {"frozen_by": "module, reversed"},
    "metrics across epochs": {"measured": True},
    "double precision": {"precision": "64-true"},
}  # fmt: skip

PAUSED_TWICE = {
    "nothing special",
    "one cycle",
    "max_steps too",
    "loaders reloaded every 2nd epoch",
    "callbacks that draw",
    # They freeze and unfreeze in the second epoch.
    "a backbone unfrozen by BackboneFinetuning",
    "a backbone unfrozen by a BaseFinetuning",
    "a backbone unfrozen by the module",
    "a backbone frozen by the module",
    "metrics across epochs",
}


def skip_without_weight_averaging(options: dict[str, Any]) -> None:
    if "averaging" in options.get("callbacks", ()) and metadata.version("lightning") < "2.6":
        pytest.skip("weight averaging came with Lightning 2.6")


def pauses_change_nothing(trials: Trials, pauses: tuple[int, ...], function: str = "train", **options: Any) -> Attempt:
    """Returns the uninterrupted run."""
    skip_without_weight_averaging(options)
    uninterrupted = trials.anew("whole").run(function, **options)
    paused = trials.anew("paused")
    attempts = [paused.pause_at(resource, function, **options) for resource in pauses]
    attempts.append(paused.run(function, **options))
    assert attempts[-1].returned == uninterrupted.returned
    reports: dict[int, float] = {}
    for attempt in attempts:
        assert attempt.errors == [] and attempt.problems == []
        assert not reports.keys() & attempt.reports.keys(), "an epoch was trained twice"
        reports |= attempt.reports
    assert reports == uninterrupted.reports
    return uninterrupted


@pytest.mark.parametrize("name", SCRIPTS)
def test_pauses_change_nothing(trials: Trials, name: str) -> None:
    pauses = (1, 3) if name in PAUSED_TWICE else (2,)
    uninterrupted = pauses_change_nothing(trials, pauses, **SCRIPTS[name])
    assert uninterrupted.returned["global_step"] > 0


@pytest.mark.parametrize("name", ["nothing special", "workers", "validation twice per epoch", "callbacks that draw"])
def test_a_trial_trains_like_the_script_by_itself(trials: Trials, name: str) -> None:
    options = SCRIPTS[name]
    assert trials.anew("trial").run(**options).returned == trials.anew("alone").plain(**options).returned


def test_the_script_asks_lightnings_tuner_in_every_attempt_and_pauses_change_nothing(trials: Trials) -> None:
    uninterrupted = pauses_change_nothing(trials, (1, 3), "find_settings_first")
    assert list(uninterrupted.reports) == [1, 2, 3, 4]
    assert uninterrupted.returned == trials.anew("alone").plain("find_settings_first").returned


@pytest.mark.parametrize("plugin", ["compressed", "async"])
def test_a_trainers_own_format_of_checkpoints_is_not_that_of_pauses(trials: Trials, plugin: str) -> None:
    pauses_change_nothing(trials, (2,), "writes_its_own_way", plugin=plugin)


def test_a_configuration_that_lightningcli_saved_is_saved_again(trials: Trials) -> None:
    assert trials.pause_at(2, "saves_its_configuration").returned == "lr: 0.01"
    resumed = trials.run("saves_its_configuration")
    assert resumed.returned == "lr: 0.01"
    assert list(resumed.reports) == [3, 4]


def test_lightnings_own_checkpoints_stay_in_one_place(trials: Trials) -> None:
    trials.pause_at(2, "checkpoints_beside_the_logs")
    resumed = trials.run("checkpoints_beside_the_logs").returned
    assert resumed["best"].startswith("lightning_logs/version_0/")
    assert resumed["files"] == [resumed["best"]], "the best of before the pause should have been replaced"


def paused_twice(trials: Trials, first: str, then: str | None = None, *, worsens: bool = True) -> Any:
    """What a script with a relative logger returns after pauses at 1 and 3.

    Args:
        first, then: its working folder until the last pause and after it, seen from the trial's.
    """
    for resource in (1, 3):
        trials.pause_at(resource, "relative_logger", working=first, worsens=worsens)
    return trials.run("relative_logger", working=then or first, worsens=worsens).returned


@pytest.mark.parametrize("worsens", [True, False])
def test_a_relative_logger_in_the_trials_folder_loses_nothing_at_a_pause(trials: Trials, worsens: bool) -> None:
    whole = trials.anew("whole").run("relative_logger", working=".", worsens=worsens).returned
    assert whole["score"] == (0.0 if worsens else 3.0)
    assert whole["best"].startswith("logs/lightning_logs/version_0/")
    assert paused_twice(trials.anew("paused"), ".", worsens=worsens) == whole


@pytest.mark.parametrize("options", [{"version": ""}, {"version": 0}, {"version": "mine", "early": True}], ids=repr)
def test_rows_of_a_csvlogger_with_a_fixed_version_outlast_a_pause(trials: Trials, options: dict[str, Any]) -> None:
    uninterrupted = pauses_change_nothing(trials, (1, 3), "logs_rows", **options)
    assert uninterrupted.returned["text"].count("\n") > 4


def killed_in_its_second_epoch(trials: Trials, function: str, **options: Any) -> Attempt:
    hits = trials.folder / "hits"
    hits.mkdir()
    fault = {"LIGHTNING_HPO_FAILPOINTS": "callback.before_report=exit@2", "LIGHTNING_HPO_FAILPOINTS_FOLDER": str(hits)}
    trials.environment = fault
    killed = trials.run(function, **options)
    trials.environment = {}
    assert len(killed.reports) == 1
    return killed


@pytest.mark.parametrize("paused", [True, False])
def test_rows_of_an_attempt_that_was_killed_are_not_there_twice(trials: Trials, paused: bool) -> None:
    uninterrupted = trials.anew("whole").run("logs_rows", version="")
    if paused:
        trials.pause_at(2, "logs_rows", version="")
    killed_in_its_second_epoch(trials, "logs_rows", version="")
    assert trials.run("logs_rows", version="").returned == uninterrupted.returned


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("saving", [{"monitor": "score", "mode": "max", "save_top_k": 2}, {}], ids=repr)
def test_checkpoints_of_an_attempt_that_was_killed_are_replaced(
    trials: Trials, saving: dict[str, Any], paused: bool
) -> None:
    uninterrupted = trials.anew("whole").run("saves_last", **saving)
    if paused:
        trials.pause_at(2, "saves_last", **saving)
    killed_in_its_second_epoch(trials, "saves_last", **saving)
    assert trials.run("saves_last", **saving).returned == uninterrupted.returned


def test_a_name_that_was_taken_in_this_attempt_stays_taken(trials: Trials) -> None:
    options = {"twice": True, "save_top_k": -1}
    uninterrupted = trials.anew("whole").run("saves_last", **options)
    assert "epoch=3-step=24-v1.ckpt" in uninterrupted.returned["files"]
    trials.pause_at(2, "saves_last", **options)
    killed_in_its_second_epoch(trials, "saves_last", **options)
    assert trials.run("saves_last", **options).returned == uninterrupted.returned


@pytest.mark.parametrize("saving", [{"every_n_epochs": 3}, {"monitor": "score"}, {"every_n_epochs": 9}], ids=repr)
def test_the_last_checkpoint_is_saved_when_it_would_have_been_without_a_pause(
    trials: Trials, saving: dict[str, Any]
) -> None:
    uninterrupted = pauses_change_nothing(trials, (1, 3), "saves_last", **saving)
    assert uninterrupted.returned["last"] == "last.ckpt"


def test_a_trials_folder_behind_a_link_is_the_trials(trials: Trials) -> None:
    (trials.folder / "elsewhere").mkdir()
    (trials.folder / "trial").symlink_to("elsewhere")
    assert paused_twice(trials, ".")["best"].startswith("logs/lightning_logs/version_0/")


@pytest.mark.parametrize("worsens", [True, False])
@pytest.mark.parametrize("by_link", [True, False])
def test_outside_of_the_trials_folder_the_best_stays_known_and_its_folder_untouched(
    trials: Trials, by_link: bool, worsens: bool
) -> None:
    logs = trials.folder / "logs"
    if by_link:
        (trials.folder / "trial").mkdir()
        (trials.folder / "trial" / "logs").symlink_to(logs)
        logs.mkdir()
    working = "." if by_link else ".."
    trials.pause_at(1, "relative_logger", working=working, worsens=worsens)
    first = logs / "lightning_logs" / "version_0" / "checkpoints"
    before = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    resumed = paused_twice(trials, working, worsens=worsens)
    assert (resumed["score"], resumed["best_two"]) == ((0.0, [0.0, 1.0]) if worsens else (3.0, [2.0, 3.0]))
    assert resumed["is_there"]
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == before


def test_the_best_is_found_from_another_working_folder(trials: Trials) -> None:
    resumed = paused_twice(trials, "..", then=".")
    assert (resumed["score"], resumed["is_there"]) == (0.0, True)
    assert resumed["best"].startswith(f"{trials.folder}/logs/lightning_logs/version_0/")


def test_the_best_is_found_in_a_study_that_was_moved(trials: Trials) -> None:
    trials.pause_at(2, "checkpoints_beside_the_logs", worsens=True)
    (trials.folder / "new").mkdir()
    (trials.folder / "trial").rename(trials.folder / "new" / "trial")
    moved = replace(trials, folder=trials.folder / "new")
    resumed = moved.run("checkpoints_beside_the_logs", worsens=True).returned
    assert resumed["best"] == "lightning_logs/version_0/checkpoints/epoch=0-step=6.ckpt"
    assert resumed["files"] == [resumed["best"]]


def test_a_best_file_that_is_gone_is_forgotten(trials: Trials) -> None:
    trials.pause_at(2, "relative_logger", working="..", worsens=True)
    shutil.rmtree(trials.folder / "logs" / "lightning_logs" / "version_0" / "checkpoints")
    resumed = trials.run("relative_logger", working="..", worsens=True).returned
    assert (resumed["score"], resumed["is_there"]) == (2.0, True)


def test_early_stopping_goes_on_counting(trials: Trials) -> None:
    uninterrupted = pauses_change_nothing(trials, (1, 2), callbacks=["early"])
    assert uninterrupted.returned["epoch"] == 3, "early stopping should have ended this fit"


@pytest.mark.parametrize("minimum", [{"min_epochs": 3}, {"min_steps": 18}], ids=repr)
def test_a_stop_that_waits_for_the_minimum_is_not_forgotten(trials: Trials, minimum: dict[str, int]) -> None:
    uninterrupted = pauses_change_nothing(trials, (1, 2), callbacks=["stops"], **minimum)
    assert list(uninterrupted.reports) == [1, 2, 3]


def test_a_pause_at_the_epoch_of_early_stopping_is_not_needed(trials: Trials) -> None:
    trials.decide = lambda report: "pause" if report.resource == 3 else "continue"
    attempt = trials.run(callbacks=["early"])
    assert list(attempt.reports) == [1, 2, 3]
    assert attempt.returned["interrupted_as"] is None
    assert not any(isinstance(message, Saved) for message in attempt.messages)


def test_rare_validation_reports_fresh_values_only(trials: Trials) -> None:
    uninterrupted = pauses_change_nothing(trials, (1,), check_val_every_n_epoch=2, own_generators=True)
    assert list(uninterrupted.reports) == [2, 4]


def test_metrics_of_before_the_pause_are_there_after_it(trials: Trials) -> None:
    # The scheduler looks at val_loss after every epoch, fresh or not; the epoch after the pause has no fresh one.
    trials.welcome = replace(trials.welcome, metric="train_loss")
    uninterrupted = pauses_change_nothing(trials, (2,), check_val_every_n_epoch=2, scheduler="plateau_lenient")
    assert list(uninterrupted.reports) == [1, 2, 3, 4]


BY_VALIDATION: dict[str, dict[str, Any]] = {
    "twice per epoch": {"val_check_interval": 0.5},
    "twice per epoch, workers": {"val_check_interval": 0.5, "workers": 1, "noise": "torch numpy"},
    "random numbers in the main process": {"val_check_interval": 0.5, "noise": "torch numpy python"},
    "across epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "by steps alone": {
        "val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": -1, "max_steps": 24,
    },
    "plateau by steps": {"val_check_interval": 0.5, "scheduler": "plateau_step"},
    "plateau by epochs": {"val_check_interval": 0.5, "scheduler": "plateau"},
    "one cycle": {"val_check_interval": 0.5, "scheduler": "one_cycle"},
    "inside an accumulation": {"val_check_interval": 0.5, "accumulate_grad_batches": 2},
    "weight averaging": {"val_check_interval": 0.5, "callbacks": ["averaging"]},
    "own generators": {"val_check_interval": 0.5, "own_generators": True},
    "a stream without length": {"stream": True, "val_check_interval": 3},
    "a logger": {"val_check_interval": 0.5, "logger": "csv"},
    "a backbone unfrozen by BackboneFinetuning": {
        "val_check_interval": 0.5, "frozen_by": "callback", "callbacks": ["backbone_finetuning"],
    },
    "a backbone unfrozen by the module": {"val_check_interval": 0.5, "frozen_by": "module"},
    "metrics across epochs": {"val_check_interval": 0.5, "measured": True},
    "loaders reloaded each epoch": {
        "val_check_interval": 0.5, "data_module": True, "reload_dataloaders_every_n_epochs": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BY_VALIDATION)
def test_pauses_inside_an_epoch_change_nothing(trials: Trials, name: str) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    # With validation twice per epoch, 1 and 3 are in the middle of an epoch, 4 is at the end of one.
    pauses = (1, 3, 4) if name == "twice per epoch" else (1, 3)
    if name == "metrics across epochs":
        pauses = (1, 3, 7)  # the last one in the epoch whose metrics are compared
    uninterrupted = pauses_change_nothing(trials, pauses, **BY_VALIDATION[name])
    assert list(uninterrupted.reports) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("resource", ["epoch", "validation"])
def test_a_fit_that_begins_with_a_checkpoint_of_the_scripts_goes_on_as_before(trials: Trials, resource: str) -> None:
    # Validations are counted from 1, epochs by Lightning; with val_check_interval the pauses are inside of epochs.
    epochs, validations = ((2, 3), {}, [2, 3, 4]), ((1, 3), {"val_check_interval": 0.5}, [1, 2, 3, 4, 5, 6])
    pauses, options, reports = validations if resource == "validation" else epochs
    trials.welcome = replace(trials.welcome, resource=resource, max_t=reports[-1])
    uninterrupted = pauses_change_nothing(trials, pauses, "own_checkpoint_path", **options)
    assert list(uninterrupted.reports) == reports


def test_a_cut_epoch_does_not_end_for_other_callbacks(trials: Trials) -> None:
    # ModelCheckpoint would leave a file of the cut epoch, and early stopping would count it.
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    saving = {"save_top_k": -1, "save_on_train_epoch_end": True}
    pauses_change_nothing(trials, (1, 3), val_check_interval=0.5, saving=saving)
    whole, paused = ({path.name for path in trials.folder.glob(f"{name}/trial/best/*")} for name in ("whole", "paused"))
    assert whole == paused
    assert len(whole) == 4


@pytest.mark.parametrize("options", [{"noise": "torch", "scheduler": "plateau"}, {"measured": True}], ids=repr)
def test_both_ranks_go_on_as_before(trials: Trials, options: dict[str, Any]) -> None:
    options = {"strategy": "ddp", "devices": 2} | options
    whole, paused = trials.anew("whole"), trials.anew("paused")
    uninterrupted = whole.run(ranks=2, **options)
    first = paused.pause_at(2, ranks=2, **options)
    last = paused.run(ranks=2, **options)
    for rank in range(2):
        assert "returned" in uninterrupted.results[rank], uninterrupted.log
        assert last.results[rank]["returned"] == uninterrupted.results[rank]["returned"]
    assert first.reports | last.reports == uninterrupted.reports
    weights = {result["returned"]["weights"] for result in last.results}
    assert len(weights) == 1


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_pauses_change_nothing_on_a_gpu(trials: Trials, precision: str) -> None:
    # 16-mixed has a gradient scaler with a state of its own; dropout draws from the device's generator.
    pauses_change_nothing(trials, (1, 3), accelerator="gpu", precision=precision, deterministic=True)
