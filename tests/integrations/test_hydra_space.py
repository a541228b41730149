"""Hydra's override grammar becomes a search space, and configurations become overrides again."""

from __future__ import annotations

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf.errors import ValidationError

from lightning_hpo.core.space import (
    SearchSpace,
    choice,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from lightning_hpo.errors import SpaceError
from lightning_hpo.integrations.config import read_options
from lightning_hpo.integrations.hydra_space import format_value, read_space
from lightning_hpo.integrations.sweep import in_categories, refuse_float_for_integer


def space_of(*arguments: str) -> SearchSpace:
    return read_space(None, arguments).space


def parsed(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


class TestTheGrammar:
    @pytest.mark.parametrize(
        ("text", "domain"),
        [
            ("interval(0,0.5)", uniform(0.0, 0.5)),
            ("interval(1,8)", uniform(1.0, 8.0)),
            ("tag(log,interval(1e-4,1e-1))", loguniform(1e-4, 1e-1)),
            ("tag(reverselog,interval(0.5,0.99))", reverseloguniform(0.5, 0.99)),
            ("int(interval(1,8))", randint(1, 8)),
            ("tag(log,int(interval(16,512)))", lograndint(16, 512)),
            ("choice(relu,gelu)", choice(["relu", "gelu"])),
            ("relu,gelu", choice(["relu", "gelu"])),
            ("'a, b','c'", choice(["a, b", "c"])),
            ("choice(true,false)", choice([True, False])),
            ("choice(16,32,48)", choice([16, 32, 48])),
            ("choice([64,32],[128])", choice([[64, 32], [128]])),
            ("choice({a:1},{a:2})", choice([{"a": 1}, {"a": 2}])),
            ("tag(ordinal,choice(16,32,48))", ordinal([16, 32, 48])),
            ("tag(log,choice(16,32,64))", logordinal([16, 32, 64])),
            ("range(1,8)", ordinal([1, 2, 3, 4, 5, 6, 7])),
            ("range(0,1,0.25)", ordinal([0.0, 0.25, 0.5, 0.75])),
            ("range(5,1,-2)", ordinal([3, 5])),
            ("shuffle(range(3))", ordinal([0, 1, 2])),
        ],
    )
    def test_every_range_has_its_domain(self, text, domain):
        assert space_of(f"x={text}") == SearchSpace({"x": domain})

    def test_an_integer_among_floats_is_a_float(self):
        assert space_of("x=0.5,1") == SearchSpace({"x": choice([0.5, 1.0])})

    def test_values_that_cannot_be_kept_are_searched_by_the_way_they_are_written(self):
        sweep = read_space(None, ["clip=inf,null,'a b'"])
        assert sweep.space == SearchSpace({"clip": choice(["inf", "null", "'a b'"])})
        assert [parsed(*sweep.overrides({"clip": c})) for c in ("inf", "null", "'a b'")] == [math.inf, None, "a b"]

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("null,0.1", [None, 0.1]),
            ("1,null,2", [1, None, 2]),
            ("null,0.5,1", [None, 0.5, 1.0]),
            ("null,relu,'null'", [None, "relu", "null"]),
            ("true,null", [True, None]),
            ("[64,32],null", [[64, 32], None]),
            ("{a:1},null", [{"a": 1}, None]),
        ],
    )
    def test_null_stands_beside_values_of_any_type_and_leaves_them_what_they_are(self, text, values):
        sweep = read_space(None, [f"x={text}"])
        assert sweep.space == SearchSpace({"x": choice(values)})
        assert sweep.space.complete([{"x": v} for v in values]) == [{"x": v} for v in values]
        assert [parsed(*sweep.overrides({"x": v})) for v in values] == values
        assert sweep.overrides({"x": None}) == ["x=null"]

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("auto,null,3", ["auto", None, 3]),
            ("choice('none',0.5)", ["none", 0.5]),
            ("choice('true',true,1)", ["true", True, 1]),
            ("tag(ordinal,choice(low,0.5))", ["low", 0.5]),
        ],
    )
    def test_values_of_many_types_are_searched_as_the_script_sees_them(self, text, values):
        sweep = read_space(None, [f"x={text}"])
        categories = sweep.space.domains["x"].to_json()["categories"]
        assert [(v, type(v)) for v in categories] == [(v, type(v)) for v in values]
        assert SearchSpace.from_json(sweep.space.to_json()) == sweep.space

    def test_a_study_that_began_with_texts_for_values_of_many_types_goes_on_with_texts(self):
        begun = {"x": choice(["'none'", "0.5"])}
        sweep = read_space(None, ["x=choice('none',0.5)"], begun=begun)
        assert sweep.space == SearchSpace(begun)
        assert sweep.overrides({"x": "'none'"}) == ["x='none'"]

    @pytest.mark.parametrize("text", ["inf", "{1:a}"])
    def test_beside_null_a_value_that_no_study_can_keep_is_searched_by_the_way_it_is_written(self, text):
        sweep = read_space(None, [f"x=null,{text}"])
        assert sweep.space == SearchSpace({"x": choice(["null", text])})
        assert sweep.overrides({"x": text}) == [f"x={text}"]

    def test_a_study_that_began_with_texts_goes_on_with_texts(self):
        begun = {"x": choice(["null", "0.1"]), "y": choice(["null", "2"])}
        sweep = read_space(None, ["y=null,3"], params={"x": "null,0.1"}, begun=begun)
        assert sweep.space == SearchSpace({"x": choice(["null", "0.1"]), "y": choice([None, 3])})
        assert sweep.overrides({"x": "0.1", "y": None}) == ["x=0.1", "y=null"]

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("choice('true',true)", ["true", True]),
            ("choice('1',1)", ["1", 1]),
            ("1,1.0,a", [1, 1.0, "a"]),
            ("null,'null',1", [None, "null", 1]),
            ("choice('it\\'s',1)", ["it's", 1]),
            ("choice('a\\'b',\"c\\\"d\",{x:1},[1,'2'])", ["a'b", 'c"d', {"x": 1}, [1, "2"]]),
            ("choice('a b','',1)", ["a b", "", 1]),
            ("choice('${home}','a\\\\',1)", ["${home}", "a\\", 1]),
            ("1,inf,'inf'", [1, math.inf, "inf"]),
        ],
    )
    def test_of_many_types_each_is_read_back_as_the_value_that_was_written(self, text, values):
        sweep = read_space(None, [f"x={text}"])
        categories = sweep.space.domains["x"].to_json()["categories"]
        read = [parsed(*sweep.overrides({"x": category})) for category in categories]
        assert [(v, type(v)) for v in read] == [(v, type(v)) for v in values]

    @pytest.mark.parametrize(
        ("text", "values", "categories"),
        [
            ("0.5,auto", [0.5, "auto"], [0.5, "auto"]),
            ("null,true,1,inf", [None, True, 1, 1.0, "true"], ["null", "true", "1", "1", "true"]),
            ("choice('true',true,inf)", ["true", True], ["'true'", "true"]),
            ("1,1.0,a", [1, 1.0], ["1", "1.0"]),
            ("[1,2],{a:1}", [[1, 2], {"a": 1}], [[1, 2], {"a": 1}]),
            ("a,b", ["a", 3], ["a", 3]),
        ],
    )
    def test_a_configuration_from_outside_names_values_or_the_way_they_are_written(self, text, values, categories):
        sweep = read_space(None, [f"x={text}", "y=interval(0,1)"])
        given = [{"x": value} for value in values]
        assert sweep.categories([*given, {"y": 0.5, "z": None}]) == [
            *({"x": category} for category in categories),
            {"y": 0.5, "z": None},
        ]

    def test_so_do_the_first_configurations_and_those_a_study_is_restricted_to(self):
        given = {
            "metric": "loss",
            "points_to_evaluate": [{"x": 0.5}, {"x": "auto"}],
            "searcher": {"restrict_configurations": [{"x": 0.5}]},
        }
        options = in_categories(read_options(given), read_space(None, ["x=choice(0.5,auto,inf)"]))
        assert options.points_to_evaluate == [{"x": "0.5"}, {"x": "auto"}]
        assert options.searcher.restrict_configurations == [{"x": "0.5"}]
        given = {"metric": "loss"}
        assert in_categories(read_options(given), read_space(None, ["x=choice(0.5,auto)"])) == read_options(given)

    def test_a_study_that_began_with_texts_that_had_lost_their_quotes_goes_on_with_them(self):
        begun = {"x": choice(["true", "True"]), "y": choice(["a\\ b", "1"])}
        sweep = read_space(None, ["x=choice('true',true)", "y=choice('a b',1)"], begun=begun)
        assert sweep.space == SearchSpace(begun)
        assert sweep.overrides({"x": "true", "y": "a\\ b"}) == ["x=true", "y=a\\ b"]
        assert sweep.categories([{"x": True, "y": "a b"}]) == [{"x": "True", "y": "a\\ b"}]

    def test_every_option_of_a_group_is_a_category_of_a_glob(self):
        class Options:
            def get_group_options(self, group, results_filter):
                return {"model": ["cnn", "mlp", "mlp_deep"]}[group]

        assert read_space(Options(), ["model=glob(mlp*)"]).space == SearchSpace({"model": choice(["mlp", "mlp_deep"])})

    def test_hyperparameters_keep_the_order_of_the_command_line(self):
        assert space_of("z=1,2", "k=3", "a=interval(0,1)").names == ("z", "a")


