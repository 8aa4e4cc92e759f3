"""Stationary law on the quotient: three noise models, three laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset
from ..errors import InputError, SymmetryError, check_choice, check_finite, check_positive, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.action import forward_derivative
from ..symmetry.checks import acts_by_isometries, check_symmetry
from ..symmetry.linalg import eigenvalue_cutoff, log_pseudo_determinant, symmetric_eigen
from .nodes import Nodes

Noise: TypeAlias = Literal["soft_gauge", "isotropic", "horizontal"]
Measure: TypeAlias = Literal["predictor", "slice", "quotient"]
Section: TypeAlias = Callable[[Tensor], Tensor]
"""A representative θ of each predictor: coordinates (point, coordinate) to θ (point, parameter)."""

VOLUMES: dict[str, str] = {
    "soft_gauge": "vol(compact orbit) det<grad C_a, grad C_b>^(-1/2)",
    "isotropic": "vol(orbit)",
    "horizontal": "1",
}
REFERENCES: dict[str, str] = {
    "predictor": "det(J_F J_F^T)^(-1/2) with respect to dq",
    "slice": "with respect to length along the slice",
    "quotient": "with respect to the Riemannian volume of the quotient",
}
# A charge off its level by more than this share of ½‖θ‖² says that a point is not on the balanced slice.
BALANCE_TOLERANCE = 1e-6


def law_equation(noise: Noise, measure: Measure) -> str:
    """Return the formula of a law, as its datasets quote it."""
    check_choice("noise", noise, tuple(VOLUMES))
    check_choice("measure", measure, tuple(REFERENCES))
    return f"exp(-L/T) {VOLUMES[noise]} {REFERENCES[measure]}"


def log_stationary_density(
    problem: Problem,
    symmetry: Symmetry,
    theta: Tensor,
    *,
    noise: Noise,
    temperature: float,
    measure: Measure,
) -> Tensor:
    """Return the logarithm of the stationary density at the predictors of θ, not normalised, shape (point,).

    Dynamics dθ = −∇L dt + √(2T) dW. With respect to the Riemannian volume of the quotient the density is

    - ``"soft_gauge"``: e^{−L/T} · vol(residual compact orbit) · det⟨∇C_a, ∇C_b⟩^{−1/2}, charges held at their level by
      a stiff potential (arXiv:2601.06597: conditioning on the slice);
    - ``"isotropic"``: e^{−L/T} · vol(orbit), for a compact group of isometries, without gauge;
    - ``"horizontal"``: e^{−L/T}, noise projected by P_H (Menon, Stromme, Vacher 2026), where it keeps the charges.

    Volumes of orbits are up to constants. dq = det(J_F J_Fᵀ)^{1/2} times that volume; where predictor coordinates are
    redundant, dq is the volume of the manifold of predictors and the determinant leaves zeros out. On the balanced
    slice, horizontal vectors are tangent to it, so that length along the slice, the residual compact group divided
    out, is that volume; elsewhere there is no slice and the measure is refused.

    Parameters
    ----------
    problem : Problem
        Without replicates.
    symmetry : Symmetry
        Bound to the problem; the vertical space should be that of all of F's fibers.
    theta : Tensor, shape=(point, parameter)
        Where the noise keeps the representative: balanced for the soft gauge, else where charges settle.
    noise : {"soft_gauge", "isotropic", "horizontal"}
    temperature : float
        T, in units of the loss.
    measure : {"predictor", "slice", "quotient"}
        Reference measure.

    Raises
    ------
    InputError
        If a choice is unknown, T is not positive, a point is not finite, or it is not balanced where it must be.
    SymmetryError
        If isotropic noise is asked for where the group is not one of isometries: there is no such stationary law.
    """
    equation = law_equation(noise, measure)
    check_positive("temperature", temperature)
    if problem.replicates is not None:
        got = f"{problem.replicates} replicates"
        raise InputError(message("problem", "a problem without replicates", got, "predict each replicate apart"))
    if noise == "isotropic" and not acts_by_isometries(check_symmetry(symmetry)):
        charges = bool(symmetry.charge_labels)
        remedy = 'hold the charges with noise="soft_gauge"' if charges else "such noise has no stationary law here"
        raise SymmetryError(
            message("noise", "a compact group of isometries for isotropic noise", f"{symmetry!r}", remedy)
        )
    check_finite("theta", problem.check_theta(theta), InputError)
    if "C_a" in equation or measure == "slice":
        _check_balanced(symmetry, theta)

    value = -problem.loss(theta) / temperature
    if noise == "isotropic":
        value = value + symmetry.log_orbit_volume(theta)
    elif noise == "soft_gauge":
        value = value + symmetry.log_orbit_volume(theta, "compact")
        if symmetry.charge_labels:
            value = value - symmetry.log_orbit_volume(theta, "noncompact")
    return value - _log_volume(predictor_jacobian(problem, theta)) if measure == "predictor" else value


def stationary_law(
    problem: Problem,
    symmetry: Symmetry,
    section: Section,
    nodes: Nodes,
    *,
    noise: Noise,
    temperature: float,
    measure: Measure,
    log_jacobian: Callable[[Tensor], Tensor] | None = None,
) -> xr.Dataset:
    """Return the normalised stationary law of the predictors that a section runs through.

    See `log_stationary_density` for the laws. Expectations are sums, ``(law.probability * f).sum("point")``. The law
    is that on the region of the nodes.

    Parameters
    ----------
    problem : Problem
    symmetry : Symmetry
    section : callable
        Coordinates (point, coordinate) to representatives (point, parameter), differentiable by torch.
    nodes : PanelQuadrature or ImportanceSampling
    noise, temperature, measure
        As in `log_stationary_density`.
    log_jacobian : callable, optional
        log of the volume, in `measure`, of all predictors with given coordinates, per unit of these, shape (point,), up
        to a constant: for coordinates that are fewer than the dimensions of the quotient, such as the singular values
        of a matrix. By default the volume is computed from the section's derivative.

    Returns
    -------
    xr.Dataset
        Kind "law".

    Raises
    ------
    InputError
        As `log_stationary_density`; also if the normalisation is not within the tolerance of the nodes.
    SymmetryError
        If the coordinates are fewer than the dimensions of the quotient and no `log_jacobian` is given.
    """
    symmetry = check_symmetry(symmetry).bind(problem)
    points, log_weights = (t.to(problem.device, problem.dtype) for t in nodes.nodes())
    theta = section(points).detach()
    log_density = log_stationary_density(
        problem, symmetry, theta, noise=noise, temperature=temperature, measure=measure
    )
    volume = log_jacobian(points) if log_jacobian else _section_volume(problem, symmetry, section, points, measure)
    attributes = {"noise": noise, "temperature": float(temperature), "measure": measure}
    return assemble_law(nodes, points, log_density, volume, log_weights, law_equation(noise, measure), attributes)


def assemble_law(
    nodes: Nodes,
    points: Tensor,
    log_density: Tensor,
    log_volume: Tensor,
    log_weights: Tensor,
    equation: str,
    attributes: Mapping[str, str | float],
) -> xr.Dataset:
    """Normalise a density at nodes and return it as a dataset of kind "law".

    Raises
    ------
    InputError
        If the density is not a number at some node, or the error of its integral exceeds the tolerance.
    """
    log_masses = (log_density + log_volume + log_weights).detach().cpu()
    if bool(torch.isnan(log_masses).any()) or not bool(torch.isfinite(log_masses).any()):
        remedy = "leave out singular points, as predictors of zero"
        raise InputError(message("law", "densities that are numbers", "NaN, or 0 everywhere", remedy))
    error, normaliser = nodes.error(log_masses), log_masses.logsumexp(0)
    if error > nodes.tolerance:
        remedy = "use more panels or samples, a better proposal, or keep away from points where the law diverges"
        raise InputError(message("law", f"a normalisation within {nodes.tolerance:g}", f"{error:.2g}", remedy))
    log_probability = log_masses - normaliser
    variables = {
        "coordinate_value": points.cpu().numpy(),
        "log_density": log_density.detach().cpu().numpy(),
        "probability_density": (log_probability - log_weights.cpu()).exp().numpy(),
        "probability": log_probability.exp().numpy(),
        "normalisation_error": error,
    }
    coords = {"coordinate": list(nodes.coordinates)}
    return make_dataset("law", variables, coords, {"equation": equation, **attributes})


def predictor_jacobian(problem: Problem, theta: Tensor) -> Tensor:
    """Return J_F = ∂q/∂θ, shape (point, predictor, parameter), by one reverse pass for each predictor."""
    return torch.func.vmap(torch.func.jacrev(problem.predictor))(theta)


def _log_volume(rows: Tensor) -> Tensor:
    """Return ½ log pdet(R Rᵀ) for R of shape (point, rows, columns), shape (point,)."""
    gram = rows @ rows.mT
    values, vectors = symmetric_eigen(gram)
    return 0.5 * log_pseudo_determinant(gram, values > eigenvalue_cutoff(values), vectors)


def _section_volume(problem: Problem, symmetry: Symmetry, section: Section, points: Tensor, measure: Measure) -> Tensor:
    """Return log of the reference measure per unit of the coordinates, shape (point,)."""
    eye = torch.eye(points.shape[-1], dtype=points.dtype, device=points.device)
    tangents = torch.stack([forward_derivative(section, points, unit.expand_as(points).clone()) for unit in eye], -2)
    theta = section(points).detach()
    jacobian = predictor_jacobian(problem, theta)
    dimension = int(torch.linalg.matrix_rank(jacobian[:1] @ jacobian[:1].mT))
    moved = tangents @ jacobian.mT
    if dimension != points.shape[-1]:
        want = f"{dimension} coordinates, the dimension of the quotient"
        remedy = "give as many, or the volume of the others as log_jacobian"
        raise SymmetryError(message("section", want, points.shape[-1], remedy))
    if measure == "predictor":
        return _log_volume(moved)
    return _log_volume(symmetry.horizontal_projection(tangents, theta.unsqueeze(-2).expand_as(tangents)))


def _check_balanced(symmetry: Symmetry, theta: Tensor) -> None:
    if not symmetry.charge_labels:
        return
    theta = theta.detach()
    missing = (symmetry.charge(theta) - symmetry.gauge_level(theta)).abs().amax(-1)
    relative = float((missing / (0.5 * theta.square().sum(-1))).max())
    if relative > BALANCE_TOLERANCE:
        got = f"a charge off its level by {relative:.2g} of the squared norm"
        raise InputError(message("section", "balanced points", got, "compose the section with symmetry.balance"))
