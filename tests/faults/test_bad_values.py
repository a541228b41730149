"""Reports that are not finite, come twice, come too late or leave something out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.events import Reported, Told, Verdict
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.searchers import make_searcher
from tests.core.driving import SETTINGS, SPACE, Driven, snapshot

ODD = (math.nan, math.inf, -math.inf)
# Promotion by cost needs reports of the cost; what it does with values it has from plain promotion.
WITH_END = {name: given for name, given in SETTINGS.items() if "max_t" in given and name != "cost promotion"}


def diverging(odd: float, when: str, max_t: int):
    """Every third trial, the first one included, diverges at its first, middle or last unit of resource."""
    at = {"first": 1, "middle": (max_t + 1) // 2, "last": max_t}[when]
    return lambda trial_id, r: odd if trial_id % 3 == 0 and r >= at else 1.0 / (1 + trial_id + r)


@pytest.mark.parametrize("when", ["first", "middle", "last"])
@pytest.mark.parametrize("name", WITH_END)
def test_what_is_not_finite_is_never_the_best_and_never_an_observation(name, when):
    for odd, mode in itertools.product(ODD, ("min", "max")):
        options = {"n_trials": 9, **WITH_END[name], "mode": mode}
        study = Driven(**options)
        study.run(diverging(odd, when, options["max_t"]))
        state = study.state
        assert state.best_any is not None and math.isfinite(state.best_any[2])
        assert state.best_full is None or math.isfinite(state.best_full[2])
        assert all(math.isfinite(o.value) for o in state.data.observations())
        for trial in state.trials.values():
            assert all(math.isfinite(value) for value in state.view().curve(trial.id).values())
        assert snapshot(study.replayed()) == snapshot(state)


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("name", [name for name in WITH_END if name not in ("random", "median")])
def test_what_is_not_finite_at_a_rung_ends_the_trial(name, odd):
    study = Driven(**{"n_trials": 9, **WITH_END[name]})
    study.ready()
    milestone = study[0].milestone
    for resource in range(1, milestone):
        study.tell(0, resource, 0.5)
    assert study.tell(0, milestone, odd) is Verdict.STOP
    assert study[0].status is TrialStatus.STOPPED


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_where_no_trial_is_ended_early_it_trains_on(odd):
    study = Driven(**WITH_END["random"])
    study.ready()
    assert study.train(0, odd, odd, 0.5, odd) is Verdict.CONTINUE
    assert study.state.best_any == (0, 3, 0.5)


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("searcher", ["random", "kde", "bayesopt", "hypertune"])
def test_no_searcher_learns_from_what_is_not_finite(searcher, odd):
    """Its proposal is the same as if the reports had not come, unless ``avoid_infeasible`` says otherwise."""
    name = next(n for n, a in ALGORITHMS.items() if a.searcher == searcher and n != "default")
    proposals = []
    for bad in (odd, None):
        options = {"algorithm": name, "max_t": 4, "reduction_factor": 2, "n_trials": 20}
        study = Driven(**options)
        for i in range(8):
            study.ready()
            if bad is None and i % 2:
                study.tell(i, 1, math.nan)
            else:
                study.tell(i, 1, bad if i % 2 else 1.0 / (1 + i))
        request = study.state.next_request()
        assert request is not None
        made = make_searcher(searcher, study.options.searcher).suggest(study.state.view(), request)
        proposals.append(made and made.config)
    assert proposals[0] == proposals[1] and proposals[0] is not None
    assert SPACE.check(proposals[0])


REPORTS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.1, 0.2, 0.3, math.nan])), min_size=1, max_size=30)


@pytest.mark.parametrize("name", WITH_END)
@given(reports=REPORTS)
def test_reports_in_any_order_change_nothing_that_is_known(name, reports):
    """The first value of a resource stands, an older resource comes too late, and a gap is no error of the study's."""
    study = Driven(**{"n_trials": 3, **WITH_END[name]})
    study.ready()
    known: dict[int, float] = {}
    for resource, value in reports:
        before = dict(study[0].curve)
        event = Reported(study.time, 0, study[0].attempt, resource, value)
        try:
            (told, *_) = study.handle(event)
        except Exception as refused:
            assert "Report" in str(refused)  # a milestone was jumped over: named, and nothing has changed
            assert study[0].curve == before
            break
        assert isinstance(told, Told)
        if resource > max(known, default=0) and repr(study[0].curve) != repr(before):
            known[resource] = value
        assert repr(study[0].curve) == repr(known)
        if told.verdict is not Verdict.CONTINUE:
            break
    assert list(study[0].curve) == sorted(study[0].curve)
    assert all(a < b for a, b in itertools.pairwise(study[0].curve))
