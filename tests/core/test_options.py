from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.errors import OptionError


def parse(**given):
    return StudyOptions.from_mapping({"metric": "loss", **given})


INDUCING = {"approximation": "inducing", "max_size_data_for_model": None}


class TestDefaults:
    @pytest.mark.parametrize(
        ("name", "default"),
        [
            ("mode", "min"),
            ("points_to_evaluate", None),
            ("max_t", None),
            ("type", None),
            ("grace_period", None),
            ("reduction_factor", None),
            ("rung_increment", None),
            ("rung_levels", None),
            ("brackets", None),
            ("rung_system_per_bracket", False),
            ("searcher_data", None),
            ("register_pending_myopic", False),
            ("asynchronous", True),
            ("n_trials", None),
            ("max_retries", 2),
            ("max_failures_in_a_row", 3),
            ("min_rung_entries", "ratio"),
            ("late_reports", "count"),
        ],
    )
    def test_of_the_study(self, name, default):
        assert getattr(parse(algorithm="asha"), name) == default

    def test_that_depend_on_others(self):
        assert parse(algorithm="asha").effective_type == "stopping"
        assert parse(algorithm="pasha").effective_type == "pasha"
        assert parse(algorithm="asha").effective_searcher_data == "rungs"
        assert parse(algorithm="mobster", searcher={"model": "gp_expdecay"}).effective_searcher_data == "all"

    @pytest.mark.parametrize(
        ("name", "default"),
        [
            ("debug_log", False),
            ("allow_duplicates", False),
            ("restrict_configurations", None),
            ("num_init_random", None),
            ("opt_nstarts", 2),
            ("opt_maxiter", 50),
            ("opt_skip_init_length", 150),
            ("opt_skip_period", 1),
            ("opt_skip_num_max_resource", False),
            ("map_reward", "1_minus_x"),
            ("gp_resource_kernel", "exp-decay-sum"),
            ("resource_acq_bohb_threshold", 3),
            ("resource_acq", "bohb"),
            ("model", None),
            ("separate_noise_variances", False),
            ("num_fantasy_samples", 20),
            ("hypertune_distribution_num_samples", 50),
            ("top_n_percent", 15),
            ("num_candidates", 64),
            ("random_fraction", None),
            ("num_init_random_factor", 0.0),
            ("mutation_factor", 0.5),
            ("crossover_probability", 0.5),
        ],
    )
    def test_of_the_searcher(self, name, default):
        assert getattr(SearcherOptions(), name) == default

    @pytest.mark.parametrize(
        ("algorithm", "scheduler", "searcher", "model"),
        [
            ("random", "fifo", "random", None),
            ("grid", "fifo", "grid", None),
            ("bayesopt", "fifo", "bayesopt", None),
            ("asha", "hyperband", "random", None),
            ("bohb", "hyperband", "kde", None),
            ("mobster", "hyperband", "bayesopt", "gp_multitask"),
            ("mobster_indep", "hyperband", "bayesopt", "gp_independent"),
            ("hypertune", "hyperband", "hypertune", "gp_independent"),
            ("hypertune_joint", "hyperband", "hypertune", "gp_multitask"),
            ("sync_hyperband", "sync_hyperband", "random", None),
            ("dehb", "dehb", "differential_evolution", None),
        ],
    )
    def test_an_algorithm_is_a_scheduler_and_a_searcher(self, algorithm, scheduler, searcher, model):
        assert (ALGORITHMS[algorithm].scheduler, ALGORITHMS[algorithm].searcher) == (scheduler, searcher)
        assert parse(algorithm=algorithm).searcher.model == model

    def test_the_users_choice_wins_over_the_algorithms(self):
        assert parse(algorithm="mobster", searcher={"model": "gp_independent"}).searcher.model == "gp_independent"
        assert parse(algorithm="mobster", searcher={"model": None}).searcher.model == "gp_multitask"
        assert parse(algorithm="default", type="stopping").type == "stopping"

    def test_none_means_the_default(self):
        assert parse(max_retries=None, stop=None, searcher=None, mode=None) == parse()


