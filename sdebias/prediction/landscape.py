"""Loss and effective loss over a plane of two parameters: what the picture of orbits needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset
from ..errors import InputError, check_choice, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_symmetry
from .stationary import Measure, Noise, law_equation, log_stationary_density


def landscape(
    problem: Problem,
    symmetry: Symmetry,
    axes: Mapping[str, Any],
    *,
    noise: Noise,
    temperature: float,
    measure: Measure,
    base_point: Tensor | None = None,
) -> xr.Dataset:
    """Return loss, effective loss, predictors and charges over a plane of two parameters.

    The effective loss is that of the orbit: L_eff(θ) = −T log density at the balanced point of the orbit through θ, so
    that it is constant along orbits as the loss is. With the soft gauge and length along the slice it is L + (T/2) log
    det G there (arXiv:2601.06597); see `log_stationary_density` for the other laws. It is NaN where the orbit has lower
    dimension than elsewhere on the plane, as at uv = 0 of w = uv, where the law has a pole or a zero.

    Parameters
    ----------
    problem : Problem
        Without replicates.
    symmetry : Symmetry
    axes : mapping of str to 1-D array
        Labels of two parameters, such as ``"p[0]"``, with increasing values: abscissa and ordinate.
    noise, temperature, measure
        As in `log_stationary_density`.
    base_point : Tensor, shape=(parameter,), optional
        Values of the other parameters, where there are more than two.

    Returns
    -------
    xr.Dataset
        Kind "landscape": ``landscape_loss``, ``landscape_effective_loss``, ``landscape_predictor`` and, where the
        symmetry has charges, ``landscape_charge``, over ordinate and abscissa; their labels are attributes.

    Raises
    ------
    InputError
        If the axes are not two parameters with three or more increasing values each, the base point does not fit, the
        problem has replicates, or as `log_stationary_density`.
    SymmetryError
        If the symmetry does not fit, or as `log_stationary_density`.
    """
    if problem.replicates is not None:
        got = f"{problem.replicates} replicates"
        raise InputError(message("problem", "a problem without replicates", got, "draw each replicate apart"))
    symmetry = check_symmetry(symmetry).bind(problem)
    labels, (abscissa, ordinate) = list(axes), _grids(problem, axes)
    theta = _plane(problem, base_point, labels, abscissa, ordinate)
    balanced = symmetry.balance(theta)
    rank = symmetry.rank(balanced)
    free = rank == rank.max()
    density = torch.full_like(theta[:, 0], torch.nan)
    density[free] = log_stationary_density(
        problem, symmetry, balanced[free], noise=noise, temperature=temperature, measure=measure
    )
    variables = {
        "landscape_loss": problem.loss(theta),
        "landscape_effective_loss": -temperature * density,
        "landscape_predictor": problem.predictor(theta),
    }
    coords: dict[str, Any] = {"abscissa": abscissa.cpu().numpy(), "ordinate": ordinate.cpu().numpy()}
    coords["predictor"] = problem.predictor_labels
    if symmetry.charge_labels:
        variables["landscape_charge"] = symmetry.charge(theta)
        coords["charge"] = symmetry.charge_labels
    shape = (len(ordinate), len(abscissa))
    arrays = {name: values.detach().unflatten(0, shape).cpu().numpy() for name, values in variables.items()}
    attributes = {"abscissa": labels[0], "ordinate": labels[1], "noise": noise, "measure": measure}
    equation = f"L_eff = -T log[{law_equation(noise, measure)}]"
    return make_dataset(
        "landscape", arrays, coords, {**attributes, "temperature": float(temperature), "equation": equation}
    )


def _grids(problem: Problem, axes: Mapping[str, Any]) -> list[Tensor]:
    """Return the values of both axes.

    Raises
    ------
    InputError
        If they are not two parameters with increasing values.
    """
    if len(axes) != 2:
        raise InputError(message("axes", "two parameters", f"{len(axes)}", "give {label: values, label: values}"))
    grids = []
    for label, values in axes.items():
        check_choice("axes", label, problem.layout.labels)
        grid = torch.as_tensor(values, dtype=problem.dtype, device=problem.device)
        if grid.ndim != 1 or len(grid) < 3 or not bool(torch.isfinite(grid).all()) or bool((grid.diff() <= 0).any()):
            got = f"shape {tuple(grid.shape)}" if grid.ndim != 1 else f"{len(grid)} values that are not all so"
            want = "three or more increasing finite values"
            raise InputError(message(f"axes[{label!r}]", want, got, "for instance numpy.linspace(-2, 2, 101)"))
        grids.append(grid)
    return grids


def _plane(
    problem: Problem, base_point: Tensor | None, labels: list[str], abscissa: Tensor, ordinate: Tensor
) -> Tensor:
    """Return the points of the plane, shape (point, parameter), rows of the ordinate one after the other."""
    size = problem.layout.size
    start = torch.zeros(size) if base_point is None and size == 2 else base_point
    if start is None or start.shape != (size,):
        got = "none" if start is None else tuple(start.shape)
        raise InputError(message("base_point", f"shape ({size},)", got, "give one value for each parameter"))
    theta = start.to(problem.device, problem.dtype).repeat(len(ordinate) * len(abscissa), 1)
    y, x = torch.meshgrid(ordinate, abscissa, indexing="ij")
    for label, values in zip(labels, (x, y), strict=True):
        theta[:, problem.layout.labels.index(label)] = values.flatten()
    return theta
