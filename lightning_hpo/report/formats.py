"""How numbers, times, sizes, configurations and domains are written for people."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_hpo.core.domains import Domain
from lightning_hpo.core.space import SearchSpace

MAX_LISTED = 6
"""Categories of a domain that are written out."""

_BARE = re.compile(r"/[A-Za-z0-9_./@%+-]*")
"""Paths that Hydra reads without quotes."""
_ODD = re.compile(r"""[\s,='"()\[\]{}]""")
"""What sets texts apart from each other, and quotes."""


def number(value: float | None) -> str:
    """A metric's value in five digits; a dash for None."""
    return "–" if value is None else f"{value:.5g}"


def duration(seconds: float) -> str:
    """``1:02:03``; whole days in front of it: ``2 d 1:02:03``; a dash for what is not finite."""
    if not math.isfinite(seconds):
        return "–"
    whole = int(max(seconds, 0.0))
    days, rest = divmod(whole, 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def size(count: float) -> str:
    """Bytes in decimal units: ``3.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def amount(count: int, unit: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """The text on one line, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters, with an ellipsis where something is left out."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def value(item: Any) -> str:
    """A hyperparameter's value, short: floats in four digits, strings bare."""
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, str):
        return plain(item)
    return plain(json.dumps(item, ensure_ascii=False))


def among_others(item: Any) -> str:
    """:func:`value` for a line that holds more: quoted if it could not be told where the text ends."""
    if isinstance(item, str) and (not item or _ODD.search(item)):
        return plain(json.dumps(item, ensure_ascii=False))
    return value(item)


def exact(item: Any) -> str:
    """A hyperparameter's value with nothing lost: strings bare, all else as in JSON."""
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """``model.optimizer.lr`` -> ``lr``: the last parts of dotted names, as many as tell them apart."""
    found = {}
    names = list(names)
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if not any(other != name and f".{other}".endswith(f".{tail}") for other in names):
                break
        found[name] = tail
    return found


def configuration(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """``lr=0.01 units=64``: values, short, under the names of :func:`short_names`."""
    return " ".join(f"{plain(names.get(name, name))}={among_others(item)}" for name, item in config.items())


def domain(described: Domain) -> str:
    """``loguniform(1e-05, 0.1)``, ``choice(relu, gelu)``: the constructor and what matters of its arguments."""
    arguments = described.to_json()
    name = arguments.pop("domain")
    categories = arguments.pop("categories", None)
    if categories is not None:
        shown = [among_others(c) for c in categories[:MAX_LISTED]]
        rest = len(categories) - MAX_LISTED
        return f"{name}({', '.join(shown)}{f', … {rest} more' if rest > 0 else ''})"
    return f"{name}({', '.join(value(a) for key, a in arguments.items() if key != 'cast_int')})"


def space(described: SearchSpace) -> str:
    """Every searched hyperparameter with its domain, in one line."""
    names = short_names(described.domains)
    return ", ".join(f"{plain(names[name])}: {domain(d)}" for name, d in described.domains.items())


def error_line(error: str | None) -> str:
    """The line of an error text that names the problem: of a traceback the exception's, else the first."""
    lines = [line for line in (error or "").strip().splitlines() if line.strip()]
    if not lines:
        return ""
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), default=None)
    if start is not None:
        lines = [line for line in lines[start + 1 :] if not line.startswith(" ")] or lines[-1:]
    return plain(lines[0])


def json_value(item: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings ``nan``, ``inf``, ``-inf``."""
    return str(item) if isinstance(item, float) and not math.isfinite(item) else item


def share(part: float, whole: float) -> str:
    """``74 %``."""
    return f"{part / whole:.0%}".replace("%", " %") if whole else "0 %"


def path(location: Path) -> str:
    """The path as it can be used from the current folder: relative if it lies below."""
    try:
        return str(location.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, relative already, or the current folder is gone
        return str(location)


def quoted(argument: object) -> str:
    """An argument as it is typed into a shell."""
    return shlex.quote(str(argument))


def override_value(path: str) -> str:
    """An absolute path as the part of a Hydra override after ``=``, in quotes if its characters need them.

    Not by Hydra itself, which is not imported to look at a study.
    """
    if _BARE.fullmatch(path):
        return path
    # Backslashes count in front of a quote only: there, each is doubled, and the quote has one more.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), path) + "'"
