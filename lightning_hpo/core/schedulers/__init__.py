"""Schedulers: which trial goes on, and how far."""

from lightning_hpo.core.schedulers.base import Promotion, Ruling, Scheduler
from lightning_hpo.core.schedulers.fifo import Fifo
from lightning_hpo.core.schedulers.hyperband import CostPromotion, PromotionAsha, StoppingAsha
from lightning_hpo.core.schedulers.median import MedianStopping
from lightning_hpo.core.schedulers.pasha import Pasha
from lightning_hpo.core.schedulers.synchronous import DifferentialEvolutionHyperband, SyncHyperband

__all__ = [
    "CostPromotion",
    "DifferentialEvolutionHyperband",
    "Fifo",
    "MedianStopping",
    "Pasha",
    "Promotion",
    "PromotionAsha",
    "Ruling",
    "Scheduler",
    "StoppingAsha",
    "SyncHyperband",
]
