"""Spectrum of the Gram matrix at the stored states of an ensemble."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..dataset import make_dataset, validate
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.checks import check_symmetry
from ..symmetry.linalg import eigenvalue_cutoff
from .states import check_states, map_states, path_dims

# Gram matrices are formed in pieces of this many numbers (128 MiB in float64).
CHUNK_ELEMENTS = 2**24


def gram_spectrum(ensemble: xr.Dataset, problem: Problem, symmetry: Symmetry) -> xr.Dataset:
    """Return the eigenvalues of the Gram matrix G_ab = ⟨X_a, X_b⟩ of the orbits at each stored state.

    ½ Σ log of the positive ones is the log orbit volume; their number, the rank, is the dimension of the orbit. What
    is zero within rounding (`eigenvalue_cutoff`) is returned as 0.

    Parameters
    ----------
    ensemble : xr.Dataset
        With `theta`, from `simulate` or of the same schema.
    problem : Problem
    symmetry : Symmetry
        Declared or discovered; it need not have charges.

    Returns
    -------
    xr.Dataset
        Kind "spectrum": ``gram_eigenvalue``, the largest first, and ``gram_rank``; NaN, and rank 0, where states are
        not finite.

    Raises
    ------
    DataError
        If the dataset has no `theta`, or does not fit the problem.
    InputError
        If `symmetry` is None or none.
    SymmetryError
        If it does not fit the problem.
    """
    validate(ensemble, "ensemble")
    check_states(ensemble, problem)
    # A trajectory that has diverged has no spectrum, and is no error.
    symmetry = check_symmetry(symmetry).bind(problem, validate=False)
    variables = map_states(
        partial(_spectrum_block, problem, symmetry),
        ensemble,
        {name: path_dims(name) for name in ("gram_eigenvalue", "gram_rank")},
        {"direction": symmetry.dim},
        str(problem.dtype).removeprefix("torch."),
    )
    coords: dict[str, Any] = {
        name: ensemble[name].values for name in ("replicate", "trajectory", "step") if name in ensemble.coords
    }
    coords["direction"] = list(range(1, symmetry.dim + 1))
    return make_dataset("spectrum", variables, coords, {"equation": "eigenvalues of G_ab = <X_a, X_b>"})


def _spectrum_block(
    problem: Problem, symmetry: Symmetry, theta: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and rank at the states of a block, see `map_states`."""
    states = torch.tensor(theta, device=problem.device, dtype=problem.dtype)
    per_trajectory = states[..., :1, :, 0].numel() * symmetry.dim**2
    found = []
    for piece in states.split(max(1, CHUNK_ELEMENTS // per_trajectory), dim=-3):
        values = symmetry.gram_eigenvalues(piece).sort(-1, descending=True).values
        kept = torch.where(values > eigenvalue_cutoff(values), values, 0.0)
        found.append(torch.where(torch.isfinite(piece).all(-1, keepdim=True), kept, torch.nan))
    eigenvalues = torch.cat(found, dim=-3)
    return eigenvalues.cpu().numpy(), (eigenvalues > 0).sum(-1).to(states.dtype).cpu().numpy()
