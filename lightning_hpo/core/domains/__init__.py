"""Domains: the sets of values a hyperparameter may take.

A domain draws values, brings a user's value into its own type, maps values to the unit cube and back, and is JSON both
ways. Domains are immutable, and all bounds are inclusive.

Inside, a domain works on arrays of *codes*: a number is its own code, the code of a listed value is its index.
Drawing a value is drawing a code, encoding it is mapping the code into the unit interval; so whole columns are handled
at once.
"""

from lightning_hpo.core.domains.base import Array, Domain, Scale
from lightning_hpo.core.domains.constructors import (
    DOMAIN_NAMES,
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
from lightning_hpo.core.domains.listed import Choice, FiniteRange, Ordinal
from lightning_hpo.core.domains.ranges import Float, Integer

__all__ = [
    "DOMAIN_NAMES",
    "Array",
    "Choice",
    "Domain",
    "FiniteRange",
    "Float",
    "Integer",
    "Ordinal",
    "Scale",
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
]
