"""Shares of the motion along orbits and across them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..dataset import validate
from ..errors import DataError, message
from .style import COLOURS, LINES, STYLE, one_replicate, two_panels

LABELS = {
    "vertical": "first order, along orbits",
    "horizontal": "first order, across orbits",
    "ito_vertical": "second order, along orbits",
    "ito_horizontal": "second order, across orbits",
}
DIRECTIONS = {"along orbits": ["vertical", "ito_vertical"], "across orbits": ["horizontal", "ito_horizontal"]}
# What is smaller than this share of the largest component is rounding, and is said to be zero.
ROUNDING = 1e-12


def plot_motion(split: xr.Dataset, *, stacked: bool = False) -> Figure:
    """Draw how much of the mean motion goes along orbits and how much across them.

    Left: length of each component of the drift per update, averaged over trajectories. Right: the length of the whole
    drift along orbits (vertical + ito_vertical) and of that across them, as shares of their sum.

    Parameters
    ----------
    split : xr.Dataset
        Kind "split", from `sdebias.split_dynamics`; of several replicates the first. Trajectories that are not finite
        throughout are left out.
    stacked : bool
        One panel above the other, for a narrow column.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If the dataset is of another kind, or nothing in it is finite or moves.
    """
    one, which = one_replicate(validate(split, "split"))
    components = one["drift_component"]
    finite = components.notnull().all(("step", "component", "parameter")).values
    components = components.isel(trajectory=np.flatnonzero(finite))
    parts = {label: _length(components.sel(component=[name])) for name, label in LABELS.items()}
    largest = max((float(length.max()) for length in parts.values()), default=np.nan)
    if not largest > 0:
        raise DataError(message("split", "components that move", "none, or none that is finite", "check the run"))
    whole = {label: _length(components.sel(component=names)) for label, names in DIRECTIONS.items()}
    steps, total = components["step"].values, sum(whole.values())
    with mpl.rc_context(STYLE):
        figure, left, right = two_panels(stacked)
        for (label, length), colour, line in zip(parts.items(), COLOURS, LINES, strict=False):
            shown = length.where(length > ROUNDING * largest)
            zero = "" if shown.notnull().any() else " (zero)"
            left.plot(steps, shown, color=colour, linestyle=line, linewidth=1.8, label=label + zero)
        left.set_ylabel("length per update")
        left.set_title(f"Drift of the parameters{which}")
        for (label, length), colour, line in zip(whole.items(), COLOURS, LINES, strict=False):
            # Rounded, since a logarithmic axis tries to show the last digit of what is always 100 %.
            shown = (100 * length / total).where(length > ROUNDING * largest).round(9)
            right.plot(steps, shown, color=colour, linestyle=line, linewidth=1.8, label=label)
        right.set_ylabel("share of the motion [%]")
        right.set_title("Shares of the motion")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xlabel("updates")
        right.legend(loc="center right")
        # The curves of the left panel may lie anywhere on their logarithmic axis.
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower left", ncols=1 if stacked else 2, title=left.get_title())
    return figure


def _length(components: xr.DataArray) -> xr.DataArray:
    """Return the mean over trajectories of the length of the sum of components, by step."""
    vector = components.sum("component")
    return ((vector**2).sum("parameter") ** 0.5).mean("trajectory")
