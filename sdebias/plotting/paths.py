"""One observable over updates: loss, orbit volume."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..dataset import validate
from ..errors import DataError, check_choice, message
from ..schema import PATH
from .style import COLOURS, SHARE, STYLE, band, dynamics_name, log_if_wide, one_replicate, survivors


def plot_paths(ensemble: xr.Dataset, name: str = "loss", *, trajectories: int = 8) -> Figure:
    """Draw an observable of the ensemble over updates: median, central 90 % of trajectories, and a few of them.

    Parameters
    ----------
    ensemble : xr.Dataset
        Kind "ensemble"; of several replicates the first. Flagged trajectories are left out.
    name : str
        A variable over trajectory and step, such as ``loss`` or ``log_orbit_volume``.
    trajectories : int
        How many single trajectories to draw.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        If there is no such variable.
    DataError
        If the dataset is of another kind, or no trajectory has status ok.
    """
    validate(ensemble, "ensemble")
    names = [str(n) for n, v in ensemble.data_vars.items() if set(PATH) <= set(v.dims) <= {"replicate", *PATH}]
    if not names:
        raise DataError(message("ensemble", "a variable over trajectory and step", "none", "save the loss"))
    check_choice("name", name, names)
    one, which = one_replicate(ensemble)
    values = survivors(one)[name].transpose(*PATH)
    steps = values["step"].values
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        axes = figure.subplots()
        few = np.unique(np.linspace(0, values.sizes["trajectory"] - 1, trajectories).round().astype(int))
        axes.plot(steps, values.isel(trajectory=few).values.T, color="0.55", linewidth=0.6)
        axes.plot([], [], color="0.55", linewidth=0.6, label="single trajectories")
        shown = f"median and {100 * SHARE:g} % of {values.sizes['trajectory']} trajectories"
        band(axes, steps, values, colour=COLOURS[0], label=shown)
        log_if_wide(axes, values)
        attributes = values.attrs
        axes.set_xlabel("updates")
        axes.set_ylabel(str(attributes.get("long_name", name)))
        axes.set_title(f"{dynamics_name(ensemble)}: {attributes.get('long_name', name)}{which}")
        axes.legend(loc="best")
    return figure
