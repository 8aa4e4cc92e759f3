"""Summing a rate over a save grid: exact where it must be, and an honest error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdebias.prediction.quadrature import cumulate

GRIDS = [np.arange(0, 41, 4), np.arange(0, 37, 4), np.array([0, 2, 6, 7, 19, 20, 28])]


@pytest.mark.parametrize("steps", GRIDS[:2], ids=["even", "odd"])
@pytest.mark.parametrize("unit", [1.0, 0.25])
@given(coefficients=st.tuples(*[st.floats(-2, 2)] * 3))
def test_sums_of_quadratic_rates_are_exact(steps: np.ndarray, unit: float, coefficients: tuple[float, ...]) -> None:
    polynomial = np.polynomial.Polynomial(coefficients)
    total, _ = cumulate(polynomial(steps)[:, None], steps, unit)
    fine = np.arange(0, steps[-1], unit)
    exact = [unit * polynomial(fine[fine < step]).sum() for step in steps]
    np.testing.assert_allclose(total[:, 0], exact, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("steps", GRIDS, ids=["even", "odd", "uneven"])
def test_integrals_of_linear_rates_need_no_correction(steps: np.ndarray) -> None:
    total, correction = cumulate(3.0 + 2.0 * steps[:, None].astype(float), steps, 0.0)
    np.testing.assert_allclose(total[:, 0], 3.0 * steps + steps.astype(float) ** 2, atol=1e-10)
    np.testing.assert_allclose(correction, 0, atol=1e-10)


@pytest.mark.parametrize("unit", [0.0, 1.0])
def test_the_correction_bounds_the_error(unit: float) -> None:
    steps = np.arange(0, 201, 10)
    total, correction = cumulate(np.exp(-steps / 40)[:, None], steps, unit)
    fine = np.arange(0, steps[-1], unit or 1e-3)
    exact = (unit or 1e-3) * np.exp(-fine / 40).sum()
    assert abs(total[-1, 0] - exact) < abs(correction[-1, 0])
    assert abs(correction[-1, 0]) < 0.01 * exact


def test_sgd_saved_at_every_step_is_a_plain_sum() -> None:
    rate = np.random.default_rng(0).standard_normal((7, 2))
    total, correction = cumulate(rate, np.arange(7), 1.0)
    np.testing.assert_allclose(total, np.vstack([np.zeros(2), np.cumsum(rate[:-1], axis=0)]), atol=1e-14)
    np.testing.assert_array_equal(correction, 0)
