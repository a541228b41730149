"""The searcher that chooses between new and paused trials."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lightning_hpo import Start, Study, choice, lograndint, loguniform, randint, uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import OptionError
from lightning_hpo.runtime.curves import Curve
from lightning_hpo.runtime.simulator import simulate
from lightning_hpo.searchers import make_searcher
from tests.searchers.views import View

SPACE = SearchSpace({"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)})


def curve(x: float, length: int, fall: float = 0.5) -> list[float]:
    """From far to near 0.1 + (x - 0.3)^2."""
    return [0.1 + (x - 0.3) ** 2 + fall / r for r in range(1, length + 1)]


def a_view(**options) -> View:
    """Eight trials of rungs 1, 3 and 9, the best of them paused early."""
    view = View(SPACE, max_t=9, rung_levels=(1, 3), **options)
    lengths = (1, 1, 3, 3, 1, 9, 3, 1)
    places = ((0.9, 0.1), (0.8, 0.9), (0.7, 0.4), (0.05, 0.7), (0.6, 0.0), (0.5, 0.3), (0.31, 0.5), (1.0, 0.6))
    for (x, y), length in zip(places, lengths, strict=True):
        trial = view.add({"x": x, "y": y}, *curve(x, length))
        if length < 9:
            view.paused[trial] = length
    return view


def searcher(**options):
    return make_searcher("freeze_thaw", {"num_init_random": 1, "boxcox_transform": True, **options})


def test_a_paused_trial_that_promises_most_goes_on() -> None:
    suggestion = searcher().suggest(view := a_view(), view.request())
    assert suggestion is not None and suggestion.origin == "model"
    assert suggestion.resumes == 6
    assert suggestion.config == view.configs[6]
    assert suggestion.milestone == 9
    assert suggestion.reason.startswith("EI ") and "from 13 observations" in suggestion.reason


def test_with_nothing_paused_a_new_configuration_is_proposed() -> None:
    view = a_view()
    view.paused.clear()
    suggestion = searcher().suggest(view, view.request())
    assert suggestion is not None and suggestion.resumes is None
    assert suggestion.milestone == 1
    assert abs(suggestion.config["x"] - 0.3) < 0.25


def test_a_study_of_an_earlier_version_whose_model_had_other_parameters_is_fitted_anew() -> None:
    view = a_view()
    first = searcher().suggest(view, view.request())
    assert first is not None and first.state is not None
    parameters = {name: values for name, values in first.state["parameters"].items() if name != "drift"}
    view.state = {**first.state, "parameters": parameters}
    assert searcher().suggest(view, view.request()) == first


def test_a_new_trial_is_judged_at_the_first_rung_even_if_that_tells_little() -> None:
    """Others are best there than at the end. To look costs next to nothing, and it is looked at the next rung too."""
    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    for x, y in np.random.default_rng(0).uniform(size=(30, 2)).tolist():
        view.add({"x": x, "y": y}, 0.6 + 0.1 * (abs(x - 0.8) + y), *curve(x, 9)[1:])
    suggestion = searcher().suggest(view, view.request())
    assert suggestion is not None and suggestion.resumes is None
    assert suggestion.milestone == 1


def test_what_a_trial_promised_that_came_to_nothing_is_not_what_is_to_be_improved_on() -> None:
    """The best by far at the first rung diverge after it: beside them nothing else would be worth training."""
    improvements = []
    for diverged in (False, True):
        view = a_view()
        for x in (0.29, 0.3, 0.31):
            view.add({"x": x, "y": 0.9}, 0.03, *([math.nan] if diverged else []))
        suggestion = searcher(avoid_infeasible=True).suggest(view, view.request())
        assert suggestion is not None
        improvements.append(float(suggestion.reason.split()[1]))
    assert improvements[1] > improvements[0]


def test_where_all_that_reported_diverged_something_is_proposed_all_the_same() -> None:
    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    for x, y in np.random.default_rng(0).uniform(size=(6, 2)).tolist():
        view.add({"x": x, "y": y}, *curve(x, 2), math.nan)
    suggestion = searcher(avoid_infeasible=True).suggest(view, view.request())
    assert suggestion is not None and suggestion.origin == "model"


def test_what_runs_already_is_not_expected_to_surprise() -> None:
    """Four workers are not all sent to the same place: what waits is worth less while one like it runs."""
    view = a_view()
    request = view.request()
    view.add({"x": 0.31, "y": 0.501}, pending=9)
    improvements = []
    for ignored in (False, True):
        suggestion = searcher(no_fantasizing=ignored).suggest(view, request)
        assert suggestion is not None
        improvements.append(float(suggestion.reason.split()[1]))
    assert improvements[0] < 0.95 * improvements[1]


def test_where_trials_are_stopped_it_names_the_values_with_which_those_that_run_and_the_new_one_go_on() -> None:
    view = a_view()
    view.paused.clear()
    good = view.add({"x": 0.33, "y": 0.5}, *curve(0.33, 1), pending=3)
    poor = view.add({"x": 0.95, "y": 0.5}, *curve(0.95, 1), pending=3)
    request = dataclasses.replace(view.request(), wants_limits=True)
    suggestion = searcher().suggest(view, request)
    assert suggestion is not None and suggestion.limits is not None
    named = {(limit.trial_id, limit.level): limit.value for limit in suggestion.limits}
    new = request.trial_id
    # not at the last rung, where all end, nor below what a trial has passed
    assert named.keys() == {(good, 3), (poor, 3), (new, 1), (new, 3)}
    # in units of the metric: what lies a little above its minimum of 0.1 + 0.5 / 3 goes on, what is far above it not
    assert 0.1 + 0.5 / 3 < named[good, 3] < 0.6
    assert 0.1 + 0.5 / 1 < named[new, 1] < 1.1
    assert searcher().suggest(view, view.request()) == dataclasses.replace(suggestion, limits=None)


def test_it_repeats_itself() -> None:
    first, second = (searcher().suggest(view := a_view(), view.request()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("options", [{}, {"restrict_configurations": [{"x": 0.2}, {"x": 0.4}]}])
def test_when_everything_was_tried_the_ranks_decide(options) -> None:
    """Nothing new competes with the paused trials any more: the best of them would all be trained to the end."""
    values = [0.2, 0.4, 0.6] if options else [0.2, 0.4]
    view = View(SearchSpace({"x": choice(values)}), max_t=9, rung_levels=(1, 3))
    for x in (0.2, 0.4):
        view.add({"x": x}, *curve(x, 1))
    view.paused = {0: 1, 1: 1}
    assert searcher(**options).suggest(view, view.request()) is None
    again = searcher(**options, allow_duplicates=True).suggest(view, view.request())
    assert again is not None


def test_so_a_finite_space_is_not_trained_to_the_end() -> None:
    study = Study.create(
        {"a": randint(1, 20), "b": choice(["x", "y"])}, metric="loss", max_t=9, random_seed=0, points_to_evaluate=[]
    )
    while (work := study.ask()) is not None:
        resource, verdict = getattr(work, "from_resource", 0), "continue"
        while verdict == "continue":
            resource += 1
            verdict = study.tell(work.trial_id, resource, (work.config["a"] - 7) ** 2 / 400 + 1 / resource)
    assert len(study.trials) == 40
    assert sum(trial.resource == 9 for trial in study.trials.values()) <= 20


def test_what_the_model_has_not_seen_of_a_trial_it_does_not_hold_for_good() -> None:
    """Of many trials it sees some. To it the others would be as promising as new ones, and already paid for."""
    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(size=(60, 2)):
        trial = view.add({"x": float(x), "y": float(y)}, *curve(float(x), 1))
        view.paused[trial] = 1
    best = sorted(view.paused, key=lambda trial: abs(view.configs[trial]["x"] - 0.3))
    for _ in range(20):
        suggestion = searcher(max_size_data_for_model=20).suggest(view, view.request())
        assert suggestion is not None
        if suggestion.resumes is None:
            view.add(suggestion.config, *curve(suggestion.config["x"], 1))
        else:
            assert suggestion.resumes in best[:20]
            view.paused.pop(suggestion.resumes)


def test_a_trial_that_diverged_at_the_first_rung_has_the_worst_value_there() -> None:
    from lightning_hpo.searchers.history import rung_medians

    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    for x in (0.1, 0.5, 0.9):
        view.add({"x": x, "y": 0.5}, *curve(x, 1))
    at_once = view.add({"x": 0.7, "y": 0.1}, math.nan)
    view.add({"x": 0.7, "y": 0.2}, *curve(0.7, 2), math.nan)
    view.add({"x": 0.7, "y": 0.3}, failed=True)
    history = rung_medians(view, tells_diverged=True)
    told = dict(zip(history.observed.trial_ids, history.values, strict=True))
    assert told.keys() == {0, 1, 2, at_once, at_once + 1} and told[at_once] == curve(0.9, 1)[0]
    assert len(rung_medians(view)) == 4


def test_the_value_at_a_rung_is_the_median_of_the_second_half_up_to_there() -> None:
    from lightning_hpo.searchers.history import rung_medians

    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    view.add({"x": 0.5, "y": 0.5}, 9.0, 6.0, 4.0, 8.0, 1e9, 1.0, 2.0, 3.0, 4.0)
    history = rung_medians(view)
    assert dict(zip(history.observed.resources, history.values, strict=True)) == {1: 9.0, 3: 5.0, 9: 3.0}


def test_a_rung_that_was_jumped_over_has_the_value_that_counted_for_it() -> None:
    """Reports every two units: at the rung 3 that at 4 counts, and what was reported since 3 // 2."""
    from lightning_hpo.searchers.history import rung_medians

    view = View(SPACE, max_t=9, rung_levels=(1, 3))
    view.add({"x": 0.5, "y": 0.5}, 9.0, 6.0, 4.0, 8.0)
    whole = view.curve
    view.curve = lambda trial: {2: 6.0, 4: 8.0} if trial == 0 else whole(trial)
    history = rung_medians(view)
    assert dict(zip(history.observed.resources, history.values, strict=True))[3] == 7.0


