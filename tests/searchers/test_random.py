from __future__ import annotations

import json

import pytest

from lightning_hpo.core.space import SearchSpace, choice, lograndint, loguniform, randint, uniform
from lightning_hpo.errors import OptionError
from lightning_hpo.searchers import SEARCHERS, make_searcher
from tests.searchers.views import View

SPACE = SearchSpace(
    {"lr": loguniform(1e-5, 1.0), "units": lograndint(4, 1024), "act": choice(["relu", "gelu", "tanh"])}
)
TINY = SearchSpace({"a": randint(1, 3), "b": choice(["x", "y"])})


def proposals(name, view, n, **options):
    searcher = make_searcher(name, options)
    configs = []
    for _ in range(n):
        suggestion = searcher.suggest(view, view.request())
        if suggestion is None:
            break
        configs.append(suggestion.config)
        view.accept(suggestion)
    return configs


@pytest.mark.parametrize("name", ["random", "random_encoded"])
def test_same_seed_same_proposals_whatever_was_asked_before(name):
    first = proposals(name, View(SPACE, seed=3), 10)
    assert first == proposals(name, View(SPACE, seed=3), 10)
    assert first != proposals(name, View(SPACE, seed=4), 10)
    view = View(SPACE, seed=3, configs=dict(enumerate(first[:6])))
    restarted = make_searcher(name, {})
    assert restarted.suggest(view, view.request()) == restarted.suggest(view, view.request())
    assert restarted.suggest(view, view.request()).config == first[6]


@pytest.mark.parametrize("name", ["random", "random_encoded"])
def test_every_configuration_of_a_finite_space_is_proposed_once_and_then_none(name):
    configs = proposals(name, View(TINY), 100)
    assert sorted((c["a"], c["b"]) for c in configs) == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]


def test_duplicates_when_allowed_but_never_a_failed_configuration():
    view = View(TINY)
    bad = view.add({"a": 2, "b": "x"}, failed=True)
    configs = proposals("random", view, 60, allow_duplicates=True)
    assert len(configs) == 60
    assert view.configs[bad] not in configs
    assert len({json.dumps(c) for c in configs}) == 5


def test_only_restricted_configurations_are_proposed():
    allowed = [{"lr": 0.1, "units": 8, "act": "relu"}, {"lr": 0.2, "units": 16, "act": "tanh"}]
    configs = proposals("random", View(SPACE), 5, restrict_configurations=allowed)
    assert sorted(configs, key=lambda c: c["lr"]) == allowed
    assert proposals("random_encoded", View(SPACE), 5, restrict_configurations=allowed) == configs


def test_the_draw_is_log_uniform_where_the_domain_is():
    configs = proposals("random", View(SearchSpace({"lr": loguniform(1e-4, 1.0)})), 400)
    # A quarter of the draws belongs to each decade; 3.5 standard deviations of a binomial(400, 1/4) are 30.
    for exponent in range(-4, 0):
        assert abs(sum(10.0**exponent <= c["lr"] < 10.0 ** (exponent + 1) for c in configs) - 100) < 31


def test_uniform_in_the_cube_gives_every_category_the_same_chance():
    space = SearchSpace({"act": choice(["a", "b", "c", "d"]), "x": uniform(0, 1)})
    configs = proposals("random_encoded", View(space), 400)
    for category in "abcd":
        assert abs(sum(c["act"] == category for c in configs) - 100) < 31


def test_a_space_without_hyperparameters_has_one_configuration():
    assert proposals("random", View(SearchSpace({"epochs": 3})), 5) == [{}]
    assert proposals("random_encoded", View(SearchSpace({"epochs": 3})), 5) == [{}]


def test_an_unknown_searcher_or_option_is_refused_with_the_nearest_name():
    with pytest.raises(OptionError, match="Did you mean 'hypertune'"):
        make_searcher("hyper_tune", {})
    with pytest.raises(OptionError, match="allow_duplicates"):
        make_searcher("random", {"allow_duplicate": True})


def test_random_grid_and_densities_do_not_import_torch():
    import subprocess
    import sys

    light = [name for name in SEARCHERS if name not in ("bayesopt", "hypertune")]
    code = (
        "import sys\nfrom lightning_hpo.searchers import make_searcher\n"
        f"for name in {light}: make_searcher(name, {{}})\nsys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_debug_log_says_what_was_proposed_and_why(caplog):
    with caplog.at_level("INFO", logger="lightning_hpo.searchers"):
        proposals("random", View(TINY), 1, debug_log=True)
    assert "random, trial 0 in bracket 0: 0 observations, 0 pending, 0 failed -> {'a': " in caplog.text
    assert "(random search)" in caplog.text


def test_a_long_list_of_restricted_configurations_is_looked_at_once(monkeypatch):
    """A tabular benchmark has tens of thousands of them."""
    listed = [{"a": a, "b": b} for a in (1, 2, 3) for b in "xy"]
    checked = []
    check = SearchSpace.check
    monkeypatch.setattr(SearchSpace, "check", lambda self, config: (checked.append(1), check(self, config))[1])
    found = proposals("random", View(TINY), 10, restrict_configurations=listed)
    assert sorted(found, key=str) == sorted(listed, key=str)
    assert len(checked) <= 2 * len(listed)