class TestWhereTheSpaceIsWritten:
    def test_the_command_line_wins_over_the_params_of_the_sweeper(self):
        sweep = read_space(
            None, ["lr=interval(0,1)", "act=relu"], params={"lr": "1,2", "act": "relu,gelu", "width": "range(2,5)"}
        )
        assert sweep.space == SearchSpace({"lr": uniform(0.0, 1.0), "width": ordinal([2, 3, 4])})
        assert sweep.overrides({"lr": 0.25, "width": 3}) == ["lr=0.25", "act=relu", "width=3"]

    def test_params_may_hold_plain_yaml_values(self):
        sweep = read_space(None, ["x=1,2"], params={"lr": 0.1, "sizes": [1, 2], "clip": None, "on": True})
        assert set(sweep.overrides({"x": 1})) == {"x=1", "lr=0.1", "sizes=[1,2]", "clip=null", "on=true"}

    def test_richer_domains_come_from_the_launcher_flat_or_nested(self):
        width = {"domain": "logfinrange", "lower": 16, "upper": 512, "size": 6, "cast_int": True}
        expected = SearchSpace({"model.width": logfinrange(16, 512, 6, cast_int=True)})
        assert read_space(None, [], domains={"model.width": width}).space == expected
        assert read_space(None, [], domains={"model": {"width": width}}).space == expected

    def test_a_value_on_the_command_line_ends_the_search_for_it_and_the_user_is_told(self):
        domains = {"width": {"domain": "randint", "lower": 1, "upper": 9}}
        sweep = read_space(None, ["width=4", "lr=1,2"], domains=domains)
        assert sweep.space.names == ("lr",)
        assert any("width" in note and "command line" in note for note in sweep.notes)

    def test_the_prefix_that_adds_a_key_is_kept(self):
        sweep = read_space(None, ["+a=1,2", "++b=3,4", "c=5,6"], params={"+c": "7,8"})
        assert sweep.space.names == ("c", "a", "b")
        assert sweep.overrides({"a": 2, "b": 3, "c": 6}) == ["+c=6", "+a=2", "++b=3"]

    def test_a_group_may_have_a_package(self):
        sweep = read_space(None, ["db@source=choice(mysql,sqlite)"])
        assert sweep.space.names == ("db@source",)
        assert sweep.overrides({"db@source": "sqlite"}) == ["db@source=sqlite"]

    def test_what_is_not_searched_reaches_every_trial_as_it_was_written(self):
        fixed = ['name="a, b"', "~trainer.logger", "x=${y}", "sizes=[1, 2]"]
        assert read_space(None, [*fixed, "lr=1,2"]).overrides({"lr": 2}) == [*fixed, "lr=2"]


