from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo.core.space import choice, ordinal, uniform
from lightning_hpo.report.folder import read_reports
from lightning_hpo.report.page import page, write_page
from lightning_hpo.report.svg import Axis, Plot
from lightning_hpo.study import Study
from tests.report.studies import small_study


def html_of(folder: Path) -> str:
    return page(*read_reports(folder))


def plots_of(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


class Balance(HTMLParser):
    """Checks that every element that was opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [name for name, _ in attrs if name in ("src", "href", "xlink:href", "onload", "onclick")]
        if tag not in ("meta", "line", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "circle"):
            assert self.open.pop() == tag


def check(html: str) -> None:
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    assert balance.addresses == []
    assert "<script" not in html
    assert "url(http" not in html and "@import" not in html


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_page_shows_the_study(tmp_path: Path, mode: str):
    small_study(tmp_path, mode=mode).close()
    path = write_page(tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text()
    check(html)
    curves, best, *parameters = plots_of(html)
    assert len(curves.findall(".//polyline")) == 1  # trial 1; of one report there is a point
    assert [p.get("class") for p in curves.iter("polyline")] == ["best"]
    assert len(best.findall(".//circle")) == 1  # one trial at full resource
    assert [p.get("aria-label") for p in parameters] == ["model.lr", "act"]
    assert [len(p.findall(".//circle")) for p in parameters] == [3, 3]
    assert "RuntimeError: out of memory" in html


def test_the_page_of_a_study_without_reports(tmp_path: Path):
    study = Study.create({"x": uniform(0, 1)}, path=tmp_path, metric="m", algorithm="random")
    check(html_of(tmp_path))
    study.ask()
    study.tell(0, 1, float("nan"))
    study.close()
    check(html_of(tmp_path))


def test_names_and_values_from_outside_are_text_on_the_page(tmp_path: Path):
    space = {"<script>alert(1)</script>": choice(["<b>", '"&']), "κ λ": ordinal([1, 10, 100])}
    study = Study.create(space, path=tmp_path, metric="<loss>&", algorithm="random", max_t=2)
    for trial in range(2):
        study.ask()
        study.tell(trial, 1, 0.5)
        study.tell(trial, 2, 0.4)
    study.ask()
    study.fail(2, "<img src=x onerror=alert(1)>")
    study.close()
    html = html_of(tmp_path)
    check(html)
    assert len(plots_of(html)) == 4


def test_a_diverged_trial_does_not_flatten_the_others(tmp_path: Path):
    study = Study.create({"x": uniform(0, 1)}, path=tmp_path, metric="m", algorithm="random", max_t=1)
    for trial in range(40):
        study.ask()
        study.tell(trial, 1, 1e9 if trial == 0 else 0.5 + trial / 100)
    study.close()
    labels = [t.text for t in plots_of(html_of(tmp_path))[0].iter("text") if "end" in (t.get("class") or "")]
    assert max(float(label or "nan") for label in labels) < 1.0


# -------------------------------------------------------------------------------------------- svg


def test_ticks_of_a_linear_axis_are_round():
    assert Axis("", 0.0, 10.0).ticks() == [(0, "0"), (2, "2"), (4, "4"), (6, "6"), (8, "8"), (10, "10")]
    assert [label for _, label in Axis("", 0.07, 0.32).ticks()] == ["0.1", "0.15", "0.2", "0.25", "0.3"]


def test_ticks_of_a_logarithmic_axis():
    assert [label for _, label in Axis("", 1e-5, 1e-1, True).ticks()] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert [label for _, label in Axis("", 3.0, 120.0, True).ticks()] == ["3", "10", "30", "100"]


def test_places_on_an_axis():
    assert Axis("", 0.0, 4.0).place(1.0) == 0.25
    assert Axis("", 1.0, 100.0, True).place(10.0) == pytest.approx(0.5)
    assert Axis("", categories=("a", "b")).place(1.0) == 0.75


def test_marked_values_take_the_place_of_round_ones():
    axis = Axis.of("epoch", [1.0, 9.0], is_log=True, marked=(1, 3, 9, 27))
    assert [label for _, label in axis.ticks()] == ["1", "3", "9"]


FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf])), max_size=8), st.booleans())
def test_an_axis_shows_all_finite_values_and_has_few_ticks(values: list[float], is_log: bool):
    axis = Axis.of("", values, is_log)
    assert axis.lower < axis.upper
    for value in values:
        if math.isfinite(value):
            assert -1e-6 <= axis.place(value) <= 1 + 1e-6
    assert len(axis.ticks()) <= 24
    assert all(axis.lower <= tick <= axis.upper * (1 + 1e-9) or tick <= axis.upper + 1e-9 for tick, _ in axis.ticks())


def test_points_that_are_not_finite_are_left_out():
    plot = Plot("t", Axis("x"), Axis("y"))
    plot.line([(0.0, 0.5), (0.5, math.nan), (1.0, 0.7)], "a")
    plot.dot(math.inf, 0.0, "a")
    (line,) = ElementTree.fromstring(plot.render("i")).iter("polyline")
    assert len((line.get("points") or "").split()) == 2
    assert list(ElementTree.fromstring(plot.render("i")).iter("circle")) == []


def test_a_step_stays_until_the_next_point():
    plot = Plot("t", Axis("x"), Axis("y"), width=176.0, height=166.0)  # 100 by 100 inside of the margins
    plot.line([(0.0, 0.0), (0.5, 1.0)], "a", is_step=True)
    assert 'points="62.0,126.0 112.0,126.0 112.0,26.0"' in plot.render("i")
