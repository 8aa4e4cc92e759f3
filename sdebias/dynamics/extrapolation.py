"""Richardson extrapolation: what an expectation would be without the finite step of the solver."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import xarray as xr

from ..errors import InputError, check_count, check_positive_number, message

Expectation = TypeVar("Expectation", float, np.ndarray, xr.DataArray, xr.Dataset)


def extrapolate(coarse: Expectation, fine: Expectation, *, ratio: int = 2, order: float = 1) -> Expectation:
    """Return the limit of an expectation for vanishing solver steps, from two solver steps.

    If E(h) = E(0) + c h^p + …, then (r^p E(h/r) − E(h))/(r^p − 1) = E(0) + … is free of the leading error (Talay and
    Tubaro 1990, whose expansion holds for the weak error of Euler's method with p = 1). With independent ensembles its
    standard error is √(r^{2p} s_fine² + s_coarse²)/(r^p − 1): √5 times that of one for r = 2, p = 1.

    Parameters
    ----------
    coarse, fine : float, array or xarray object
        Means over trajectories, such as ``ens["charge_value"].mean("trajectory")`` or a comparison's ``empirical`` or
        ``deviation``, of the same SDE solved with `ratio` times as many substeps in `fine`.
    ratio : int
        r >= 2, fine substeps divided by coarse ones.
    order : float
        p > 0, the weak order of the solver.

    Returns
    -------
    Same type as the arguments.

    Raises
    ------
    InputError
        If ratio or order is out of range, or the shapes differ.

    Examples
    --------
    >>> extrapolate(1.4, 1.2)
    1.0
    """
    check_count("ratio", ratio, minimum=2)
    factor = ratio ** check_positive_number("order", order)
    if not isinstance(coarse, xr.Dataset) and np.shape(coarse) != np.shape(fine):
        got = f"{np.shape(coarse)} and {np.shape(fine)}"
        raise InputError(message("coarse and fine", "expectations of one shape", got, "save both at the same steps"))
    return (factor * fine - coarse) / (factor - 1)
