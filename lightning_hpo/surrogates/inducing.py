"""Joint models of thousands of observations: variational inducing points.

A few of the inputs, the inducing points, stand for all. The fit maximises a lower bound of the likelihood by gpytorch's
:class:`~gpytorch.kernels.InducingPointKernel`; cost and memory grow linearly with the observations (Titsias,
*Variational Learning of Inducing Variables in Sparse Gaussian Processes*, AISTATS 2009).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from gpytorch.kernels import InducingPointKernel
from linear_operator.operators import KernelLinearOperator
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from lightning_hpo.errors import NumericalError
from lightning_hpo.surrogates import parameters as p
from lightning_hpo.surrogates.covariances import Covariance, Gradients
from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.fused import cholesky
from lightning_hpo.surrogates.kernels import GaussianProcess, exact_gp, inputs, raw_parameters
from lightning_hpo.surrogates.models import JointModel
from lightning_hpo.surrogates.posterior import DensePosterior

_EXHAUSTED = 1e-6
"""No more inducing points are chosen when the variances given those chosen add up to this share of the largest one."""
_DETERMINED = 1e-8
"""A point whose variance given those before it is this share of the largest one is determined by them."""


class InducingModel(JointModel):
    """A joint model that sees more than ``num_inducing`` observations through as many of their inputs.

    Fewer observations are treated exactly.

    Args:
        covariance, max_resource: see :class:`~lightning_hpo.surrogates.models.JointModel`.
        num_inducing: number ``M`` of inducing points.
    """

    uses_autograd = True

    def __init__(self, covariance: Covariance, max_resource: int | None, num_inducing: int) -> None:
        super().__init__(covariance, max_resource)
        self.num_inducing = num_inducing
        self._last: tuple[Observations, Tensor] | None = None

    def inducing_points(self, data: Observations) -> Tensor:
        """Positions of the inducing points among ``n`` observations, at most ``M``, most informative first.

        Greedily the input of largest variance given those chosen before (Burt, Rasmussen, van der Wilk, *Convergence of
        Sparse Variational Inference in Gaussian Processes Regression*, JMLR 2020), under the initial parameters, so
        that the bound is the same function of the parameters throughout a fit. The last answer is kept: the fit and
        the posterior ask for the same data.
        """
        if self._last is None or self._last[0] is not data:
            self._last = data, self._choose(data)
        return self._last[1]

    def _choose(self, data: Observations) -> Tensor:
        gp = exact_gp(self, data, self.space.initial).to(data.y.device)
        with torch.no_grad():
            # a lazy kernel of gpytorch would compute the matrix of all data here, this one computes the rows it needs
            x = inputs(self, data)
            prior = KernelLinearOperator(x, x, lambda a, b: gp.covar_module(a, b).to_dense())
            factor, order = prior.pivoted_cholesky(self.num_inducing, error_tol=_EXHAUSTED, return_pivots=True)
        return torch.as_tensor(order[: factor.shape[-1]])

    def negative_log_likelihood(self, data: Observations) -> Callable[[p.Natural], tuple[Tensor, Gradients]]:
        """An upper bound of the negative log density of the targets, exact up to ``num_inducing`` observations."""
        if len(data) <= self.num_inducing:
            return super().negative_log_likelihood(data)
        gp = exact_gp(self, data, self.space.initial)
        raw = raw_parameters(gp.mean_module, gp.covar_module, gp.likelihood)
        at = inputs(self, data)[self.inducing_points(data)]
        gp.covar_module = InducingPointKernel(gp.covar_module, at, gp.likelihood)
        gp.to(data.y.device)

        def likelihood(natural: p.Natural) -> tuple[Tensor, Gradients]:
            values, gradients = zip(*(negative_bound(gp, raw, self.space, row) for row in natural.theta), strict=True)
            # of the internal coordinates, as which the modules hold their parameters
            by_value = torch.stack(gradients) / natural.jacobian
            return torch.stack(values), {name: by_value[:, part] for name, part in self.space.slices.items()}

        return likelihood

    def posterior(self, data: Observations, theta: Tensor) -> DensePosterior:
        if len(data) <= self.num_inducing:
            return super().posterior(data, theta)
        natural = self.space.natural(theta.to(data.y.device)[None])
        return InducingPosterior(self.covariance, natural, self.max_resource, data, self.inducing_points(data))


def negative_bound(
    gp: GaussianProcess, raw: dict[str, torch.nn.Parameter], space: p.ParameterSpace, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative lower bound of the log likelihood, without priors, and its gradient ``(p,)`` at ``theta`` ``(p,)``.

    Raises:
        NumericalError: if a matrix is not positive definite.
    """
    for name, part in space.slices.items():
        raw[name].data = theta[part].reshape(raw[name].shape)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)  # the jitter it adds is no news, as in cholesky()
            bound = gp.likelihood(gp(*gp.train_inputs)).log_prob(gp.train_targets)
            bound = bound + torch.stack([term.loss() for term in gp.added_loss_terms()]).sum()
            gradients = torch.autograd.grad(bound, [raw[name] for name in space.slices])
    except (NotPSDError, NanError) as problem:
        raise NumericalError(
            f"The covariance of the inducing points is not positive definite ({problem}). "
            "Set searcher.num_inducing to a smaller number."
        ) from problem
    return -bound.detach(), -torch.cat([g.reshape(-1) for g in gradients])


