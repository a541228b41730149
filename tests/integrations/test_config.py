"""The options below ``hydra.launcher``."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.searcher_options import SearcherOptions
from lightning_hpo.core.stopping import StopCriterion
from lightning_hpo.errors import OptionError
from lightning_hpo.integrations.config import LauncherOptions, default_node, read_options

# What users may rely on.
PROMISED = {
    "metric", "mode", "algorithm", "type", "max_t", "max_resource_attr", "resource", "grace_period",
    "reduction_factor", "rung_levels", "brackets", "rung_system_per_bracket", "searcher_data",
    "points_to_evaluate", "random_seed", "n_workers", "gpus_per_trial", "asynchronous", "n_trials", "stop",
    "searcher", "max_retries", "backend", "study", "space", "max_disk", "epoch_timeout", "trial_timeout",
    "start_method",
}  # fmt: skip


def names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


class TestTheNode:
    def test_every_option_is_shown_with_its_default(self):
        node = default_node()
        assert set(node) == names(LauncherOptions)
        assert set(node["searcher"]) == names(SearcherOptions)
        assert set(node["stop"]) == names(StopCriterion)
        assert not PROMISED - set(node)
        assert (node["mode"], node["resource"], node["max_retries"]) == ("min", "epoch", 2)
        assert node["searcher"]["num_candidates"] == 64

    def test_left_alone_it_means_the_algorithms_own_options(self):
        for algorithm in ALGORITHMS:
            expected = LauncherOptions.from_mapping({"metric": "loss", "algorithm": algorithm})
            assert read_options(default_node() | {"metric": "loss", "algorithm": algorithm}) == expected

    @pytest.mark.parametrize("value", ["stopping", "promotion"])
    def test_what_the_user_sets_wins_over_what_the_algorithm_presets(self, value):
        node = default_node() | {"metric": "loss", "algorithm": "default"}
        assert ALGORITHMS["default"].presets["type"] == "promotion"
        assert read_options(node).type == "promotion"
        assert read_options(node | {"type": value}).type == value

    @pytest.mark.parametrize(("max_t", "brackets"), [(3, None), (27, 2)])
    def test_a_second_bracket_is_preset_once_it_is_known_that_there_is_room_for_one(self, max_t, brackets):
        """3 epochs have one rung, 27 have three; the launcher learns how many from the job's configuration."""
        options = read_options(default_node() | {"metric": "loss", "promotion_rule": "rank"})
        assert options.study_options(0, 1, max_t).brackets == brackets
        of_a_study = StudyOptions.from_mapping({"metric": "loss", "promotion_rule": "rank", "max_t": max_t})
        assert of_a_study.brackets == brackets

    def test_brackets_of_the_user_are_theirs(self):
        options = read_options(default_node() | {"metric": "loss", "promotion_rule": "rank", "brackets": 3})
        assert options.study_options(0, 1, 27).brackets == 3

    def test_null_means_no_limit_where_the_default_is_one(self):
        node = default_node() | {"metric": "loss"}
        assert read_options(node).searcher.max_size_data_for_model == 500
        node["searcher"]["max_size_data_for_model"] = None
        assert read_options(node).searcher.max_size_data_for_model is None

    def test_what_hydra_needs_for_itself_is_no_option(self):
        assert read_options({"_target_": "x", "metric": "loss"}).metric == "loss"


class TestBadOptions:
    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({"n_trails": 3}, r"n_trails.*Did you mean 'n_trials'"),
            ({"searcher": {"opt_nstart": 3}}, r"searcher\.opt_nstart.*Did you mean 'opt_nstarts'"),
            ({"stop": {"max_wallclock": 3}}, r"max_wallclock.*Did you mean 'max_wallclock_time'"),
            ({"algorithm": "mobstr"}, r"mobstr.*Did you mean 'mobster'"),
            ({"n_workers": "two"}, r"n_workers='two'.*int"),
            ({"n_workers": 0}, r"n_workers=0.*at least 1"),
            ({"max_t": 2.5}, r"max_t=2\.5.*int"),
            ({"asynchronous": "yes"}, r"asynchronous='yes'.*bool"),
            ({"mode": "maximise"}, r"mode='maximise'.*min, max"),
            ({"backend": "locl"}, r"backend='locl'.*Did you mean 'local'"),
            ({"resource": "step"}, r"resource='step'.*epoch, validation"),
            ({"start_method": "frok"}, r"start_method='frok'.*Did you mean 'fork'"),
            ({"epoch_timeout": -1}, r"epoch_timeout=-1.*above 0"),
            ({"trial_timeout": 0}, r"trial_timeout=0.*above 0"),
            ({"epoch_timeout": float("inf")}, r"epoch_timeout=inf.*above 0"),
            ({"ranks_per_trial": 0}, r"ranks_per_trial=0.*at least 1"),
            ({"max_disk": "a lot"}, r"max_disk='a lot'.*20GB"),
            ({"searcher": "gp"}, r"searcher='gp'.*hydra\.launcher\.searcher\."),
            ({"stop": 60}, r"stop=60.*hydra\.launcher\.stop\.max_wallclock_time"),
            ({"points_to_evaluate": {"lr": 1}}, r"points_to_evaluate="),
        ],
    )
    def test_the_error_names_option_value_and_remedy(self, mapping, message):
        with pytest.raises(OptionError, match=rf"^hydra\.launcher: .*{message}"):
            read_options({"metric": "loss"} | mapping)

    def test_the_metric_is_required_for_tuning_only(self):
        with pytest.raises(OptionError, match="metric is not set"):
            read_options(default_node())
        assert read_options(default_node() | {"n_workers": 3}, tunes=False).n_workers == 3


class TestSizes:
    @pytest.mark.parametrize(
        ("written", "bytes_"),
        [
            (None, None),
            (4096, 4096),
            ("4096", 4096),
            ("500MB", 500_000_000),
            ("20 GB", 20_000_000_000),
            ("1.5TiB", 1_649_267_441_664),
            ("2k", 2_000),
            ("3Ki", 3_072),
            (1e6, 1_000_000),
        ],
    )
    def test_units_are_decimal_unless_they_say_otherwise(self, written, bytes_):
        assert read_options({"metric": "loss", "max_disk": written}).disk_limit == bytes_


def test_the_study_gets_its_part_of_the_options():
    options = read_options(
        {"metric": "acc", "mode": "max", "algorithm": "asha", "backend": "ray", "searcher": {"opt_nstarts": 5}}
    )
    study = options.study_options(random_seed=7, n_workers=3, max_t=27)
    assert type(study) is StudyOptions
    assert study == StudyOptions(
        metric="acc",
        mode="max",
        algorithm="asha",
        random_seed=7,
        n_workers=3,
        max_t=27,
        searcher=SearcherOptions(opt_nstarts=5),
    )
