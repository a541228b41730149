"""The probability that a trial gets past the rungs below the one at which its configuration promises an improvement.

A model per rung learns nothing about a high rung from trials that never got there. Where configurations are bad from
the first epoch on, it would go on promising improvements at the high rung for ever. So the expected improvement is
weighted by the probability of getting there, as it is by that of meeting a constraint: Schonlau, Welch, Jones, *Global
versus Local Search in Constrained Optimization of Computer Models*, 1998; Gardner, Kusner, Xu, Weinberger, Cunningham,
*Bayesian Optimization with Inequality Constraints*, ICML 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hpo.surrogates.posterior import Posterior

_STD_FLOOR = 1e-10
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class PromotionProbability:
    """``min_r P(f(x, r) <= cut_r)`` under a posterior: the probability to pass the hardest rung.

    No joint probability of passing all is larger (Fréchet's bound), and it is reached where a configuration's values at
    the rungs have one order. The product, which takes them for independent, would punish uncertainty once per rung.

    Args:
        posterior: of a multi-fidelity model; its columns are averaged.
        cuts: rung -> largest value that passes, in units of the posterior.
    """

    posterior: Posterior
    cuts: Mapping[int, float]

    def log(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms ``(B,)`` at configurations ``(B, d)``, and their gradients ``(B, d)``; 0 without rungs."""
        if not self.cuts:
            return x.new_zeros(len(x)), torch.zeros_like(x)
        parts = [self._log(x, rung, cut) for rung, cut in self.cuts.items()]
        value, hardest = torch.stack([v for v, _ in parts]).min(0)
        gradient = torch.zeros_like(x)
        for k in sorted(set(hardest.tolist())):
            gradient = torch.where((hardest == k).unsqueeze(-1), parts[k][1](), gradient)
        return value, gradient

    def _log(self, x: Tensor, rung: int, cut: float) -> tuple[Tensor, Callable[[], Tensor]]:
        """Logarithm of the probability to pass one rung, and what computes its gradient."""
        prediction = self.posterior.predict(x, rung)
        std = prediction.variance.sqrt().clamp_min(_STD_FLOOR).unsqueeze(-1)
        u = (cut - prediction.mean) / std
        log_cdf = torch.special.log_ndtr(u)

        def gradient() -> Tensor:
            # d log mean Phi(u) / du, column by column
            slope = log_cdf.softmax(-1) * (-0.5 * u**2 - _LOG_SQRT_2PI - log_cdf).exp() / std
            g_variance = -0.5 * (slope * u / std).sum(-1)
            return prediction.pullback(-slope, g_variance)

        return log_cdf.logsumexp(-1) - math.log(u.shape[-1]), gradient

    def passes(self, x: Tensor, normals: Tensor) -> Tensor:
        """Whether draws from the marginals, averaged over columns, pass all rungs; ``(B,)``.

        Args:
            x: ``(B, d)``.
            normals: ``(B,)`` standard normal numbers: a configuration is as lucky at one rung as at the others, so that
                it passes all with the probability to pass the hardest.
        """
        passed = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for rung, cut in self.cuts.items():
            prediction = self.posterior.predict(x, rung)
            passed &= prediction.mean.mean(-1) + prediction.variance.sqrt() * normals <= cut
        return passed
