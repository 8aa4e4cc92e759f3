"""Singular values of factorised matrices under soft gauge, against an ensemble of their SDE."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from law_cases import FLOAT, balanced_factors, euler_maruyama
from torch import Tensor

import sdebias as sb
from sdebias.prediction import ImportanceSampling, stationary_law

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("target", "trajectories"), [((2.2, 1.5), 40_000), ((2.6, 2.0, 1.5), 20_000)], ids=["2", "3"])
def test_factors_under_soft_gauge_need_the_residual_orthogonal_orbit(
    target: tuple[float, ...], trajectories: int
) -> None:
    """E σ and E log det within 3 standard errors (false-alarm rate 1 %); the formula without O(r) is rejected."""
    size, temperature, stiffness = len(target), 0.08, 20.0
    centre = torch.diag(torch.tensor(target, dtype=FLOAT))
    problem = sb.problems.MatrixFactorization(centre.numpy())
    labels = tuple(problem.predictor_labels)
    proposal = torch.distributions.MultivariateNormal(centre.flatten(), 1.3 * temperature * torch.eye(size**2).double())
    law = stationary_law(
        problem,
        sb.symmetry.GeneralLinear("U", "V"),
        balanced_factors,
        ImportanceSampling(proposal, labels, samples=100_000),
        noise="soft_gauge",
        temperature=temperature / size**2,  # the loss is a mean over the entries, that of the simulation their sum
        measure="predictor",
    )

    def statistics(sigma: np.ndarray) -> np.ndarray:
        return np.concatenate([sigma, np.log(sigma).sum(1, keepdims=True)], axis=1)

    sigma = np.linalg.svd(law["coordinate_value"].values.reshape(-1, size, size), compute_uv=False)
    share = law["probability"].values
    predicted = share @ statistics(sigma)
    law_error = np.sqrt(np.square(share[:, None] * (statistics(sigma) - predicted)).sum(0))
    first, second = np.triu_indices(size, 1)
    bare = share / np.sqrt(sigma[:, first] + sigma[:, second]).prod(1)
    without = bare @ statistics(sigma) / bare.sum()

    def step(theta: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        left, right = theta[0], theta[1]
        gap = left @ right.mT - centre
        return -torch.stack([gap @ right, gap.mT @ left]), math.sqrt(2 * temperature) * normal

    def gauge(theta: Tensor, dt: float) -> Tensor:
        # Gradient step on (κ/2)‖UᵀU − VᵀV‖², U e^{−S}, V e^{S}: added to the drift it would shrink U Vᵀ by O(κ dt).
        left, right = theta[0], theta[1]
        exponent = 2 * stiffness * dt * (left.mT @ left - right.mT @ right)
        half = exponent @ exponent / 2
        return torch.stack([left - left @ (exponent - half), right + right @ (exponent + half)])

    start = balanced_factors(centre.flatten()).reshape(2, 1, size, size).expand(2, trajectories, size, size)
    end = euler_maruyama(step, start, dt=1.2e-3, time=2.2, gauge=gauge)
    measured = statistics(torch.linalg.svdvals(end[0] @ end[1].mT).numpy())
    error = np.hypot(measured.std(0) / trajectories**0.5, law_error)
    assert np.abs((measured.mean(0) - predicted) / error).max() < 3
    assert np.abs((measured.mean(0) - without) / error).max() > 6
