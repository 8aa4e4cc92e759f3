"""Sum a rate that is known at the saved steps only, and say how well."""

from __future__ import annotations

import numpy as np


def cumulate(rate: np.ndarray, steps: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Cumulate a rate per update over a save grid.

    Between saves the rate is interpolated linearly. With `unit` u > 0 the result approximates Σ u r(k) over k =
    0, u, 2u, … before each saved step (a solver that evaluates the rate at the start of each of its steps); with u = 0,
    the integral ∫ r dk. An interval of length s then carries the error (s³ − u²s) r''/12, so that comparing two
    intervals with the one that spans both gives an estimate of that error, which is subtracted (Richardson).

    Parameters
    ----------
    rate : array, shape=(..., step, charge)
        At least three steps.
    steps : array of int, shape=(step,)
    unit : float
        Step of the sum, at most the save interval; 0 for an integral.

    Returns
    -------
    total : array, shape=(..., step, charge)
        Zero at the first step.
    correction : array, shape=(..., step, charge)
        What the comparison with the coarser grid changed: a bound on the error where r is smooth.
    """
    lengths = np.diff(steps).astype(float)[:, None]
    left, right = (lengths + unit) / 2, (lengths - unit) / 2
    parts = rate[..., :-1, :] * left + rate[..., 1:, :] * right

    pairs = len(lengths) // 2
    one, two = lengths[0 : 2 * pairs : 2], lengths[1 : 2 * pairs : 2]
    both = one + two
    ends = rate[..., 0 : 2 * pairs + 1 : 2, :]
    coarse = ends[..., :-1, :] * (both + unit) / 2 + ends[..., 1:, :] * (both - unit) / 2
    fine = parts[..., 0 : 2 * pairs : 2, :] + parts[..., 1 : 2 * pairs : 2, :]
    factor = (one**3 + two**3 - unit**2 * both) / (both**3 - one**3 - two**3)
    changes = np.repeat(factor * (fine - coarse) / 2, 2, axis=-2)
    if len(lengths) % 2:
        # The last interval has no partner: it is taken to be as curved as the one before it.
        changes = np.concatenate([changes, changes[..., -1:, :]], axis=-2)

    start = np.zeros_like(rate[..., :1, :])
    correction = np.concatenate([start, np.cumsum(changes, axis=-2)], axis=-2)
    total = np.concatenate([start, np.cumsum(parts, axis=-2)], axis=-2) + correction
    return total, correction
