"""lightning_hpo through ask and tell."""

from __future__ import annotations

from typing import Any, ClassVar

from driver import Tuner
from tables import Config, Space

import lightning_hpo as hpo

_DOMAINS = {"float": hpo.uniform, "float_log": hpo.loguniform, "int": hpo.randint, "int_log": hpo.lograndint}


def domains(space: Space) -> dict[str, Any]:
    """The space in our words."""
    return {
        name: hpo.choice(spec["categories"])
        if spec["type"] == "choice"
        else _DOMAINS[spec["type"]](spec["lower"], spec["upper"])
        for name, spec in space.items()
    }


class LightningHpo(Tuner):
    """One algorithm of ours; ``is_model`` ones begin with as many random configurations as the peers' models."""

    algorithm = "default"
    options: ClassVar[dict[str, Any]] = {}
    is_model = False

    def __init__(self, space: Space, max_epochs: int, n_workers: int, seed: int) -> None:
        super().__init__(space, max_epochs, n_workers, seed)
        options = dict(self.options)
        if self.is_model:
            options["searcher"] = {"num_init_random": n_workers + 2, **options.get("searcher", {})}
        self.study = hpo.Study.create(
            domains(space), metric="error", algorithm=self.algorithm, max_t=max_epochs, n_workers=n_workers,
            random_seed=seed, points_to_evaluate=[], **options,
        )  # fmt: skip

    def suggest(self, trial: int) -> tuple[str, Any] | None:
        answer = self.study.ask()
        if answer is None:
            return None
        if isinstance(answer, hpo.Start):
            assert answer.trial_id == trial, "both count trials from 0"
            return "start", answer.config
        return "resume", answer.trial_id

    def report(self, trial: int, epoch: int, error: float) -> str:
        return str(self.study.tell(trial, epoch, error))

    def complete(self, trial: int, epoch: int, error: float) -> None:
        self.study.complete(trial)

    def recommend(self) -> Config | None:
        config = self.study.recommend().config
        return {name: config[name] for name in self.space}


def _method(algorithm: str, is_model: bool = False, **options: Any) -> type[Tuner]:
    attributes = {"algorithm": algorithm, "is_model": is_model, "options": options}
    return type(f"LightningHpo_{algorithm}", (LightningHpo,), attributes)


def _by_rank(**options: Any) -> type[Tuner]:
    """The default where ranks decide who goes on."""
    return _method("default", is_model=True, promotion_rule="rank", **options)


METHODS: dict[str, type[Tuner]] = {
    "default": _method("default", is_model=True),
    "default-rank": _by_rank(),
    "default-unweighted": _by_rank(searcher={"weigh_promotion": False}),
    "default-one-bracket": _by_rank(brackets=1),
    "default-undelayed": _by_rank(delayed_promotion=False),
    "default-uniform": _by_rank(searcher={"gp_lengthscale_prior": "uniform"}),
    "asha-delayed": _method("asha", type="promotion", delayed_promotion=True),
    "default-by-rank": _by_rank(improvement_probability=0),
    "default-local": _by_rank(searcher={"input_warping": False, "skip_local_optimization": False}),
    "default-stopping": _method("default", is_model=True, type="stopping"),
    "default-rank-stopping": _by_rank(type="stopping"),
    "random": _method("random"),
    "asha-promotion": _method("asha", type="promotion"),
    "asha-stopping": _method("asha", type="stopping"),
    "pasha": _method("pasha"),
    "bohb": _method("bohb", type="promotion"),
    "bayesopt": _method("bayesopt", is_model=True),
    "mobster-joint": _method("mobster", is_model=True, type="promotion"),
    "mobster-indep": _method("mobster_indep", is_model=True, type="promotion"),
    "hypertune-indep": _method("hypertune", is_model=True, type="promotion"),
    "hypertune-joint": _method("hypertune_joint", is_model=True, type="promotion"),
}