@pytest.mark.parametrize(("scale", "mode"), [(1.0, "min"), (1e-9, "max"), (1e9, "min")])
def test_a_whole_study_finds_the_minimum(scale, mode) -> None:
    sign = 1.0 if mode == "min" else -1.0
    space = {"x": uniform(0.0, 1.0), "units": lograndint(4, 64), "act": choice(["relu", "tanh"])}
    study = Study.create(space, metric="loss", mode=mode, max_t=9, random_seed=3, points_to_evaluate=[])
    units = 0
    while units < 120:
        work = study.ask()
        assert work is not None
        config = study.trials[work.trial_id].config
        bad = (config["x"] - 0.3) ** 2 + 0.02 * abs(math.log(config["units"] / 16)) + 0.1 * (config["act"] == "relu")
        r = 0 if isinstance(work, Start) else work.from_resource
        verdict = "continue"
        while verdict == "continue" and study.trials[work.trial_id].status is TrialStatus.RUNNING:
            r += 1
            units += 1
            verdict = study.tell(work.trial_id, r, sign * scale * (0.1 + bad + 0.5 / r))
    assert study.best().at_any_resource is not None
    assert sign * study.best().at_any_resource.value < scale * (0.1 + 0.5 / 9 + 0.02)
    assert any("; EI" in trial.reason for trial in study.trials.values())


