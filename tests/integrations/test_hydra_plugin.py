"""What ``hydra/launcher=hpo`` and ``hydra/sweeper=hpo`` mean to Hydra."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lightning_hpo.errors import OptionError, SpaceError
from lightning_hpo.integrations.job import HydraJob
from lightning_hpo.integrations.select_sweeper import BASIC_SWEEPER, LAUNCHER, SWEEPER, SelectSweeper, as_composed

Plugins.instance()


@pytest.fixture
def sweep(compose_sweep, monkeypatch, tmp_path):
    """``sweep(*overrides)`` runs a multirun up to the door of the search, and returns what that got."""

    def run(*overrides):
        calls = []

        def run_sweep(hydra_context, task_function, config, arguments):
            calls.append(SimpleNamespace(context=hydra_context, task=task_function, config=config, arguments=arguments))

        monkeypatch.setitem(sys.modules, "lightning_hpo.integrations.sweep", SimpleNamespace(run_sweep=run_sweep))
        compose_sweep(*overrides)
        (call,) = calls
        return call

    return run


def test_first_configurations_may_name_the_values_of_a_choice_of_many_types(compose_sweep, monkeypatch, tmp_path):
    setups = []

    def run_study(setup):
        setups.append(setup)
        return SimpleNamespace(best_full=None)

    monkeypatch.setattr("lightning_hpo.integrations.sweep.run_study", run_study)
    points = "hydra.launcher.points_to_evaluate=[{bar:0.5},{bar:auto}]"
    compose_sweep("hydra/launcher=hpo", "hydra.launcher.metric=loss", "bar=choice(0.5,auto)", points)
    (setup,) = setups
    assert setup.space.complete(setup.options.points_to_evaluate) == [{"bar": 0.5}, {"bar": "auto"}]


class TestTheFlag:
    def test_the_launcher_alone_takes_the_sweep_over_ranges_included(self, sweep):
        call = sweep("hydra/launcher=hpo", "hydra.launcher.metric=loss", "bar=tag(log,int(interval(1,100)))")
        assert call.arguments == ["bar=tag(log,int(interval(1,100)))"]
        assert call.config.hydra.sweeper._target_ == SWEEPER
        # Hydra 1.4 wants the sweeper of a job to be that of the multirun.
        job = HydraJob(call.context, call.config, call.task)
        assert job.compose(["bar=3"], 0).hydra.sweeper._target_ == BASIC_SWEEPER
        assert (call.config.hydra.launcher.metric, call.config.hydra.launcher.mode) == ("loss", "min")

    def test_the_sweeper_alone_brings_the_launcher_and_no_callback(self, sweep):
        call = sweep("hydra/sweeper=hpo", "hydra.launcher.metric=loss", "bar=interval(0,1)")
        assert call.config.hydra.launcher._target_ == LAUNCHER
        assert not call.config.hydra.callbacks

    def test_params_of_the_sweeper_are_kept(self):
        config = OmegaConf.create(
            {
                "hydra": {
                    "launcher": {"_target_": LAUNCHER},
                    "sweeper": {"_target_": BASIC_SWEEPER, "params": {"lr": "interval(0,${top})"}},
                    "runtime": {"choices": {"hydra/sweeper": "basic"}},
                    "overrides": {"hydra": ["hydra/launcher=hpo"], "task": []},
                }
            },
            flags={"struct": True, "readonly": True},
        )
        SelectSweeper().on_multirun_start(config)
        assert OmegaConf.to_container(config.hydra.sweeper.params) == {"lr": "interval(0,${top})"}
        assert config.hydra.sweeper._target_ == SWEEPER
        assert as_composed(config).hydra.sweeper._target_ == BASIC_SWEEPER

    def test_options_may_be_nested_and_need_no_plus(self, sweep):
        call = sweep(
            "hydra/launcher=hpo",
            "hydra.launcher.searcher.acq_function_kwargs.kappa=2.5",
            "hydra.launcher.stop.max_wallclock_time=60",
            "hydra.launcher.space={bar:{domain:finrange,lower:1,upper:9,size:3}}",
        )
        launcher = OmegaConf.to_container(call.config.hydra.launcher)
        assert launcher["searcher"]["acq_function_kwargs"] == {"kappa": 2.5}
        assert launcher["stop"]["max_wallclock_time"] == 60
        assert launcher["space"] == {"bar": {"domain": "finrange", "lower": 1, "upper": 9, "size": 3}}

    def test_unknown_options_pass_hydra_and_reach_our_own_check(self, sweep):
        call = sweep("hydra/launcher=hpo", "hydra.launcher.n_trails=5", "hydra.launcher.searcher.opt_nstart=2")
        assert call.config.hydra.launcher.n_trails == 5
        assert call.config.hydra.launcher.searcher.opt_nstart == 2


class TestMisuse:
    @pytest.mark.parametrize(
        ("overrides", "error", "message"),
        [
            (
                ["hydra/launcher=hpo", "~hydra.callbacks.lightning_hpo", "bar=1,2"],
                OptionError,
                r"Add hydra/sweeper=hpo",
            ),
            (
                ["hydra/launcher=hpo", "hydra/sweeper=basic", "bar=interval(0,1)"],
                SpaceError,
                r"bar=interval\(0,1\) is a range.*Remove hydra/sweeper=basic",
            ),
            (
                ["hydra/launcher=hpo", "hydra.sweeper.max_batch_size=2", "bar=1,2"],
                OptionError,
                r"hydra\.launcher\.n_workers.*Remove hydra\.sweeper\.max_batch_size",
            ),
            (["hydra/sweeper=hpo", "hydra/launcher=basic", "bar=1,2"], OptionError, r"Add hydra/launcher=hpo"),
            (
                ["hydra/launcher=hpo", "hydra/sweeper=basic", "hydra.launcher.n_worker=2", "bar=1,2"],
                OptionError,
                r"n_worker is not.*'n_workers'",
            ),
        ],
    )
    def test_it_is_one_error_with_the_remedy_and_hydra_prints_it_without_a_traceback(
        self, sweep, overrides, error, message
    ):
        with pytest.raises(error, match=message) as caught:
            sweep(*overrides)
        assert isinstance(caught.value, CompactHydraException)

    def test_another_sweeper_is_left_alone(self, sweep, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "lightning_hpo.integrations.batch.run_batch",
            lambda context, task, config, jobs, first: seen.append((config.hydra.sweeper._target_, jobs, first)) or [],
        )
        with pytest.raises(ValueError, match="not enough values"):
            sweep("hydra/launcher=hpo", "hydra/sweeper=basic", "bar=1,2")
        assert seen == [(BASIC_SWEEPER, [["bar=1"], ["bar=2"]], 0)]


class TestTheScan:
    def test_programs_that_use_hydra_for_something_else_import_nothing_heavy(self):
        code = (
            "import sys; from hydra.core.plugins import Plugins; Plugins.instance();"
            "assert 'hydra_plugins.lightning_hpo.launcher' in sys.modules;"
            "print([m for m in ('torch', 'lightning', 'gpytorch', 'numpy', 'scipy', 'rich') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_an_error_of_ours_is_what_the_user_reads(self, tmp_path):
        script = tmp_path / "train.py"
        script.write_text(
            "import hydra\n"
            "@hydra.main(config_path=None, version_base=None)\n"
            "def main(cfg): pass\n"
            "if __name__ == '__main__': main()\n"
        )
        command = [sys.executable, str(script), "-m", "hydra/launcher=hpo", "hydra/sweeper=basic", "+x=interval(0,1)"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert "Remove hydra/sweeper=basic to search the space" in done.stderr
        assert "Traceback" not in done.stderr
