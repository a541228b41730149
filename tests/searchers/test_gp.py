"""Bayesian optimisation and MOBSTER on studies written down by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lightning_hpo import Study
from lightning_hpo.core.searcher import Observation, Pending, SuggestRequest
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace, choice, lograndint, loguniform, randint, uniform
from lightning_hpo.errors import NumericalError, OptionError
from lightning_hpo.searchers import gp_model, make_searcher
from lightning_hpo.searchers.gp_model import choose_device, fit_model, normalise, numeric_columns
from lightning_hpo.searchers.proposal import excluded_with_pending, propose, with_fantasies
from lightning_hpo.surrogates.fit import fit
from tests.searchers.test_random import TINY, proposals
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})
MIXED = SearchSpace({"lr": loguniform(1e-5, 1.0), "units": lograndint(4, 512), "act": choice(["relu", "gelu", "tanh"])})
MODELS = ("gp_multitask", "gp_independent", "gp_expdecay", "gp_issm")
FEW = {"num_init_random": 1, "opt_maxiter": 10, "opt_nstarts": 1, "num_init_candidates": 50, "num_fantasy_samples": 5}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def parabola(n, space=LINE, best=0.7, name="x", reports=(9,), rung_levels=(), noise=0.0):
    """``n`` trials on a grid, ``(value - best)**2`` plus a decaying curve."""
    view = View(space, rung_levels=rung_levels)
    rng = np.random.default_rng(0)
    for i in range(n):
        config = space.decode(np.full(space.width, (i + 0.5) / n))
        last = reports[i % len(reports)]
        value = (space.encode({**config})[space.columns(name)][0] - best) ** 2
        view.add(config, *(value + 0.3 / r + noise * rng.standard_normal() for r in range(1, last + 1)))
    return view


def model_suggestion(view, name="bayesopt", **options):
    suggestion = make_searcher(name, {**FEW, **options}).suggest(view, view.request())
    assert suggestion.origin == "model", suggestion.reason
    return suggestion


# -- when the model is used


def test_random_searchs_proposals_until_the_model_takes_over():
    for name, rung_levels, first in (("bayesopt", (), 3), ("bayesopt", (1, 3), 6), ("hypertune", (1, 3), 6)):
        random = proposals("random", View(MIXED, seed=5, rung_levels=rung_levels), 8)
        view, searcher = View(MIXED, seed=5, rung_levels=rung_levels), make_searcher(name, {})
        origins = []
        for _ in range(first + 1):
            suggestion = searcher.suggest(view, view.request())
            origins.append(suggestion.origin)
            view.accept(suggestion, 1.0)
        assert origins == ["random"] * first + ["model"]
        assert [view.configs[i] for i in range(first)] == random[:first]


def test_a_share_of_the_proposals_can_stay_random():
    view = parabola(10)
    origins = {
        share: [
            make_searcher("bayesopt", {**FEW, "random_fraction": share}).suggest(view, SuggestRequest(trial)).origin
            for trial in range(10, 30)
        ]
        for share in (0.0, 0.5, 1.0)
    }
    assert set(origins[0.0]) == {"model"}
    assert set(origins[1.0]) == {"random"}
    assert 3 <= origins[0.5].count("random") <= 17  # the chance of an exception is 0.0004


def test_eight_pending_and_none_observed_is_random_search():
    view = View(LINE, rung_levels=(1, 3))
    for i in range(8):
        view.add({"x": i / 10}, pending=1)
    suggestion = make_searcher("bayesopt", {}).suggest(view, view.request())
    assert (suggestion.origin, suggestion.reason) == ("random", "random: nothing is observed yet")


# -- what it proposes


def test_the_model_searches_where_it_expects_improvement():
    suggestion = model_suggestion(parabola(8), opt_maxiter=50, opt_nstarts=2)
    assert suggestion.config["x"] == pytest.approx(0.7, abs=0.06)
    assert suggestion.reason.startswith("EI ")
    assert suggestion.reason.endswith(", from 8 observations")


@pytest.mark.parametrize("model", MODELS)
def test_multi_fidelity_models_search_there_too(model):
    view = parabola(9, reports=(9, 9, 3), rung_levels=(1, 3))
    suggestion = model_suggestion(view, model=model, opt_maxiter=50, opt_nstarts=2)
    assert suggestion.config["x"] == pytest.approx(0.7, abs=0.15)
    # Six trials of 9 epochs and three of 3: every epoch counts for models of curves, rungs 1, 3, 9 for the others.
    number = 6 * 9 + 3 * 3 if model in ("gp_expdecay", "gp_issm") else 9 + 9 + 6
    assert suggestion.reason.endswith(f" at max_t, from {number} observations")


def test_pending_evaluations_push_the_next_proposal_away():
    view = parabola(8)
    first = model_suggestion(view)
    view.add(first.config, pending=9)
    second = model_suggestion(view)
    ignoring = model_suggestion(view, no_fantasizing=True)
    assert abs(second.config["x"] - first.config["x"]) > 1e-3
    assert ignoring.config != first.config  # it is excluded, though not modelled


def test_the_lower_confidence_bound_and_scoring_by_it():
    view = parabola(8)
    options = {"acq_function": "lcb", "initial_scoring": "acq_func", "acq_function_kwargs": {"kappa": 0.0}}
    suggestion = model_suggestion(view, opt_maxiter=50, **options)
    assert suggestion.config["x"] == pytest.approx(0.7, abs=0.05)
    # With kappa = 0 it is the posterior mean, which at the optimum is the end of the curve, 0.3 / 9.
    assert float(suggestion.reason.split()[2].rstrip(",")) == pytest.approx(0.3 / 9, abs=0.02)


def test_expected_improvement_is_told_in_units_of_the_metric():
    def improvement(scale):
        view = parabola(8)
        view.observations = [o._replace(value=o.value * scale) for o in view.observations]
        suggestion = model_suggestion(view)
        return suggestion.config["x"], float(suggestion.reason.split()[1].rstrip(","))

    (x, small), (same, large) = improvement(1.0), improvement(1000.0)
    assert x == pytest.approx(same)  # xi scales with the targets
    assert large == pytest.approx(1000 * small, rel=0.01)


def test_xi_in_units_of_the_metric_is_an_option():
    view = parabola(8)
    view.observations = [o._replace(value=o.value * 1e-4) for o in view.observations]
    flat = model_suggestion(view, xi_in_criterion_units=True)
    # 0.01 is hundreds of standard deviations of such a metric, so nothing improves on it.
    assert float(flat.reason.split()[1].rstrip(",")) < 1e-20
    assert float(model_suggestion(view).reason.split()[1].rstrip(",")) > 1e-9


def test_without_local_optimisation_a_random_candidate_is_proposed():
    coarse = SearchSpace({"x": randint(0, 1000)})
    view = parabola(8, coarse)
    candidates = coarse.sample_encoded
    drawn = []

    class Recorded(SearchSpace):
        def sample_encoded(self, rng, n):
            drawn.append(candidates(rng, n))
            return drawn[-1]

    view.space = Recorded({"x": randint(0, 1000)})
    suggestion = model_suggestion(view, skip_local_optimization=True)
    assert suggestion.config in view.space.decode_many(drawn[0])


# -- at which level


def rungs_with(counts):
    view = View(LINE, rung_levels=(1, 3))
    for resource, count in counts.items():
        for i in range(count):
            trial = view.add({"x": (i + 0.5) / count + 1e-3 * resource})
            view.observations.append(Observation(trial, resource, i * 0.1))
    return view


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "at rung 3"),
        ({"resource_acq_bohb_threshold": 2}, "at max_t"),
        ({"resource_acq_bohb_threshold": 9}, "at rung 1"),
        ({"resource_acq": "final"}, "at max_t"),
        ({"resource_acq": "first"}, "at rung 1"),
    ],
)
@pytest.mark.parametrize("model", MODELS[:2])
def test_the_level_of_the_acquisition_function(options, where, model):
    assert where in model_suggestion(rungs_with({1: 6, 3: 3, 9: 2}), model=model, **options).reason


def test_rules_that_name_a_level_without_data_fall_back():
    view = rungs_with({1: 6, 3: 3})
    assert "at rung 3" in model_suggestion(view, resource_acq="final").reason
    request = SuggestRequest(len(view.configs), bracket=2, milestone=9)
    suggestion = make_searcher("bayesopt", {**FEW, "resource_acq": "first"}).suggest(view, request)
    assert "at rung 3" in suggestion.reason


# -- exclusion


def test_nothing_known_is_proposed_again_and_an_exhausted_space_ends_the_search():
    view, searcher = View(TINY), make_searcher("bayesopt", {**FEW, "num_init_random": 2})
    proposed = []
    while (suggestion := searcher.suggest(view, view.request())) is not None:
        proposed.append((suggestion.config["a"], suggestion.config["b"]))
        view.accept(suggestion, float(suggestion.config["a"]))
    assert sorted(proposed) == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]


def test_with_duplicates_pending_and_failed_configurations_stay_excluded():
    view = View(TINY)
    view.add({"a": 1, "b": "x"}, 0.1)
    view.add({"a": 2, "b": "x"}, failed=True)
    view.add({"a": 3, "b": "x"}, pending=9)
    options = make_searcher("bayesopt", {})._options
    assert excluded_with_pending(view, options) == view.taken
    allowed = make_searcher("bayesopt", {"allow_duplicates": True})._options
    keys = {TINY.match_key({"a": a, "b": "x"}) for a in (2, 3)}
    assert excluded_with_pending(view, allowed) == keys


def test_restricted_configurations_are_proposed_as_they_are():
    allowed = [{"x": 0.1 * i + 1e-12} for i in range(1, 10)]
    view = parabola(8)
    suggestion = model_suggestion(view, restrict_configurations=allowed)
    assert suggestion.config in allowed


# -- determinism and state


@pytest.mark.parametrize("model", MODELS)
def test_same_data_same_suggestion_twice_and_after_a_restart(model):
    def suggestion():
        view = parabola(9, reports=(9, 3, 1), rung_levels=(1, 3), noise=0.01)
        view.add({"x": 0.33}, pending=1)
        return model_suggestion(view, model=model)

    first, again = suggestion(), suggestion()
    assert (first.config, first.reason, first.state) == (again.config, again.reason, again.state)


def test_the_state_is_json_and_holds_the_parameters_of_the_last_fit():
    view = parabola(8)
    suggestion = model_suggestion(view)
    state = json.loads(json.dumps(suggestion.state))
    assert state["num_observations"] == 8
    view.state = state
    view.add(suggestion.config, pending=9)
    skipped = model_suggestion(view)
    assert skipped.state is None  # the data are the same: no fit
    fitted = fit_model(view, make_searcher("bayesopt", FEW)._options, "single_fidelity", np.random.default_rng(0))
    assert not fitted.is_refitted
    assert fitted.surrogate.space.values(fitted.theta) == state["parameters"]
    view.observations.append(Observation(8, 9, 0.5))
    assert model_suggestion(view).state["num_observations"] == 9


def test_a_failed_fit_keeps_the_old_parameters_and_says_so(monkeypatch):
    view = parabola(8)
    view.state = model_suggestion(view).state
    view.add({"x": 0.01}, 0.9)

    def refuse(self, data):
        def objective(theta):
            raise NumericalError("Not positive definite. Use other data.")

        return objective

    monkeypatch.setattr("lightning_hpo.surrogates.models.Surrogate.objective", refuse)
    suggestion = model_suggestion(view)
    assert suggestion.reason.endswith("from 9 observations, parameters of the last fit")
    assert suggestion.state["parameters"] == view.state["parameters"]


def test_a_model_that_cannot_be_computed_gives_a_random_configuration_and_the_reason(monkeypatch):
    def refuse(self, data, theta):
        raise NumericalError("A covariance matrix of size 8 is not positive definite. Remove duplicates.")

    monkeypatch.setattr("lightning_hpo.surrogates.models.JointModel.posterior", refuse)
    view = parabola(8)
    suggestion = make_searcher("bayesopt", FEW).suggest(view, view.request())
    assert suggestion.origin == "random"
    assert "could not be computed (A covariance matrix of size 8 is not positive definite)" in suggestion.reason
    assert suggestion.config == make_searcher("random", {}).suggest(view, view.request()).config


# -- edge cases


@pytest.mark.parametrize("model", [None, *MODELS])
@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_observations(model, n):
    view = parabola(n, rung_levels=(1, 3) if model else ())
    assert 0 <= model_suggestion(view, model=model).config["x"] <= 1


@pytest.mark.parametrize("model", [None, *MODELS])
def test_all_targets_equal(model):
    view = View(MIXED, rung_levels=(1, 3) if model else ())
    for i in range(6):
        view.add(MIXED.sample(np.random.default_rng(i)), *[0.5] * 9)
    assert MIXED.check(model_suggestion(view, model=model).config)


@pytest.mark.parametrize("model", [None, *MODELS])
def test_duplicate_configurations_with_different_values(model):
    view = View(LINE, rung_levels=(1, 3) if model else ())
    for i in range(6):
        view.add({"x": 0.25 * (i % 2)}, *(0.5 + 0.1 * i / r for r in range(1, 10)))
    assert 0 <= model_suggestion(view, model=model, allow_duplicates=True).config["x"] <= 1


@pytest.mark.parametrize("algorithm", ["bayesopt", "mobster", "hypertune"])
def test_what_is_reported_as_nan_reaches_no_model(algorithm, monkeypatch):
    seen = []
    monkeypatch.setattr(gp_model, "fit", lambda model, data, *rest: seen.append(data) or fit(model, data, *rest))
    search = {"num_init_random": 3, "opt_maxiter": 5}
    study = Study.create({"x": uniform(0, 1)}, algorithm=algorithm, metric="loss", max_t=3, searcher=search)
    for trial_id in range(6):
        study.ask()
        value = math.nan if trial_id % 3 == 1 else 0.1 * trial_id
        if study.tell(trial_id, 1, value) == "continue":
            study.tell(trial_id, 2, value)
            study.tell(trial_id, 3, value)
    assert seen
    assert all(torch.isfinite(data.y).all() for data in seen)


@pytest.mark.parametrize("model", MODELS[:2])
def test_one_level_only_and_levels_without_data(model):
    assert "at rung 1" in model_suggestion(rungs_with({1: 5}), model=model).reason
    assert "at max_t" in model_suggestion(rungs_with({1: 5, 9: 3}), model=model).reason
    assert "at max_t" in model_suggestion(rungs_with({9: 3}), model=model).reason


@pytest.mark.parametrize("model", MODELS[:2])
def test_pending_at_a_level_without_observations(model):
    view = rungs_with({1: 5})
    view.pending += [Pending(0, 3), Pending(1, 9)]
    view.add({"x": 0.987}, pending=1)
    assert "at rung 1" in model_suggestion(view, model=model).reason


def test_forty_hyperparameters():
    space = SearchSpace({f"x{i:02}": uniform(0, 1) for i in range(40)})
    view = View(space)
    for i in range(5):
        config = space.sample(np.random.default_rng(i))
        view.add(config, sum(config.values()))
    assert len(model_suggestion(view).config) == 40


def test_constants_and_one_choice():
    space = SearchSpace({"act": choice(["a", "b", "c"]), "epochs": 9})
    view = View(space)
    view.add({"act": "a"}, 1.0)
    view.add({"act": "b"}, 0.5)
    suggestion = make_searcher("bayesopt", FEW).suggest(view, view.request())
    assert suggestion.config == {"act": "c"}
    view.accept(suggestion, 0.3)
    assert make_searcher("bayesopt", FEW).suggest(view, view.request()) is None
    again = model_suggestion(view, allow_duplicates=True)
    assert again.config["act"] in "abc"


def test_a_space_without_hyperparameters():
    view, searcher = View(SearchSpace({"epochs": 3})), make_searcher("bayesopt", FEW)
    view.accept(searcher.suggest(view, view.request()), 1.0)
    assert searcher.suggest(view, view.request()) is None


@pytest.mark.parametrize("option", ["input_warping", "boxcox_transform", "opt_warmstart", "separate_noise_variances"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_options_of_the_model(option, model):
    view = parabola(9, MIXED, name="lr", reports=(9, 3, 1), rung_levels=(1, 3))
    assert MIXED.check(model_suggestion(view, model=model, **{option: True}).config)


def test_targets_as_they_are_and_a_shared_length_scale():
    view = parabola(8)
    options = make_searcher("bayesopt", {**FEW, "normalize_targets": False})._options
    fitted = fit_model(view, options, "single_fidelity", np.random.default_rng(0))
    assert fitted.data.y.tolist() == pytest.approx([o.value for o in view.observations])
    assert MIXED.check(model_suggestion(parabola(8, MIXED, name="lr"), gp_base_kernel="matern52-noard").config)


def test_only_numbers_are_warped():
    assert numeric_columns(MIXED) == (3, 4)  # act has the columns 0, 1, 2


def test_large_data_are_reduced_and_the_best_are_kept():
    view = parabola(60)
    options = make_searcher("bayesopt", {**FEW, "max_size_data_for_model": 20})._options
    fitted = fit_model(view, options, "single_fidelity", np.random.default_rng(0))
    assert (len(fitted.data), len(fitted.history)) == (20, 60)
    kept = fitted.data.y.numpy() * fitted.normalisation.scale + fitted.normalisation.mean
    best = sorted(o.value for o in view.observations)[:5]
    assert set(np.round(best, 9)) <= set(np.round(kept, 9))
    assert model_suggestion(view, max_size_data_for_model=20).reason.endswith("from 60 observations")


INDUCING = {"approximation": "inducing", "num_inducing": 20, "max_size_data_for_model": None}


@pytest.mark.parametrize("rung_levels", [(), (1, 3)])
def test_large_data_through_inducing_points(rung_levels):
    view = parabola(60, rung_levels=rung_levels, reports=(9, 3, 1) if rung_levels else (9,))
    view.add({"x": 0.111}, pending=9)
    first, again = (model_suggestion(view, **INDUCING, opt_maxiter=10) for _ in range(2))
    assert first == again
    assert first.config["x"] == pytest.approx(0.7, abs=0.15)


def test_inducing_points_come_with_the_models_that_have_them():
    with pytest.raises(OptionError, match=r"Set searcher\.model to gp_multitask"):
        make_searcher("hypertune", INDUCING)
    assert make_searcher("hypertune", {**INDUCING, "model": "gp_multitask"})
    with pytest.raises(OptionError, match=r"Set searcher\.max_size_data_for_model to null or to thousands"):
        make_searcher("bayesopt", {**INDUCING, "max_size_data_for_model": 20})


def test_fantasies_have_the_asked_number_of_columns():
    view = parabola(8)
    view.add({"x": 0.111}, pending=9)
    options = make_searcher("bayesopt", {**FEW, "num_fantasy_samples": 7})._options
    fitted = fit_model(view, options, "single_fidelity", np.random.default_rng(0))
    with torch.no_grad():
        assert with_fantasies(fitted, options, np.random.default_rng(0)).columns == 7
    assert propose(view, view.request(), options, fitted, np.random.default_rng(0)).config is not None


def test_unknown_arguments_of_the_acquisition_function_are_refused():
    with pytest.raises(OptionError, match="Use xi"):
        make_searcher("bayesopt", {"acq_function_kwargs": {"kappa": 1.0}})
    with pytest.raises(OptionError, match="Use kappa"):
        make_searcher("bayesopt", {"acq_function": "lcb", "acq_function_kwargs": {"xi": 1.0}})


def test_beside_a_diverged_trial_the_model_tells_the_others_apart():
    def spread(limit_outliers: bool) -> float:
        view = parabola(9, reports=(9, 3, 1), rung_levels=(1, 3))
        view.add({"x": 0.95}, 1e6)
        options = SearcherOptions(model="gp_independent", limit_outliers=limit_outliers)
        model = fit_model(view, options, "gp_independent", np.random.default_rng(0))
        values = model.data.y.numpy()
        return float(np.sort(values)[:-1].std())

    assert spread(False) < 1e-3
    assert spread(True) > 0.1


def test_a_model_of_all_rungs_sees_the_worst_at_three_spreads() -> None:
    view = View(SearchSpace({"x": uniform(0.0, 1.0)}), max_t=3, rung_levels=(1,))
    for value in (0.1, 0.2, 0.3, 0.4, 50.0):  # median 0.3, the best 0.2 below it
        view.add({"x": value / 100}, value)
    for name, highest in (("gp_rungs", 0.3 + 3 * 0.2), ("gp_independent", 0.3 + 10 * 0.2)):
        options = SearcherOptions(model=name, limit_outliers=True)
        model = fit_model(view, options, name, np.random.default_rng(0))
        assert model.history.values.max() == pytest.approx(highest)


def test_a_gpu_that_is_not_there_is_refused_with_the_fix() -> None:
    with pytest.raises(OptionError, match=r"Set searcher\.device to auto or cpu\.$"):
        choose_device(SearcherOptions(device="cuda:99"), 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", MODELS)
def test_on_a_gpu(model):
    view = parabola(9, reports=(9, 3, 1), rung_levels=(1, 3))
    view.add({"x": 0.33}, pending=1)
    suggestion = model_suggestion(view, model=model, opt_maxiter=50, opt_nstarts=2, device="cuda")
    assert suggestion.config["x"] == pytest.approx(0.7, abs=0.15)


def test_the_level_is_chosen_by_all_data_not_by_the_ones_the_model_sees():
    view = rungs_with({1: 30, 3: 4})
    for trial in range(3):  # far fewer than 30 + 4 observations are kept, and of the lowest level only a part
        view.observations.append(Observation(trial, 9, 0.1 * trial))
    suggestion = model_suggestion(view, max_size_data_for_model=8)
    assert suggestion.reason.endswith(" at max_t, from 37 observations")
    assert "at rung 3" in model_suggestion(rungs_with({1: 30, 3: 4}), max_size_data_for_model=2).reason


def test_a_level_of_which_the_model_sees_nothing_is_passed_over():
    """Or there would be no incumbent, and every proposal random."""
    view = View(LINE, rung_levels=(1, 3))
    for i in range(20):
        view.add({"x": (i + 0.5) / 20}, *[(i - 7) ** 2 / 100] * 9)
    suggestion = model_suggestion(view, max_size_data_for_model=15, resource_acq="first")
    assert suggestion.reason.endswith(" at max_t, from 60 observations")


@pytest.mark.parametrize("limit", [16, 20, 40, 70])
def test_what_lies_between_rungs_is_left_out_first(limit):
    """Or the curve of the first trial that was trained to the end would be all that the model sees."""
    view = View(LINE, max_t=50, rung_levels=(1, 10))
    for i, length in enumerate([50, 50, 10, 10, 10, 1, 1, 1, 1, 1]):
        view.add({"x": (i + 0.5) / 10}, *[1.0 / r for r in range(1, length + 1)])
    at_rungs = {(o.trial_id, o.resource) for o in view.observations}
    view.observations = [Observation(i, r, value) for i, curve in view.curves.items() for r, value in curve.items()]
    options = make_searcher("bayesopt", {**FEW, "max_size_data_for_model": limit})._options
    fitted = fit_model(view, options, "gp_multitask", np.random.default_rng(0))
    kept = {(fitted.history.observed.trial_ids[i], fitted.history.observed.resources[i]) for i in fitted.kept}
    assert len(kept) == len(fitted.data) == limit
    assert kept <= at_rungs or at_rungs <= kept


def test_map_reward_lets_an_accuracy_be_transformed():
    options = SearcherOptions(boxcox_transform=True)
    negated = np.array([-0.9, -0.5, -0.2])
    assert normalise(negated, options, options.reward_offset("min")).box_cox_lambda is None
    found = normalise(negated, options, options.reward_offset("max"))
    assert found.box_cox_lambda is not None
    assert found.forward(negated).mean() == pytest.approx(0.0, abs=1e-12)


def test_without_a_transform_the_sense_of_the_metric_and_map_reward_change_nothing():
    wanted = None
    for given in ({"mode": "min"}, {"mode": "max"}, {"mode": "max", "map_reward": "1000_minus_x"}):
        view = parabola(9)
        view.mode = given.pop("mode")
        view.observations = [o._replace(value=o.value * 1e-20) for o in view.observations]
        suggestion = model_suggestion(view, **given)
        wanted = wanted or suggestion
        assert suggestion.config == wanted.config


def cliff(n: int = 16) -> View:
    """At rung 9 values fall with x; but beyond 0.5 every trial is bad at rung 1, and none gets further."""
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    for i in range(n):
        x = (i + 0.5) / n
        view.add({"x": x}, *([0.5] * 8 + [0.4 - 0.3 * x] if x < 0.5 else [0.9]))
    return view


@pytest.mark.parametrize("model", ["gp_independent", "gp_multitask"])
def test_improvements_that_no_trial_would_live_to_see_do_not_count(model):
    proposed = [
        model_suggestion(cliff(), model=model, weigh_promotion=weigh, num_init_random=1) for weigh in (False, True)
    ]
    if model == "gp_independent":
        assert proposed[0].config["x"] > 0.55, "the rung's own model knows nothing of those that did not get there"
    assert 0.4 < proposed[1].config["x"] < 0.55
    assert "passes the rungs below with" in proposed[1].reason and "passes" not in proposed[0].reason


def test_candidates_ranked_by_the_acquisition_function_are_weighed_too():
    plain, weighed = (
        model_suggestion(
            cliff(),
            model="gp_independent",
            weigh_promotion=weigh,
            num_init_random=1,
            initial_scoring="acq_func",
            skip_local_optimization=True,
        )
        for weigh in (False, True)
    )
    assert plain.config["x"] > 0.55
    assert 0.4 < weighed.config["x"] < 0.55


def test_a_trial_of_a_higher_bracket_need_not_pass_the_rungs_it_skips():
    """Beyond 0.5 only rung 1 is bad, where a trial of the second bracket is not judged."""
    view = cliff()
    request = SuggestRequest(len(view.configs), bracket=1, milestone=3)
    options = {**FEW, "model": "gp_independent", "weigh_promotion": True, "num_init_random": 1}
    assert make_searcher("bayesopt", options).suggest(view, request).config["x"] > 0.55


def test_with_hypertune_the_rungs_below_are_those_of_the_model_not_of_the_ensemble():
    assert model_suggestion(cliff(), "hypertune", weigh_promotion=True, num_init_random=1).config["x"] < 0.55


def test_before_a_rung_promotes_anything_there_is_nothing_to_weigh():
    view = View(LINE, max_t=27, rung_levels=(1, 3, 9))
    for i in range(2):
        view.add({"x": 0.3 + 0.4 * i}, 0.5 + 0.1 * i)
    plain, weighed = (
        model_suggestion(view, model="gp_independent", weigh_promotion=w, num_init_random=1) for w in (False, True)
    )
    assert plain == weighed
