"""Nothing that a training remembers is lost at a pause, wherever it keeps it."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import pytest

from tests.integrations.conftest import Trials
from tests.integrations.test_pause_resume import pauses_change_nothing

BETWEEN_EPOCHS: dict[str, dict[str, Any]] = {
    "a batch size that was found": {"callback": "batch size", "sized_data": True},
    "a learning rate that was found": {"callback": "learning rate"},
    "a search in the middle of the training": {"callback": "milestones"},
    "pruning masks": {"callback": "pruning"},
    "weights that are set back when they are pruned": {"callback": "lottery tickets"},
    "validation data drawn before the training": {"sized_data": True},
    "validation data drawn in the second epoch": {
        "sized_data": True, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0,
    },
    "loaders that look at the epoch": {"sized_data": True, "grows": True, "reload_dataloaders_every_n_epochs": 2},
    "a data module that counts": {"counts": "loaders"},
    "a data module that counts what is reloaded": {"counts": "loaders", "reload_dataloaders_every_n_epochs": 2},
    "persistent workers that validate": {"persistent": True},
    "a sampler's own generator, a buffer that is not saved": {"sampler": "own order", "model": "remembering"},
    "generators in transforms and in a collating function": {"augmented": True},
    "generators of a module and of a callback": {"model": "noisy", "callback": "jitter"},
    "a stream that goes on": {"endless": True, "limit_train_batches": 6},
    "a stream beside a loader without a state": {"endless": True, "model": "both", "limit_train_batches": 6},
    "buffers that are set and grow": {"model": "filling"},
    "sparse buffers, lazy layers": {"model": "graph"},
    "what hooks of the start set": {"model": "starting"},
    "weights that are saved under another name": {"model": "saves elsewhere"},
    "averages that are saved in the place of the weights": {"callback": "averages"},
    "what was logged before": {"model": "looking"},
    "settings of the Trainer that a callback has changed": {"callback": "changes once"},
    "gradients that wait for the next epoch": {"model": "accumulating", "check_val_every_n_epoch": 2},
}  # fmt: skip

INSIDE_EPOCHS: dict[str, dict[str, Any]] = {
    "an accumulation that changes": {"callback": "accumulation"},
    "a module that draws at the start of an epoch": {"sampler": "own order", "model": "remembering"},
    "generators in transforms, of a module and of a callback": {
        "augmented": True,
        "model": "noisy",
        "callback": "jitter",
    },
    "a data module that counts": {"counts": "loaders"},
    "what hooks of the start set": {"model": "starting"},
    "a module that counts validations when they end": {"model": "counting"},
    "buffers that are set and grow": {"model": "filling"},
    "weights that are set back when they are pruned": {"callback": "lottery tickets"},
    "a module that fetches for itself": {"model": "fetching"},
    "persistent workers that validate": {"persistent": True},
}


def run_unusually(trials: Trials, pauses: tuple[int, ...], **options: Any) -> Any:
    return pauses_change_nothing(trials, pauses, function="train_unusually", **options)


@pytest.mark.parametrize("name", BETWEEN_EPOCHS)
def test_between_epochs(trials: Trials, name: str) -> None:
    options = BETWEEN_EPOCHS[name]
    is_rare = "check_val_every_n_epoch" in options
    trials.welcome = replace(trials.welcome, metric="train_loss" if is_rare else "val_loss")
    looks_at_epochs = is_rare or "reload_dataloaders_every_n_epochs" in options
    whole = run_unusually(trials, (1, 3) if looks_at_epochs else (2,), **options)
    assert list(whole.reports) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", INSIDE_EPOCHS)
def test_inside_an_epoch(trials: Trials, name: str) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    whole = run_unusually(trials, (1, 3), val_check_interval=0.5, **INSIDE_EPOCHS[name])
    assert list(whole.reports) == [1, 2, 3, 4, 5, 6, 7, 8]


EACH_RANK: list[dict[str, Any]] = [
    {"broadcast": False},
    {"model": "accumulating", "strategy": "ddp"},
    {"model": "looking", "broadcast": False},
]


@pytest.mark.parametrize("options", EACH_RANK, ids=repr)
def test_each_rank_goes_on_with_what_is_its_own(trials: Trials, options: dict[str, Any]) -> None:
    options = {"function": "train_unusually", "devices": 2, "ranks": 2} | options
    whole = trials.anew("whole").run(**options)
    paused = trials.anew("paused")
    first, last = paused.pause_at(1, **options), paused.run(**options)
    for rank in range(2):
        assert last.results[rank]["returned"] == whole.results[rank]["returned"], last.log
    assert first.reports | last.reports == whole.reports
    assert len({result["returned"]["weights"] for result in whole.results}) == 2, "the ranks' buffers are equal anyway"


def test_a_data_module_that_has_no_state_before_its_loaders_are_made_trains_on(trials: Trials) -> None:
    first, last = trials.pause_at(2, "train_unusually", counts="late"), trials.run("train_unusually", counts="late")
    assert (list(first.reports), list(last.reports), last.returned["global_step"]) == ([1, 2], [3, 4], 24)


@pytest.mark.parametrize("sampler", ["own order", "weighted"])
def test_samplers_that_lightning_shares_out_to_ranks_keep_their_generators(trials: Trials, sampler: str) -> None:
    options = {"function": "train_unusually", "devices": 2, "ranks": 2, "strategy": "ddp", "sampler": sampler}
    whole = trials.anew("whole").run(**options)
    paused = trials.anew("paused")
    first, last = paused.pause_at(2, **options), paused.run(**options)
    assert last.returned == whole.returned, last.log
    assert first.reports | last.reports == whole.reports


def test_an_epoch_that_is_cut_short_writes_no_averages(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    run_unusually(trials, (3,), val_check_interval=0.5, rows=True)
    files = sorted(trials.folder.glob("paused/**/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    assert len(files) == 2
    assert [row["epoch"] for row in rows if row.get("train_loss")] == ["0", "1", "2", "3"]


def test_an_epoch_that_is_cut_short_leaves_callbacks_their_loggers_at_the_end(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    attempt = trials.pause_at(3, "train_unusually", val_check_interval=0.5, callback="logs at the end", rows=True)
    assert attempt.returned["interrupted_as"] == "paused"


def test_averaging_of_weights_is_refused_where_pauses_may_be_inside_epochs(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    attempt = trials.run("train_unusually", callback="swa", val_check_interval=0.5)
    assert attempt.problems == ["ResourceMismatch"]
    assert attempt.results[0]["message"].endswith("Set hydra.launcher.resource=epoch, or take EMAWeightAveraging.")


def test_loaders_of_which_only_some_keep_a_state_are_refused_where_pauses_may_be_inside_epochs(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=8)
    options = {"endless": True, "model": "both", "limit_train_batches": 6, "val_check_interval": 3}
    attempt = trials.run("train_unusually", **options)
    assert attempt.problems == ["ResourceMismatch"]
    assert attempt.results[0]["message"].endswith("or take loaders that all keep a state, or none.")


def test_a_fit_that_has_lost_its_checkpoint_does_not_train(trials: Trials) -> None:
    trials.pause_at(2)
    attempt = trials.run("train_unusually", callback="resets")
    assert attempt.problems == ["ResourceMismatch"]
    assert "begins at step 0" in attempt.results[0]["message"]
    assert attempt.reports == {}


def test_what_a_pause_would_need_is_not_asked_for_in_every_epoch(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, max_t=9)
    # Only when the loaders are made, those of the training and those of the validation.
    assert trials.run("asks_for_state", epochs=9).returned == {"asked": 2}