class TestWhatTheUserIsTold:
    @pytest.mark.parametrize("name", ["seed", "trainer.seed", "+random_seed"])
    def test_a_seed_with_several_values_is_a_hyperparameter(self, name):
        (note,) = read_space(None, [f"{name}=1,2,3"]).notes
        assert name.lstrip("+") in note
        assert "hyperparameter" in note

    def test_shuffling_is_for_grids(self):
        (note,) = read_space(None, ["x=shuffle(range(3))"]).notes
        assert "shuffle" in note


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("tag(log,interval(0,1))", "0"),
            ("interval(2,1)", "2"),
            ("tag(lgo,interval(1,2))", "'log'"),
            ("tag(ordinal,interval(1,2))", "ordinal"),
            ("tag(log,reverselog,interval(0.1,0.2))", "exclude"),
            ("range(3,3)", "no values"),
            ("range(1,5,0)", "step"),
            ("range(1,100000)", r"int\(interval"),
            ("choice(a,a)", "twice"),
            ("interval(0,inf)", "inf"),
        ],
    )
    def test_the_error_shows_the_override_and_what_is_wrong(self, text, message):
        with pytest.raises(SpaceError, match=message) as caught:
            space_of(f"model.x={text}", "y=1,2")
        assert str(caught.value).startswith(f"model.x={text}: ")

    def test_a_sweep_without_a_range_gets_an_example(self):
        with pytest.raises(SpaceError, match=r"model\.lr=tag\(log,interval\(1e-4,1e-1\)\)"):
            space_of("x=3")

    def test_a_glob_without_options(self):
        class Nothing:
            def get_group_options(self, group, results_filter):
                return []

        with pytest.raises(SpaceError, match="nothing to choose"):
            read_space(Nothing(), ["model=glob(x*)"])

    def test_hydra_itself_is_not_searched(self):
        with pytest.raises(SpaceError, match=r"hydra\.job\.name"):
            read_space(None, ["x=1,2"], params={"hydra.job.name": "a,b"})

    def test_a_domain_with_a_typing_error(self):
        with pytest.raises(SpaceError, match=r"'w'.*'logfinrange'"):
            read_space(None, [], domains={"w": {"domain": "logfinrage", "lower": 1, "upper": 2, "size": 2}})

    def test_a_constant_among_the_domains(self):
        with pytest.raises(SpaceError, match=r"hydra\.launcher\.space\.w is 3"):
            read_space(None, [], domains={"w": 3})

    def test_a_configuration_that_is_not_complete(self):
        with pytest.raises(SpaceError, match="b"):
            read_space(None, ["a=1,2", "b=3,4"]).overrides({"a": 1})


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda key: key.lower() not in {"null", "true", "false", "nan", "inf"}
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