class TestRefusals:
    def test_but_not_a_limit_that_will_never_be_reached(self):
        options = {"metric": "m", "algorithm": "random", "n_trials": 10**400}
        assert StudyOptions.from_mapping(options).n_trials == 10**400

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"reduction_facor": 3}, "reduction_facor is not an option. Did you mean 'reduction_factor'?"),
            ({"searcher": {"opt_nstart": 3}}, "searcher.opt_nstart is not an option. Did you mean 'opt_nstarts'?"),
            ({"stop": {"max_wallclocktime": 3}}, "Did you mean 'max_wallclock_time'?"),
            ({"algorithm": "mobstr"}, "Did you mean 'mobster'? Choose one of default, random"),
            ({"mode": "maximize"}, "mode='maximize' is unknown. Choose one of min, max."),
            ({"type": "promote"}, "Did you mean 'promotion'? Choose one of stopping, promotion"),
            ({"metric": ""}, "Set metric to a name your LightningModule logs"),
            ({"metric": None}, "Set metric to a name your LightningModule logs"),
            ({"max_t": "27"}, "max_t='27' has the wrong type. Set max_t to a value of type int"),
            ({"max_t": 27.0}, "has the wrong type"),
            ({"max_t": True}, "has the wrong type"),
            ({"max_t": 0}, "max_t=0 is out of range. Set max_t to a value at least 1"),
            ({"max_t": 10**9 + 1}, "Set max_t to a value between 1 and 1000000000."),
            ({"max_t": 10**5000}, "Set max_t to a value between 1 and 1000000000."),
            ({"reduction_factor": 1.5}, "Set reduction_factor to a value at least 2"),
            ({"n_workers": 0}, "n_workers"),
            ({"n_trials": -1}, "n_trials"),
            ({"max_retries": -1}, "max_retries"),
            ({"random_seed": 2**31}, "random_seed"),
            ({"rung_levels": "1,3"}, "rung_levels='1,3' has the wrong type"),
            ({"rung_levels": [1, "3"]}, "has the wrong type"),
            ({"points_to_evaluate": [0.5]}, "has the wrong type"),
            ({"searcher_data": "last"}, "Choose one of rungs, all, rungs_and_last"),
            ({"searcher": {"random_fraction": 1.5}}, "searcher.random_fraction to a value between 0 and 1"),
            ({"searcher": {"opt_maxiter": 0}}, "searcher.opt_maxiter"),
            ({"searcher": {"model": "gp"}}, "searcher.model='gp' is unknown"),
            ({"searcher": {"device": "tpu"}}, "Choose auto, cpu or cuda"),
            ({"searcher": {"device": "cuda:x"}}, "Choose auto, cpu or cuda"),
            ({"searcher": {"min_bandwidth": 0}}, "searcher.min_bandwidth to a value above 0 and at most 1"),
            ({"searcher": {"bandwidth_factor": -3}}, "searcher.bandwidth_factor to a value above 0"),
            ({"searcher": {"bandwidth_factor": math.inf}}, "bandwidth_factor=inf is out of range"),
            ({"searcher": {"mutation_factor": math.nan}}, "searcher.mutation_factor to a value between 0 and 2"),
            ({"searcher": {"top_n_percent": 100}}, "searcher.top_n_percent to a value between 0 and 99"),
            ({"searcher": {"num_init_random_factor": math.inf}}, "num_init_random_factor=inf is out of range"),
            ({"searcher": {"opt_skip_init_length": -5}}, "searcher.opt_skip_init_length to a value at least 0"),
            ({"searcher": {"acq_function_kwargs": {"xi": "a"}}}, "has the wrong type"),
            ({"searcher": {"acq_function_kwargs": {"xi": math.nan}}}, "acq_function_kwargs.xi to a value at least 0"),
            ({"searcher": {"acq_function_kwargs": {"kappa": 1}}}, "has no meaning for ei. Use xi, or remove it."),
            (
                {"searcher": {"acq_function": "lcb", "acq_function_kwargs": {"xi": 1}}},
                "has no meaning for lcb. Use kappa, or remove it.",
            ),
            ({"searcher": {"num_samples": 0}}, "searcher.num_samples is 0. Set it to at least 1."),
            ({"searcher": {"num_samples": {"x": -2}}}, "searcher.num_samples is -2 for 'x'. Set it to at least 1."),
            ({"searcher": {"num_samples": {"x": "many"}}}, "has the wrong type"),
            ({"searcher": {"debug_log": "yes"}}, "searcher.debug_log='yes' has the wrong type"),
            (
                {"algorithm": "mobster", "searcher": {"model": "gp_issm"}, "searcher_data": "rungs"},
                "Set searcher_data=all",
            ),
            ({"algorithm": "mobster_indep", "searcher_data": "all"}, "Set searcher_data=rungs"),
            ({"algorithm": "pasha", "type": "promotion"}, "choose algorithm=asha"),
            ({"algorithm": "hypertune", "searcher": {"model": "gp_expdecay"}}, "Choose algorithm=mobster"),
            ({"algorithm": "mobster_indep", "searcher": INDUCING}, "Set searcher.model to gp_multitask"),
            ({"algorithm": "hypertune", "searcher": INDUCING}, "Set searcher.model to gp_multitask"),
            (
                {"algorithm": "mobster", "searcher": INDUCING | {"model": "gp_issm"}},
                "Set searcher.model to gp_multitask",
            ),
            ({"algorithm": "grid", "searcher": {"restrict_configurations": [{"x": 1}]}}, "Choose algorithm=random"),
        ],
    )
    def test_name_the_option_and_the_fix(self, given, message):
        with pytest.raises(OptionError) as caught:
            parse(**given)
        assert message in str(caught.value)
        assert str(caught.value).endswith(".")

    @pytest.mark.parametrize("name", ["searcher", "stop", "confirm"])
    @pytest.mark.parametrize("given", [3, "random", [], [1], False])
    def test_what_is_no_mapping(self, name, given):
        with pytest.raises(OptionError, match=f"{name}=.* is no mapping"):
            parse(**{name: given})

    def test_whole_numbers_count_as_floats_and_booleans_as_neither(self):
        assert parse(reduction_factor=4).reduction_factor == 4
        with pytest.raises(OptionError):
            parse(reduction_factor=True)


