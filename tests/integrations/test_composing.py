import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from lightning_hpo.integrations.composing import Composer

Plugins.instance()  # the fixture restores Hydra's state to what it is before the first test: with every plugin's nodes

FILES = {
    "config.yaml": """
defaults: [{optimizer: sgd}, _self_]
seed: null
model: {lr: 0.1, units: 64, act: relu, half: "${model.units}", sizes: [1, 2], deep: {a: 1}}
""",
    "optimizer/sgd.yaml": "name: sgd\nmomentum: 0.9\n",
    "optimizer/adam.yaml": "name: adam\n",
}


class CountingLoader:
    """Hydra's loader; counts how often it composes."""

    def __init__(self, loader):
        self._loader = loader
        self.composed = 0

    def load_sweep_config(self, *arguments):
        self.composed += 1
        return self._loader.load_sweep_config(*arguments)

    def get_group_options(self, name):
        return self._loader.get_group_options(name)


@pytest.fixture
def make(tmp_path, hydra_restore_singletons):
    """``make(*overrides)``: loader and composer of a multirun with these overrides of Hydra's own settings."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def made(*overrides):
        config = compose("config", list(overrides), return_hydra_config=True)
        hydra = GlobalHydra.instance().hydra
        assert isinstance(hydra, Hydra)
        loader = CountingLoader(hydra.config_loader)
        return loader, Composer(loader, config)

    with initialize_config_dir(str(tmp_path), version_base="1.3", job_name="program"):
        yield made


def content(config):
    return OmegaConf.to_container(config, resolve=False)


FIRST = ["model.lr=0.5", "+extra=a", "model.units=8", "++seed=1", "model.act=tanh"]
SECOND = ["model.lr=1e-3", "+extra='b=c, d'", "model.units=256", "++seed=null", "model.act=gelu"]
THIRD = ["model.lr=1e-05", "+extra=12", "model.units=8", "++seed=3", "model.act=relu"]


class TestJobsThatDifferInValues:
    def test_get_what_hydra_composes_without_composing(self, make):
        loader, composer = make()
        slow = Composer(loader, composer._config)
        composer.learn(FIRST, SECOND)
        before = loader.composed
        quick = [composer.compose(overrides) for overrides in (FIRST, SECOND, THIRD)]
        assert loader.composed == before
        assert [content(q) for q in quick] == [content(slow.compose(o)) for o in (FIRST, SECOND, THIRD)]

    def test_have_configurations_of_their_own(self, make):
        _, composer = make()
        composer.learn(FIRST, SECOND)
        changed = composer.compose(THIRD)
        changed.model.lr = 77.0
        assert composer.compose(THIRD).model.lr == 1e-05

    def test_resolve_interpolations_with_their_own_values(self, make):
        _, composer = make()
        composer.learn(FIRST, SECOND)
        assert composer.compose(SECOND).model.half == 256

    def test_are_named_by_their_overrides(self, make):
        _, composer = make()
        composer.learn(FIRST, SECOND)
        hydra = composer.compose(THIRD).hydra
        assert list(hydra.overrides.task) == THIRD
        assert hydra.job.override_dirname == "++seed=3,+extra=12,model.act=relu,model.lr=1e-05,model.units=8"

    def test_excluded_keys_do_not_name_them(self, make):
        _, composer = make("+hydra.job.config.override_dirname.exclude_keys=[seed,model.lr]")
        composer.learn(FIRST, SECOND)
        assert composer.compose(THIRD).hydra.job.override_dirname == "+extra=12,model.act=relu,model.units=8"


class TestHydraComposesAnew:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param(["optimizer=sgd"], ["optimizer=adam"], id="config group"),
            pytest.param(["optimizer=sgd", "model.lr=1"], ["optimizer=adam", "model.lr=2"], id="group beside a value"),
            pytest.param(["model.sizes=[1]"], ["model.sizes=[3,4]"], id="list"),
            pytest.param(["+model.deep={b: 1}"], ["+model.deep={c: 1}"], id="dict, which is merged"),
            pytest.param(["model.lr=1", "model={lr: 5}"], ["model.lr=2", "model={lr: 5}"], id="written twice"),
            pytest.param(["model.lr=1"], ["model.units=1"], id="other keys"),
            pytest.param(["model.lr=1"], ["model.lr=1", "model.units=1"], id="more keys"),
        ],
    )
    def test_where_copying_would_not_be_the_same(self, make, first, second):
        loader, composer = make()
        slow = Composer(loader, composer._config)
        composer.learn(first, second)
        for overrides in (first, second):
            before = loader.composed
            config = composer.compose(overrides)
            if overrides == second:
                assert loader.composed == before + 1
            assert content(config) == content(slow.compose(overrides))

    def test_when_the_environment_is_copied_into_it(self, make, monkeypatch):
        monkeypatch.setenv("DEVICE", "0")
        _, composer = make("hydra.job.env_copy=[DEVICE]")
        composer.learn(FIRST, SECOND)
        monkeypatch.setenv("DEVICE", "1")
        assert composer.compose(THIRD).hydra.job.env_set.DEVICE == "1"

    def test_before_it_has_learned(self, make):
        loader, composer = make()
        composer.compose(FIRST)
        assert loader.composed == 1


def test_a_first_job_that_does_not_fit_is_refused(make):
    _, composer = make()
    with pytest.raises(ConfigCompositionException):
        composer.learn(["model.width=1"], ["model.width=2"])


def test_a_second_job_that_does_not_fit_is_refused_when_it_is_its_turn(make):
    _, composer = make()
    composer.learn(["model.lr=1"], ["model.lr.x=2"])
    assert composer.compose(["model.lr=3"]).model.lr == 3
    with pytest.raises(ConfigCompositionException):
        composer.compose(["model.lr.x=2"])
