"""Figures 5 and 6: updates are those of the paper, whose loss has no factor ½; the linear programme is optimal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import sdebias as sb
from experiments import fig5_spectral as spectral
from experiments import fig6_total_variation as total_variation

SPECTRAL = spectral.Spectral(seeds=2)
VARIATION = total_variation.TotalVariation(seeds=2)


def one_update(problem: sb.Problem, theta: Tensor, rate: float) -> Tensor:
    """Return θ after one update of gradient descent, as an experiment makes it."""
    descent = sb.SGD(learning_rate=2 * rate, batch_size=problem.n_samples, replacement=False)
    run = sb.simulate(problem, descent, trajectories=1, steps=1, save_every=1, initial=theta, save=["theta"])
    return torch.from_numpy(run["theta"].isel(step=-1).values)


def test_the_penalised_update_is_that_of_the_paper() -> None:
    X, y, _ = spectral.instances(SPECTRAL)
    theta = torch.randn(2, 1, SPECTRAL.frequencies, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for penalty in (0.0, SPECTRAL.penalty):
        problem = spectral.PenalisedRegression(X, y, penalty / 2, 1.0)
        w = theta.clone().requires_grad_(True)
        residual = (torch.from_numpy(X).unsqueeze(1) @ w.unsqueeze(-1)).squeeze(-1) - torch.from_numpy(y).unsqueeze(1)
        loss = residual.square().mean(-1).sum() + penalty * w.abs().sum()
        expected = theta - SPECTRAL.learning_rate * torch.autograd.grad(loss, w)[0]
        torch.testing.assert_close(one_update(problem, theta, SPECTRAL.learning_rate), expected)


def test_the_stated_subgradient_is_the_derivative_of_the_losses() -> None:
    X, y, _ = spectral.instances(SPECTRAL)
    problem = spectral.PenalisedRegression(X, y, 0.05, 1.0)
    generator = torch.Generator().manual_seed(0)
    theta, c = (torch.randn(2, 3, n, dtype=torch.float64, generator=generator) for n in (64, 32))
    torch.testing.assert_close(problem.weighted_gradient(theta, c), sb.Problem.weighted_gradient(problem, theta, c))


def test_the_designed_update_is_that_of_the_paper() -> None:
    A, y = total_variation.instances(VARIATION)
    problem = sb.problems.CumulativeSumRegression(A, y)
    theta = torch.randn(2, 1, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = theta.clone().requires_grad_(True)
    w = (point[..., :200] * point[..., 200:]).cumsum(-1)
    residual = (torch.from_numpy(A).unsqueeze(1) @ w.unsqueeze(-1)).squeeze(-1) - torch.from_numpy(y).unsqueeze(1)
    gradient = torch.autograd.grad(residual.square().mean(-1).sum(), point)[0]
    expected = theta - VARIATION.designed_rate * gradient
    torch.testing.assert_close(one_update(problem, theta, VARIATION.designed_rate), expected)


def test_the_test_error_is_the_mean_over_many_points() -> None:
    X, y, signal = spectral.instances(SPECTRAL)
    run = sb.simulate(
        spectral.PenalisedRegression(X, y, 0.0, 1.0), sb.SGD(learning_rate=1e-3), trajectories=1, steps=1
    ).assign(signal=(("replicate", "predictor"), signal))
    found = spectral.weights(run)[:, -1]
    times = (np.arange(4096) + 0.5)[:, None] / 4096  # the mean of a trigonometric polynomial over a grid is exact
    squares = (np.cos(2 * np.pi * times * np.arange(64)) @ (found - signal).T) ** 2
    np.testing.assert_allclose(spectral.test_error(run, found), squares.mean(0), rtol=1e-10)


def test_the_linear_programme_interpolates_with_least_variation() -> None:
    A, y = total_variation.instances(VARIATION)
    least = total_variation.least_variation(A, y)
    np.testing.assert_allclose((A @ least[..., None])[..., 0], y, atol=1e-8)
    rng = np.random.default_rng(0)
    for matrix, w in zip(A, least, strict=True):
        kernel = np.linalg.svd(matrix)[2][len(matrix) :]
        others = w + 1e-3 * rng.standard_normal((200, len(kernel))) @ kernel
        assert (total_variation.variation(others) > total_variation.variation(w)).all()
        # At most as many jumps as data: a vertex of the polytope, which nothing but an optimum has to be.
        assert (np.abs(np.diff(w)) > 1e-8).sum() <= len(matrix)
