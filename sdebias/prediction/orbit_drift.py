"""Predicted drift of charges along symmetry orbits, from the geometry at the stored states.

Nothing here knows how the states were made: the dynamics are read from the attributes of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..dataset import make_dataset, validate
from ..problems.base import Problem
from ..schema import OK
from ..symmetry import Symmetry
from ..symmetry.checks import check_charges, check_symmetry
from ..symmetry.gauge import Matrices
from .drift_laws import Law, law_of
from .noise_traces import Covariance
from .quadrature import cumulate
from .states import check_states, map_states, path_dims

# States are evaluated in pieces of this many numbers (8 MiB in float64), which stay in a cache.
CHUNK_ELEMENTS = 2**20
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
    a step: its error is then independent from trajectory to trajectory, and part of the error of a comparison. They
    are the same at every call, and do not depend on how a lazy ensemble is chunked.

    Of a lazy ensemble (dask arrays, in chunks of whole trajectories) the prediction is lazy too; see `map_states`.

    Parameters
    ----------
    ensemble : xr.Dataset
        With `theta`, from `simulate` or of the same schema; may be lazy.
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
    InputError
        If `symmetry` is None or none.
    SymmetryError
        If it does not fit the problem, or has no charges.
    """
    validate(ensemble, "ensemble")
    # A trajectory that has diverged has no prediction, and is no error.
    symmetry = check_charges(check_symmetry(symmetry).bind(problem, validate=False), "there is no drift to predict")
    check_states(ensemble, problem)
    law = law_of(ensemble.attrs, covariance)
    drift = _Drift(
        problem,
        symmetry,
        law,
        ensemble["step"].values,
        ensemble.sizes["trajectory"],
        *(_per_replicate(ensemble, name, problem) for name in ("learning_rate", "temperature")),
    )
    names = ["predicted_drift", *(["finite_step_drift"] if law.solver_step else [])]
    outputs = {name: path_dims(name) for name in names} | {"correction": path_dims("predicted_drift")}
    # Sums over steps are in double precision, whatever the states are in.
    variables = map_states(drift, ensemble, outputs, {"charge": len(symmetry.charge_labels)}, np.float64)
    used = ensemble["status"].variable.compute() == OK
    variables["integration_error"] = abs(variables.pop("correction").where(used).mean("trajectory"))
    coords = {name: ensemble[name].values for name in ("replicate", "trajectory", "step") if name in ensemble.coords}
    attributes = {"dynamics": ensemble.attrs["dynamics"], "equation": law.equation}
    if "config_hash" in ensemble.attrs:
        attributes["config_hash"] = ensemble.attrs["config_hash"]
    return make_dataset("prediction", variables, {**coords, "charge": symmetry.charge_labels}, attributes)


@dataclass(frozen=True)
class _Drift:
    """Drift, [finite step,] and correction of each charge along each trajectory of a block of states.

    Attributes
    ----------
    steps : array, shape=(step,)
    trajectories : int
        Of the whole ensemble.
    rate, temperature : Tensor
        Broadcast against ([replicate,] point, charge); (step, 1) where they change over steps.
    """

    problem: Problem
    symmetry: Symmetry
    law: Law
    steps: np.ndarray
    trajectories: int
    rate: Tensor
    temperature: Tensor

    def __call__(self, theta: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
        problem, law, last = self.problem, self.law, first + theta.shape[-3]
        samples = 1 if problem.stream is None else law.fresh_samples(problem)
        size = max(1, CHUNK_ELEMENTS // (samples * theta[..., :1, :, :].size))
        matrices = self.symmetry.charge_matrices(torch.empty(0, device=problem.device, dtype=problem.dtype))
        pieces = []
        # Pieces are those of the whole ensemble: the fresh samples of a trajectory are the same in every block.
        for start in range(first - first % size, last, size):
            here = slice(max(start, first), min(start + size, last))
            states = theta[..., here.start - first : here.stop - first, :, :]
            # Trajectories and steps share one axis, since a problem knows only one beside its replicates.
            points = torch.tensor(states, device=problem.device, dtype=problem.dtype).flatten(-3, -2)
            drift, solver = (
                rates.unflatten(-2, states.shape[-3:-1]).cpu().numpy()
                for rates in self._mean_rates(points, matrices, self._pools(start, here, size))
            )
            total, correction = cumulate(drift, self.steps, law.unit)
            finite = []
            if law.solver_step:
                starts, _ = cumulate(solver, self.steps, law.solver_step)
                finite = [starts + law.solver_step / 2 * (drift[..., :1, :] - drift)]
            pieces.append((total, *finite, correction))
        return tuple(np.concatenate(parts, axis=-3) for parts in zip(*pieces, strict=True))

    def _pools(self, start: int, here: slice, size: int) -> Iterator[Problem]:
        """Return the problem on fresh samples for each state, several times, or as it is if it has no stream.

        Parameters
        ----------
        start : int
            First trajectory of a piece of `size`, the number of which seeds its samples.
        here : slice
            Trajectories of the piece that are wanted.
        """
        problem, saves = self.problem, len(self.steps)
        if problem.stream is None:
            yield problem
            return
        generator = torch.Generator(problem.device).manual_seed(start // size)
        lead = () if problem.replicates is None else (problem.replicates,)
        points = min(size, self.trajectories - start) * saves
        for _ in range(FRESH_DRAWS):
            drawn = problem.stream.draw((*lead, points, self.law.fresh_samples(problem)), generator)
            wanted = ((here.start - start) * saves, (here.stop - here.start) * saves)
            yield problem.at({name: tensor.narrow(len(lead), *wanted) for name, tensor in drawn.items()})

    def _mean_rates(self, theta: Tensor, matrices: Matrices, pools: Iterator[Problem]) -> tuple[Tensor, Tensor]:
        """Return the rates of the law, averaged over fresh samples where the problem has a stream."""
        law = self.law if self.problem.stream is None else self.law.on_fresh_samples()
        scheduled = self.rate.ndim == 2
        rate = self.rate.repeat(theta.shape[-2] // len(self.steps), 1) if scheduled else self.rate
        found = [law.rates(pool, self.symmetry, theta, matrices, rate, self.temperature) for pool in pools]
        drift, solver = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
        return drift, solver


def _per_replicate(ensemble: xr.Dataset, name: str, problem: Problem) -> Tensor:
    """Return η or T as a tensor, (), (replicate, 1, 1) or (step, 1); NaN where there is none."""
    values = ensemble[name].values if name in ensemble else np.nan
    tensor = torch.as_tensor(values).to(problem.device, problem.dtype)
    if name in ensemble and "step" in ensemble[name].dims:
        return tensor.unsqueeze(-1)
    return tensor[:, None, None] if tensor.ndim else tensor
