"""Secrets among the settings of a script: known by their names, and neither kept nor shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lightning_hpo.errors import OptionError

HIDDEN = "???"
"""In the place of a secret: to OmegaConf a value that is still to be given."""

_SECRET = re.compile(
    r"(^|[._-])((passwords?|passwd|passphrase|secrets?|credentials?|(api|access|private)_?key)([._-]|$)|token(\.|$))",
    re.IGNORECASE,
)
"""Names of what must not be kept: whole words, as a tokenizer and a number of tokens are settings like others."""


def is_secret(name: str) -> bool:
    """Whether a setting with this dotted name is a secret."""
    return _SECRET.search(name) is not None


def without_secret(argument: str) -> str:
    """An argument of a command line; an override that holds a secret has :data:`HIDDEN` for its value."""
    key, equals, value = argument.partition("=")
    if not equals or "${" in value:  # an interpolation names the place of a secret, not the secret
        return argument
    names = [key, *(name for name, _ in leaves(_value(argument), key))]
    return f"{key}={HIDDEN}" if any(map(is_secret, names)) else argument


def refuse_hidden(overrides: Iterable[str]) -> None:
    """
    Raises:
        OptionError: if a secret is left as our commands show it.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if value.strip("'\"") == HIDDEN and is_secret(key):
            raise OptionError(f"{override} stands for a secret, which no command shows. Give its value instead.")


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a configuration that is no mapping; other than JSON's types as text."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        is_plain = (
            node is None or isinstance(node, (bool, int, str)) or (isinstance(node, float) and math.isfinite(node))
        )
        yield name, node if is_plain else str(node)


def _value(override: str) -> Any:
    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException:  # not an override, or not a right one: Hydra says so
        return None
