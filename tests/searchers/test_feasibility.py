"""Where trials diverge or fail, little is proposed; where one fails now and then, everything is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_hpo import Start, Study, uniform
from lightning_hpo.core.searcher import SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, choice
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.candidates import Candidates
from lightning_hpo.searchers.feasibility import Feasibility
from lightning_hpo.searchers.proposal import excluded_with_pending
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0.0, 1.0)})
ON = SearcherOptions(avoid_infeasible=True)
PLACES = np.linspace(0.0, 1.0, 101)[:, None]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def line(good: tuple[float, ...], bad: tuple[float, ...], **options) -> View:
    view = View(LINE, rung_levels=(1, 3), **options)
    for x in good:
        view.add({"x": x}, 0.5)
    for x in bad:
        view.add({"x": x}, math.nan)
    return view


def allowed(view: View) -> list[float]:
    barred = Feasibility.of(view, ON).bars(PLACES)
    return [round(float(x), 2) for x in PLACES[~barred, 0]]


def test_a_place_is_barred_if_the_nearest_trial_and_one_of_the_next_two_came_to_nothing() -> None:
    # The nearest is bad above 0.5. From 0.45 on, two of the three nearest are: 0.6 and 0.8 are nearer than 0.1 is.
    view = line(good=(0.1, 0.4), bad=(0.6, 0.8, 0.9))
    assert allowed(view) == [round(0.01 * i, 2) for i in range(51)]
    assert len(allowed(line(good=(), bad=(0.2, 0.5, 0.8)))) == 0


def test_single_bad_trials_among_good_ones_bar_nothing() -> None:
    view = line(good=(0.0, 0.15, 0.25, 0.45, 0.55, 0.85, 1.0), bad=(0.2, 0.5, 0.9))
    assert len(allowed(view)) == len(PLACES)


def test_a_tenth_that_fails_at_random_bars_little() -> None:
    """Two places in a hundred: 0.1 times 1 - 0.9^2."""
    rng = np.random.default_rng(0)
    view = View(SearchSpace({name: uniform(0.0, 1.0) for name in "abc"}), rung_levels=(1, 3))
    for i in range(1000):
        config = view.space.decode(rng.uniform(size=3))
        view.add(config, failed=True) if i % 10 == 0 else view.add(config, 0.5)
    barred = Feasibility.of(view, ON).bars(rng.uniform(size=(2000, 3)))
    assert 0.005 < barred.mean() < 0.04


def test_two_bad_trials_are_no_region_and_no_random_number_is_used() -> None:
    view = line(good=(0.1,), bad=(0.6, 0.8))
    rng = np.random.default_rng(0)
    found = Feasibility.of(view, ON)
    assert not found.bars(PLACES).any()
    assert found.heeded(rng) is None
    assert rng.uniform() == np.random.default_rng(0).uniform()


def test_for_one_proposal_in_ten_nothing_is_barred() -> None:
    found = Feasibility.of(line(good=(0.1, 0.4), bad=(0.6, 0.8, 0.9)), ON)
    rng = np.random.default_rng(0)
    assert 0.07 < np.mean([found.heeded(rng) is None for _ in range(2000)]) < 0.13


def test_what_is_as_near_to_a_good_trial_as_to_a_bad_one_is_not_barred() -> None:
    """All values of a choice are equally far from each other, and equal configurations from everything."""
    space = SearchSpace({"k": choice([str(i) for i in range(12)])})
    view = View(space, rung_levels=(1, 3))
    for i in range(6):
        view.add({"k": str(i)}, failed=i < 4)
        view.add({"k": str(i)}, *([0.5] if i >= 4 else []), failed=i < 4)
    barred = Feasibility.of(view, ON).bars(space.encode_many([{"k": str(i)} for i in range(12)]))
    assert barred.tolist() == [True] * 4 + [False] * 8


def test_a_paused_trial_waits_in_vain_where_those_that_went_on_diverged() -> None:
    view = View(LINE, rung_levels=(1, 3))
    for x in (0.7, 0.8, 0.9):
        view.add({"x": x}, 0.5, 0.4, 0.3, math.nan)  # beyond rung 3
    for x in (0.1, 0.2):
        view.add({"x": x}, *[0.5] * 9)
    waiting = {view.add({"x": x}, *[0.5] * length): length for x, length in ((0.75, 3), (0.15, 3), (0.85, 1))}
    view.paused = waiting
    high, low, early = waiting
    # The one at rung 1 has good ones before it, up to rung 3, but they are those that diverged.
    assert Feasibility.of(view, ON).waiting_in_vain == {high, early}
    # New ones are barred there as well: all there came to nothing or wait in vain.
    assert max(allowed(view)) < 0.5
    assert low not in Feasibility.of(view, ON).waiting_in_vain


def test_as_long_as_nothing_good_went_on_the_farther_half_of_a_rung_may() -> None:
    """Any place is nearest to what came to nothing where nothing else is known."""
    view = View(LINE, rung_levels=(1, 3))
    for x in (0.7, 0.8, 0.9):
        view.add({"x": x}, 0.5, 0.4, 0.3, math.nan)
    waiting = {view.add({"x": x}, 0.5, 0.4, 0.3): x for x in (0.75, 0.1, 0.6, 0.4)}
    view.paused = dict.fromkeys(waiting, 3)
    assert {waiting[trial] for trial in Feasibility.of(view, ON).waiting_in_vain} == {0.6, 0.75}
    view.paused = {trial: 3 for trial, x in waiting.items() if x == 0.75}
    assert not Feasibility.of(view, ON).waiting_in_vain, "the only one is to show whether it comes to nothing too"


def chosen(view: View, options: SearcherOptions, score, refine=None) -> list[float]:
    """What is chosen with 40 streams of random numbers, if the lowest score is the best."""
    found = []
    for stream in range(40):
        drawn = Candidates.draw(view, options, excluded_with_pending(view, options), np.random.default_rng(stream))
        config = drawn.choose(np.array([score(x) for x in drawn.encoded[:, 0]]), refine)
        found.append(math.nan if config is None else config["x"])
    return found


def test_only_with_the_option_what_is_barred_comes_last() -> None:
    view = line(good=(0.1, 0.4), bad=(0.6, 0.8, 0.9))
    assert min(chosen(view, SearcherOptions(), lambda x: -x)) > 0.9
    assert np.mean(np.array(chosen(view, ON, lambda x: -x)) < 0.51) > 0.8  # one in ten does not heed it
    grid = tuple({"x": x} for x in (0.1, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9))
    restricted = SearcherOptions(avoid_infeasible=True, restrict_configurations=grid)
    assert np.mean(np.array(chosen(view, restricted, lambda x: -x)) == 0.3) > 0.8
    view.add({"x": 0.3}, 0.5)  # nothing else is left
    assert set(chosen(view, restricted, lambda x: -x)) == {0.7}


def test_what_is_refined_into_a_barred_place_stays_where_it_was() -> None:
    view = line(good=(0.1, 0.4), bad=(0.6, 0.8, 0.9))

    def refine(point):
        return np.array([0.95])

    assert np.mean(np.array(chosen(view, ON, lambda x: -x, refine)) < 0.51) > 0.8
    assert set(chosen(view, SearcherOptions(), lambda x: -x, refine)) == {0.95}


def test_it_asks_a_study_for_its_trials_once_however_many_there_are(monkeypatch) -> None:
    """What a study says of all its trials is gathered anew at every question."""
    from lightning_hpo.core.view import StudyView

    asked: dict[str, int] = {}
    for name in ("paused", "infeasible"):
        original = getattr(StudyView, name).fget

        def counted(self, name=name, original=original):
            asked[name] = asked.get(name, 0) + 1
            return original(self)

        monkeypatch.setattr(StudyView, name, property(counted))
    study = a_study("rank", lambda config, r: math.nan if config["x"] > 0.5 else config["y"], n_trials=30)
    asked.clear()
    Feasibility.of(study._state.view(), ON)
    assert asked == {"paused": 1, "infeasible": 1}
    asked.clear()
    searcher = make_searcher("freeze_thaw", SearcherOptions(avoid_infeasible=True, num_init_random=1))
    view = study._state.view()
    assert "EI" in searcher.suggest(view, SuggestRequest(len(view.configs))).reason
    assert max(asked.values()) <= 5, "however many trials there are"


def a_study(rule: str, value, seed: int = 0, budget: int = 10**9, **options) -> Study:
    """Trains what is asked for; ``value(config, resource)`` None: it fails."""
    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
    given = {"max_t": 9, "random_seed": seed, "points_to_evaluate": [], "promotion_rule": rule, **options}
    study = Study.create(space, metric="loss", **given)
    trained = 0
    while trained < budget and (work := study.ask()) is not None:
        config = study.trials[work.trial_id].config
        r = 0 if isinstance(work, Start) else work.from_resource
        verdict = "continue"
        while verdict == "continue" and r < 9:
            r, trained = r + 1, trained + 1
            told = value(config, r)
            if told is None:
                study.fail(work.trial_id, f"CUDA out of memory at {config['x']}")
                break
            verdict = study.tell(work.trial_id, r, told)
    return study


@pytest.mark.parametrize("rule", ["searcher", "rank"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, None])
def test_where_trials_diverge_or_fail_at_once_the_default_looks_less(rule, odd) -> None:
    """Whatever is in the upper half of ``x`` diverges or (None) fails. Of 30 trials 15 would lie there by chance."""

    def value(config, r):
        return (config["x"] - 0.2) ** 2 + (config["y"] - 0.7) ** 2 + 0.5 / r if config["x"] < 0.5 else odd

    study = a_study(rule, value, n_trials=40)
    assert any("EI" in trial.reason for trial in study.trials.values())
    assert sum(trial.config["x"] > 0.5 for trial in list(study.trials.values())[10:]) <= 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_best_diverge_later_the_default_trains_others_to_the_end(seed) -> None:
    """The minimum at ``x = 0.6`` cannot be had: beyond the rung at 3 all that is above ``x = 0.5`` diverges."""

    def value(config, r):
        is_good = config["x"] < 0.5 or r <= 3
        return (config["x"] - 0.6) ** 2 + (config["y"] - 0.7) ** 2 + 0.5 / r if is_good else math.nan

    study = a_study("searcher", value, seed, budget=300)
    assert sum(trial.resource == 9 and math.isfinite(trial.last_value) for trial in study.trials.values()) >= 3


def test_where_one_in_ten_fails_for_no_reason_the_search_is_as_good() -> None:
    """Within what another seed changes: the best of 60 trials is near the minimum all the same."""

    def value(config, r):
        if int(config["x"] * 1e6) % 10 == 0 and r == 1:
            return None
        return (config["x"] - 0.2) ** 2 + (config["y"] - 0.7) ** 2 + 0.5 / r

    for seed in range(3):
        study = a_study("searcher", value, seed, budget=150)
        best = study.best().at_full_resource
        assert best is not None and best.value < 0.5 / 9 + 0.02


def test_a_choice_that_fails_is_left() -> None:
    space = SearchSpace({"optimizer": choice(["adam", "sgd", "lbfgs"]), "x": uniform(0.0, 1.0)})
    view = View(space, rung_levels=(1, 3))
    for i in range(4):
        x = 0.1 + 0.25 * i
        view.add({"optimizer": "adam", "x": x}, 0.5)
        view.add({"optimizer": "sgd", "x": x}, 0.4)
        view.add({"optimizer": "lbfgs", "x": x}, failed=True)
    asked = [{"optimizer": name, "x": 0.3} for name in ("adam", "sgd", "lbfgs")]
    assert Feasibility.of(view, ON).bars(space.encode_many(asked)).tolist() == [False, False, True]
