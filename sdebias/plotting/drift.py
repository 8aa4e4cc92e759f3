"""Measured against predicted orbit drift."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..dataset import validate
from ..errors import InputError, message
from .style import (
    COLOURS,
    CURVES,
    LINES,
    MARKERS,
    STYLE,
    dynamics_name,
    evenly_ranked,
    one_replicate,
    power_of_ten,
    short,
    two_panels,
    unit,
)


def plot_orbit_drift(
    comparison: xr.Dataset | Sequence[xr.Dataset], *, curves: int = CURVES, stacked: bool = False
) -> Figure:
    """Draw measured against predicted orbit drift.

    Left: one point for each charge (and replicate) at the last step, with the interval of the measured mean, on the
    line of equality. Right: the drift over steps of the charges with the largest, the smallest and evenly ranked
    drifts between, predicted as a line and measured as points with intervals.

    Parameters
    ----------
    comparison : xr.Dataset or sequence of xr.Dataset
        Of kind "comparison", of the same charges, one for each dynamics.
    curves : int
        Number of charges on the right.
    stacked : bool
        One panel above the other, for a narrow column.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a dataset is not a comparison.
    InputError
        If there is none.
    """
    comparisons = [comparison] if isinstance(comparison, xr.Dataset) else list(comparison)
    if not comparisons:
        raise InputError(message("comparison", "one or more comparisons", "none", "pass what compare returned"))
    for one in comparisons:
        validate(one, "comparison")
    scale = power_of_ten([float(abs(one["empirical"]).max()) for one in comparisons])
    with mpl.rc_context(STYLE):
        figure, left, right = two_panels(stacked)
        _identity(left, comparisons, scale)
        _over_steps(right, comparisons, scale, curves)
    return figure


def _identity(axes: Axes, comparisons: Sequence[xr.Dataset], scale: float) -> None:
    """Draw measured against predicted at the last step."""
    for one, colour, marker in zip(comparisons, COLOURS, MARKERS, strict=False):
        last = one.isel(step=-1)
        predicted = last["predicted"] + last.get("finite_step", 0)
        measured = last["empirical"].values
        lower, upper = (last["interval"].sel(bound=bound).values for bound in ("lower", "upper"))
        axes.errorbar(
            predicted.values.ravel() / scale,
            measured.ravel() / scale,
            yerr=np.stack([measured - lower, upper - measured]).reshape(2, -1) / scale,
            fmt=marker,
            color=colour,
            markersize=6,
            markerfacecolor="none",
            capsize=3,
            label=f"{dynamics_name(one)}: {one.attrs['verdict']} (p = {float(one['p_value'].min()):.2g})",
        )
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.5", linewidth=1, zorder=0, label="equality")
    axes.set_xlabel(f"predicted change of charge{unit(scale)}")
    axes.set_ylabel(f"measured change of charge{unit(scale)}")
    axes.set_title("Measured against predicted orbit drift")
    axes.legend(
        loc="upper left", title=f"bars: {100 * comparisons[0].attrs['confidence']:g} % intervals", alignment="left"
    )


def _over_steps(axes: Axes, comparisons: Sequence[xr.Dataset], scale: float, curves: int) -> None:
    """Draw the drift over steps: predicted as lines, measured as points with intervals."""
    which = one_replicate(comparisons[0])[1]
    comparisons = [one_replicate(one)[0] for one in comparisons]
    first = comparisons[0]
    drifts = first["predicted"].isel(step=-1).values
    ranked = evenly_ranked(drifts, curves)
    steps = first["step"].values
    shown = np.unique(np.linspace(0, len(steps) - 1, min(11, len(steps))).round().astype(int))[1:]
    for charge, colour in zip(ranked, COLOURS, strict=False):
        for number, one in enumerate(comparisons):
            line = one.isel(charge=charge)
            predicted = line["predicted"] + line.get("finite_step", 0)
            # Side by side, so that the intervals of two dynamics at one step can be told apart.
            shift = (number - (len(comparisons) - 1) / 2) * 0.012 * steps[-1]
            points = line.isel(step=shown)
            lower, upper = (points["interval"].sel(bound=bound) for bound in ("lower", "upper"))
            axes.plot(steps, predicted / scale, color=colour, linewidth=1.2, linestyle=LINES[number % len(LINES)])
            axes.errorbar(
                steps[shown] + shift,
                points["empirical"] / scale,
                yerr=np.stack([points["empirical"] - lower, upper - points["empirical"]]) / scale,
                fmt=MARKERS[number],
                color=colour,
                markersize=4,
                markerfacecolor="none",
                capsize=2,
                linestyle="none",
            )
        label = short(first["charge"].values[charge])
        end = float(first["predicted"].isel(step=-1, charge=charge)) / scale
        axes.annotate(label, (steps[-1], end), xytext=(8, 0), textcoords="offset points", color=colour, va="center")
    for number, one in enumerate(comparisons):
        axes.plot(
            [],
            [],
            color="0.3",
            linestyle=LINES[number % len(LINES)],
            marker=MARKERS[number],
            markerfacecolor="none",
            markersize=4,
            label=dynamics_name(one),
        )
    axes.set_xlabel("updates")
    axes.set_ylabel(f"change of charge{unit(scale)}")
    shown_of = f"{len(ranked)} of {len(drifts)} charges" if len(ranked) < len(drifts) else f"{len(drifts)} charges"
    axes.set_title(f"Orbit drift over updates, {shown_of}{which}")
    axes.legend(loc="lower left", title="lines predicted,\npoints measured", alignment="left")
