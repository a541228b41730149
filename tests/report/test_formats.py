from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.space import SearchSpace, choice, finrange, loguniform, ordinal, randint
from lightning_hpo.report import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00"),
        (59.9, "0:00:59"),
        (3723.0, "1:02:03"),
        (86_400 * 2 + 61, "2 d 0:01:01"),
        (-1.0, "0:00:00"),
        (float("inf"), "–"),
    ],
)
def test_a_duration_reads_like_a_clock(seconds: float, text: str):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3_449_000, "3.4 MB"), (2e12, "2.0 TB")]
)
def test_sizes_have_decimal_units(count: float, text: str):
    assert formats.size(count) == text


def test_one_epoch_two_epochs():
    assert [formats.amount(n, "epoch") for n in (0, 1, 2, 1234)] == ["0 epochs", "1 epoch", "2 epochs", "1,234 epochs"]


def test_names_are_cut_as_far_as_they_stay_different():
    names = ["model.optimizer.lr", "model.units", "teacher.units", "seed", "units_scale"]
    assert formats.short_names(names) == {
        "model.optimizer.lr": "lr",
        "model.units": "model.units",
        "teacher.units": "teacher.units",
        "seed": "seed",
        "units_scale": "units_scale",
    }


def test_a_name_that_is_the_tail_of_another_keeps_both_apart():
    shortened = formats.short_names(["lr", "model.lr"])
    assert shortened["model.lr"] == "model.lr"
    assert len(set(shortened.values())) == 2


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="ab.", min_size=1, max_size=5), unique=True, max_size=4))
def test_short_names_never_collide(names: list[str]):
    shortened = formats.short_names(names)
    assert list(shortened) == names
    assert len(set(shortened.values())) == len(names)


def test_a_configuration_in_one_line():
    config = {"model.lr": 0.0012345678, "units": 16, "act": "relu", "layers": [8, 4], "bias": True, "drop": None}
    names = formats.short_names(config)
    assert formats.configuration(config, names) == "lr=0.001235 units=16 act=relu layers=[8, 4] bias=true drop=null"


def test_texts_whose_end_could_not_be_told_are_quoted():
    texts = ["a,b", "", '"q"', "it's", "a b", "x=1", "[1]", "f(x)", "ü", "mlp/wide-2.yaml"]
    space = SearchSpace({"act": choice(texts[:6]), "kind": choice(texts[6:])})
    assert formats.space(space) == (
        r"""act: choice("a,b", "", "\"q\"", "it's", "a b", "x=1"), kind: choice("[1]", "f(x)", ü, mlp/wide-2.yaml)"""
    )
    assert formats.configuration({"act": "", "kind": "a b", "n": [1, "x"]}, {}) == 'act="" kind="a b" n=[1, "x"]'


@given(st.text())
def test_text_from_outside_cannot_steer_the_terminal(text: str):
    shown = formats.plain(text)
    assert shown.isprintable()


def test_an_escape_sequence_in_a_value_is_disarmed():
    assert "\x1b" not in formats.configuration({"a\x1b[2J": "b\x1b]0;x\x07"}, {})


@given(st.text(), st.integers(1, 20))
def test_a_shortened_text_keeps_to_its_width(text: str, width: int):
    shown = formats.shortened(text, width)
    assert len(shown) <= width
    assert shown == text or shown.endswith("…")


def test_a_space_in_one_line():
    space = SearchSpace(
        {
            "model.lr": loguniform(1e-5, 0.1),
            "units": randint(8, 256),
            "act": choice(["relu", "gelu"]),
            "k": ordinal([1, 2, 3, 4, 5, 6, 7, 8]),
            "w": finrange(0.1, 1.0, 4),
            "constant": 3,
        }
    )
    assert formats.space(space) == (
        "lr: loguniform(1e-05, 0.1), units: randint(8, 256), act: choice(relu, gelu), "
        "k: ordinal(1, 2, 3, 4, 5, 6, … 2 more), w: finrange(0.1, 1, 4)"
    )


TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\n'
    "KeyError: 'x'\n"
    "\n"
    "During handling of the above exception, another exception occurred:\n"
    "\n"
    "Traceback (most recent call last):\n"
    '  File "b.py", line 2, in g\n'
    "    h()\n"
    "ValueError: bad shape\n"
    "expected 3, got 4\n"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, ""),
        ("", ""),
        ("\n  RuntimeError: no\nmore\n", "RuntimeError: no"),
        (TRACEBACK, "ValueError: bad shape"),
        ("Traceback (most recent call last):\n", "Traceback (most recent call last):"),
        ("killed by signal 9", "killed by signal 9"),
    ],
)
def test_of_an_error_the_line_that_names_the_problem_is_shown(error: str | None, line: str):
    assert formats.error_line(error) == line


def test_a_path_below_the_current_folder_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shown = [formats.path(p) for p in (tmp_path / "multirun" / "x", tmp_path.parent / "y", Path("z"))]
    assert shown == [str(Path("multirun", "x")), str(tmp_path.parent / "y"), "z"]


def test_numbers():
    assert [formats.number(v) for v in (None, 0.123456789, float("nan"), -1e-9)] == ["–", "0.12346", "nan", "-1e-09"]
    assert formats.share(1, 3) == "33 %"
    assert formats.share(0, 0) == "0 %"


def test_json_values_hold_what_json_cannot():
    values = [1.5, float("nan"), float("inf"), float("-inf"), None, 3]
    assert [formats.json_value(v) for v in values] == [1.5, "nan", "inf", "-inf", None, 3]
