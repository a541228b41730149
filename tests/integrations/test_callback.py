"""What HPOCallback promises in a trial, beside bit-identical resumption."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_hpo.core.trial import Checkpoint
from lightning_hpo.runtime.messages import Hello, Report, Saved
from tests.integrations.conftest import Trials


def test_hello_names_the_process_and_its_epochs(trials: Trials) -> None:
    attempt = trials.run()
    first = attempt.messages[0]
    assert isinstance(first, Hello)
    assert (first.trial_id, first.attempt, first.max_epochs) == (0, 1, 4)
    assert first.pid not in (0, os.getpid())


def test_every_epoch_is_reported_once_with_its_other_metrics_and_cost(trials: Trials) -> None:
    attempt = trials.run()
    reports = [message for message in attempt.messages if isinstance(message, Report)]
    assert [report.resource for report in reports] == [1, 2, 3, 4]
    assert all(set(report.metrics) == {"train_loss"} for report in reports)
    costs = [report.cost for report in reports]
    assert all(cost is not None and cost > 0.0 for cost in costs)
    assert costs == sorted(costs)


def test_cost_goes_on_after_a_pause(trials: Trials) -> None:
    paused = trials.pause_at(2)
    resumed = trials.run()
    before = max(m.cost for m in paused.messages if isinstance(m, Report))
    after = min(m.cost for m in resumed.messages if isinstance(m, Report))
    assert after > before > 0.0


def test_a_value_logged_by_the_module_at_the_end_of_the_epoch_is_of_that_epoch(trials: Trials) -> None:
    # The module logs 10 + epoch in on_train_epoch_end; a callback that runs before it would see the last epoch's.
    assert trials.run(metric_from="epoch_end", validation=False).reports == {1: 10.0, 2: 11.0, 3: 12.0, 4: 13.0}


def test_epochs_without_a_fresh_value_are_not_reported(trials: Trials) -> None:
    assert trials.run(metric_from="every_other_epoch", validation=False).reports == {1: 0.0, 3: 2.0}


@pytest.mark.parametrize(("name", "value"), [("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)])
def test_non_finite_values_are_sent_as_they_are(trials: Trials, name: str, value: float) -> None:
    sent = trials.run(metric_from=name, validation=False).reports[1]
    assert sent == value or (math.isnan(sent) and math.isnan(value))


def test_a_stop_ends_the_fit_without_a_checkpoint(trials: Trials) -> None:
    trials.decide = lambda report: "stop" if report.resource == 2 else "continue"
    attempt = trials.run(min_epochs=4)
    assert attempt.returned["epoch"] == 2
    assert attempt.returned["interrupted_as"] == "stopped"
    assert not any(isinstance(message, Saved) for message in attempt.messages)
    assert not (trials.folder / "trial" / "checkpoints").exists()


def test_complete_lets_the_script_go_on(trials: Trials) -> None:
    trials.decide = lambda report: "complete" if report.resource == 4 else "continue"
    attempt = trials.run("test_after_fit", method="test")
    assert attempt.returned == "went on"
    assert list(attempt.reports) == [1, 2, 3, 4]


def test_nothing_is_reported_beyond_max_t(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=3)
    trials.decide = lambda report: "complete" if report.resource == 3 else "continue"
    assert list(trials.run().reports) == [1, 2, 3]


@pytest.mark.parametrize("decision", ["pause", "stop"])
@pytest.mark.parametrize("method", ["test", "validate", "predict", "fit"])
def test_code_after_a_pause_or_stop_does_not_use_the_model(trials: Trials, decision: str, method: str) -> None:
    trials.decide = lambda report: decision if report.resource == 2 else "continue"
    attempt = trials.run("test_after_fit", method=method)
    assert attempt.results[0]["raised"] == {"pause": "TrialPaused", "stop": "TrialStopped"}[decision]
    assert (trials.folder / "trial" / "finally").exists(), "finally blocks run"


@pytest.mark.parametrize("method", ["test", "fit"])
def test_nor_does_another_trainer(trials: Trials, method: str) -> None:
    attempt = trials.pause_at(2, "test_after_fit", method=method, anew=True)
    assert attempt.results[0]["raised"] == "TrialPaused"


def test_a_second_trainer_after_a_pause_does_not_train(trials: Trials) -> None:
    attempt = trials.pause_at(2, "another_trainer")
    assert attempt.results[0]["raised"] == "TrialPaused"
    assert list(attempt.reports) == [1, 2]


@pytest.mark.parametrize("function", ["another_trainer", "same_callback_again"])
def test_only_the_first_fit_is_steered(trials: Trials, function: str) -> None:
    attempt = trials.run(function)
    assert attempt.returned == "several fits"
    assert list(attempt.reports) == [1, 2, 3, 4]
    assert attempt.log.count("another fit with HPOCallback begins") == 1


def test_a_fit_after_one_that_raised_takes_its_place(trials: Trials) -> None:
    attempt = trials.run("tries_again")
    assert attempt.returned == ["no memory for this batch"]
    assert [m.resource for m in attempt.messages if isinstance(m, Report)] == [1, 1, 2, 3, 4]
    assert "another fit" not in attempt.log


def test_a_pause_of_the_second_try_is_resumed_by_the_next_process(trials: Trials) -> None:
    trials.pause_at(3, "tries_again")
    assert list(trials.run("tries_again").reports) == [4]


def test_the_learning_rate_finder_before_a_fit_and_a_test_after_it_are_no_further_fits(trials: Trials) -> None:
    before, after = trials.run("find_learning_rate_first"), trials.run("test_after_fit", method="test")
    for attempt in (before, after):
        assert list(attempt.reports) == [1, 2, 3, 4]
        assert "another fit" not in attempt.log


def test_the_learning_rate_finder_does_not_take_the_first_fits_place(trials: Trials) -> None:
    attempt = trials.pause_at(2, "find_learning_rate_first")
    assert attempt.returned == 2
    resumed = trials.run("find_learning_rate_first")
    assert resumed.returned == 4
    assert list(attempt.reports) + list(resumed.reports) == [1, 2, 3, 4]


def test_of_two_callbacks_in_a_trainer_the_first_one_counts(trials: Trials) -> None:
    paused = trials.pause_at(2, "two_callbacks")
    assert paused.returned == ["_FirstInLine", "ModelCheckpoint", "HPOCallback"]
    resumed = trials.run("two_callbacks")
    assert [*paused.reports, *resumed.reports] == [1, 2, 3, 4]
    assert "another fit" not in paused.log + resumed.log


def test_outside_a_trial_two_callbacks_do_nothing_either(trials: Trials) -> None:
    assert trials.plain("two_callbacks").returned.count("HPOCallback") == 2


def test_a_script_finds_its_own_early_stopping(trials: Trials) -> None:
    assert trials.anew("alone").plain("early_stopping_of_lightning", patience=5).returned == 5
    assert trials.anew("trial").run("early_stopping_of_lightning", patience=5).returned == 5


def test_checkpoints_know_nothing_of_the_callbacks_key(trials: Trials) -> None:
    trials.pause_at(2, "two_callbacks")
    path = trials.folder / "trial" / "checkpoints" / "resource-2.ckpt"
    content = torch.load(path, weights_only=False)
    assert not any("HPOCallback" in str(key) for key in content["callbacks"]), "it has no state that a key could lose"


def test_our_checkpoint_wins_over_the_users(trials: Trials) -> None:
    trials.pause_at(3, "own_checkpoint_path")
    resumed = trials.run("own_checkpoint_path")
    assert resumed.returned["epoch"] == 4
    assert list(resumed.reports) == [4]


def test_outside_a_trial_nothing_changes(trials: Trials) -> None:
    with_callback = trials.plain("weights", with_callback=True).returned
    assert with_callback == trials.plain("weights", with_callback=False).returned


def test_a_script_without_the_callback_can_be_told(trials: Trials) -> None:
    attempt = trials.run("without_callback")
    assert attempt.results[0]["returned"] is False
    assert attempt.messages == []


def test_bars_summaries_and_advertisements_are_off_in_trials(trials: Trials) -> None:
    attempt = trials.run("noisy", quiet=True)
    assert attempt.returned == ["_FirstInLine", "ModelCheckpoint", "HPOCallback"]
    assert not any(word in attempt.log for word in ("Epoch", "params", "Tip:"))


def test_bars_can_be_kept(trials: Trials) -> None:
    attempt = trials.run("noisy", quiet=False)
    assert "Epoch" in attempt.log and "params" in attempt.log


# ------------------------------------------------------------------------------------------ errors


def error_of(trials: Trials, function: str = "train", **options: Any) -> str:
    """The message of the error; it was announced, and only one epoch at most was trained."""
    attempt = trials.run(function, **options)
    result = attempt.results[0]
    assert "raised" in result, "no error"
    assert attempt.problems == [result["raised"]]
    assert len(attempt.reports) <= 1
    message: str = result["message"]
    assert message.endswith("."), message
    return f"{result['raised']}: {message}"


def test_other_epochs_than_max_t_are_refused(trials: Trials) -> None:
    message = error_of(trials, max_epochs=5)
    assert message.startswith("ResourceMismatch")
    assert "max_epochs=5" in message and "max_t is 4" in message
    assert message.endswith("Pass Trainer(max_epochs=4), or set hydra.launcher.max_t to the Trainer's max_epochs.")


def test_too_few_validations_are_refused(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, resource="validation", max_t=9)
    message = error_of(trials, val_check_interval=0.5)
    assert message.startswith("ResourceMismatch") and "validates 8 times in all" in message


def test_a_misspelt_metric_is_an_error_after_the_first_epoch(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, metric="val_los")
    message = error_of(trials)
    assert message.startswith("MetricMissing") and "'val_los' was not logged in epoch 1" in message
    assert "Logged: 'train_loss', 'val_loss'. Did you mean 'val_loss'?" in message


def test_a_missing_metric_is_not_missed_before_the_first_validation(trials: Trials) -> None:
    trials.welcome = replace(trials.welcome, metric="other")
    assert "in epoch 2" in error_of(trials, check_val_every_n_epoch=2)


def test_a_fit_that_never_validates_is_an_error_at_its_end(trials: Trials) -> None:
    assert "during the whole fit" in error_of(trials, check_val_every_n_epoch=5)


@pytest.mark.parametrize("odd", ["text", "pair", "complex", "bool", "none"])
def test_a_metric_that_is_not_a_number_is_an_error(trials: Trials, odd: str) -> None:
    message = error_of(trials, metric_from=odd, validation=False)
    assert message.startswith("MetricInvalid: The metric 'val_loss' must be one real number")
    assert message.endswith("Log a scalar: self.log('val_loss', value).")


def test_a_trainer_that_is_told_to_train_nothing_is_an_error(trials: Trials) -> None:
    message = error_of(trials, "nothing_to_train_on", limit=0.0)
    assert message.startswith("ResourceMismatch: The Trainer had nothing to train on: limit_train_batches=0.")


def test_an_empty_loader_is_an_error_of_this_trial(trials: Trials) -> None:
    attempt = trials.run("nothing_to_train_on")
    assert attempt.results[0]["raised"] == "ResourceMismatch"
    assert "its training DataLoader is empty. Give it data" in attempt.results[0]["message"]
    assert attempt.problems == [], "other configurations may do better"


def test_two_different_metrics_are_refused(trials: Trials) -> None:
    message = error_of(trials, metric="val_acc")
    assert message.startswith("OptionError") and "'val_acc'" in message and "'val_loss'" in message


def test_a_damaged_checkpoint_is_refused(trials: Trials) -> None:
    trials.pause_at(2)
    path = trials.folder / "trial" / "checkpoints" / "resource-2.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = error_of(trials)
    assert message.startswith("CheckpointError") and "not the one that was saved" in message


def test_a_foreign_checkpoint_is_not_executed(trials: Trials) -> None:
    trials.pause_at(2)
    path = trials.folder / "trial" / "checkpoints" / "resource-2.ckpt"
    path.write_bytes(pickle.dumps(Bomb(str(trials.folder / "boom"))))
    assert error_of(trials).startswith("CheckpointError")
    assert not (trials.folder / "boom").exists()


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_a_checkpoint_that_cannot_be_written_is_an_error(trials: Trials) -> None:
    (trials.folder / "trial").mkdir()
    (trials.folder / "trial" / "checkpoints").touch()
    trials.decide = lambda _: "pause"
    message = error_of(trials)
    assert message.startswith("CheckpointError") and "cannot be written" in message


def test_a_launcher_that_is_gone_ends_the_trial(trials: Trials) -> None:
    attempt = trials.run("launcher_dies")
    assert attempt.results[0]["raised"] == "ChannelError"


def test_the_checkpoint_is_announced_as_it_is(trials: Trials) -> None:
    saved = trials.pause_at(2).checkpoint
    path = trials.folder / "trial" / saved.path
    assert saved == Checkpoint(2, "checkpoints/resource-2.ckpt", saved.sha256, path.stat().st_size)
    assert [entry.name for entry in Path(path.parent).iterdir()] == ["resource-2.ckpt"]
