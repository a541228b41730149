from __future__ import annotations

import numpy as np
import pytest

from lightning_hpo.core.space import SearchSpace, choice, finrange, lograndint, loguniform, ordinal, randint, uniform
from lightning_hpo.searchers import make_searcher
from lightning_hpo.searchers.density import FeatureKind
from lightning_hpo.searchers.kde import FeatureMap, largest_usable_level
from tests.searchers.test_random import TINY, proposals
from tests.searchers.views import View

LINE = SearchSpace({"x": uniform(0, 1)})


def told(space, n, value, rung_levels=(), reports=1, seed=0):
    """A study of ``n`` random trials, each with a flat curve of ``value(config)``."""
    view = View(space, rung_levels=rung_levels)
    rng = np.random.default_rng(seed)
    for _ in range(n):
        config = space.sample(rng)
        view.add(config, *[value(config)] * reports)
    return view


def suggestions(view, n, **options):
    searcher = make_searcher("kde", options)
    for _ in range(n):
        suggestion = searcher.suggest(view, view.request())
        yield suggestion
        view.accept(suggestion)


def test_random_search_until_there_are_enough_observations():
    view = told(LINE, 13, lambda c: c["x"])
    known = dict(view.configs)
    assert {s.origin for s in suggestions(view, 30)} == {"random"}
    twin = View(LINE, configs=known)
    assert proposals("random", twin, 30) == [view.configs[i] for i in range(13, 43)]


def test_the_model_proposes_where_good_trials_are():
    view = told(LINE, 40, lambda c: abs(c["x"] - 0.7))
    found = [s.config["x"] for s in suggestions(view, 40) if s.origin == "model"]
    assert 15 <= len(found) <= 36  # two thirds of 40, within 3.7 standard deviations
    assert np.mean(np.abs(np.array(found) - 0.7) < 0.15) > 0.9


def test_random_fraction_one_is_random_search_and_zero_never():
    view = told(LINE, 40, lambda c: c["x"])
    assert {s.origin for s in suggestions(view, 10, random_fraction=1.0)} == {"random"}
    assert {s.origin for s in suggestions(view, 10, random_fraction=0.0)} == {"model"}


def test_the_reason_says_what_the_model_saw():
    view = told(LINE, 40, lambda c: c["x"], rung_levels=(1, 3), reports=3)
    suggestion = next(suggestions(view, 1, random_fraction=0.0))
    assert suggestion.reason.startswith("density ratio ")
    assert suggestion.reason.endswith(" at rung 3, from 6 good and 34 bad observations")


def test_the_largest_resource_with_enough_observations_is_modelled():
    assert largest_usable_level([1] * 20 + [3] * 14 + [9] * 13, 1, 1, 15) == 3
    assert largest_usable_level([1] * 13 + [3] * 13, 1, 1, 15) is None
    assert largest_usable_level([], 1, 1, 15) is None


def test_without_rungs_trials_of_different_length_are_modelled_together():
    view = View(LINE)
    for i in range(40):
        view.add({"x": i / 40}, *[abs(i / 40 - 0.7)] * (1 + i % 5))
    assert next(suggestions(view, 1, random_fraction=0.0)).origin == "model"


def test_pending_trials_change_nothing():
    view, other = (told(LINE, 40, lambda c: c["x"]) for _ in range(2))
    view.add({"x": 0.123456}, pending=9)
    other.add({"x": 0.123456})
    assert [s.config for s in suggestions(view, 5)] == [s.config for s in suggestions(other, 5)]


def test_features_are_logarithmic_where_the_domain_is_and_inside_the_unit_interval():
    space = SearchSpace(
        {
            "log": loguniform(1e-4, 1.0),
            "int": randint(8, 128),
            "logint": lograndint(1, 1000),
            "c": choice(["a", "b", "c"]),
            "o": ordinal([1, 2, 8, 9]),
            "f": finrange(0.0, 1.0, 5),
            "fi": finrange(0, 8, 5, cast_int=True),
        }
    )
    features = FeatureMap(space)
    config = {"log": 1e-2, "int": 8, "logint": 1000, "c": "b", "o": 8, "f": 0.25, "fi": 8}
    # Integers own cells of equal width, so the 1st of 121 has its centre at 1/242.
    expected = [0.5, 1 / 242, 1 - np.log(1000.5 / 1000) / np.log(1000.5 / 0.5), 1 / 3, 2 / 4, 1.5 / 5, 4.5 / 5]
    assert features.features([config])[0] == pytest.approx(expected, abs=1e-7)
    assert "".join(kind.value for kind in features.kinds) == "coouuco"
    assert features.kinds[3] is features.kinds[4] is FeatureKind.UNORDERED
    assert features.num_categories[3:5] == (3, 4)


def test_resampled_integers_reach_both_ends_and_stay_inside():
    space = SearchSpace({"n": randint(8, 11)})
    features, rng = FeatureMap(space), np.random.default_rng(0)
    drawn = [features.neighbour({"n": 9}, np.array([1.0]), 3.0, rng)["n"] for _ in range(200)]
    assert set(drawn) == {8, 9, 10, 11}
    kept = [features.neighbour({"n": 9}, np.array([0.0]), 3.0, rng)["n"] for _ in range(50)]
    assert set(kept) == {9}


def test_no_configuration_twice_and_none_left_at_the_end():
    view = told(TINY, 0, lambda c: 0.0)
    proposed = []
    for _ in range(20):
        suggestion = make_searcher("kde", {"num_min_data_points": 3}).suggest(view, view.request())
        if suggestion is None:
            break
        proposed.append(tuple(suggestion.config.values()))
        view.accept(suggestion, float(suggestion.config["a"]))
    assert sorted(proposed) == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]


@pytest.mark.parametrize("value", [lambda c: 1.0, lambda c: c["act"] == "relu"], ids=["all equal", "two values"])
def test_ties(value):
    space = SearchSpace({"lr": loguniform(1e-5, 1.0), "act": choice(["relu", "gelu", "tanh"])})
    view = told(space, 60, value)
    assert all(s.config["act"] in ("relu", "gelu", "tanh") for s in suggestions(view, 10, random_fraction=0.0))


def test_a_space_of_constants_and_one_choice():
    space = SearchSpace({"act": choice(["a", "b", "c"]), "epochs": 9})
    view = told(space, 30, lambda c: "abc".index(c["act"]))
    model = next(suggestions(view, 1, random_fraction=0.0, allow_duplicates=True))
    assert model.config == {"act": "a"}
    assert make_searcher("kde", {}).suggest(view, view.request()) is None
    assert proposals("kde", View(SearchSpace({"epochs": 3})), 5) == [{}]


def test_restricted_configurations_only():
    allowed = [{"x": i / 10} for i in range(10)]
    view = told(LINE, 40, lambda c: abs(c["x"] - 0.7))
    chosen = [s.config for s in suggestions(view, 10, random_fraction=0.0, restrict_configurations=allowed)]
    assert sorted(c["x"] for c in chosen) == [c["x"] for c in allowed]
    assert chosen[0]["x"] in (0.6, 0.7, 0.8)


def test_same_data_same_suggestion_after_a_restart():
    views = [told(LINE, 40, lambda c: c["x"]) for _ in range(2)]
    first, again = (make_searcher("kde", {"random_fraction": 0.0}).suggest(v, v.request()) for v in views)
    assert first == again
    assert first.origin == "model"
