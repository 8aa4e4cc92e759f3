"""Extrapolation over substeps, and the SDE that it uncovers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import sdebias as sb
from sdebias.errors import InputError


@pytest.mark.parametrize(("ratio", "order"), [(2, 1), (4, 1), (2, 2)])
def test_it_removes_the_leading_error(ratio: int, order: float) -> None:
    values = [np.array([1.0, 2.0]) + 0.3 * (0.1 / r) ** order for r in (1, ratio)]
    np.testing.assert_allclose(sb.extrapolate(*values, ratio=ratio, order=order), [1, 2], rtol=1e-12)
    labelled = [xr.DataArray(value, dims="charge") for value in values]
    found = sb.extrapolate(*labelled, ratio=ratio, order=order)
    np.testing.assert_allclose(found, [1, 2], rtol=1e-12)
    assert found.dims == ("charge",)
    assert float(abs(sb.extrapolate(*values, ratio=ratio, order=order + 0.1) - [1, 2]).max()) > 1e-5


@pytest.mark.slow
def test_the_extrapolated_sde_follows_the_ito_row(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling
) -> None:
    """Within 1 % of the row, of which the standard error is below 0.5 %, where one substep is more than 10 % off.

    False-alarm rate 3 % for an exact extrapolation, seed fixed; eight substeps without it are more than 1 % off, and so
    is a row that is 10 % larger.
    """
    from experiments.ito_convergence import deviations

    found = deviations(
        problem, symmetry, learning_rate=0.05, trajectories=8192, steps=20, save_every=1, seed=2, substeps=(1, 4, 8)
    )
    coarse, fine = (found["deviation"].sel(substeps=number) for number in (4, 8))
    relative = float(sb.extrapolate(coarse, fine))
    one, four, eight = found["error"].values
    assert float(found["deviation"].sel(substeps=1)) > 0.1 + 4 * one
    assert np.hypot(2 * eight, four) < 0.005
    assert abs(relative) < 0.01
    assert float(fine) > 0.01 + 4 * eight
    assert abs((1 + relative) / 1.1 - 1) > 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [({"ratio": 1}, "ratio: expected a whole number >= 2"), ({"order": 0.0}, "order: expected a positive")],
)
def test_refusals(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sb.extrapolate(1.0, 2.0, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expectations of one shape"):
        sb.extrapolate(np.zeros(2), np.zeros(3))
