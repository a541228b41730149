"""The fused functions compute what the gpytorch modules define."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

from lightning_hpo.surrogates.data import Observations
from lightning_hpo.surrogates.kernels import exact_gp, inputs, raw_parameters
from lightning_hpo.surrogates.models import RESOURCE_KERNELS, JointModel, multitask, single_fidelity
from tests.surrogates.problems import data_for, random_theta, rungs

JOINT = {
    "single-fidelity": single_fidelity(3),
    "single-fidelity, warped, one length scale": single_fidelity(3, warped=(0, 2), ard=False),
    "single-fidelity, log-normal length scales": single_fidelity(3, warped=(0,), lengthscale_prior="log_normal"),
    "cross-validation, log-normal length scales": multitask(3, 9, "cross-validation", lengthscale_prior="log_normal"),
    "matern52-res-warp, log-normal length scales": multitask(3, 9, "matern52-res-warp", lengthscale_prior="log_normal"),
    "matern52-res-warp, warped": multitask(3, 9, "matern52-res-warp", warped=(1,)),
    "cross-validation, warped": multitask(3, 9, "cross-validation", warped=(0, 1)),
    **{kernel: multitask(3, 9, kernel) for kernel in RESOURCE_KERNELS},
}


def exactly() -> gpytorch.settings.fast_computations:
    return gpytorch.settings.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False)


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("seed", [0, 1])
def test_objective_and_gradient_are_those_of_gpytorch(name: str, seed: int) -> None:
    model, data = JOINT[name], data_for(name)
    theta = random_theta(model, seed)
    value, gradient = model.objective(data)(theta)
    process = exact_gp(model, data, theta[0])
    likelihood = process.likelihood
    with exactly():
        marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, process)
        theirs = -len(data) * marginal(process(*process.train_inputs), data.y)
    theirs.backward()
    raw = raw_parameters(process.mean_module, process.covar_module, likelihood)
    assert set(raw) == set(model.space.slices)
    for parameter, part in model.space.slices.items():
        assert raw[parameter].grad is not None
        torch.testing.assert_close(gradient[0, part], raw[parameter].grad.reshape(-1), rtol=1e-8, atol=1e-8)
    # a log-normal and a normal prior have a constant in gpytorch that the objective leaves out
    n_constants = sum(p.size for p in model.space.parameters if p.prior and (p.prior.log_square or p.prior.square))
    constant = 0.5 * n_constants * math.log(2.0 * math.pi)
    torch.testing.assert_close(value[0], theirs.detach() - constant, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", JOINT)
def test_posterior_is_that_of_gpytorch(name: str) -> None:
    model, data = JOINT[name], data_for(name)
    theta = random_theta(model, 2)[0]
    x = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    resource = 1 if model.max_resource is None else 9
    process = exact_gp(model, data, theta)
    process.eval()
    query = Observations.from_rows(x, torch.zeros(6), [resource] * 6)
    with exactly(), gpytorch.settings.fast_pred_var(False), torch.no_grad():
        theirs = process(inputs(model, query))
    posterior = model.posterior(data, theta)
    mean, covariance = posterior.joint(x, resource)
    marginal = posterior.predict(x, resource)
    torch.testing.assert_close(mean[:, 0], theirs.mean, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(covariance, theirs.covariance_matrix, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(marginal.mean, mean, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(marginal.variance, covariance.diagonal(), rtol=1e-8, atol=1e-9)


def test_bounds_and_priors_are_registered() -> None:
    model = multitask(2, 9, "exp-decay-combined", warped=(0,))
    assert isinstance(model, JointModel)
    process = exact_gp(model, rungs(dimension=2), model.space.initial)
    constraints = {path.rsplit(".", 1)[-1]: c for path, c in process.named_constraints()}
    lengthscale = constraints["raw_lengthscale_constraint"]
    assert (float(lengthscale.lower_bound), float(lengthscale.upper_bound)) == pytest.approx((0.01, 1e4))
    assert float(constraints["raw_delta_constraint"].upper_bound) == 1.0
    priors = {name.rsplit(".", 1)[-1] for name, *_ in process.named_priors()}
    assert priors == {
        "noise_prior", "mean_prior", "outputscale_prior", "inverse_lengthscale_prior", "warp_a_prior", "warp_b_prior",
    }  # fmt: skip
