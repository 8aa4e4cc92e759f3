"""Charges over updates: measured, with what the prediction says of each trajectory."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..comparison import CONFIDENCE
from ..dataset import validate
from ..errors import DataError, message
from .style import (
    COLOURS,
    CURVES,
    SHARE,
    STYLE,
    band,
    dynamics_name,
    evenly_ranked,
    one_replicate,
    quantiles,
    short,
    survivors,
)

# Points with error bars on one curve.
POINTS = 11


def plot_charges(
    ensemble: xr.Dataset, prediction: xr.Dataset | None = None, *, panels: int = CURVES, stacked: bool = False
) -> Figure:
    """Draw charges over updates: their mean with its 95 % interval, and the spread of trajectories.

    With a prediction, the band holds the central 90 % of the charges that it gives to the trajectories, C_i(0) +
    predicted drift_i (and what the solver's finite step adds), and the line is their mean; dashed lines bound the
    same share of the measured ones. The two widths need not agree: the prediction is of the drift, to which gradient
    noise along ∇C adds a martingale (SGD's second order in η, isotropic noise). Without one, the band is measured.

    Parameters
    ----------
    ensemble : xr.Dataset
        Kind "ensemble", with ``charge_value``; of several replicates the first. Flagged trajectories are left out.
    prediction : xr.Dataset, optional
        Kind "prediction", of this ensemble.
    panels : int
        Charges, those with the largest and the smallest mean change and evenly ranked ones between.
    stacked : bool
        Panels one above the other, for a narrow column.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a dataset is of another kind, has no charges or no trajectory with status ok, or the two do not belong
        together.
    """
    if "charge_value" not in validate(ensemble, "ensemble"):
        remedy = "simulate with a symmetry, and charge_value in save"
        raise DataError(message("ensemble", "charge_value", "a dataset without", remedy))
    one, which = one_replicate(ensemble)
    kept = survivors(one)
    measured = kept["charge_value"]
    expected = None if prediction is None else _expected(measured, prediction)
    means = measured.mean("trajectory")
    shown = evenly_ranked((means.isel(step=-1) - means.isel(step=0)).values, panels)
    columns = 1 if stacked or len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    size = (5.4, 1.2 + 2.6 * rows) if columns == 1 else (10, 1.0 + 2.9 * rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, charge, colour in zip(grid.flat, shown, COLOURS, strict=False):
            selected = None if expected is None else expected.isel(charge=charge)
            _panel(axes, measured.isel(charge=charge), selected, colour)
            axes.set_title(short(measured["charge"].values[charge]))
        for axes in grid[-1]:
            axes.set_xlabel("updates")
        for axes in grid[:, 0]:
            axes.set_ylabel("charge")
        total = measured.sizes["charge"]
        title = f"{dynamics_name(ensemble)}: {len(shown)} of {total} charges{which}"
        # One legend for all panels, whose colours differ.
        figure.legend(
            handles=_legend(expected is not None),
            loc="outside upper left",
            ncols=columns,
            title=title,
            alignment="left",
        )
    return figure


def _expected(measured: xr.DataArray, prediction: xr.Dataset) -> xr.DataArray:
    """Return the charges that the prediction gives to the trajectories."""
    prediction = one_replicate(validate(prediction, "prediction"))[0]
    for name in ("trajectory", "step", "charge"):
        if not np.isin(measured[name].values, prediction[name].values).all():
            want = f"a prediction with the {name} labels of the ensemble"
            raise DataError(message("prediction", want, "others", "predict from this ensemble"))
    drift = prediction["predicted_drift"] + prediction.get("finite_step_drift", 0)
    return measured.isel(step=0, drop=True) + drift.sel({name: measured[name] for name in measured.dims})


def _panel(axes: Axes, measured: xr.DataArray, expected: xr.DataArray | None, colour: str) -> None:
    """Draw one charge."""
    steps = measured["step"].values
    if expected is None:
        band(axes, steps, measured, colour=colour, mean=True)
    else:
        band(axes, steps, expected, colour=colour, mean=True)
        lower, _, upper = quantiles(measured)
        for end in (lower, upper):
            axes.plot(steps, end, color="0.25", linestyle="--", linewidth=1)
    at = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    points, count = measured.isel(step=at), measured.sizes["trajectory"]
    spread = points.std("trajectory", ddof=1) if count > 1 else 0 * points.isel(trajectory=0)
    half = spread / np.sqrt(count) * scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, max(count - 1, 1))
    axes.errorbar(
        steps[at],
        points.mean("trajectory").values,
        yerr=half.values,
        fmt="o",
        color="0.15",
        markersize=4,
        markerfacecolor="white",
        capsize=2,
        linestyle="none",
    )


def _legend(predicted: bool) -> list[Artist]:
    """Return what the legend shows, in grey."""
    mean = Line2D([], [], color="0.15", marker="o", markerfacecolor="white", markersize=4, linestyle="none")
    mean.set_label(f"measured mean, {100 * CONFIDENCE:g} % interval")
    share, which = f"{100 * SHARE:g} % of trajectories", "predicted" if predicted else "measured"
    line = Line2D([], [], color="0.4", linewidth=1.5, label="predicted mean")
    filled = Patch(color="0.4", alpha=0.22, linewidth=0, label=f"{share}, {which}")
    dashed = Line2D([], [], color="0.25", linestyle="--", linewidth=1, label=f"{share}, measured")
    return [mean, line, filled, dashed] if predicted else [mean, filled]