class InducingPosterior(DensePosterior):
    """The posterior of the latent function under the optimal distribution at the inducing points.

    That is an exact posterior, given one target per inducing point with correlated noise. With ``L Lᵀ`` the
    covariance of the inducing points, ``B = L⁻¹ K(inducing, data)``, ``D = B Bᵀ / noise`` and residuals ``r`` of the
    data, these are the targets ``mean + L D⁻¹ B r / noise``, and their covariance, noise included, is
    ``L (I + D⁻¹) Lᵀ``: then mean and variance are those of Titsias 2009, eqs. 6 and 10.

    Args:
        data: ``n`` observations.
        inducing: ``(M,)`` positions of the inducing points among them. Those that others before them determine are left
            out: they say nothing more, and ``D`` would be singular.
    """

    def __init__(
        self, covariance: Covariance, natural: p.Natural, max_resource: int | None, data: Observations, inducing: Tensor
    ) -> None:
        self._prior = (covariance, natural, max_resource)
        self.covariance, self.natural, self.max_resource = self._prior
        self.seen_x, self.seen_resource = data.rows, data.resource
        inducing = inducing[self._are_needed(data.rows[inducing], data.resource[inducing])]
        self.x, self.resource = data.rows[inducing], data.resource[inducing]
        self.columns = 1
        self.noise = self.new_noise(self.resource)
        self.points = self._points(self.x, self.resource)
        self._queries = {}
        mean, root, whitened = self._whitened(data)
        noise = natural["noise"][0, 0]
        inverse = torch.cholesky_inverse(cholesky(whitened @ whitened.mT / noise))
        residual = whitened @ (data.y - mean).unsqueeze(-1) / noise
        prior_mean = covariance.moments(natural, self.points).mean[0]
        self.targets = prior_mean.unsqueeze(-1) + root @ inverse @ residual
        eye = torch.eye(len(inducing), dtype=root.dtype, device=root.device)
        self._solve(prior_mean, root @ cholesky(eye + inverse))

    def _are_needed(self, x: Tensor, resource: Tensor) -> Tensor:
        """Which of the inducing points those before them do not determine, ``(M,)`` booleans."""
        prior = self.covariance.moments(self.natural, self._points(x, resource)).covariance[0]
        variance = cholesky(prior).diagonal().square()
        return variance > _DETERMINED * variance.max()

    def _whitened(self, data: Observations) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean of the data ``(n,)``, ``L`` and ``B = L⁻¹ K(inducing, data)`` ``(M, n)``."""
        root = cholesky(self.covariance.moments(self.natural, self.points).covariance[0])
        mean, cross = torch.empty_like(data.y), root.new_empty(len(root), len(data))
        for r in torch.unique(data.resource).tolist():
            here, query = data.resource == r, self._query(r)
            mean[here] = query.mean
            cross[:, here] = query.cross(data.rows[here])[0].mT
        return mean, root, torch.linalg.solve_triangular(root, cross, upper=False)

    def _extended(self, x: Tensor, resource: Tensor, *rest: Tensor) -> InducingPosterior:  # type: ignore[override]
        new = super()._extended(x, resource, *rest)  # type: ignore[arg-type]
        assert isinstance(new, InducingPosterior)
        new.seen_x, new.seen_resource = torch.cat([self.seen_x, x]), torch.cat([self.seen_resource, resource])
        return new

    def inputs_at(self, resource: int) -> Tensor:
        return self.seen_x if self.max_resource is None else self.seen_x[self.seen_resource == resource]
