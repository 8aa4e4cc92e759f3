"""Histogram of an ensemble against predicted densities."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..dataset import validate
from ..errors import DataError, InputError, message
from .style import COLOURS, LINES, STYLE


def plot_law(law: xr.Dataset | Sequence[xr.Dataset], *, label: str = "coordinate") -> Figure:
    """Draw the histogram of an ensemble against predicted densities, as a posterior predictive check.

    Above: measured density with its bootstrap interval over trajectories, and each predicted density averaged over the
    bins. Below: measured over predicted less one, with the same interval.

    Parameters
    ----------
    law : xr.Dataset or sequence of xr.Dataset
        Of kind "law_comparison", of the same samples and one prediction each; the histogram is the first's.
    label : str
        Of the coordinate.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a dataset is not a comparison with a prediction.
    InputError
        If there is none.
    """
    laws = [law] if isinstance(law, xr.Dataset) else list(law)
    if not laws:
        raise InputError(message("law", "one or more comparisons", "none", "pass what compare_law returned"))
    for one in laws:
        if "bin_probability" not in validate(one, "law_comparison"):
            raise DataError(message("law", "a comparison with a prediction", "two samples", "use compare_law"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        edges, widths = _bins(laws[0])
        lower, upper = (laws[0]["bin_interval"].sel(bound=bound).values / widths for bound in ("lower", "upper"))
        confidence = f"{100 * laws[0].attrs['confidence']:g} %"
        above.stairs(upper, edges, baseline=lower, fill=True, color="0.8", label=f"measured, {confidence} interval")
        above.stairs(laws[0]["bin_probability"].values / widths, edges, color="0.3", linewidth=1, label="measured")
        for one, colour, line in zip(laws, COLOURS, LINES, strict=False):
            edges, widths = _bins(one)
            predicted = one["bin_predicted"].values
            low, high, middle = (
                100 * (values / predicted - 1)
                for values in (*one["bin_interval"].transpose("bound", "bin").values, one["bin_probability"].values)
            )
            name = f"{one.attrs['prediction']}: KL = {float(one['kl']):.2g}, {one.attrs['verdict']}"
            above.stairs(predicted / widths, edges, color=colour, linewidth=1.6, linestyle=line, label=name)
            below.stairs(high, edges, baseline=low, fill=True, color=colour, alpha=0.25)
            below.stairs(middle, edges, color=colour, linewidth=1, linestyle=line, baseline=None)
        below.axhline(0, color="0.5", linewidth=1)
        above.set_ylim(bottom=0)
        above.set_ylabel("density, given the interval")
        # Densities fill their panel, whatever their shape: the legend stands outside.
        figure.legend(
            *above.get_legend_handles_labels(),
            loc="outside upper left",
            title="Measured and predicted law",
            alignment="left",
        )
        below.set_xlabel(label)
        below.set_ylabel("deviation [%]")
    return figure


def _bins(law: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and widths of the bins."""
    edges = np.append(law["bin_lower"].values, law["bin_upper"].values[-1])
    return edges, np.diff(edges)
