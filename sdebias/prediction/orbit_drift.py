"""Predicted drift of charges along symmetry orbits, from the geometry at the stored states.

Nothing here knows how the states were made: the dynamics are read from the attributes of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import OK, PATH, make_dataset, validate
from ..errors import DataError, SymmetryError, check_choice, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.gauge import Matrices, matrix_traces, quadratic_form
from .quadrature import cumulate

# States are evaluated in pieces of this many numbers (128 MiB in float64).
CHUNK_ELEMENTS = 2**24


def predict_orbit_drift(ensemble: xr.Dataset, problem: Problem, symmetry: Symmetry) -> xr.Dataset:
    """Predict how far each charge drifts along each stored trajectory, given its states.

    The rate per update, with A_a the matrix of charge C_a = ½ θᵀA_aθ and Σ the covariance of per-sample gradients, is

    - SGD: (η²/2)[s tr(Σ A_a) + ∇LᵀA_a∇L], exact, with s = 1/B, or (n−B)/(B(n−1)) without replacement;
    - SDE of order 1, minibatch noise (Itô): (η²/2B) tr(Σ A_a);
    - SDE of order 2 adds (η²/2) ∇LᵀA_a∇L, the change that the modified loss makes;
    - isotropic noise: η T tr(A_a) in place of the trace of Σ.

    (arXiv:2601.06597 for the Itô terms; the SGD row follows from expanding C_a(θ − ηg) to its exact second order.)
    The rate is summed over the updates between saves by linear interpolation, corrected by comparison with a grid
    twice as coarse; the size of the correction is reported as ``integration_error``.

    A solver step of dt = 1/substeps adds (dt/2) bᵀA_a b, b the drift of θ, and holds the rate for a step; both are
    predicted apart, as ``finite_step_drift``, since they belong to the Euler solver and not to the SDE.

    Where dynamics draw fresh samples from a stream, gradients and Σ are those of the problem's own pool.

    Parameters
    ----------
    ensemble : xr.Dataset
        With `theta`, from `simulate` or of the same schema.
    problem : Problem
    symmetry : Symmetry
        With charges.

    Returns
    -------
    xr.Dataset
        Kind "prediction": ``predicted_drift`` for each trajectory, step and charge, cumulated from step 0; NaN where
        the states are not finite.

    Raises
    ------
    DataError
        If the dataset has no `theta` or fewer than three saves, or does not fit the problem.
    SymmetryError
        If the symmetry does not fit the problem, or has no charges.
    """
    validate(ensemble, "ensemble")
    symmetry = symmetry.bind(problem)
    if not symmetry.charge_labels:
        raise SymmetryError(f"{symmetry!r}: it has no charges (its group is compact), so there is no drift to predict")
    _check_fit(ensemble, problem)
    law = _law(ensemble.attrs)
    steps = ensemble["step"].values
    theta = torch.as_tensor(ensemble["theta"].values).to(problem.device, problem.dtype)
    matrices = symmetry.charge_matrices(theta)
    rate, temperature = (_per_replicate(ensemble, name, problem) for name in ("learning_rate", "temperature"))

    predicted, corrections, finite = [], [], []
    for piece in theta.split(max(1, CHUNK_ELEMENTS // theta[..., :1, :, :].numel()), dim=-3):
        # Trajectories and steps share one axis, since a problem knows only one beside its replicates.
        points = piece.flatten(-3, -2)
        drift, solver = law.rates(problem, points, matrices, rate, temperature)
        drift, solver = (r.unflatten(-2, piece.shape[-3:-1]).cpu().numpy() for r in (drift, solver))
        total, correction = cumulate(drift, steps, law.unit)
        predicted.append(total)
        corrections.append(correction)
        if law.solver_step:
            starts, _ = cumulate(solver, steps, law.solver_step)
            finite.append(starts + law.solver_step / 2 * (drift[..., :1, :] - drift))

    corrected = xr.DataArray(np.concatenate(corrections, axis=-3), dims=(*_lead(problem), *PATH, "charge"))
    used = ensemble["status"].drop_vars(list(ensemble["status"].coords)) == OK
    variables = {
        "predicted_drift": np.concatenate(predicted, axis=-3),
        "integration_error": np.abs(corrected.where(used).mean("trajectory").values),
    }
    if finite:
        variables["finite_step_drift"] = np.concatenate(finite, axis=-3)
    coords = {name: ensemble[name].values for name in ("replicate", "trajectory", "step") if name in ensemble.coords}
    attributes = {"dynamics": ensemble.attrs["dynamics"], "equation": law.equation}
    if "config_hash" in ensemble.attrs:
        attributes["config_hash"] = ensemble.attrs["config_hash"]
    return make_dataset("prediction", variables, {**coords, "charge": symmetry.charge_labels}, attributes)


class _Law(Protocol):
    """A row of the table of orbit drifts.

    `unit` is the step in updates at whose starts the rate acts; 0 means that it acts all the time. `solver_step` is the
    step of a solver that adds a drift of its own, else 0.
    """

    @property
    def equation(self) -> str: ...

    @property
    def unit(self) -> float: ...

    @property
    def solver_step(self) -> float: ...

    def rates(
        self, problem: Problem, theta: Tensor, matrices: Matrices, rate: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the drift of each charge per update, (..., charge), and what the solver step adds to it."""
        ...


