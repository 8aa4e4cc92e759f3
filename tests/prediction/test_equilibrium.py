"""Noise equilibria against closed forms, and against SGD run here with fresh labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import regression
from law_cases import FLOAT, Radial, toy
from torch import Tensor

import sdebias as sb
from sdebias.errors import InputError, RunError, SymmetryError
from sdebias.prediction import label_gradients, noise_equilibrium, predict_relaxation

LABEL_NOISE = 0.5
ANISOTROPIC = (2.0, 1.0, 0.5)


def unit(scales: tuple[float, ...]) -> tuple[sb.Problem, Tensor]:
    """Return one ReLU unit that fits its targets exactly, balanced, on inputs ±√d scale_i e_i: E x xᵀ = scale²."""
    axes = math.sqrt(len(scales)) * torch.diag(torch.tensor(scales, dtype=FLOAT))
    inputs = torch.cat([axes, -axes])
    weights = 0.8 * torch.ones(len(scales), dtype=FLOAT)
    theta = torch.cat([weights, weights.norm()[None]])
    targets = theta[-1] * (inputs @ weights).relu()
    return sb.problems.ShallowReLU(inputs.numpy(), targets.numpy(), units=1), theta


def sgd(problem: sb.Problem, start: Tensor, eta: float, steps: int, saves: int, seed: int) -> Tensor:
    """Return the charge ½(‖w‖² − v²) of 256 trajectories with batches of one fresh label, shape (save, trajectory)."""
    inputs, targets = problem.samples["X"], problem.samples["y"]
    generator = torch.Generator().manual_seed(seed)
    w, v = start[:-1].expand(256, -1).clone(), start[-1].expand(256).clone()
    charges = []
    for step in range(steps + 1):
        if step % (steps // saves) == 0:
            charges.append(0.5 * (w.square().sum(-1) - v.square()))
        drawn = torch.randint(len(inputs), (256,), generator=generator)
        noise = LABEL_NOISE * torch.randn(256, generator=generator, dtype=FLOAT)
        x = inputs[drawn]
        z = (w * x).sum(-1)
        error = eta * (v * z.relu() - targets[drawn] - noise)
        w, v = w - ((z > 0) * error * v)[:, None] * x, v - error * z.relu()
    return torch.stack(charges)


def extrapolated(problem: sb.Problem, start: Tensor, eta: float, steps: int, saves: int) -> tuple[np.ndarray, ...]:
    """Return mean charge and standard error at η → 0, η²k fixed: the predictor fluctuates by O(η), which cancels."""
    coarse = sgd(problem, start, eta, steps, saves, seed=0)[1:]
    fine = sgd(problem, start, eta / 2, 4 * steps, saves, seed=1)[1:]
    mean = 2 * fine.mean(1) - coarse.mean(1)
    error = torch.hypot(2 * fine.std(1), coarse.std(1)) / 16
    return mean.numpy(), error.numpy()


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("factor", [0.1, 1.0, 20.0])
def test_isotropic_inputs_balance_a_unit_at_one_over_root_d(d: int, factor: float) -> None:
    problem, theta = unit((1.0,) * d)
    moved = torch.cat([factor * theta[:-1], theta[-1:] / factor])
    noise = label_gradients(problem, LABEL_NOISE)
    found = noise_equilibrium(
        problem, sb.symmetry.Rescaling.relu("W", "v"), moved, learning_rate=0.01, batch_size=2, noise_gradients=noise
    )
    settled = found["equilibrium_theta"].values
    assert abs(settled[-1]) / np.linalg.norm(settled[:-1]) == pytest.approx(d**-0.5, rel=1e-9)
    # Linearising v²d − ‖w‖² along the orbit gives the rate η² s² d / (B (d + 1)).
    assert found["relaxation_rate"].values == pytest.approx([0.01**2 * LABEL_NOISE**2 * d / (2 * (d + 1))], rel=1e-7)


def test_anisotropic_inputs_weigh_the_weights_by_their_moments() -> None:
    """v² tr M = wᵀ M w for M = E x xᵀ over the active inputs."""
    problem, theta = unit(ANISOTROPIC)
    noise = label_gradients(problem, LABEL_NOISE)
    found = noise_equilibrium(problem, problem.symmetry(), theta, learning_rate=0.01, noise_gradients=noise)  # type: ignore[arg-type]
    settled = found["equilibrium_theta"].values
    moments = np.square(ANISOTROPIC)
    assert settled[-1] ** 2 * moments.sum() == pytest.approx((moments * settled[:-1] ** 2).sum(), rel=1e-9)
    assert settled[-1] * settled[:-1] == pytest.approx((theta[-1] * theta[:-1]).numpy(), rel=1e-12)


def test_minibatch_noise_of_several_charges_vanishes_where_the_root_says() -> None:
    X, y = regression()
    problem = sb.problems.HadamardRegression(X, y, initial_std={"p": 1.0, "q": 1.0})
    symmetry = sb.symmetry.Rescaling("p", "q").bind(problem)
    theta = problem.draw_initial(1, torch.Generator().manual_seed(3))[0]
    found = noise_equilibrium(problem, symmetry, theta, learning_rate=0.01)
    settled = torch.tensor(found["equilibrium_theta"].values)
    trace = problem.gradient_noise_trace(settled, symmetry.charge_matrices(settled))
    assert float(trace.abs().max()) < 1e-8 * float(problem.gradient_variance(settled).sum())
    assert np.all(np.diff(found["relaxation_rate"].values) >= 0)
    assert found["relaxation_rate"].values[0] > 0
    assert torch.allclose(problem.predictor(settled), problem.predictor(theta))


def test_relaxation_starts_with_the_ito_rate_and_ends_with_the_linear_one() -> None:
    problem, theta = unit((1.0,) * 3)
    choices = {"learning_rate": 0.01, "noise_gradients": label_gradients(problem, LABEL_NOISE)}
    symmetry = sb.symmetry.Rescaling.relu("W", "v")
    found = noise_equilibrium(problem, symmetry, theta, **choices)  # type: ignore[arg-type]
    steps = [0, 100, 300_000, 320_000]
    path = predict_relaxation(problem, symmetry, theta, steps, **choices)  # type: ignore[arg-type]
    charge = path["predicted_charge"].values[:, 0]
    v_squared = float(theta[-1] ** 2)
    initial_rate = 0.01**2 / 2 * LABEL_NOISE**2 / 2 * (3 * v_squared - v_squared)
    assert (charge[1] - charge[0]) / 100 == pytest.approx(initial_rate, rel=2e-3)
    gap = found["equilibrium_charge"].values[0] - charge[2:]
    assert -np.log(gap[1] / gap[0]) / 20_000 == pytest.approx(found["relaxation_rate"].values[0], rel=2e-2)
    assert path["predicted_theta"].dims == ("step", "parameter")


def test_what_does_not_relax_is_refused() -> None:
    problem, symmetry = toy()
    settled = torch.ones(2, dtype=FLOAT)
    with pytest.raises(RunError, match="the gradients have no noise at theta"):
        noise_equilibrium(problem, symmetry, settled, learning_rate=0.1)
    with pytest.raises(InputError, match="theta: expected one point"):
        noise_equilibrium(problem, symmetry, settled[None], learning_rate=0.1)
    with pytest.raises(InputError, match="steps: expected increasing steps"):
        predict_relaxation(problem, symmetry, settled, [0, 5, 5], learning_rate=0.1)
    with pytest.raises(SymmetryError, match="it has no charges"):
        noise_equilibrium(Radial(2), sb.symmetry.Orthogonal("x"), settled, learning_rate=0.1)


@pytest.mark.slow
def test_sgd_that_starts_balanced_follows_the_whole_predicted_curve() -> None:
    """False-alarm rate 1e-3 over the curve (Bonferroni); a prediction of 10 % more charge fails at every save."""
    problem, theta = unit((1.0,) * 3)
    saves = 8
    mean, error = extrapolated(problem, theta, eta=0.01, steps=64_000, saves=saves)
    path = predict_relaxation(
        problem,
        sb.symmetry.Rescaling.relu("W", "v"),
        theta,
        range(0, 64_001, 8_000),
        learning_rate=0.01,
        noise_gradients=label_gradients(problem, LABEL_NOISE),
    )
    predicted = path["predicted_charge"].values[1:, 0]
    limit = scipy.stats.norm.isf(1e-3 / 2 / saves)
    assert np.abs((mean - predicted) / error).max() < limit
    assert np.abs((mean - 1.1 * predicted) / error).min() > limit


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(1.0,) * 2, (1.0,) * 3, (1.0,) * 5, ANISOTROPIC], ids=["2", "3", "5", "aniso"])
def test_sgd_stays_at_the_equilibrium_and_leaves_the_balanced_point(scales: tuple[float, ...]) -> None:
    """False-alarm rate 1e-3 each; from a unit whose v is 10 % larger the charge moves measurably."""
    problem, theta = unit(scales)
    noise = label_gradients(problem, LABEL_NOISE)
    symmetry = sb.symmetry.Rescaling.relu("W", "v")
    found = noise_equilibrium(problem, symmetry, theta, learning_rate=0.01, noise_gradients=noise)
    settled = torch.tensor(found["equilibrium_theta"].values)
    limit = scipy.stats.norm.isf(1e-3 / 2)
    shifted = torch.cat([settled[:-1] / 1.1, 1.1 * settled[-1:]])
    scores = []
    for start in (settled, shifted):
        mean, error = extrapolated(problem, start, eta=0.01, steps=12_000, saves=1)
        charge = 0.5 * float(start[:-1].square().sum() - start[-1] ** 2)
        scores.append(abs(float(mean[0]) - charge) / float(error[0]))
    assert scores[0] < limit < scores[1]
