"""Where gradient noise takes the charges, and along which curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.integrate
import scipy.optimize
import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset
from ..errors import InputError, RunError, check_count, check_finite, check_positive_number, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_charges, check_symmetry
from ..symmetry.gauge import quadratic_form
from .gradient_noise import NoiseGradients, minibatch_gradients

EQUATION = "dC_a/dk = eta^2/(2B) tr(Sigma A_a) at a fixed predictor"
# tr(Σ A_a) at the root, as a share of tr Σ.
ROOT_TOLERANCE = 1e-8


class _Orbit:
    """The non-compact part of the orbit through a point, in coordinates ξ: exp(ξ)·θ, and the noise along it."""

    def __init__(
        self, problem: Problem, symmetry: Symmetry, theta: Tensor, noise_gradients: NoiseGradients | None
    ) -> None:
        self.symmetry = check_charges(check_symmetry(symmetry).bind(problem), "nothing relaxes")
        if theta.ndim != 1:
            raise InputError(message("theta", "one point, shape (parameter,)", tuple(theta.shape), "take one row"))
        self.start = check_finite("theta", problem.check_theta(theta), InputError)
        self.basis = self.symmetry.charge_basis(self.start)
        self.matrices = self.symmetry.charge_matrices(self.start)
        self.noise_gradients = noise_gradients or minibatch_gradients(problem)

    def point(self, xi: np.ndarray) -> Tensor:
        """Return exp(ξ)·θ."""
        coefficients = torch.as_tensor(xi, dtype=self.start.dtype, device=self.start.device)
        return self.symmetry.act(self.symmetry.exp(coefficients @ self.basis), self.start)

    def trace(self, theta: Tensor) -> np.ndarray:
        """Return tr(Σ A_a)."""
        return quadratic_form(self.matrices, self.noise_gradients(theta)).mean(-2).cpu().numpy()

    def scale(self, theta: Tensor) -> float:
        """Return tr Σ."""
        return float(self.noise_gradients(theta).square().sum(-1).mean(-1))

    def velocity(self, theta: Tensor, xi: np.ndarray) -> np.ndarray:
        """Return dξ/dk per unit of η²/2B: the move along the orbit that changes the charges by tr(Σ A_a)."""
        return np.linalg.lstsq(self.charge_derivative(xi), self.trace(theta))[0]  # units that are zero stay

    def charge_derivative(self, xi: np.ndarray) -> np.ndarray:
        """Return ∂C_a/∂ξ_b, shape (charge, charge)."""
        coefficients = torch.as_tensor(xi, dtype=self.start.dtype, device=self.start.device)

        def charge(moved: Tensor) -> Tensor:
            return self.symmetry.charge(self.symmetry.act(self.symmetry.exp(moved @ self.basis), self.start))

        return torch.autograd.functional.jacobian(charge, coefficients).cpu().numpy()


def noise_equilibrium(
    problem: Problem,
    symmetry: Symmetry,
    theta: Tensor,
    *,
    learning_rate: float,
    batch_size: int = 1,
    noise_gradients: NoiseGradients | None = None,
) -> xr.Dataset:
    """Return the point of an orbit at which gradient noise leaves the charges where they are: tr(Σ A_a) = 0.

    It is a root in the coordinates of the non-compact part of the orbit (MINPACK's hybrid method), from the balanced
    point, which in general it is not. Near it charges relax as exp(−rate · k), the rates being the eigenvalues of
    −∂(dC/dk)/∂C with dC_a/dk = (η²/2B) tr(Σ A_a), the Itô row of the orbit drift; ∇LᵀA_a∇L, which SGD has besides,
    vanishes at a minimum.

    Parameters
    ----------
    problem : Problem
        Without replicates.
    symmetry : Symmetry
        With charges.
    theta : Tensor, shape=(parameter,)
        Any point of the orbit of a converged predictor.
    learning_rate : float
    batch_size : int
    noise_gradients : callable, optional
        Of `label_gradients` or one's own; by default that of minibatches.

    Returns
    -------
    xr.Dataset
        Kind "equilibrium": ``equilibrium_theta``, ``equilibrium_charge`` and ``relaxation_rate``, slowest mode first.

    Raises
    ------
    InputError
        If `theta` is not one finite point, or `symmetry` is None or none.
    SymmetryError
        If the symmetry has no charges.
    RunError
        If no such point is found: the noise may vanish, or drive the charges off to infinity.
    """
    rate = _rate(learning_rate, batch_size)
    orbit = _Orbit(problem, symmetry, theta, noise_gradients)
    # Far out on the orbit the trace saturates and its derivative leads nowhere; the balanced point is not far.
    orbit.start = orbit.symmetry.balance(orbit.start)

    def relative(xi: np.ndarray) -> np.ndarray:
        moved = orbit.point(xi)
        return orbit.trace(moved) / orbit.scale(moved)

    if not orbit.scale(orbit.start) > 0:
        raise RunError("noise_equilibrium: the gradients have no noise at theta, so that every point is an equilibrium")
    found = scipy.optimize.root(relative, np.zeros(len(orbit.basis)), method="hybr", tol=1e-12, options={"factor": 0.5})
    miss = float(np.abs(relative(found.x)).max())
    if not miss < ROOT_TOLERANCE:
        raise RunError(f"noise_equilibrium: tr(Sigma A) stays at {miss:.2g} of tr(Sigma) ({found.message})")
    theta = orbit.point(found.x)

    # Central differences of the trace: the noise may come from a function that has no derivatives of its own.
    step = 1e-5
    shifts = step * np.eye(len(found.x))
    changes = [orbit.trace(orbit.point(found.x + s)) - orbit.trace(orbit.point(found.x - s)) for s in shifts]
    response = np.stack(changes, axis=-1) / (2 * step)
    rates = np.sort(np.linalg.eigvals(-rate * response @ np.linalg.pinv(orbit.charge_derivative(found.x))).real)
    variables = {
        "equilibrium_theta": theta.cpu().numpy(),
        "equilibrium_charge": orbit.symmetry.charge(theta).cpu().numpy(),
        "relaxation_rate": rates,
    }
    return make_dataset("equilibrium", variables, _coords(problem, orbit), _attributes(learning_rate, batch_size))


def predict_relaxation(
    problem: Problem,
    symmetry: Symmetry,
    theta: Tensor,
    steps: Sequence[int],
    *,
    learning_rate: float,
    batch_size: int = 1,
    noise_gradients: NoiseGradients | None = None,
    tolerance: float = 1e-8,
) -> xr.Dataset:
    """Return the charges and the point of the orbit at given steps, the predictor staying where it is.

    dC_a/dk = (η²/2B) tr(Σ A_a) is solved along the orbit, dξ/dk = (∂C/∂ξ)⁻¹ dC/dk, by an adaptive Runge-Kutta method
    of order 5. Fluctuations of the predictor about its minimum, of order η, are left out.

    Parameters
    ----------
    problem, symmetry, theta, learning_rate, batch_size, noise_gradients
        As in `noise_equilibrium`; θ is the start.
    steps : sequence of int
        Increasing, from 0 or later.
    tolerance : float
        Relative error of each step of the solver.

    Returns
    -------
    xr.Dataset
        Kind "equilibrium": ``predicted_charge`` and ``predicted_theta`` by step.

    Raises
    ------
    InputError, SymmetryError
        As `noise_equilibrium`; also if steps do not increase.
    RunError
        If the solver does not reach its tolerance.
    """
    rate = _rate(learning_rate, batch_size)
    orbit = _Orbit(problem, symmetry, theta, noise_gradients)
    times = np.asarray(steps, float)
    if times.ndim != 1 or not len(times) or times[0] < 0 or (np.diff(times) <= 0).any():
        raise InputError(message("steps", "increasing steps from 0 or later", list(steps)[:5], "sort them"))

    def velocity(_: float, xi: np.ndarray) -> np.ndarray:
        return rate * orbit.velocity(orbit.point(xi), xi)

    start, span = np.zeros(len(orbit.basis)), (0.0, float(times[-1]))
    solved = scipy.integrate.solve_ivp(velocity, span, start, t_eval=times, rtol=tolerance, atol=tolerance)
    if not solved.success:
        raise RunError(f"predict_relaxation: {solved.message}")
    path = torch.stack([orbit.point(xi) for xi in solved.y.T])
    variables = {"predicted_charge": orbit.symmetry.charge(path).cpu().numpy(), "predicted_theta": path.cpu().numpy()}
    coords = {**_coords(problem, orbit), "step": np.asarray(steps)}
    return make_dataset("equilibrium", variables, coords, _attributes(learning_rate, batch_size))


def _rate(learning_rate: float, batch_size: int) -> float:
    check_count("batch_size", batch_size)
    return check_positive_number("learning_rate", learning_rate) ** 2 / (2 * batch_size)


def _coords(problem: Problem, orbit: _Orbit) -> dict[str, Sequence[str]]:
    return {"parameter": problem.layout.labels, "charge": orbit.symmetry.charge_labels}


def _attributes(learning_rate: float, batch_size: int) -> dict[str, str | float]:
    return {"equation": EQUATION, "eta": float(learning_rate), "batch_size": batch_size}
