"""An option that does nothing is named, and what is named does nothing."""

import dataclasses
import warnings

import pytest

from lightning_hpo import Study, choice, uniform
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.unread import note_on_unread, unread

SPACE = {"x": uniform(0, 1), "c": choice(["a", "b", "c"])}

ODD_OPTIONS = {
    "grace_period": 2,
    "reduction_factor": 2.5,
    "rung_increment": 2,
    "brackets": 2,
    "rung_system_per_bracket": True,
    "min_rung_entries": "two",
    "late_reports": "lost",
    "register_pending_myopic": True,
}
"""None of them is a default."""
ODD_SEARCH = {
    "random_fraction": 0.1,
    "num_samples": 2,
    "shuffle_config": False,
    "num_min_data_points": 3,
    "top_n_percent": 40.0,
    "min_bandwidth": 0.4,
    "num_candidates": 3,
    "bandwidth_factor": 1.0,
    "mutation_factor": 0.9,
    "crossover_probability": 0.1,
    "gp_resource_kernel": "matern52",
    "gp_base_kernel": "matern52-noard",
    "separate_noise_variances": True,
    "expdecay_normalize_inputs": True,
    "issm_gamma_one": True,
    "num_init_random_factor": 4.0,
    "num_fantasy_samples": 3,
    "initial_scoring": "acq_func",
    "skip_local_optimization": True,
    "acq_function_kwargs": {"xi": 0.7},
    "xi_in_criterion_units": True,
    "resource_acq": "final",
    "resource_acq_bohb_threshold": 1,
    "weigh_promotion": True,
    "opt_skip_num_max_resource": True,
    "max_size_data_for_model": 9,
    "max_size_top_fraction": 0.9,
    "num_inducing": 5,
    "map_reward": "5_minus_x",
    "hypertune_distribution_num_samples": 4,
}
ALGORITHMS = (
    "random", "grid", "bayesopt", "median", "asha", "pasha", "bohb", "default", "mobster", "mobster_indep", "hypertune",
    "hypertune_joint", "sync_hyperband", "sync_bohb", "sync_mobster", "dehb",
)  # fmt: skip


def parsed(**given):
    return StudyOptions.from_mapping({"metric": "v", "max_t": 9, **given})


def trials_of(algorithm, n_jobs, searcher, **options):
    """Configurations and curves after some jobs of one worker."""
    quick = {"num_init_random": 3, "opt_maxiter": 5, "opt_nstarts": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = Study.create(
            SPACE, metric="v", algorithm=algorithm, max_t=9, random_seed=1, searcher=quick | searcher, **options
        )
    for _ in range(n_jobs):
        job = study.ask()
        if job is None:  # the grid has been tried
            break
        epoch, verdict = getattr(job, "from_resource", 0), "continue"
        while verdict == "continue":
            epoch += 1
            value = (job.config["x"] - 0.3) ** 2 + 0.1 / epoch + 0.2 * (job.config["c"] == "a")
            verdict = study.tell(job.trial_id, epoch, value)
    return [(trial.config, trial.curve) for trial in study.trials.values()]


class TestWhatIsNamed:
    def test_rungs_where_there_are_none(self):
        assert unread(parsed(algorithm="random", grace_period=3, brackets=2)) == ["grace_period", "brackets"]

    def test_the_median_rule_has_a_grace_period_only(self):
        assert unread(parsed(algorithm="median", grace_period=3, reduction_factor=4.0)) == ["reduction_factor"]

    def test_a_distance_beside_a_ratio(self):
        assert unread(parsed(algorithm="asha", reduction_factor=2.0, rung_increment=4)) == ["rung_increment"]

    def test_what_explicit_rungs_replace(self):
        given = {"rung_levels": [2, 5], "grace_period": 3, "reduction_factor": 2.0}
        assert unread(parsed(algorithm="asha", **given)) == ["grace_period", "reduction_factor"]

    def test_options_of_another_searcher(self):
        assert unread(parsed(algorithm="bohb", searcher={"opt_nstarts": 7})) == ["searcher.opt_nstarts"]

    def test_options_of_another_model(self):
        given = {"algorithm": "mobster", "searcher": {"separate_noise_variances": True}}
        assert unread(parsed(**given)) == ["searcher.separate_noise_variances"]
        assert not unread(parsed(**given | {"algorithm": "mobster_indep"}))

    def test_the_acquisition_function_of_the_default_unless_it_goes_by_rank(self):
        given = {"algorithm": "default", "searcher": {"acq_function": "lcb"}}
        assert unread(parsed(**given)) == ["searcher.acq_function"]
        assert not unread(parsed(**given, promotion_rule="rank"))


class TestWhatIsNot:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_defaults_and_presets(self, algorithm):
        assert unread(parsed(algorithm=algorithm)) == []
        assert note_on_unread(parsed(algorithm=algorithm)) is None

    @pytest.mark.parametrize("given", [{"type": "stopping"}, {"promotion_rule": "rank"}])
    def test_nor_those_of_the_default_by_rank(self, given):
        assert unread(parsed(**given)) == []

    def test_the_share_of_the_best_where_the_model_keeps_them(self):
        given = {"searcher": {"max_size_top_fraction": 0.9}}
        assert not unread(parsed(algorithm="default", **given))
        assert not unread(parsed(algorithm="bayesopt", **given))
        assert unread(parsed(algorithm="mobster", **given)) == ["searcher.max_size_top_fraction"]
        none, best = ({"max_size_data_for_model": 6, "max_size_top_fraction": share} for share in (0.0, 1.0))
        assert trials_of("default", 40, none) != trials_of("default", 40, best)

    def test_what_every_searcher_reads(self):
        for algorithm in ALGORITHMS:
            assert not unread(parsed(algorithm=algorithm, searcher={"allow_duplicates": True, "debug_log": True}))


def test_the_odd_options_are_no_defaults():
    for cls, odd in ((StudyOptions, ODD_OPTIONS), (SearcherOptions, ODD_SEARCH)):
        for f in dataclasses.fields(cls):
            assert f.name not in odd or odd[f.name] != f.default


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_named_changes_nothing(algorithm):
    """Every trial is as it was without the options that are named, all others being set."""
    odd = dict(ODD_OPTIONS)
    if algorithm == "default":
        del odd["brackets"]  # it contradicts the searcher's lead, and is refused
    named = unread(parsed(algorithm=algorithm, **odd, searcher=ODD_SEARCH))
    options = {name: value for name, value in odd.items() if name not in named}
    search = {name: value for name, value in ODD_SEARCH.items() if f"searcher.{name}" not in named}
    assert len(search) < len(ODD_SEARCH)
    assert trials_of(algorithm, 30, ODD_SEARCH, **odd) == trials_of(algorithm, 30, search, **options)


def test_a_study_warns():
    with pytest.warns(UserWarning, match="algorithm=random, .* nothing reads grace_period, searcher.opt_nstarts"):
        Study.create(SPACE, metric="v", algorithm="random", grace_period=3, searcher={"opt_nstarts": 7})