@dataclass(frozen=True)
class _SGDLaw:
    """Exact: C_a(θ − ηg) − C_a(θ) = −η X_a·g + (η²/2) gᵀA_a g, and X_a·g = 0 for every batch gradient g."""

    batch_size: int
    replacement: bool
    unit: float = 1.0
    solver_step: float = 0.0

    @property
    def equation(self) -> str:
        share = "1/B" if self.replacement else "(n-B)/(B(n-1))"
        return f"dC_a/dk = eta^2/2 [{share} tr(Sigma A_a) + grad L^T A_a grad L]"

    def rates(
        self, problem: Problem, theta: Tensor, matrices: Matrices, rate: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, size = problem.n_samples, self.batch_size
        share = 1 / size if self.replacement else (n - size) / (size * max(n - 1, 1))
        trace = problem.gradient_noise_trace(theta, matrices)
        drift = rate**2 / 2 * (share * trace + quadratic_form(matrices, problem.gradient(theta)))
        return drift, torch.zeros_like(drift)


@dataclass(frozen=True)
class _SDELaw:
    """Itô's formula: X_a·b + ½ tr(g gᵀA_a), where X_a·b = 0 at order 1 and (η²/2) ∇LᵀA_a∇L at order 2."""

    noise: str
    batch_size: int
    order: int
    solver_step: float
    unit: float = 0.0

    @property
    def equation(self) -> str:
        noise = "eta^2/(2B) tr(Sigma A_a)" if self.noise == "minibatch" else "eta T tr(A_a)"
        return f"dC_a/dk = {noise}" + (" + eta^2/2 grad L^T A_a grad L" if self.order == 2 else "")

    def rates(
        self, problem: Problem, theta: Tensor, matrices: Matrices, rate: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient = problem.gradient(theta)
        steepest = quadratic_form(matrices, gradient)
        velocity = -rate * gradient
        if self.noise == "minibatch":
            drift = rate**2 / (2 * self.batch_size) * problem.gradient_noise_trace(theta, matrices)
        else:
            drift = (rate * temperature * matrix_traces(matrices)).expand(steepest.shape)
        if self.order == 2:
            drift = drift + rate**2 / 2 * steepest
            velocity = velocity - rate**2 / 2 * problem.hessian_vector_product(theta, gradient)
        return drift, self.solver_step / 2 * quadratic_form(matrices, velocity)


def _law(attributes: Mapping[str, Any]) -> _Law:
    """Return the law of the dynamics that a dataset's attributes name."""
    try:
        name = check_choice("attribute dynamics", str(attributes["dynamics"]), ("SGD", "SGDSDE"), DataError)
        batch_size = int(attributes["batch_size"])
        if name == "SGD":
            return _SGDLaw(batch_size, bool(attributes["replacement"]))
        noise = check_choice("attribute noise", str(attributes["noise"]), ("minibatch", "isotropic"), DataError)
        return _SDELaw(noise, batch_size, int(attributes["order"]), 1 / int(attributes["substeps"]))
    except KeyError as error:
        remedy = "record the dynamics as simulate does"
        raise DataError(message("ensemble", f"an attribute {error}", "none", remedy)) from None


def _check_fit(ensemble: xr.Dataset, problem: Problem) -> None:
    if "theta" not in ensemble or ensemble.sizes["step"] < 3:
        remedy = 'simulate with "theta" in save and a finer save grid'
        got = f"variables {', '.join(map(str, ensemble.data_vars))} at {ensemble.sizes.get('step', 0)} steps"
        raise DataError(message("ensemble", "theta at three or more steps", got, remedy))
    if list(ensemble["parameter"].values) != problem.layout.labels:
        got = f"{ensemble.sizes['parameter']} parameters from {ensemble['parameter'].values[0]}"
        want = f"the {problem.layout.size} parameters of the problem, from {problem.layout.labels[0]}"
        raise DataError(message("ensemble", want, got, "pass the problem that was simulated"))
    if ensemble.sizes.get("replicate") != problem.replicates:
        got = f"{ensemble.sizes.get('replicate')} in the dataset and {problem.replicates} in the problem"
        raise DataError(message("replicates", "the same number", got, "pass the problem that was simulated"))


def _lead(problem: Problem) -> tuple[str, ...]:
    return () if problem.replicates is None else ("replicate",)


def _per_replicate(ensemble: xr.Dataset, name: str, problem: Problem) -> Tensor:
    """Return η or T as a tensor that broadcasts against ([replicate,] point, charge); NaN where there is none."""
    values = ensemble[name].values if name in ensemble else np.nan
    tensor = torch.as_tensor(values).to(problem.device, problem.dtype)
    return tensor[:, None, None] if tensor.ndim else tensor
