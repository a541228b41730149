"""Every YAML of conf/ and recipes/ composes, and what it composes to can be used."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_hpo.core.algorithms import ALGORITHMS
from lightning_hpo.integrations.config import read_options
from lightning_hpo.integrations.hydra_space import read_space

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
TRAINERS = sorted(path.stem for path in (ROOT / "conf" / "trainer").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "hpo").glob("*.yaml"))

Compose = Callable[..., DictConfig]


@pytest.fixture
def composed() -> Iterator[Compose]:
    """``composed("recipe=...", ...)``: the whole config, Hydra's part included."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield lambda *overrides: compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().cfg = None


def launcher_settings(config: DictConfig) -> dict:
    resolved = OmegaConf.to_container(config, resolve=False)["hydra"]["launcher"]
    return {name: config.metric if value == "${metric}" else value for name, value in resolved.items()}


def test_there_is_something_to_compose():
    assert RECIPES == ["mlp_digits", "mlp_fashionmnist", "resnet_cifar10"]
    assert {"cpu", "gpu", "ddp"} <= set(TRAINERS)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_and_trainer(recipe: str, trainer: str, composed: Compose, tmp_path: Path):
    config = composed(f"recipe={recipe}", f"trainer={trainer}")
    config.hydra.runtime.output_dir = config.hydra.runtime.cwd = str(tmp_path)
    HydraConfig.instance().set_config(config)
    model = instantiate(config.model)
    data = get_class(config.data._target_)
    accepted = set(inspect.signature(data.__init__).parameters)
    assert set(config.data) - {"_target_"} <= accepted
    assert config.metric in logged_names(model)
    assert config.trainer.max_epochs in (27, 81)
    assert config.trainer.callbacks[0]._target_ == "lightning_hpo.HPOCallback"


def logged_names(model: object) -> set[str]:
    """The string literals in the model's ``validation_step``."""
    source = inspect.getsource(type(model).validation_step)
    return {n.value for n in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(n, ast.Constant)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_launcher_settings_of_a_recipe_are_valid_and_end_the_study(recipe: str, composed: Compose):
    config = composed("hydra/launcher=hpo", f"recipe={recipe}")
    options = read_options(launcher_settings(config))
    assert options.metric == config.metric and options.mode == "max"
    assert options.n_trials is not None or options.stop.max_wallclock_time is not None


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_searched_hyperparameter_has_a_default_inside_its_range(recipe: str, composed: Compose):
    config = composed(f"recipe={recipe}")
    space = read_space(None, [], config.hydra.sweeper.params).space
    defaults = {name: OmegaConf.select(config, name, throw_on_missing=True) for name in space.names}
    space.check(defaults)


def test_the_fashionmnist_recipe_begins_with_the_published_defaults(composed: Compose):
    config = composed("recipe=mlp_fashionmnist")
    space = read_space(None, [], config.hydra.sweeper.params).space
    (first,) = space.complete(None)
    # Klein et al. and others start from the middle of every range, on the log scale where it has one.
    assert first == {
        "model.n_units_1": 64, "model.n_units_2": 64, "data.batch_size": 68,
        "model.dropout_1": pytest.approx(0.495), "model.dropout_2": pytest.approx(0.495),
        "model.learning_rate": pytest.approx(1e-3), "model.weight_decay": pytest.approx(1e-4),
    }  # fmt: skip
    assert first == {name: pytest.approx(OmegaConf.select(config, name)) for name in first}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset(preset: str, composed: Compose):
    config = composed(f"hpo={preset}")
    assert config.hydra.launcher._target_.endswith("HpoLauncher")
    options = read_options(launcher_settings(config))
    assert ALGORITHMS[options.algorithm]
    assert options.n_trials == 20, "the recipe's other settings stay"


def test_every_algorithm_has_a_preset_of_its_name():
    assert set(ALGORITHMS) <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_tells_its_command(preset: str):
    assert f"python recipes/train.py -m hpo={preset}\n" in (ROOT / "conf" / "hpo" / f"{preset}.yaml").read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_tells_its_commands(recipe: str):
    header = (ROOT / "recipes" / f"{recipe}.yaml").read_text().split("\nmetric:")[0]
    assert "python recipes/train.py -m hydra/launcher=hpo" in header


def commands() -> list[str]:
    """The arguments of every ``python recipes/train.py`` in a document or in a YAML's header."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "train.py"]
    files += [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "conf").glob("**/*.yaml")]
    # What follows two spaces is a remark; so is what stands in parentheses or after a backtick.
    pattern = re.compile(r"python recipes/train\.py((?: (?! )(?:'[^']*'|[^\s`'])+)*)")
    return sorted({found.strip() for file in files for found in pattern.findall(file.read_text())})


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_shown_composes(command: str, composed: Compose):
    arguments = shlex.split(command.removesuffix(" ..."))
    overrides = [argument for argument in arguments if "=" in argument]
    assert {argument for argument in arguments if "=" not in argument} <= {"-m", "--cfg", "job"}
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [text for text, override in zip(overrides, parsed, strict=True) if override.is_sweep_override()]
    config = composed(*(text for text in overrides if text not in swept))
    for name in read_space(None, swept, config.hydra.sweeper.params).space.names:
        OmegaConf.select(config, name, throw_on_missing=True)
    if "-m" in arguments:
        read_options(launcher_settings(config))
