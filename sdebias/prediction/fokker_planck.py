"""Stationary Fokker-Planck equation in one coordinate, for noise that depends on the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy.integrate
import torch
import xarray as xr

from ..errors import InputError, RunError, SymmetryError, message
from ..problems.base import Problem
from .gradient_noise import NoiseGradients, projected_coefficients
from .nodes import PanelQuadrature
from .stationary import Section, assemble_law

Coefficient: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A function of the coordinate, shape (point,) to (point,)."""

EQUATION = "p = (1/D) exp(integral of b/D) for dq = b dt + sqrt(2 D) dW with zero flux"
# How many octaves towards an end of the support say how the density behaves there.
OCTAVES = 20
# A density that falls as 1/distance has no integral; the margin is what rounding may hide.
MARGIN = 1e-3


def stationary_fokker_planck(
    drift: Coefficient,
    diffusion: Coefficient,
    nodes: PanelQuadrature,
    *,
    support: tuple[float, float],
    tolerance: float = 1e-10,
) -> xr.Dataset:
    """Return the stationary law of dq = b(q) dt + √(2D(q)) dW (Itô) without flux: p ∝ (1/D) exp ∫ b/D.

    The integral is solved by an adaptive Runge-Kutta method of order 8, the normalisation by Gauss-Legendre panels. The
    law is that on the window of the nodes; which window does not matter for the ratio of two densities.

    Parameters
    ----------
    drift, diffusion : callable
        b and D as functions of q, shape (point,) to (point,); D > 0 within the support.
    nodes : PanelQuadrature
        Of one coordinate.
    support : tuple of float
        Ends of the whole range of q, infinite or finite; a finite end where D > 0 reflects.
    tolerance : float
        Relative error of ∫ b/D, on each step of the solver.

    Returns
    -------
    xr.Dataset
        Kind "law", with respect to dq.

    Raises
    ------
    InputError
        If the law has no normalisation on the support, since p falls no faster than 1/distance towards an end; if D is
        not positive on the window, or the window is not within the support.
    RunError
        If the solver does not reach its tolerance.
    """
    if len(nodes.coordinates) != 1:
        raise InputError(message("nodes", "one coordinate", nodes.coordinates, "reduce the law to one first"))
    edges = np.asarray(next(iter(nodes.edges.values())), float)
    lower, upper = map(float, support)
    if not lower <= edges[0] < edges[-1] <= upper:
        got = f"[{edges[0]:g}, {edges[-1]:g}] and ({lower:g}, {upper:g})"
        raise InputError(message("support", "one that holds the window of the nodes", got, "widen the support"))
    points, log_weights = nodes.nodes()
    places = points[:, 0].numpy()
    values = diffusion(places)
    if not (values > 0).all():
        got = f"{values.min():g} at {places[values.argmin()]:g}"
        raise InputError(message("diffusion", "positive values on the window", got, "narrow the window"))

    def slope(q: float, _: np.ndarray) -> np.ndarray:
        at = np.array([q])
        return drift(at) / diffusion(at)

    def potential(start: float, stops: np.ndarray) -> np.ndarray:
        options = {"method": "DOP853", "rtol": tolerance, "atol": tolerance}
        solved = scipy.integrate.solve_ivp(slope, (start, stops[-1]), [0.0], t_eval=stops, **options)
        if not solved.success:
            raise RunError(f"stationary_fokker_planck: the integral of b/D failed: {solved.message}")
        return solved.y[0]

    middle = (edges[0] + edges[-1]) / 2
    for end, sign in ((lower, -1.0), (upper, 1.0)):
        if math.isinf(end):
            near, far = (middle + sign * (edges[-1] - edges[0]) * 2.0**k for k in (OCTAVES - 1, OCTAVES))
        else:
            near, far = (end - sign * (edges[-1] - edges[0]) * 2.0**-k for k in (OCTAVES - 1, OCTAVES))
        change, _ = scipy.integrate.quad(lambda q: slope(q, places)[0], near, far)
        ratio = diffusion(np.array([near]))[0] / diffusion(np.array([far]))[0]
        # p ~ distance^power; its integral towards infinity wants power < −1, towards a finite end power > −1.
        power = (change + math.log(ratio)) / math.log(2) * (1 if math.isinf(end) else -1)
        if (power > -1 - MARGIN) if math.isinf(end) else (power < -1 + MARGIN):
            got = f"p ~ distance^{power:.3g} towards {end:g}"
            remedy = "there is no stationary law: less noise, a confining loss, or a narrower support"
            raise InputError(message("law", "a density with a finite integral", got, remedy))

    log_density = torch.from_numpy(potential(places[0], places) - np.log(values))
    attributes = {"support": f"{lower:g}, {upper:g}", "measure": "predictor"}
    volume = torch.zeros_like(log_density)
    return assemble_law(nodes, points, log_density, volume, log_weights, EQUATION, attributes)


def fokker_planck_coefficients(
    problem: Problem,
    section: Section,
    noise_gradients: NoiseGradients,
    *,
    learning_rate: float,
    batch_size: int = 1,
) -> tuple[Coefficient, Coefficient]:
    """Return drift and diffusion, per update, of the one predictor coordinate of a problem under SGD's SDE.

    The section says where on its orbit the noise keeps each predictor q: the balanced points, if tr(Σ A_a) vanishes
    there or a stiff gauge holds them. See `projected_coefficients`.

    Parameters
    ----------
    problem : Problem
        With one predictor coordinate.
    section : callable
        q, shape (point, 1), to θ, shape (point, parameter).
    noise_gradients : callable
        `minibatch_gradients(problem)`, `label_gradients(problem, s)`, or any other.
    learning_rate : float
    batch_size : int

    Raises
    ------
    SymmetryError
        If the problem has more predictor coordinates.
    """
    if len(problem.predictor_labels) != 1:
        got = f"{len(problem.predictor_labels)} coordinates"
        raise SymmetryError(message("problem", "one predictor coordinate", got, "use projected_coefficients"))

    def evaluate(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = section(torch.as_tensor(q, dtype=problem.dtype, device=problem.device).unsqueeze(-1))
        drift, diffusion = projected_coefficients(
            problem, theta, noise_gradients, learning_rate=learning_rate, batch_size=batch_size
        )
        return drift[:, 0].cpu().numpy(), diffusion[:, 0, 0].cpu().numpy()

    return lambda q: evaluate(q)[0], lambda q: evaluate(q)[1]
