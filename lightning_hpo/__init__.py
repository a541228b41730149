"""Hyperparameter tuning that lives inside PyTorch Lightning and Hydra.

Names are resolved on first use: importing this package imports neither torch nor lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_DOORS = {
    "lightning_hpo.integrations.callback": ("HPOCallback",),
    "lightning_hpo.integrations.tuner": ("Tuner",),
    "lightning_hpo.study": ("Study", "load_study"),
    "lightning_hpo.core.events": ("Start", "Resume"),
    "lightning_hpo.core.space": (
        "SearchSpace", "uniform", "loguniform", "reverseloguniform", "randint", "lograndint",
        "choice", "ordinal", "logordinal", "finrange", "logfinrange",
    ),
    "lightning_hpo.core.stopping": ("StopCriterion",),
    "lightning_hpo.runtime.curves": ("Curve", "CurveTable"),
    "lightning_hpo.runtime.simulator": ("simulate",),
}  # fmt: skip
_HOME = {name: module for module, names in _DOORS.items() for name in names}

__all__ = ["__version__", "errors", *_HOME]

if TYPE_CHECKING:
    from lightning_hpo import errors as errors
    from lightning_hpo.core.events import Resume as Resume
    from lightning_hpo.core.events import Start as Start
    from lightning_hpo.core.space import (
        SearchSpace as SearchSpace,
    )
    from lightning_hpo.core.space import (
        choice as choice,
    )
    from lightning_hpo.core.space import (
        finrange as finrange,
    )
    from lightning_hpo.core.space import (
        logfinrange as logfinrange,
    )
    from lightning_hpo.core.space import (
        logordinal as logordinal,
    )
    from lightning_hpo.core.space import (
        lograndint as lograndint,
    )
    from lightning_hpo.core.space import (
        loguniform as loguniform,
    )
    from lightning_hpo.core.space import (
        ordinal as ordinal,
    )
    from lightning_hpo.core.space import (
        randint as randint,
    )
    from lightning_hpo.core.space import (
        reverseloguniform as reverseloguniform,
    )
    from lightning_hpo.core.space import (
        uniform as uniform,
    )
    from lightning_hpo.core.stopping import StopCriterion as StopCriterion
    from lightning_hpo.integrations.callback import HPOCallback as HPOCallback
    from lightning_hpo.integrations.tuner import Tuner as Tuner
    from lightning_hpo.runtime.curves import Curve as Curve
    from lightning_hpo.runtime.curves import CurveTable as CurveTable
    from lightning_hpo.runtime.simulator import simulate as simulate
    from lightning_hpo.study import Study as Study
    from lightning_hpo.study import load_study as load_study


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("lightning_hpo.errors")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lightning_hpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
