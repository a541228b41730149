"""Who is ended from outside, and when: on the virtual cluster of ``tests/faults``."""

from __future__ import annotations

import pytest

from lightning_hpo.core.events import AttemptEnded, CheckpointSaved, Outcome
from tests.faults.virtual import Faults, Process
from tests.runtime.test_coordinator import Recorded

HUNG = "(epoch_timeout)"


def patient(epoch_timeout: float = 60.0, **options) -> Recorded:
    made = Recorded(n_workers=2, n_trials=9, **options)
    made._epoch_timeout = epoch_timeout
    return made


def hung(made: Recorded) -> list[AttemptEnded]:
    return [e for e in made.logged(AttemptEnded) if HUNG in (e.error or "")]


def test_a_checkpoint_may_take_longer_than_an_epoch():
    made = patient()
    save = made._save
    made._save = lambda process: made.after(70.0, 70.0, lambda: save(process))  # type: ignore[method-assign]
    made.run()
    paused = [e for e in made.logged(AttemptEnded) if e.outcome is Outcome.PAUSED]
    assert len(paused) == len(made.logged(CheckpointSaved)) > 0
    assert not hung(made) and all(t.failures == 0 for t in made.durable.trials.values())


def test_so_may_what_the_script_does_after_the_last_epoch():
    made = patient(algorithm="random", type=None)
    conclude = made._conclude

    def test_for_a_while(process: Process, outcome: Outcome) -> None:
        made.after(70.0, 70.0, lambda: conclude(process, outcome))

    made._conclude = test_for_a_while  # type: ignore[method-assign]
    made.run()
    assert [e.outcome for e in made.logged(AttemptEnded)] == [Outcome.COMPLETED] * 9


def stuck_once(made: Recorded, what: str) -> list[int]:
    """The first process that is to do this never gets done; returns which trial it trains, once it is known."""
    do, stuck = getattr(made, what), []

    def get_stuck(process: Process) -> None:
        if stuck:
            do(process)
        else:
            stuck.append(process.trial_id)

    setattr(made, what, get_stuck)
    return stuck


@pytest.mark.parametrize(("what", "after"), [("_train", 60), ("_save", 300)], ids=["an epoch", "a checkpoint"])
def test_what_never_ends_is_given_up(what: str, after: int):
    """An epoch after the timeout, a checkpoint after five minutes."""
    made = patient()
    stuck = stuck_once(made, what)
    made.run()
    (ended,) = hung(made)
    assert (ended.trial_id, ended.outcome) == (stuck[0], Outcome.LOST)
    assert ended.error == f"no report for {after} s (epoch_timeout)"


@pytest.mark.parametrize(
    ("n_workers", "told"), [(2, "Pausing 2 running trials at their next"), (1, "Pausing the running trial at its next")]
)
def test_how_many_are_paused_is_said(n_workers: int, told: str):
    made = Recorded(Faults(interrupts_at=(4.0,)), algorithm="random", type=None, n_workers=n_workers, n_trials=4)
    made.run()
    assert made.said[0].startswith(told)
