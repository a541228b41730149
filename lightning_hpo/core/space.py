"""The search space: named domains and constants, in order.

Two orders matter. Values are *drawn* in the order in which the space was written down; in an *encoded* vector the
hyperparameters are sorted by name. Constants are neither drawn nor encoded; every configuration handed to a trial is
completed with them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np

from lightning_hpo.core.domains import (
    DOMAIN_NAMES,
    Array,
    Choice,
    Domain,
    FiniteRange,
    Float,
    Integer,
    Ordinal,
    Scale,
    choice,
    domain_from_json,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from lightning_hpo.core.domains.base import plain_value
from lightning_hpo.core.trial import Config
from lightning_hpo.errors import SpaceError, did_you_mean

__all__ = [
    "Array",
    "Choice",
    "Domain",
    "FiniteRange",
    "Float",
    "Integer",
    "Ordinal",
    "Scale",
    "SearchSpace",
    "choice",
    "domain_from_json",
    "finrange",
    "logfinrange",
    "logordinal",
    "lograndint",
    "loguniform",
    "ordinal",
    "randint",
    "reverseloguniform",
    "uniform",
]  # fmt: skip

MAX_ENUMERATED = 2**20
"""Spaces with more configurations are treated like infinite ones."""

_RANDOM_TRIES = 100


class SearchSpace:
    """What is searched: an immutable, ordered mapping from names to domains or constants.

    Args:
        entries: name -> domain, or JSON-like constant. A space of constants alone is allowed.

    Raises:
        SpaceError: a name is not a non-empty string, or a constant is not JSON-like.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        _check_mapping(entries)
        self._domains: dict[str, Domain] = {}
        self._constants: Config = {}
        for name, entry in entries.items():
            if not isinstance(name, str) or not name:
                raise SpaceError(f"{name!r} cannot name a hyperparameter. Use a non-empty string.")
            if isinstance(entry, Domain):
                self._domains[name] = entry
            else:
                self._constants[name] = plain_value(f"The constant {name!r}", entry)
        self._names = tuple(entries)
        self._sorted_domains = tuple(sorted(self._domains.items()))
        self._columns: dict[str, slice] = {}
        start = 0
        for name, domain in self._sorted_domains:
            self._columns[name] = slice(start, start + domain.width)
            start += domain.width
        self._width = start

    @classmethod
    def parse(cls, entries: Mapping[str, Any] | SearchSpace) -> SearchSpace:
        """The space of a mapping whose values may also be domains as written in configuration files.

        A mapping with the key ``domain`` is a domain, e.g. ``{"domain": "randint", "lower": 16, "upper": 512}``; its
        other keys are the arguments of the constructor of that name. Every other value that is no :class:`Domain` is a
        constant.

        Raises:
            SpaceError: unknown domain or argument, or a domain that is not valid; the message names the hyperparameter.
        """
        if isinstance(entries, SearchSpace):
            return entries
        _check_mapping(entries)
        return cls({name: _parse_entry(name, entry) for name, entry in entries.items()})

    # ---------------------------------------------------------------------------------- description

    @property
    def names(self) -> tuple[str, ...]:
        """Names of hyperparameters and constants, in the order of the mapping."""
        return self._names

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The searched hyperparameters, in the order of the mapping. Not to be changed."""
        return self._domains

    @property
    def constants(self) -> Mapping[str, Any]:
        """Values every trial gets. Not to be changed."""
        return self._constants

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """Names of the searched hyperparameters in the order of the encoded vector: sorted."""
        return tuple(self._columns)

    @property
    def width(self) -> int:
        """Number of coordinates of an encoded configuration."""
        return self._width

    def columns(self, name: str) -> slice:
        """Which coordinates of an encoded configuration belong to a hyperparameter."""
        return self._columns[name]

    @property
    def bounds(self) -> Array:
        """Shape ``(width, 2)``: the box in which encoded configurations lie."""
        return np.concatenate([np.empty((0, 2)), *(domain.bounds for _, domain in self._sorted_domains)])

    @property
    def size(self) -> int | None:
        """Number of different configurations; None if infinite or above :data:`MAX_ENUMERATED`."""
        sizes = [domain.size for domain in self._domains.values()]
        if any(size is None for size in sizes):
            return None
        product = math.prod(size for size in sizes if size is not None)
        return product if product <= MAX_ENUMERATED else None

    def default(self) -> Config:
        """The default value of every searched hyperparameter."""
        return {name: domain.default for name, domain in self._domains.items()}

    # ---------------------------------------------------------------------------------- unit cube

    def encode(self, config: Config) -> Array:
        """A configuration as a point of the unit cube, shape ``(width,)``. Constants may be there, and are ignored."""
        return self.encode_many([config]).ravel()

    def encode_many(self, configs: Sequence[Config]) -> Array:
        """Encoded configurations, shape ``(n, width)``."""
        encoded = np.empty((len(configs), self._width))
        for name, domain in self._sorted_domains:
            encoded[:, self._columns[name]] = domain.encode_many([config[name] for config in configs])
        return encoded

    def decode(self, vector: Array) -> Config:
        """The searched values at a point of the unit cube, shape ``(width,)``."""
        return self.decode_many(np.reshape(vector, (1, self._width)))[0]

    def decode_many(self, matrix: Array) -> list[Config]:
        """The searched values at ``n`` points of the unit cube, shape ``(n, width)``."""
        columns = (domain.decode_many(matrix[:, self._columns[name]]) for name, domain in self._domains.items())
        return self._rows(columns, len(matrix))

    # ---------------------------------------------------------------------------------- random draws

    def sample(self, rng: np.random.Generator) -> Config:
        """Random searched values, drawn independently and in the order of the mapping."""
        return {name: domain.sample(rng) for name, domain in self._domains.items()}

    def sample_many(self, rng: np.random.Generator, n: int) -> list[Config]:
        """``n`` independent draws.

        They are made hyperparameter by hyperparameter, hence are not those of ``n`` calls of :meth:`sample`.
        """
        return self._rows((domain.sample_many(rng, n) for domain in self._domains.values()), n)

    def sample_encoded(self, rng: np.random.Generator, n: int) -> Array:
        """The draws of :meth:`sample_many` in encoded form, shape ``(n, width)``; no configurations are made."""
        encoded = np.empty((n, self._width))
        for name, domain in self._domains.items():
            encoded[:, self._columns[name]] = domain.encode_codes(domain.sample_codes(rng, n))
        return encoded

    def draw(self, rng: np.random.Generator, excluded: Set[str]) -> Config | None:
        """Random searched values whose match key is not excluded; None if nothing is left.

        After 100 draws in vain, the configurations left in a space of known :attr:`size` are listed, and one of them
        is drawn. In an infinite space 100 draws in vain mean that nothing distinguishable is left.
        """
        for _ in range(_RANDOM_TRIES):
            config = self.sample(rng)
            if self.match_key(config) not in excluded:
                return config
        return None if self.size is None else self._draw_from_rest(rng, excluded)

    def _draw_from_rest(self, rng: np.random.Generator, excluded: Set[str]) -> Config | None:
        members = [list(domain.members or ()) for _, domain in self._sorted_domains]
        tokens = [
            [_named_token(name, domain, value) for value in values]
            for (name, domain), values in zip(self._sorted_domains, members, strict=True)
        ]
        rest = [i for i, row in enumerate(itertools.product(*tokens)) if ",".join(row) not in excluded]
        if not rest:
            return None
        position = np.unravel_index(rest[rng.integers(len(rest))], [len(values) for values in members])
        chosen = {name: values[i] for name, values, i in zip(self.encoded_names, members, position, strict=True)}
        return {name: chosen[name] for name in self._domains}

    # ---------------------------------------------------------------------------------- configurations

    def match_key(self, config: Config) -> str:
        """Two configurations are regarded as the same iff their keys are equal.

        Floats are compared by 7 significant digits, listed values by position, constants not at all.
        """
        return ",".join([_named_token(name, domain, config[name]) for name, domain in self._sorted_domains])

    def searched(self, config: Config) -> Config:
        """The configuration without constants."""
        return {name: config[name] for name in self._domains if name in config}

    def with_constants(self, config: Config) -> Config:
        """Searched values and constants, in the order of the mapping."""
        return {name: config[name] if name in self._domains else self._constants[name] for name in self._names}

    def check(self, config: Mapping[str, Any]) -> Config:
        """The searched values of a configuration that was given from outside, each cast into its domain.

        Raises:
            SpaceError: a hyperparameter is missing, unknown or outside of its domain, or a constant has another value.
        """
        for name in self._domains:
            if name not in config:
                raise SpaceError(
                    f"The configuration {dict(config)!r} lacks {name!r}. Give a value of {self._domains[name]!r}."
                )
        for name, constant in self._constants.items():
            if config.get(name, constant) != constant:
                raise SpaceError(f"{name!r} is the constant {constant!r}, not {config[name]!r}. Leave it out.")
        return self._complete(config)

    def complete(self, points: Iterable[Mapping[str, Any]] | None) -> list[Config]:
        """The initial configurations: given points, with every missing value replaced by its domain's default.

        Args:
            points: partial configurations; constants in them are ignored. None means one default configuration.

        Returns:
            Complete searched values, cast into their domains, in the given order, without repetitions.

        Raises:
            SpaceError: a name is unknown, or a value lies outside of its domain.
        """
        completed: dict[str, Config] = {}
        for number, point in enumerate([{}] if points is None else points):
            with _named(f"points_to_evaluate[{number}]"):
                if not isinstance(point, Mapping):
                    raise SpaceError(f"{point!r} is no mapping. Give a mapping from names to values.")
                config = self._complete(point)
            completed.setdefault(json.dumps(config, sort_keys=True), config)
        return list(completed.values())

    def _complete(self, config: Mapping[str, Any]) -> Config:
        for name in config:
            if name not in self._domains and name not in self._constants:
                hint = did_you_mean(str(name), self._names)
                raise SpaceError(
                    f"{name!r} is not a hyperparameter of this space.{hint} "
                    f"Use the names of the space: {', '.join(self._names)}."
                )
        completed = self.default()
        for name, domain in self._domains.items():
            if name in config:
                with _named(repr(name)):
                    completed[name] = domain.cast(config[name])
        return completed

    def _rows(self, columns: Iterable[list[Any]], n: int) -> list[Config]:
        if not self._domains:
            return [{} for _ in range(n)]
        return [dict(zip(self._domains, row, strict=True)) for row in zip(*columns, strict=True)]

    # ---------------------------------------------------------------------------------- storage

    def to_json(self) -> list[dict[str, Any]]:
        """JSON data: ``{"name", "domain"}`` or ``{"name", "constant"}`` per entry, in the order of the mapping."""
        return [
            {"name": name, "domain": self._domains[name].to_json()}
            if name in self._domains
            else {"name": name, "constant": self._constants[name]}
            for name in self._names
        ]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """The space that :meth:`to_json` wrote.

        Raises:
            SpaceError: if the data describes no space.
        """
        try:
            return cls(
                {
                    entry["name"]: domain_from_json(entry["domain"]) if "domain" in entry else entry["constant"]
                    for entry in data
                }
            )
        except (KeyError, TypeError) as problem:
            raise SpaceError(
                f"This is not a search space as this package stores it: {str(data)[:200]}. "
                "Restore the file that was written."
            ) from problem

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest which two spaces share iff they are equal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        # By what is stored: to Python, True equals 1.
        return isinstance(other, SearchSpace) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        entries = (f"{name!r}: {self._domains.get(name, self._constants.get(name))!r}" for name in self._names)
        return f"SearchSpace({{{', '.join(entries)}}})"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts the name of what is meant in front of the message of a SpaceError."""
    try:
        yield
    except SpaceError as problem:
        raise SpaceError(f"{name}: {problem}") from problem


def _check_mapping(entries: object) -> None:
    if not isinstance(entries, Mapping):
        raise SpaceError(f"{entries!r} is no search space. Give a mapping from names to domains or constants.")


def _named_token(name: str, domain: Domain, value: Any) -> str:
    return f"{name}:{domain.match_token(value)}"


def _parse_entry(name: str, entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    with _named(repr(name)):
        if "domain" in entry:
            return domain_from_json(entry)
        for key, value in entry.items():
            if value in DOMAIN_NAMES and did_you_mean(str(key), ["domain"]):
                raise SpaceError(
                    f"{key!r} is not a key of a domain. Did you mean 'domain'? Write {{'domain': {value!r}, ...}}."
                )
        return entry
