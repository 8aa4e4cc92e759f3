"""Gram spectrum: the closed form of rescaling, the orbit volume, flagged trajectories and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import sdebias as sb
from sdebias.errors import DataError


def test_eigenvalues_of_rescaling_are_squared_norms(problem: sb.problems.HadamardRegression) -> None:
    start = torch.tensor([[1.0, 2.0, 0.0, 0.5, 1.0, 0.0]], dtype=torch.float64).expand(4, -1)
    ensemble = sb.simulate(problem, sb.SGD(learning_rate=1e-2), trajectories=4, steps=4, save_every=2, initial=start)
    found = sb.gram_spectrum(ensemble, problem, problem.symmetry())
    p, q = ensemble["theta"].values[..., :3], ensemble["theta"].values[..., 3:]
    expected = -np.sort(-(p**2 + q**2), axis=-1)
    np.testing.assert_allclose(found["gram_eigenvalue"], expected, rtol=1e-12)
    # The third pair starts at the origin, a fixed point of the group, and stays there.
    assert (found["gram_rank"] == 2).all()
    assert found["gram_eigenvalue"].dims == ("trajectory", "step", "direction")


def test_the_product_is_the_orbit_volume(replicated: sb.problems.HadamardRegression) -> None:
    dynamics = sb.SGD(learning_rate=1e-2)
    ensemble = sb.simulate(replicated, dynamics, symmetry=replicated.symmetry(), trajectories=3, steps=4, save_every=2)
    found = sb.gram_spectrum(ensemble, replicated, replicated.symmetry())
    volume = 0.5 * np.log(found["gram_eigenvalue"].values).sum(-1)
    np.testing.assert_allclose(volume, ensemble["log_orbit_volume"], rtol=1e-12)


def test_lazy_states_give_the_same(replicated: sb.problems.HadamardRegression) -> None:
    dynamics = sb.SGD(learning_rate=1e-2)
    ensemble = sb.simulate(replicated, dynamics, symmetry=replicated.symmetry(), trajectories=3, steps=4, save_every=2)
    lazy = sb.gram_spectrum(ensemble.chunk(trajectory=2), replicated, replicated.symmetry())
    assert lazy["gram_eigenvalue"].chunks is not None
    xr.testing.assert_equal(lazy.compute(), sb.gram_spectrum(ensemble, replicated, replicated.symmetry()))


def test_states_that_are_not_finite_have_no_spectrum() -> None:
    rng = np.random.default_rng(0)
    mask = np.ones((3, 3), bool)
    problem = sb.problems.MatrixFactorization(rng.standard_normal((3, 3)), mask, rank=2)
    symmetry = problem.symmetry()
    start = torch.randn(3, problem.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ensemble = sb.simulate(problem, sb.SGD(learning_rate=1e-3), trajectories=3, steps=4, save_every=2, initial=start)
    ensemble["theta"][1, 1:, 0] = np.nan
    found = sb.gram_spectrum(ensemble, problem, symmetry)
    assert found["gram_eigenvalue"][1, 1:].isnull().all()
    assert (found["gram_rank"][1, 1:] == 0).all()
    assert (found["gram_rank"][0] == 4).all()
    with pytest.raises(DataError, match="theta at three or more steps"):
        sb.gram_spectrum(ensemble.drop_vars("theta"), problem, symmetry)
