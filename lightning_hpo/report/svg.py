"""Small line and scatter plots as inline SVG: axes with round ticks, linear, logarithmic or categorical."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 62.0, 14.0, 26.0, 40.0
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to [0, 1].

    Args:
        label: written beside the axis.
        lower, upper: the range shown.
        is_log: logarithmic; both ends must be positive then.
        categories: names of the positions 0, 1, 2, ...; ``lower`` and ``upper`` are ignored then.
        marked: values that get a tick, instead of round ones.
    """

    label: str
    lower: float = 0.0
    upper: float = 1.0
    is_log: bool = False
    categories: tuple[str, ...] = ()
    marked: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        label: str,
        values: Iterable[float],
        is_log: bool = False,
        margin: float = 0.04,
        marked: Sequence[float] = (),
    ) -> Axis:
        """The axis that shows all values, with a margin; logarithmic only if all of them are positive."""
        known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(known), max(known)
        is_log = is_log and low > 0
        if is_log:
            low, high = math.log(low), math.log(high)
        room = (high - low) * margin or (abs(high) * 0.1 or 1.0)
        low, high = low - room, high + room
        if is_log:
            low, high = max(math.exp(low), sys.float_info.min), math.exp(high)
        return cls(label, low, high, is_log, marked=tuple(v for v in marked if low <= v <= high))

    def place(self, value: float) -> float:
        """Where the value lies, 0 at the beginning of the axis and 1 at its end."""
        if self.categories:
            return (value + 0.5) / len(self.categories)
        if self.is_log:
            low, high = math.log(self.lower), math.log(self.upper)
            return (math.log(value) - low) / (high - low)
        return (value - self.lower) / (self.upper - self.lower)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values with their labels."""
        if self.categories:
            return [(float(n), name) for n, name in enumerate(self.categories)]
        values = self.marked or (self._log_ticks() if self.is_log else self._linear_ticks())
        return [(v, f"{v:.6g}") for v in values]

    def _linear_ticks(self) -> Sequence[float]:
        rough = (self.upper - self.lower) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.lower / step)
        return [n * step for n in range(first, math.floor(self.upper / step) + 1)]

    def _log_ticks(self) -> Sequence[float]:
        low, high = math.floor(math.log10(self.lower)), math.ceil(math.log10(self.upper))
        multiples = (1,) if high - low > 3 else (1, 3) if high - low > 1 else (1, 2, 5)
        every = max((high - low) // (2 * _TICKS), 1)
        values = [m * 10.0**power for power in range(low, high + 1, every) for m in multiples]
        return [v for v in values if self.lower <= v <= self.upper]


@dataclass(slots=True)
class Plot:
    """One plot; marks are drawn in the order in which they are added. Colours come from the page's style sheet."""

    title: str
    x: Axis
    y: Axis
    width: float = 460.0
    height: float = 280.0
    _marks: list[str] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], style: str, hint: str = "", is_step: bool = False) -> None:
        """A polyline through the finite points; ``is_step``: constant up to the next point."""
        placed = [self._place(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if is_step:
            placed = [p for a, b in itertools.pairwise(placed) for p in (a, (b[0], a[1]))] + placed[-1:]
        if len(placed) == 1:
            self.dot(*points[0], style, hint)
        elif placed:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            self._marks.append(f'<polyline class="{style}" points="{path}">{_hint(hint)}</polyline>')

    def dot(self, x: float, y: float, style: str, hint: str = "", radius: float = 3.0) -> None:
        """A point, left out if it is not finite."""
        if math.isfinite(x) and math.isfinite(y):
            px, py = self._place(x, y)
            mark = f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">{_hint(hint)}</circle>'
            self._marks.append(mark)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        inner_width = self.width - _MARGIN_LEFT - _MARGIN_RIGHT
        inner_height = self.height - _MARGIN_TOP - _MARGIN_BOTTOM
        left, bottom = _MARGIN_LEFT, self.height - _MARGIN_BOTTOM
        return left + self.x.place(x) * inner_width, bottom - self.y.place(y) * inner_height

    def render(self, identity: str) -> str:
        """The SVG element; ``identity`` must be unique on the page."""
        left, right = _MARGIN_LEFT, self.width - _MARGIN_RIGHT
        top, bottom = _MARGIN_TOP, self.height - _MARGIN_BOTTOM
        parts = [
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">',
            f'<clipPath id="{identity}"><rect x="{left - 4:g}" y="{top - 4:g}" width="{right - left + 8:g}" '
            f'height="{bottom - top + 8:g}"/></clipPath>',
            _text(self.title, self.width / 2, 15, "title"),
        ]
        for value, label in self.x.ticks():
            x = left + self.x.place(value) * (right - left)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"/>')
            parts.append(_text(_cut(label, 12), x, bottom + 14, "tick"))
        for value, label in self.y.ticks():
            y = bottom - self.y.place(value) * (bottom - top)
            parts.append(f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(label, left - 6, y + 3.5, "tick end"))
        parts.append(_text(self.x.label, (left + right) / 2, self.height - 8, "label"))
        middle = (top + bottom) / 2
        parts.append(_text(self.y.label, 12, middle, "label", f' transform="rotate(-90 12 {middle:g})"'))
        return "".join([*parts, f'<g clip-path="url(#{identity})">', *self._marks, "</g></svg>"])


def _text(text: str, x: float, y: float, style: str, more: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
