"""Who is ended from outside, and when: on the virtual cluster of ``tests/faults``."""

from __future__ import annotations

from lightning_hpo.core.events import AttemptEnded, CheckpointSaved, Outcome
from tests.faults.virtual import Process
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


def test_a_checkpoint_that_never_comes_is_given_up_after_five_minutes():
    made = patient()
    save, stuck = made._save, []

    def get_stuck_once(process: Process) -> None:
        if stuck:
            save(process)
        else:
            stuck.append(process.trial_id)

    made._save = get_stuck_once  # type: ignore[method-assign]
    made.run()
    (ended,) = hung(made)
    assert (ended.trial_id, ended.error) == (stuck[0], "no report for 300 s (epoch_timeout)")


def test_an_epoch_that_never_ends_is_given_up_after_the_timeout():
    made = patient()
    train, stuck = made._train, []

    def get_stuck_once(process: Process) -> None:
        if stuck:
            train(process)
        else:
            stuck.append(process.trial_id)

    made._train = get_stuck_once  # type: ignore[method-assign]
    made.run()
    (ended,) = hung(made)
    assert (ended.trial_id, ended.outcome, ended.error) == (
        stuck[0],
        Outcome.LOST,
        "no report for 60 s (epoch_timeout)",
    )
