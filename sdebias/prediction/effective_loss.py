"""Effective loss along predictors, and the force with which noise biases them."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset
from ..errors import InputError, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_symmetry
from .stationary import Measure, Noise, Section, law_equation, log_stationary_density


def effective_loss(
    problem: Problem,
    symmetry: Symmetry,
    section: Section,
    points: Tensor,
    *,
    noise: Noise,
    temperature: float,
    measure: Measure,
) -> xr.Dataset:
    """Return L_eff = −T log density along predictors, and its derivative.

    See `log_stationary_density` for the densities. With soft gauge, length along the slice and no residual compact
    group, L_eff = L + (T/2) log det⟨∇C_a, ∇C_b⟩ = L + T · log_orbit_volume (arXiv:2601.06597). A residual compact
    group, as O(r) in GL(r), lowers L_eff by T times the log of its orbit's volume, which this formula of the paper,
    read with the Gram matrix of the whole group, would add.

    Parameters
    ----------
    problem : Problem
    symmetry : Symmetry
        Declared or discovered.
    section : callable
        Coordinates (point, coordinate) to representatives (point, parameter), differentiable by torch.
    points : Tensor, shape=(point, coordinate)
        Where on the path, or the surface, of predictors.
    noise, temperature, measure
        As in `log_stationary_density`.

    Returns
    -------
    xr.Dataset
        Kind "law": ``effective_loss``, ``predictor_loss``, ``effective_gradient`` = ∂L_eff/∂s and ``bias_force`` =
        −∂(L_eff − L)/∂s by coordinate s; L_eff up to a constant.

    Raises
    ------
    InputError, SymmetryError
        As `log_stationary_density`; also if `points` is not of shape (point, coordinate).
    """
    if points.ndim != 2:
        remedy = "give one row for each point"
        raise InputError(message("points", "shape (point, coordinate)", tuple(points.shape), remedy))
    symmetry = check_symmetry(symmetry).bind(problem)
    with torch.enable_grad():
        places = points.detach().to(problem.device, problem.dtype).requires_grad_(True)
        theta = section(places)
        loss = problem.loss(theta)
        log_density = log_stationary_density(
            problem, symmetry, theta, noise=noise, temperature=temperature, measure=measure
        )
        total = -temperature * log_density
        # Each point depends on its own row only, so that one pass gives every derivative.
        (slope,) = torch.autograd.grad(loss.sum(), places, retain_graph=True)
        (gradient,) = torch.autograd.grad(total.sum(), places)
    variables = {
        "coordinate_value": places.detach().cpu().numpy(),
        "log_density": log_density.detach().cpu().numpy(),
        "predictor_loss": loss.detach().cpu().numpy(),
        "effective_loss": total.detach().cpu().numpy(),
        "effective_gradient": gradient.cpu().numpy(),
        "bias_force": (slope - gradient).cpu().numpy(),
    }
    coords = {"coordinate": [f"s{k}" for k in range(points.shape[-1])]}
    attributes = {"noise": noise, "temperature": float(temperature), "measure": measure}
    equation = f"L_eff = -T log[{law_equation(noise, measure)}]"
    return make_dataset("law", variables, coords, {"equation": equation, **attributes})