class TestJson:
    def test_holds_everything(self):
        options = parse(
            algorithm="mobster",
            rung_levels=(1, 4),
            max_t=9,
            stop={"max_cost": 3.0, "min_metric_value": {"loss": 0.1}},
            searcher={"acq_function_kwargs": {"xi": 0.02}},
        )
        data = options.to_json()
        assert data["rung_levels"] == [1, 4]
        again = StudyOptions.from_mapping(data)
        assert again.to_json() == data
        assert dataclasses.replace(again, rung_levels=(1, 4)) == options

    def test_limits_are_what_may_change_in_a_continued_study(self):
        options = parse(n_trials=10, stop={"max_num_evaluations": 5})
        assert set(options.limits()) == {
            "n_trials", "n_workers", "stop", "max_retries", "max_failures_in_a_row", "asynchronous", "confirm",
            "device",
        }  # fmt: skip
        more = options.with_limits(parse(n_trials=20, n_workers=4).limits())
        assert more == dataclasses.replace(options, n_trials=20, n_workers=4, stop=StopCriterion())
        assert options.with_limits({"metric": "other"}).metric == "loss"
        assert options.with_limits(parse(searcher={"device": "cpu"}).limits()).searcher.device == "cpu"
        with pytest.raises(OptionError):
            options.with_limits({"n_trials": -3})


class TestMapReward:
    @pytest.mark.parametrize(
        ("map_reward", "offset"), [("1_minus_x", 1.0), ("minus_x", 0.0), ("2.5_minus_x", 2.5), ("-3_minus_x", -3.0)]
    )
    def test_is_added_to_the_negated_metric(self, map_reward, offset):
        options = SearcherOptions(map_reward=map_reward)
        assert options.reward_offset("max") == offset
        assert options.reward_offset("min") == 0.0

    @pytest.mark.parametrize("map_reward", ["zzz", "x_minus_x", "1_minus_y", "", "nan_minus_x"])
    def test_of_another_form_is_refused(self, map_reward):
        with pytest.raises(OptionError, match="Set it to minus_x"):
            SearcherOptions(map_reward=map_reward)


class TestWhatWouldDoNothing:
    """An option of the scheduler that the algorithm has no use for is a mistake, and is told as one."""

    @pytest.mark.parametrize(
        "algorithm", ["random", "grid", "bayesopt", "median", "sync_hyperband", "sync_bohb", "sync_mobster", "dehb"]
    )
    def test_a_type_for_an_algorithm_that_has_none(self, algorithm):
        with pytest.raises(OptionError, match=r"has no types.*Leave type out, or choose an algorithm that has: "):
            parse(algorithm=algorithm, type="promotion", max_t=9)
        assert parse(algorithm=algorithm, type=None, max_t=9).type is None

    def test_no_configuration_that_may_be_proposed(self):
        with pytest.raises(OptionError, match=r"is empty.*leave it out to search the whole space\.$"):
            parse(searcher={"restrict_configurations": []})
