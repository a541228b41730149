"""Hydra's override grammar and search spaces.

Ranges come in Hydra's own words, from the command line and from ``hydra.sweeper.params``::

    model.lr=tag(log,interval(1e-4,1e-1))        loguniform(1e-4, 1e-1)
    model.dropout=interval(0,0.5)                uniform(0, 0.5)
    model.units=tag(log,int(interval(16,512)))   lograndint(16, 512)
    model.act=choice(relu,gelu)                  choice(["relu", "gelu"]), also relu,gelu and glob(*) for groups
    model.layers=range(1,8)                      ordinal([1, ..., 7])

and from ``hydra.launcher.space`` for what that grammar cannot say. :func:`read_space` turns them into a
:class:`ParsedSweep`, which writes a configuration back as override strings that Hydra parses to the same values.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from lightning_hpo.core.domains.base import plain_value, value_key
from lightning_hpo.core.space import (
    Domain,
    SearchSpace,
    choice,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from lightning_hpo.errors import SpaceError, did_you_mean

MAX_RANGE = 1000
"""Longest ``range(...)``; a longer one is an interval."""

_EXAMPLE = "'model.lr=tag(log,interval(1e-4,1e-1))'"
_INTERVALS: dict[tuple[bool, str], Callable[[Any, Any], Domain]] = {
    (False, ""): uniform,
    (False, "log"): loguniform,
    (False, "reverselog"): reverseloguniform,
    (True, ""): randint,
    (True, "log"): lograndint,
}
_CHOICES: dict[str, Callable[[Any], Domain]] = {"": choice, "ordinal": ordinal, "log": logordinal}
_RANGES: dict[str, Callable[[Any], Domain]] = {"": ordinal, "ordinal": ordinal, "log": logordinal}

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = frozenset({"null", "none", "true", "false", "inf", "nan"})


@dataclass(frozen=True)
class Parameter:
    """One override of the sweep."""

    name: str
    """Path or group without prefix, e.g. ``model.lr`` or ``db@source``."""
    key: str
    """With the prefix of the override: ``+x``, ``++x``."""
    fixed: str | None = None
    """The whole override as it was written, if nothing is searched."""
    written: tuple[tuple[Any, str], ...] = ()
    """Where a study cannot keep the values apart, ``choice(1,1.0,auto)``, or not all of them, ``choice(1,inf,auto)``:
    every value, and the text of the grammar for it, which is the category. Else empty: values are the categories."""

    def override(self, config: Mapping[str, Any]) -> str:
        if self.fixed is not None:
            return self.fixed
        value = config[self.name]
        return f"{self.key}={value if self.written else format_value(value)}"

    def category(self, value: Any) -> Any:
        """What stands for a value in the study; a text of the grammar stands for itself."""
        # True is 1 to Python, and an int is a float's equal, but the one that was written is meant.
        same = [(v, text) for v, text in self.written if v == value and isinstance(v, bool) == isinstance(value, bool)]
        texts = [text for v, text in same if type(v) is type(value)] + [text for _, text in same]
        return texts[0] if texts else value


@dataclass(frozen=True)
class ParsedSweep:
    """What the sweep's overrides say."""

    space: SearchSpace
    parameters: tuple[Parameter, ...]
    """In the order in which Hydra gets them."""
    notes: tuple[str, ...] = ()
    """What the user should be told once, before the study begins."""

    def overrides(self, config: Mapping[str, Any]) -> list[str]:
        """The job's overrides for a configuration; constants of the space are not needed in it.

        Raises:
            SpaceError: if a searched hyperparameter has no value, or one that the grammar cannot express.
        """
        missing = [p.name for p in self.parameters if p.fixed is None and p.name not in config]
        if missing:
            raise SpaceError(f"The configuration has no value for {', '.join(missing)}. Give one for each.")
        return [parameter.override(config) for parameter in self.parameters]

    def check_searched(self, where: str, config: Mapping[str, Any]) -> None:
        """
        Raises:
            SpaceError: if a configuration from outside gives a value to what has one already.
        """
        for parameter in self.parameters:
            if parameter.fixed is not None and parameter.name in config:
                raise SpaceError(
                    f"{where}: {parameter.name} is not searched, as {parameter.fixed} fixes it. "
                    f"Leave {parameter.name} out there, or give it a range."
                )

    def categories(self, configs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Configurations from outside, perhaps partial, as the study keeps them (:meth:`Parameter.category`)."""
        parameters = {parameter.name: parameter for parameter in self.parameters}
        return [
            {name: parameters[name].category(value) if name in parameters else value for name, value in config.items()}
            for config in configs
        ]


def read_space(
    config_loader: ConfigLoader | None,
    arguments: Iterable[str],
    params: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    begun: Mapping[str, Domain] | None = None,
) -> ParsedSweep:
    """The search space of a sweep.

    Args:
        config_loader: Hydra's, to tell the options of a config group for ``glob(*)``.
        arguments: overrides of the command line, ``hydra.overrides.task``.
        params: ``hydra.sweeper.params``: name, perhaps with a prefix, to the text after ``=``.
        domains: ``hydra.launcher.space``: name to the spelling of a domain, as ``SearchSpace.parse`` takes it.
        begun: name to domain of the study that is to be continued. Where it has texts for values of many types, as
            earlier versions wrote them, they stay these texts.

    The same name may stand in several places: the command line wins over ``domains``, which win over ``params``.

    Raises:
        SpaceError: if nothing is searched, or a range is empty, inverted, not positive on a log scale, ...
        hydra.errors.OverrideParseException: if Hydra cannot parse an override.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    written = parser.parse_overrides([f"{name}={_param_text(value)}" for name, value in (params or {}).items()])
    given = parser.parse_overrides(list(arguments))
    spelled = dict(_spelled_domains(domains or {}))

    begun = begun or {}
    found: dict[str, tuple[Parameter, Domain | None]] = {}
    notes: list[str] = []
    for override in written:
        found[_name(override)] = _read_override(override, notes, begun)
    for key, spelling in spelled.items():
        name = key.lstrip("+")
        key = found[name][0].key if name in found and key == name else key
        found[name] = Parameter(name, key), _spelled_domain(name, spelling)
    for override in given:
        name = _name(override)
        parameter, domain = _read_override(override, notes, begun)
        if name in spelled and domain is None:
            notes.append(f"{name} is not searched: the command line fixes it.")
        if name in found and domain is not None and parameter.key == name:
            parameter = dataclasses.replace(parameter, key=found[name][0].key)
        found[name] = parameter, domain

    searched = {name: domain for name, (_, domain) in found.items() if domain is not None}
    if not searched:
        raise SpaceError(
            "Nothing is searched: neither the command line nor hydra.sweeper.params nor hydra.launcher.space holds a "
            f"range. Add one, e.g. {_EXAMPLE}, or take hydra/launcher=basic to run a single job."
        )
    notes += [
        f"{name} is searched like any other hyperparameter: each trial gets one of its values, "
        "and a lucky one can win. Give it one value, unless that is what you want."
        for name in searched
        if name.rpartition(".")[2] in ("seed", "random_seed")
    ]
    return ParsedSweep(SearchSpace(searched), tuple(p for p, _ in found.values()), tuple(notes))


def format_value(value: Any) -> str:
    """``value`` as the part of an override after ``=``: Hydra parses it back to an equal value of the same type.

    Raises:
        SpaceError: if Hydra's grammar has no words for it.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _format_string(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(format_value, value)) + "]"
    if isinstance(value, Mapping):
        text = "{" + ",".join(f"{_format_key(k)}:{format_value(v)}" for k, v in value.items()) + "}"
        if not _is_read_back(text, value):
            raise SpaceError(
                f"Hydra's grammar cannot express the mapping {value!r}. Use keys of letters, digits and underscores."
            )
        return text
    if hasattr(value, "item"):
        return format_value(value.item())
    raise SpaceError(
        f"A value of type {type(value).__name__} cannot be part of an override: {value!r}. "
        "Use numbers, strings, booleans, null, lists or mappings of these."
    )


def _format_string(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return QuotedString(value, Quote.single).with_quotes()


def _format_key(key: Any) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key) if isinstance(key, str) else format_value(key)


def _is_read_back(text: str, value: Any) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(f"x={text}").value() == value)
    except HydraException:
        return False


def _param_text(value: Any) -> str:
    """Text in ``hydra.sweeper.params`` is grammar; YAML numbers, lists, ... are values."""
    return value if isinstance(value, str) else format_value(value)


def _name(override: Override) -> str:
    package = f"@{override.package}" if override.package is not None else ""
    return f"{override.key_or_group}{package}"


def _read_override(
    override: Override, notes: list[str], begun: Mapping[str, Domain]
) -> tuple[Parameter, Domain | None]:
    name, key = _name(override), override.get_key_element()
    if not override.is_sweep_override():
        return Parameter(name, key, fixed=override.input_line), None
    if override.is_hydra_override():
        raise SpaceError(
            f"{override.input_line}: Hydra's own configuration cannot be searched. Remove the range from {name}."
        )
    value = override.value()
    texts: tuple[tuple[Any, str], ...] = ()
    try:
        if isinstance(value, IntervalSweep):
            domain = _interval_domain(value)
        elif isinstance(value, RangeSweep):
            domain = _range_domain(value)
        else:
            domain, texts = _choice_domain(override, value, begun.get(name))
    except SpaceError as problem:
        raise SpaceError(f"{override.input_line}: {problem}") from None
    if getattr(value, "shuffle", False):
        notes.append(f"{name}: shuffle(...) orders a grid; a search does not need it.")
    return Parameter(name, key, written=texts), domain


def _interval_domain(sweep: IntervalSweep) -> Domain:
    if sweep.start == sweep.end:
        raise SpaceError(
            "this range holds one value, "
            f"{sweep.start}. Write the value without interval(...), or move one of its ends."
        )
    whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    tag = _tag(sweep.tags, [tag for is_whole, tag in _INTERVALS if is_whole == whole and tag])
    return _INTERVALS[whole, tag](sweep.start, sweep.end)


def _range_domain(sweep: RangeSweep) -> Domain:
    tag = _tag(sweep.tags, [tag for tag in _RANGES if tag])
    if not sweep.step or not all(math.isfinite(float(v)) for v in (sweep.start or 0, sweep.stop or 0, sweep.step)):
        raise SpaceError("the step of a range must be a number other than 0. Write range(start,stop,step).")
    values = list(itertools.islice(sweep.range(), MAX_RANGE + 1))
    if len(values) < 2:
        number = "one value" if values else "no values"
        raise SpaceError(f"this range has {number}; its end is exclusive. Give it at least two.")
    if len(values) > MAX_RANGE:
        raise SpaceError(
            f"this range has more than {MAX_RANGE} values. "
            f"Use int(interval({sweep.start},{sweep.stop})), both ends inclusive."
        )
    return _RANGES[tag](sorted(values))


def _listed(tag: str, values: list[Any]) -> Domain:
    try:
        return _CHOICES[tag](values)
    except SpaceError as problem:
        if tag != "log":
            raise
        raise SpaceError(
            f"the tag log needs positive numbers in increasing order, not {', '.join(map(str, values))}. "
            "Sort them, or write choice(...) without the tag, or tag(ordinal,choice(...)) if their order counts."
        ) from problem


def _choice_domain(override: Override, value: Any, begun: Domain | None) -> tuple[Domain, tuple[tuple[Any, str], ...]]:
    """The domain, and :attr:`Parameter.written`."""
    tag = _tag(value.tags if isinstance(value, ChoiceSweep) else (), [tag for tag in _CHOICES if tag])
    elements = list(override.sweep_iterator())
    if not elements:
        raise SpaceError("there is nothing to choose from. Name at least one option.")
    values = [_plain(element) for element in elements]
    types = {type(v) for v in values}
    if len(types) < 2 or types == {int, float}:
        return _listed(tag, values), ()
    # Hydra's own texts, which the first versions took for categories. Quotes are lost in those of choice(...).
    texts = list(override.sweep_string_iterator())
    begun_with = None if begun is None else begun.to_json().get("categories")
    if begun_with != texts:
        texts = [format_value(v) if _can_be_expressed(v) else text for v, text in zip(values, texts, strict=True)]
        if begun_with != texts and _can_be_kept_apart(values):
            return _listed(tag, values), ()
    return _listed(tag, texts), tuple(zip(values, texts, strict=True))


def _can_be_kept_apart(values: list[Any]) -> bool:
    return all(map(_can_be_expressed, values)) and len(set(map(value_key, values))) == len(values)


def _can_be_expressed(value: Any) -> bool:
    """Whether a study can keep the value and the grammar has words for it; not so for ``inf`` and odd mappings."""
    try:
        format_value(plain_value("a category", value))
    except SpaceError:
        return False
    return True


def _plain(element: Any) -> Any:
    """The value of an element of a sweep, without the grammar's quotes."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, list):
        return [_plain(item) for item in element]
    if isinstance(element, dict):
        return {_plain(key): _plain(item) for key, item in element.items()}
    return element


def _tag(tags: Iterable[str], known: list[str]) -> str:
    """The one tag that says how to search, or an empty string."""
    unknown = sorted(set(tags) - set(known))
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise SpaceError(
            f"the tag {unknown[0]!r} means nothing here.{near} Known tags for it: {', '.join(known)}; or leave it out."
        )
    if len(set(tags)) > 1:
        raise SpaceError(f"the tags {', '.join(sorted(tags))} exclude each other. Keep one of them.")
    return next(iter(tags), "")


def _spelled_domains(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of ``hydra.launcher.space``, whether written flat (``model.width``) or nested."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "domain" not in value and all(isinstance(v, Mapping) for v in value.values()):
            yield from _spelled_domains(value, f"{name}.")
        else:
            yield name, value


def _spelled_domain(name: str, spelling: Any) -> Domain:
    domain = SearchSpace.parse({name: spelling}).domains.get(name)
    if domain is None:
        raise SpaceError(
            f"hydra.launcher.space.{name} is {json.dumps(spelling, default=str)}, which is not a domain. "
            "Write {domain: logfinrange, lower: 16, upper: 512, size: 6}, or set the value on the command line."
        )
    return domain
