"""Figures from comparisons of orbit drift and of laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .dataset import validate
from .errors import DataError, InputError, message

# Okabe and Ito's palette, distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P")
NAMES = {"SGD": "SGD", "SGDSDE": "SDE"}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
CURVES = 4


def plot_orbit_drift(comparison: xr.Dataset | Sequence[xr.Dataset], *, curves: int = CURVES) -> Figure:
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
    scale = _scale(comparisons)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _identity(left, comparisons, scale)
        _over_steps(right, comparisons, scale, curves)
    return figure


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


def _scale(comparisons: Sequence[xr.Dataset]) -> float:
    """Return the power of ten in which drifts are shown."""
    largest = max(float(abs(one["empirical"]).max()) for one in comparisons)
    return 10.0 ** np.floor(np.log10(largest)) if largest > 0 else 1.0


def _unit(scale: float) -> str:
    return "" if scale == 1 else rf" [$10^{{{round(np.log10(scale))}}}$]"


def _name(comparison: xr.Dataset) -> str:
    dynamics = str(comparison.attrs["dynamics"])
    return NAMES.get(dynamics, dynamics)


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
            label=f"{_name(one)}: {one.attrs['verdict']} (p = {float(one['p_value'].min()):.2g})",
        )
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.5", linewidth=1, zorder=0, label="equality")
    axes.set_xlabel(f"predicted change of charge{_unit(scale)}")
    axes.set_ylabel(f"measured change of charge{_unit(scale)}")
    axes.set_title("Measured against predicted orbit drift")
    axes.legend(
        loc="upper left", title=f"bars: {100 * comparisons[0].attrs['confidence']:g} % intervals", alignment="left"
    )


def _over_steps(axes: Axes, comparisons: Sequence[xr.Dataset], scale: float, curves: int) -> None:
    """Draw the drift over steps: predicted as lines, measured as points with intervals."""
    replicated = "replicate" in comparisons[0].dims
    if replicated:
        comparisons = [one.isel(replicate=0) for one in comparisons]
    first = comparisons[0]
    order = np.argsort(first["predicted"].isel(step=-1).values)
    ranks = np.unique(np.linspace(0, len(order) - 1, min(curves, len(order))).round().astype(int))
    steps = first["step"].values
    shown = np.unique(np.linspace(0, len(steps) - 1, min(11, len(steps))).round().astype(int))[1:]
    for charge, colour in zip(order[ranks], COLOURS, strict=False):
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
        label = str(first["charge"].values[charge])
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
            label=_name(one),
        )
    axes.set_xlabel("updates")
    axes.set_ylabel(f"change of charge{_unit(scale)}")
    which = ", replicate 0" if replicated else ""
    shown_of = f"{len(ranks)} of {len(order)} charges" if len(ranks) < len(order) else f"{len(order)} charges"
    axes.set_title(f"Orbit drift over updates, {shown_of}{which}")
    axes.legend(loc="lower left", title="lines predicted,\npoints measured", alignment="left")
