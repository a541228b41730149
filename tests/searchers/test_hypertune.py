from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_hpo.core.searcher import Observation
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.gp_model import fit_model
from lightning_hpo.searchers.level_weights import ensemble_posterior, judge_levels
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})
FEW = {"num_init_random": 1, "opt_maxiter": 20, "opt_nstarts": 1, "num_init_candidates": 50, "num_fantasy_samples": 5}
LEVELS = (1, 3, 9)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def study(counts, low=lambda x: (x - 0.7) ** 2, high=lambda x: (x - 0.7) ** 2, brackets=(1.0,)):
    """The first so many of 12 points at each level of 1, 3, 9: ``low`` is what level 1 shows, ``high`` all others."""
    view = View(LINE, rung_levels=LEVELS[:-1], default_bracket_weights=brackets)
    points = np.random.default_rng(0).permutation(np.linspace(0, 1, 12))
    for x in points:
        view.add({"x": float(x)})
    for level, count in counts.items():
        for trial in range(count):
            value = (low if level == 1 else high)(points[trial])
            view.observations.append(Observation(trial, level, float(value)))
    return view


def suggest(view, **options):
    suggestion = make_searcher("hypertune", {**FEW, **options}).suggest(view, view.request())
    assert suggestion.origin == "model", suggestion.reason
    return suggestion


def fitted(view, model="gp_independent"):
    return fit_model(view, SearcherOptions(**FEW), model, np.random.default_rng(0))


def judged(view, model="gp_independent"):
    return judge_levels(view, fitted(view, model), 50, np.random.default_rng(0))


@pytest.mark.parametrize("model", ["gp_independent", "gp_multitask"])
def test_until_a_second_level_has_six_observations_the_lowest_alone_counts(model):
    view = study({1: 12, 3: 5})
    assert judged(view, model) is None
    suggestion = suggest(view, model=model)
    assert " at rung 1, from 17 observations" in suggestion.reason
    assert "level_weights" not in suggestion.state
    assert suggestion.bracket_weights is None


def test_the_highest_level_with_six_observations_judges_the_ones_below():
    found = judged(study({1: 12, 3: 12, 9: 6}))
    assert (found.judge, found.num_observations) == (9, 6)
    assert list(found.weights) == [1, 3, 9]
    assert sum(found.weights.values()) == pytest.approx(1.0)
    found = judged(study({1: 12, 3: 8, 9: 5}))
    assert (found.judge, list(found.weights)) == (3, [1, 3])


def test_a_level_that_ranks_well_gets_weight_and_a_misleading_one_none():
    agreeing = judged(study({1: 12, 3: 6}))
    misleading = judged(study({1: 12, 3: 6}, low=lambda x: -((x - 0.7) ** 2)))
    assert agreeing.weights[1] > 0.5
    reason = suggest(study({1: 12, 3: 8, 9: 6}), num_init_random=1).reason
    assert " over levels 1 (" in reason and "%), 3 (" in reason
    assert misleading.weights[1] < 0.1


def test_a_level_without_observations_has_no_weight():
    found = judged(study({1: 12, 9: 6}))
    assert list(found.weights) == [1, 3, 9]
    assert found.weights[3] == 0.0


def test_weights_change_only_when_the_judge_has_seen_more():
    view = study({1: 8, 3: 6})
    view.state = json.loads(json.dumps(suggest(view).state))
    assert view.state["judged_by"] == [3, 6]
    before = view.state["level_weights"]
    for trial in range(8, 12):
        view.observations.append(Observation(trial, 1, 0.5))
    again = suggest(view)
    assert again.state["num_observations"] == 18  # refitted
    assert again.state["level_weights"] == before
    view.observations.append(Observation(6, 3, 0.01))
    assert suggest(view).state["judged_by"] == [3, 7]


def test_the_ensemble_is_the_weighted_sum_of_its_levels():
    model = fitted(study({1: 12, 3: 12}))
    state = {**model.state, "level_weights": [[1, 0.25], [3, 0.745], [9, 0.005]]}
    ensemble = ensemble_posterior(type(model)(**{**vars(model), "state": state}))
    assert ensemble.level_weights == pytest.approx({1: 0.25 / 0.995, 3: 0.745 / 0.995})
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    parts = {level: model.posterior.predict(x, level) for level in (1, 3)}
    found = ensemble.posterior.predict(x, 3)
    mean = sum(ensemble.level_weights[r] * parts[r].mean for r in parts)
    variance = sum(ensemble.level_weights[r] ** 2 * parts[r].variance for r in parts)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, variance)


def test_bracket_weights_follow_the_levels_and_keep_the_total_of_the_judged_brackets():
    default = (0.6, 0.25, 0.15)
    view = study({1: 12, 3: 12}, brackets=default)
    suggestion = suggest(view)
    weights = dict(map(tuple, suggestion.state["level_weights"]))
    per_resource = [weights[1] / 1, weights[3] / 3]
    expected = [0.85 * w / sum(per_resource) for w in per_resource] + [0.15]
    assert suggestion.bracket_weights == pytest.approx(expected)
    view.state = suggestion.state
    assert suggest(view).bracket_weights is None  # nothing new was seen


def test_one_bracket_has_no_weights():
    assert suggest(study({1: 12, 3: 12})).bracket_weights is None


@pytest.mark.parametrize("model", ["gp_independent", "gp_multitask"])
def test_same_data_same_suggestion(model):
    first, again = (suggest(study({1: 12, 3: 8, 9: 6}), model=model) for _ in range(2))
    assert (first.config, first.reason, first.state) == (again.config, again.reason, again.state)
    assert first.config["x"] == pytest.approx(0.7, abs=0.15)


def test_pending_evaluations_at_one_level_only():
    view = study({1: 8, 3: 8, 9: 6})
    view.add({"x": 0.69}, pending=1)
    view.add({"x": 0.71}, pending=3)
    assert 0 <= suggest(view).config["x"] <= 1


def test_without_rungs_it_is_bayesian_optimisation():
    view = View(LINE)
    for i in range(6):
        view.add({"x": i / 6}, (i / 6 - 0.5) ** 2)
    assert suggest(view).config == make_searcher("bayesopt", FEW).suggest(view, view.request()).config


def test_models_of_curves_are_refused():
    with pytest.raises(OptionError, match="algorithm mobster"):
        make_searcher("hypertune", {"model": "gp_issm"})