@pytest.mark.parametrize("rises", [True, False])
def test_values_that_rise_with_the_resource_are_no_reason_to_train_everything_to_the_end(rises) -> None:
    """The low values of low rungs are out of reach at max_t: they are not what is to be improved on."""
    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
    study = Study.create(space, metric="loss", max_t=27, random_seed=1, points_to_evaluate=[])
    for _ in range(40):
        work = study.ask()
        assert work is not None
        config = study.trials[work.trial_id].config
        r, verdict = 0 if isinstance(work, Start) else work.from_resource, "continue"
        while verdict == "continue" and r < 27:
            r += 1
            change = (-0.5 if rises else 0.5) / r
            verdict = study.tell(work.trial_id, r, 2.0 + (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2 + change)
    completed = [t for t in study.trials.values() if t.status is TrialStatus.COMPLETED]
    assert len(completed) < len(study.trials) / 3
    assert min((t.config["x"] - 0.3) ** 2 + (t.config["y"] - 0.6) ** 2 for t in study.trials.values()) < 0.005


@pytest.mark.parametrize(("name", "model"), [("bayesopt", "gp_rungs"), ("freeze_thaw", "gp_independent")])
def test_its_model_belongs_to_it(name, model) -> None:
    with pytest.raises(OptionError, match=r"Leave searcher\.model out"):
        make_searcher(name, SearcherOptions(model=model))


def simulated(space, value, units: int, seed: int):
    """A study of one worker that trains so many units; ``value(config, resource)`` at each up to ``max_t`` = 27."""
    options = StudyOptions.from_mapping({"metric": "loss", "algorithm": "default", "max_t": 27, "random_seed": seed})

    def curve(config) -> Curve:
        return Curve([value(config, resource) for resource in range(1, 28)], 1.0)

    searcher = make_searcher(options.searcher_name, options.searcher)
    return simulate(
        SearchSpace.parse(space), options, curve, n_workers=1, max_time=units + 1e-6, searcher=searcher
    ).state


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_rung_at_which_nothing_differs_is_no_place_to_give_trials_up(noise) -> None:
    """A classifier that guesses for its first epochs, four to twelve. The model took such a rung for one that tells the
    end, and of 110 trials the last 104 were given up there."""
    space = {"lr": loguniform(1e-4, 1.0), "w": uniform(0.0, 1.0), "z": uniform(0.0, 1.0)}

    def loss(c, r: int) -> float:
        off = 0.15 * (math.log10(c["lr"]) + 2.6) ** 2 + 0.5 * (c["w"] - 0.2) ** 2 + 0.5 * (c["z"] - 0.8) ** 2
        luck = noise * math.sin(1e6 * (c["lr"] + r))
        return luck + (0.9 if r < 4 + 8 * c["z"] else 0.1 + off + 0.3 / r)

    trials = simulated(space, loss, 250, seed=3).trials.values()
    assert sum(trial.resource <= 3 for trial in trials) < 0.5 * len(trials)
    assert sum(trial.resource == 27 for trial in trials) >= 4


@pytest.mark.slow
def test_a_metric_that_differs_by_a_hundredth_at_the_end_of_what_it_did_at_first_is_searched_all_the_same() -> None:
    """A log likelihood, which no power transform applies to: the first configuration, 0.08 off, stayed the best one."""
    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}

    def off(c) -> float:
        return (c["x"] - 0.3) ** 2 + (c["y"] - 0.7) ** 2

    state = simulated(space, lambda c, r: 300.0 * (0.2 + c["x"] ** 2) / r**3 + off(c) - 3.0, 300, seed=0)
    assert min(off(trial.config) for trial in state.trials.values() if trial.resource == 27) < 0.02
