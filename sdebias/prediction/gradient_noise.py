"""Random gradients whose covariance is that of the noise: equally likely rows, of mean zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import DataError, check_count, check_positive, message
from ..problems.base import Problem
from ..problems.regression import Regression
from .stationary import predictor_jacobian

NoiseGradients: TypeAlias = Callable[[Tensor], Tensor]
"""θ (..., parameter) to rows g_i (..., sample, parameter) with Σ = mean_i g_i g_iᵀ, of one sample's gradient."""


def minibatch_gradients(problem: Problem) -> NoiseGradients:
    """Return the noise of drawing samples: ∇ℓ_i − ∇L."""

    def rows(theta: Tensor) -> Tensor:
        gradients = problem.per_sample_gradient(theta)
        return gradients - gradients.mean(-2, keepdim=True)

    return rows


def label_gradients(problem: Problem, label_noise: float) -> NoiseGradients:
    """Return the noise of fresh labels y_i + s ε on every draw: s ∇f_i, where the fit is exact.

    Parameters
    ----------
    problem : Regression
        With one output, so that ℓ_i = ½ (f_i − y_i)².
    label_noise : float
        s, the standard deviation of the labels.

    Raises
    ------
    DataError
        If the problem has not one output with squared loss.
    InputError
        If s is not positive.
    """
    check_positive("label_noise", label_noise)
    if not isinstance(problem, Regression) or problem.output_dims or problem.replicates is not None:
        remedy = "give the random gradients as a function of theta"
        raise DataError(message("problem", "a regression with one output", type(problem).__name__, remedy))

    def rows(theta: Tensor) -> Tensor:
        outputs = problem.output(problem.layout.unflatten(theta), problem.samples["X"]).detach()
        # With targets f − s the gradient (f − y) ∇f of each sample is s ∇f.
        return problem.at({"y": outputs - label_noise}).per_sample_gradient(theta)

    return rows


def noise_covariance(gradients: Tensor) -> Tensor:
    """Return Σ = mean_i g_i g_iᵀ, shape (..., parameter, parameter), from rows (..., sample, parameter)."""
    return gradients.mT @ gradients / gradients.shape[-2]


def projected_coefficients(
    problem: Problem, theta: Tensor, noise_gradients: NoiseGradients, *, learning_rate: float, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return drift and diffusion of the predictor under SGD's SDE at θ, per update.

    dq = b dk + √(2D) dW with b = −η J_F ∇L + (η²/2B) tr(Σ ∇²F) and D = (η²/2B) J_F Σ J_Fᵀ (Itô's formula for q = F(θ)).
    They are functions of q alone where all θ that the noise visits for a predictor agree on them.

    Parameters
    ----------
    problem : Problem
    theta : Tensor, shape=(point, parameter)
    noise_gradients : callable
        As of `minibatch_gradients` or `label_gradients`.
    learning_rate : float
    batch_size : int

    Returns
    -------
    drift : Tensor, shape=(point, predictor)
    diffusion : Tensor, shape=(point, predictor, predictor)
    """
    check_positive("learning_rate", learning_rate)
    check_count("batch_size", batch_size)
    jacobian = predictor_jacobian(problem, theta)
    hessian = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(problem.predictor)))(theta)
    covariance = noise_covariance(noise_gradients(theta))
    scale = learning_rate**2 / (2 * batch_size)
    ito = scale * torch.einsum("zkij,zij->zk", hessian, covariance)
    drift = ito - learning_rate * (jacobian @ problem.gradient(theta).unsqueeze(-1)).squeeze(-1)
    return drift.detach(), (scale * jacobian @ covariance @ jacobian.mT).detach()
