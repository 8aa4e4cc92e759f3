"""Spectrum of the Gram matrix of the orbits along an ensemble."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..dataset import validate
from ..errors import DataError, message
from .style import (
    COLOURS,
    CURVES,
    LINES,
    MARKERS,
    SHARE,
    STYLE,
    band,
    log_if_wide,
    one_replicate,
    quantiles,
    two_panels,
)


def plot_gram_spectrum(spectrum: xr.Dataset, *, curves: int = CURVES, stacked: bool = False) -> Figure:
    """Draw the eigenvalues of the Gram matrix G_ab = ⟨X_a, X_b⟩: how far the group moves the parameters.

    Left: the spectrum at the first and the last step, median and central 90 % of trajectories. Right: the largest, the
    smallest and evenly ranked eigenvalues over updates. An eigenvalue that goes to zero is an orbit that collapses:
    parameters close to a stabilizer, as where a unit dies or a feature is dropped.

    Parameters
    ----------
    spectrum : xr.Dataset
        Kind "spectrum", from `sdebias.gram_spectrum`; of several replicates the first.
    curves : int
        Eigenvalues on the right.
    stacked : bool
        One panel above the other, for a narrow column.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If the dataset is of another kind, or no eigenvalue is positive.
    """
    one, which = one_replicate(validate(spectrum, "spectrum"))
    finite = one["gram_eigenvalue"].notnull().all(("step", "direction")).values
    values = one["gram_eigenvalue"].isel(trajectory=np.flatnonzero(finite))
    if not (values > 0).any():
        raise DataError(message("spectrum", "positive eigenvalues", "none", "start away from the origin"))
    # Directions that no orbit has, as those of a stabilizer, are not shown.
    values = values.isel(direction=np.flatnonzero((values > 0).any(("trajectory", "step"))))
    steps, number = values["step"].values, values["direction"].values
    ranked = np.unique(np.linspace(0, len(number) - 1, min(curves, len(number))).round().astype(int))
    with mpl.rc_context(STYLE):
        figure, left, right = two_panels(stacked)
        for at, colour, marker in ((0, COLOURS[1], MARKERS[1]), (-1, COLOURS[0], MARKERS[0])):
            lower, middle, upper = quantiles(values.isel(step=at))
            shift = 0.12 * (1 if at else -1)
            left.vlines(number + shift, lower, upper, color=colour, linewidth=3, alpha=0.35)
            left.plot(number + shift, middle, marker, color=colour, markersize=5, label=f"update {steps[at]}")
        left.set_xlabel("eigenvalue, by size")
        left.set_title(f"Spectrum of the Gram matrix{which}")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.legend(title=f"median and {100 * SHARE:g} % of\ntrajectories", alignment="left")
        for at, colour, line in zip(ranked, COLOURS, LINES, strict=False):
            band(right, steps, values.isel(direction=at), colour=colour, line=line, label=f"number {number[at]}")
        right.set_xlabel("updates")
        right.set_title("Eigenvalues over updates")
        right.legend()
        for axes in (left, right):
            log_if_wide(axes, values)
            axes.set_ylabel("eigenvalue of G")
    return figure
