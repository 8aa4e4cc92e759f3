"""Spectrum of the Gram matrix at the stored states of an ensemble."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from ..dataset import make_dataset, validate
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.linalg import eigenvalue_cutoff
from .orbit_drift import CHUNK_ELEMENTS, _check_fit


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
    SymmetryError
        If the symmetry does not fit the problem.
    """
    validate(ensemble, "ensemble")
    # A trajectory that has diverged has no spectrum, and is no error.
    symmetry = symmetry.bind(problem, validate=False)
    _check_fit(ensemble, problem)
    theta = torch.as_tensor(ensemble["theta"].values).to(problem.device, problem.dtype)
    per_trajectory = theta[..., :1, :, 0].numel() * symmetry.dim**2
    found = []
    for piece in theta.split(max(1, CHUNK_ELEMENTS // per_trajectory), dim=-3):
        finite = torch.isfinite(piece).all(-1, keepdim=True)
        values = symmetry.gram_eigenvalues(piece).sort(-1, descending=True).values
        kept = torch.where(values > eigenvalue_cutoff(values), values, 0.0)
        found.append(torch.where(finite, kept, torch.nan))
    eigenvalues = torch.cat(found, dim=-3)
    variables = {
        "gram_eigenvalue": eigenvalues.cpu().numpy(),
        "gram_rank": (eigenvalues > 0).sum(-1).cpu().numpy(),
    }
    coords: dict[str, Any] = {
        name: ensemble[name].values for name in ("replicate", "trajectory", "step") if name in ensemble.coords
    }
    coords["direction"] = list(range(1, symmetry.dim + 1))
    return make_dataset("spectrum", variables, coords, {"equation": "eigenvalues of G_ab = <X_a, X_b>"})
