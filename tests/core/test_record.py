"""What a study knows of its best, and what it refuses to begin with."""

from __future__ import annotations

import math

import pytest

from lightning_hpo.core.events import (
    Outcome,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace, uniform
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import OptionError, SpaceError
from tests.core.driving import SETTINGS, Driven


class TestBest:
    def test_is_told_at_full_resource_and_at_any(self):
        study = Driven(algorithm="random", max_t=2)
        for values in ((0.1, 0.5), (0.4, 0.3), (0.2, 0.6)):
            study.ready()
            study.train(len(study.state.trials) - 1, *values)
        assert study.state.best_any == (0, 1, 0.1)
        assert study.state.best_full == (1, 2, 0.3)

    def test_is_in_the_users_sign(self):
        study = Driven(algorithm="random", max_t=2, mode="max")
        for values in ((0.9, 0.5), (0.4, 0.7)):
            study.ready()
            study.train(len(study.state.trials) - 1, *values)
        assert study.state.best_any == (0, 1, 0.9)
        assert study.state.best_full == (1, 2, 0.7)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("mode", ["min", "max"])
    @pytest.mark.parametrize("name", ["random", "stopping", "promotion", "pasha", "median", "sync_hyperband"])
    def test_is_never_a_value_that_is_not_finite(self, bad, mode, name):
        study = Driven(**{**SETTINGS[name], "mode": mode, "n_trials": 4})
        study.run(lambda i, r: bad)
        assert study.state.best_any is None and study.state.best_full is None
        assert study.state.data.observations() == []

    def test_counts_a_trial_that_ended_by_itself_as_full(self):
        study = Driven(algorithm="random", max_t=9)
        study.ready()
        study.train(0, 0.5, 0.3)
        study.end(0, Outcome.COMPLETED)
        assert study.state.best_full == (0, 2, 0.3)
        assert study.state.data.observations() == [(0, 2, 0.3)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "most"),
        [
            # Rungs at 1 and 3: brackets begin at 1, at 3 and at 9. Hyperband: 1, 3 and 9.
            ({"algorithm": "asha", "max_t": 9}, 3),
            ({"algorithm": "hypertune", "max_t": 9, "rung_levels": [2, 9]}, 2),
            ({"algorithm": "sync_hyperband", "max_t": 9}, 3),
        ],
    )
    def test_more_brackets_than_there_are_rungs_to_begin_at(self, options, most):
        def state(brackets):
            given = {"metric": "loss", "brackets": brackets, **options}
            return StudyState(SearchSpace({"x": uniform(0, 1)}), StudyOptions.from_mapping(given))

        state(most)
        with pytest.raises(OptionError, match=rf"room for {most}\. Set brackets to at most {most}, or raise max_t\.$"):
            state(most + 1)

    @pytest.mark.parametrize("space", [{}, {"epochs": 9}])
    def test_a_space_in_which_nothing_is_searched(self, space):
        with pytest.raises(SpaceError, match=r"Give at least one of them a domain, as in .*\.$"):
            StudyState(SearchSpace(space), StudyOptions(metric="loss", algorithm="random"))

    @pytest.mark.parametrize(
        ("searcher", "problem", "message"),
        [
            (
                {"num_samples": {"xx": 2}},
                OptionError,
                "'xx', which is not searched. Did you mean 'x'? Remove the entry.",
            ),
            ({"restrict_configurations": [{"x": 0.5}, {"x": 7}]}, SpaceError, "searcher.restrict_configurations: 'x'"),
            ({"restrict_configurations": [{"epochs": 9}]}, SpaceError, "lacks 'x'. Give a value of"),
            ({"restrict_configurations": [{"x": 0.5, "z": 1}]}, SpaceError, "Use the names of the space: x, epochs."),
        ],
    )
    def test_options_of_the_searcher_that_do_not_fit_the_space(self, searcher, problem, message):
        options = StudyOptions.from_mapping({"metric": "loss", "algorithm": "random", "searcher": searcher})
        with pytest.raises(problem) as caught:
            StudyState(SearchSpace({"x": uniform(0, 1), "epochs": 9}), options)
        assert message in str(caught.value)