class TestValuesAsOverrides:
    @given(values)
    def test_hydra_reads_back_the_same_value_of_the_same_type(self, value):
        result = parsed(f"x={format_value(value)}")
        assert (repr(result), type(result)) == (repr(value), type(value))

    @pytest.mark.parametrize(
        "text",
        [
            "null",
            "True",
            "nan",
            "1",
            "1e-3",
            "",
            " a ",
            "a,b",
            "it's",
            'say "x"',
            "\\",
            "a\\'b",
            "[1]",
            "{a:1}",
            "x=y",
            "${z}",
        ],
    )
    def test_strings_that_look_like_something_else_stay_strings(self, text):
        assert parsed(f"x={format_value(text)}") == text

    def test_ordinary_names_are_not_quoted(self):
        assert format_value("conf/mlp_2.yaml") == "conf/mlp_2.yaml"

    def test_floats_keep_every_digit(self):
        assert format_value(0.1 + 0.2) == "0.30000000000000004"
        assert parsed(f"x={format_value(5e-324)}") == 5e-324
        assert math.isinf(parsed(f"x={format_value(-math.inf)}"))

    @pytest.mark.parametrize("value", [{"it's": 1}, {"": 1}, {1.5, 2}, object()])
    def test_what_the_grammar_cannot_say_is_refused(self, value):
        with pytest.raises(SpaceError):
            format_value(value)


class TestConfigurationsFromOutside:
    """First configurations that cannot be: where they are given, and what fixes it."""

    def options(self, *points, **searcher):
        return read_options({"metric": "loss", "points_to_evaluate": list(points), "searcher": searcher})

    def test_what_the_command_line_fixes_is_no_hyperparameter(self):
        sweep = read_space(None, ["units=8", "lr=interval(0,1)"])
        with pytest.raises(SpaceError) as refused:
            in_categories(self.options({"lr": 0.5}, {"units": 16}), sweep)
        assert str(refused.value) == (
            "points_to_evaluate[1]: units is not searched, as units=8 fixes it. "
            "Leave units out there, or give it a range."
        )
        with pytest.raises(SpaceError, match=r"^searcher\.restrict_configurations\[0\]: units is not searched"):
            in_categories(self.options(restrict_configurations=[{"units": 16, "lr": 0.5}]), sweep)

    @pytest.mark.parametrize(
        ("point", "says"),
        [
            ({"lr": 2.0}, "'lr': 2.0 lies outside"),
            ({"rl": 0.5}, "'rl' is not a hyperparameter"),
            (3, "3 is no mapping"),
        ],
    )
    def test_what_cannot_be_is_named_with_its_place(self, point, says):
        with pytest.raises(SpaceError, match=r"^points_to_evaluate\[1\]: ") as refused:
            space_of("lr=interval(0,1)").complete([{"lr": 0.5}, point])
        assert says in str(refused.value)


def test_floats_for_an_integer_of_the_configuration_are_refused_with_the_way_to_write_integers():
    space = space_of("units=interval(4,16)", "lr=interval(0,1)")

    def refused(override, cause):
        problem = ConfigCompositionException(f"Error merging override {override}")
        problem.__cause__ = ValidationError(f"Value of type 'float' could not be {cause}")
        refuse_float_for_integer(problem, space)

    with pytest.raises(SpaceError, match=r"^units is an integer .*\. Write int\(interval\(4,16\)\)\.$"):
        refused("++units=10.0", "converted to Integer")
    refused("units=10.0", "converted to a list")
    refused("another=10.0", "converted to Integer")
