"""What the figures have in common: colours, letters, panels, bands over trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError, message
from ..schema import OK

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
# Curves of one panel, or panels of one figure: more cannot be told apart.
CURVES = 4
# Letters of a label that a figure has room for.
LONGEST = 24
# Central share of the trajectories that a band holds.
SHARE = 0.9
TAILS = ((1 - SHARE) / 2, 0.5, (1 + SHARE) / 2)


def two_panels(stacked: bool, *, sharey: bool = False) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two panels, side by side or, for a narrow column, one above the other."""
    figure = Figure(figsize=(5.4, 8.6) if stacked else (10, 4.6), layout="constrained")
    shape = (2, 1) if stacked else (1, 2)
    first, second = figure.subplots(*shape, sharey=sharey).flat
    return figure, first, second


def power_of_ten(values: Any) -> float:
    """Return the power of ten of the largest finite size among values; 1 where all are zero."""
    sizes = np.abs(np.asarray(values, float))
    largest = float(sizes[np.isfinite(sizes)].max(initial=0.0))
    return float(10.0 ** np.floor(np.log10(largest))) if largest > 0 else 1.0


def unit(scale: float) -> str:
    """Return what a label says of a scale."""
    return "" if scale == 1 else rf" [$10^{{{round(np.log10(scale))}}}$]"


def dynamics_name(dataset: xr.Dataset) -> str:
    """Return what figures call the dynamics of a dataset."""
    dynamics = str(dataset.attrs.get("dynamics", "unknown"))
    return NAMES.get(dynamics, dynamics)


def short(label: object) -> str:
    """Return a label as figures show it: cut where it is long, and never read as mathematics."""
    text = str(label)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("$", r"\$")


def evenly_ranked(values: np.ndarray, number: int) -> np.ndarray:
    """Return the positions of the largest, the smallest and evenly ranked values between, in rising order."""
    order = np.argsort(values)
    ranks = np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int)
    positions: np.ndarray = order[np.unique(ranks)]
    return positions


def one_replicate(dataset: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Return the first replicate, and what a title says of that."""
    if "replicate" not in dataset.dims:
        return dataset, ""
    return dataset.isel(replicate=0), f", replicate {dataset['replicate'].values[0]}"


def survivors(dataset: xr.Dataset) -> xr.Dataset:
    """Return an ensemble of one replicate without its flagged trajectories.

    Raises
    ------
    DataError
        If none is left.
    """
    kept = dataset.isel(trajectory=np.flatnonzero(dataset["status"].values == OK))
    if not kept.sizes["trajectory"]:
        raise DataError(message("ensemble", "trajectories with status ok", "none", "lower the learning rate"))
    return kept


def quantiles(values: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lower end, median and upper end of the central share of trajectories."""
    lower, middle, upper = values.quantile(TAILS, "trajectory").values
    return lower, middle, upper


def band(
    axes: Axes,
    x: np.ndarray,
    values: xr.DataArray,
    *,
    colour: str,
    line: str = "-",
    label: str = "",
    mean: bool = False,
) -> None:
    """Draw the median over trajectories, or their mean, and the band of the central share of them."""
    lower, middle, upper = quantiles(values)
    axes.fill_between(x, lower, upper, color=colour, alpha=0.22, linewidth=0)
    centre = values.mean("trajectory").values if mean else middle
    axes.plot(x, centre, color=colour, linestyle=line, linewidth=1.5, label=label)


def log_if_wide(axes: Axes, values: Any) -> None:
    """Make the ordinate logarithmic where values are positive and span more than a decade."""
    sizes = np.asarray(values, float)
    sizes = sizes[np.isfinite(sizes)]
    if sizes.min(initial=np.inf) > 0 and sizes.max() > 10 * sizes.min():
        axes.set_yscale("log")
