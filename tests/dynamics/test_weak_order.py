"""SGD and the SDE that models it agree to first and to second order in η, in the weak sense.

A linear regression with one parameter makes everything exact. A batch gradient is affine in w, so that E φ after an
update is a polynomial in w of the degree of φ; the drift is affine and the squared diffusion quadratic, so that
d E φ/dk is one too. Moments up to the third are therefore powers of a matrix for SGD and its exponential for the SDE:
nothing is sampled, no solver steps, and no variance has to be reduced. Both matrices are read off the dynamics
themselves, at as many points as a polynomial needs.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import scipy.linalg
import torch

import sdebias as sb

DEGREE, TIME = 3, 2.0
RATES = np.array([1 / 16, 1 / 32, 1 / 64, 1 / 128])
POINTS = np.array([-1.5, -0.5, 0.5, 1.5])


@pytest.fixture
def line() -> sb.Problem:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((6, 1))
    y = 0.7 * X + 0.5 * rng.standard_normal((6, 1))
    net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    return sb.Problem.from_module(net, lambda out, target: 0.5 * (out - target).square().sum(), X, y)


def coefficients(values: np.ndarray) -> np.ndarray:
    """Return the polynomials through the values at `POINTS`, one row a function, lowest power first."""
    return np.linalg.solve(np.vander(POINTS, DEGREE + 1, increasing=True), values).T


def sgd_moments(problem: sb.Problem, rate: float, batch_size: int, start: float) -> np.ndarray:
    """Return E w^j after the updates up to `TIME`, j = 0..3, over all batches of each update."""
    batches = torch.tensor(list(itertools.product(range(problem.n_samples), repeat=batch_size)))
    after = []
    for point in POINTS:
        w = torch.full((len(batches), 1), point, dtype=torch.float64)
        end = (w - rate * problem.batch_gradient(w, batches))[:, 0].numpy()
        after.append([(end**j).mean() for j in range(DEGREE + 1)])
    step = coefficients(np.array(after))
    return np.linalg.matrix_power(step, round(TIME / rate)) @ start ** np.arange(DEGREE + 1)


def sde_moments(problem: sb.Problem, sde: sb.SGDSDE, rate: float, start: float) -> np.ndarray:
    """Return E w^j at `TIME`, from d E w^j/dk = E [f j w^{j−1} + ½ g gᵀ j (j−1) w^{j−2}]."""
    bound, y = sde.bind(problem), torch.from_numpy(POINTS).unsqueeze(-1)
    f, square = bound.f(0.0, y)[:, 0].numpy(), bound.g(0.0, y).square().sum(-1)[:, 0].numpy()
    rates = [np.zeros_like(f), f, 2 * POINTS * f + square, 3 * POINTS**2 * f + 3 * POINTS * square]
    flow = coefficients(np.stack(rates, axis=-1))
    return scipy.linalg.expm(flow * TIME / rate) @ start ** np.arange(DEGREE + 1)


def slopes(problem: sb.Problem, batch_size: int, order: Literal[1, 2]) -> np.ndarray:
    """Return the slope of log |E φ(SGD) − E φ(SDE)| in log η for φ = w, w², w³."""
    errors = []
    for rate in RATES:
        sde = sb.SGDSDE(learning_rate=float(rate), batch_size=batch_size, order=order)
        difference = sgd_moments(problem, rate, batch_size, 1.5) - sde_moments(problem, sde, rate, 1.5)
        errors.append(np.abs(difference[1:]))
    return np.polyfit(np.log(RATES), np.log(errors), 1)[0]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_weak_order(line: sb.Problem, order: Literal[1, 2], batch_size: int) -> None:
    """Slopes over η = 1/16 … 1/128 within 0.1 of the order: what is left is the next order in η."""
    np.testing.assert_allclose(slopes(line, batch_size, order), order, atol=0.1)


@pytest.mark.slow
def test_moments_are_those_of_simulated_ensembles(line: sb.Problem) -> None:
    """E w, E w², E w³ of both within 4 standard errors (false-alarm rate 4e-4); a rate a tenth larger is rejected."""
    rate, steps, count = 1 / 8, 16, 2048
    start = torch.full((count, 1), 1.5, dtype=torch.float64)

    def deviates(dynamics: sb.SGD | sb.SGDSDE, exact: np.ndarray) -> bool:
        ens = sb.simulate(line, dynamics, trajectories=count, steps=steps, initial=start, seed=1, progress=False)
        powers = ens["theta"].values[:, -1] ** np.arange(1, DEGREE + 1)
        return bool((np.abs(powers.mean(0) - exact[1:]) > 4 * powers.std(0) / count**0.5).any())

    sde = sb.SGDSDE(learning_rate=rate, substeps=16)
    assert not deviates(sb.SGD(learning_rate=rate), sgd_moments(line, rate, 1, 1.5))
    assert not deviates(sde, sde_moments(line, sde, rate, 1.5))
    assert deviates(sb.SGD(learning_rate=1.1 * rate), sgd_moments(line, rate, 1, 1.5))
    assert deviates(sb.SGDSDE(learning_rate=1.1 * rate, substeps=16), sde_moments(line, sde, rate, 1.5))
