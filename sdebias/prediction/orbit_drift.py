"""Predicted drift of charges along symmetry orbits, from the geometry at the stored states.

Nothing here knows how the states were made: the dynamics are read from the attributes of the dataset.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import OK, PATH, make_dataset, validate
from ..errors import DataError, SymmetryError, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.gauge import Matrices
from .drift_laws import Law, law_of
from .noise_traces import Covariance
from .quadrature import cumulate

# States are evaluated in pieces of this many numbers (128 MiB in float64).
CHUNK_ELEMENTS = 2**24
# Fresh draws for each state: their noise stays well below that of the dynamics, which draw once for each update.
FRESH_DRAWS = 4


def predict_orbit_drift(
    ensemble: xr.Dataset, problem: Problem, symmetry: Symmetry, *, covariance: Covariance | None = None
) -> xr.Dataset:
    """Predict how far each charge drifts along each stored trajectory, given its states.

    The rate per update, with A_a the matrix of charge C_a = ½ θᵀA_aθ and Σ the covariance of per-sample gradients, is

    - SGD: (η²/2)[s tr(Σ A_a) + ∇LᵀA_a∇L], exact, with s = 1/B, or (n−B)/(B(n−1)) without replacement;
    - SDE of order 1, minibatch noise (Itô): (η²/2) s tr(Σ A_a);
    - SDE of order 2 adds (η²/2) ∇LᵀA_a∇L, the change that the modified loss makes;
    - label noise of standard deviation s_y: s_y² mean_i ∇f_i∇f_iᵀ in place of Σ, and s = 1/B; diagonal noise: the
      diagonal of Σ; Gaussian noise: the given covariance;
    - isotropic noise: η T tr(A_a) in place of the trace of Σ;
    - horizontal noise: A_a is replaced by P_H A_a P_H in these traces;
    - weight decay γ and gauge stiffness κ, V = (γ/2)‖θ‖² + (κ/2)‖C − level‖²: −η ∇C_a·∇V more, which is −2ηγ C_a and
      −ηκ Σ_b ∇C_a·∇C_b (C_b − level_b); SGD then has ∇(L + V) in its second-order term, which makes decay alone
      −(2ηγ − η²γ²) C_a; the SDE of order 2 has −(η²/2) ∇C_a·∇²(L + V)∇(L + V);
    - a scheduled learning rate: η is that of the step.

    (arXiv:2601.06597 for the Itô terms; the SGD row follows from expanding C_a(θ − ηg) to its exact second order.)
    The rate is summed over the updates between saves by linear interpolation, corrected by comparison with a grid
    twice as coarse; the size of the correction is reported as ``integration_error``.

    A solver step of dt = 1/substeps adds (dt/2) bᵀA_a b, b the drift of θ, and holds the rate for a step; both are
    predicted apart, as ``finite_step_drift``, since they belong to the Euler solver and not to the SDE.

    Where dynamics draw fresh samples from a stream, so does the prediction, as many for each state as the dynamics for
    a step: its error is then independent from trajectory to trajectory, and part of the error of a comparison.

    Parameters
    ----------
    ensemble : xr.Dataset
        With `theta`, from `simulate` or of the same schema.
    problem : Problem
    symmetry : Symmetry
        With charges; that of the dynamics, where noise or gauge depend on one.
    covariance : callable, optional
        That of the noise, where it was `noise.gaussian`: a file does not keep it.

    Returns
    -------
    xr.Dataset
        Kind "prediction": ``predicted_drift`` for each trajectory, step and charge, cumulated from step 0; NaN where
        the states are not finite.

    Raises
    ------
    DataError
        If the dataset has no `theta` or fewer than three saves, or does not fit the problem, or the covariance of
        Gaussian noise is missing.
    SymmetryError
        If the symmetry does not fit the problem, or has no charges.
    """
    validate(ensemble, "ensemble")
    # A trajectory that has diverged has no prediction, and is no error.
    symmetry = symmetry.bind(problem, validate=False)
    if not symmetry.charge_labels:
        raise SymmetryError(f"{symmetry!r}: it has no charges (its group is compact), so there is no drift to predict")
    _check_fit(ensemble, problem)
    law = law_of(ensemble.attrs, covariance)
    steps = ensemble["step"].values
    theta = torch.as_tensor(ensemble["theta"].values).to(problem.device, problem.dtype)
    matrices = symmetry.charge_matrices(theta)
    temperature = _per_replicate(ensemble, "temperature", problem)

    predicted, corrections, finite = [], [], []
    generator = torch.Generator(problem.device).manual_seed(0)
    samples = 1 if problem.stream is None else law.fresh_samples(problem)
    for piece in theta.split(max(1, CHUNK_ELEMENTS // (samples * theta[..., :1, :, :].numel())), dim=-3):
        # Trajectories and steps share one axis, since a problem knows only one beside its replicates.
        points = piece.flatten(-3, -2)
        rate = _per_replicate(ensemble, "learning_rate", problem, trajectories=piece.shape[-3])
        drift, solver = _mean_rates(law, problem, symmetry, points, matrices, rate, temperature, generator)
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


def _mean_rates(
    law: Law,
    problem: Problem,
    symmetry: Symmetry,
    theta: Tensor,
    matrices: Matrices,
    rate: Tensor,
    temperature: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the rates of a law, averaged over fresh samples where the problem has a stream."""
    if problem.stream is None:
        return law.rates(problem, symmetry, theta, matrices, rate, temperature)
    shape = (*theta.shape[:-1], law.fresh_samples(problem))
    pools = (problem.at(problem.stream.draw(shape, generator)) for _ in range(FRESH_DRAWS))
    law = law.on_fresh_samples()
    found = [law.rates(pool, symmetry, theta, matrices, rate, temperature) for pool in pools]
    drift, solver = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
    return drift, solver


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


def _per_replicate(ensemble: xr.Dataset, name: str, problem: Problem, trajectories: int = 1) -> Tensor:
    """Return η or T as a tensor that broadcasts against ([replicate,] point, charge); NaN where there is none."""
    values = ensemble[name].values if name in ensemble else np.nan
    tensor = torch.as_tensor(values).to(problem.device, problem.dtype)
    if name in ensemble and "step" in ensemble[name].dims:
        return tensor.repeat(trajectories).unsqueeze(-1)
    return tensor[:, None, None] if tensor.ndim else tensor
