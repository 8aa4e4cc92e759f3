"""Loss and effective loss over two parameters, with orbits and the trajectories that run on them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure

from ..dataset import validate
from ..errors import DataError, InputError, check_choice, message
from .style import COLOURS, MARKERS, STYLE, dynamics_name, one_replicate, short, survivors

SHADES = 14
ORBITS = 9
# Light to dark in one hue: losses rise towards white, so that paths stand out where they end.
MAP = LinearSegmentedColormap.from_list("sdebias", ["#7FA8CC", "#C9DBEA", "#FFFFFF"])
PATH_COLOURS = ("black", COLOURS[1], COLOURS[2], COLOURS[3])
EDGE = 0.02


def plot_landscape(
    landscape: xr.Dataset,
    ensembles: xr.Dataset | Sequence[xr.Dataset] = (),
    *,
    trajectories: int = 3,
    predictor: str | None = None,
    labels: Sequence[str] = (),
    stacked: bool = False,
) -> Figure:
    """Draw loss and effective loss over two parameters, orbits as lines, and trajectories on them.

    Orbits are level lines of the predictor, w = uv = const of a pair for instance; the dashed line is the slice of zero
    charge. The effective loss is a function of the orbit: it changes across level lines and not along them.

    Parameters
    ----------
    landscape : xr.Dataset
        Kind "landscape", from `sdebias.landscape`.
    ensembles : xr.Dataset or sequence of xr.Dataset
        With ``theta``; of several replicates the first. Flagged trajectories are left out.
    trajectories : int
        How many of each ensemble.
    predictor : str, optional
        Label of the predictor whose level lines are drawn; by default the one that varies most.
    labels : sequence of str
        Of the ensembles; by default their dynamics.
    stacked : bool
        One panel above the other, for a narrow column.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a dataset is of another kind, or an ensemble has not the two parameters.
    InputError
        If there is no such predictor, or labels and ensembles differ in number.
    """
    validate(landscape, "landscape")
    several = [ensembles] if isinstance(ensembles, xr.Dataset) else list(ensembles)
    labels = list(labels) or [dynamics_name(one) for one in several]
    if len(labels) != len(several):
        raise InputError(message("labels", f"{len(several)}, one for each ensemble", len(labels), "label each"))
    names = [str(name) for name in landscape["predictor"].values]
    spread = landscape["landscape_predictor"].std(("ordinate", "abscissa"))
    chosen = (
        names[int(spread.argmax("predictor"))] if predictor is None else check_choice("predictor", predictor, names)
    )
    law = f"{str(landscape.attrs['noise']).replace('_', ' ')}, T = {float(landscape.attrs['temperature']):.3g}"
    panels = {
        "landscape_loss": "Loss L",
        "landscape_effective_loss": f"Effective loss, {law}",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 9.8) if stacked else (10, 5.0), layout="constrained")
        shape = (2, 1) if stacked else (1, 2)
        grid = figure.subplots(*shape, sharex=True, sharey=True)
        for axes, (name, title) in zip(grid.flat, panels.items(), strict=True):
            _shades(axes, landscape, name)
            _orbits(axes, landscape, chosen)
            for one, label, colour, marker in zip(several, labels, PATH_COLOURS, MARKERS, strict=False):
                _paths(axes, landscape, one, label, colour, marker, trajectories)
            axes.set_title(title)
            axes.set(xlabel=short(landscape.attrs["abscissa"]), ylabel=short(landscape.attrs["ordinate"]))
            axes.set(xlim=_ends(landscape["abscissa"]), ylim=_ends(landscape["ordinate"]))
        handles, texts = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower left", ncols=2 if stacked else 4)
    return figure


def _ends(axis: xr.DataArray) -> tuple[float, float]:
    return float(axis[0]), float(axis[-1])


def _shades(axes: Axes, landscape: xr.Dataset, name: str) -> None:
    """Fill a loss, in shades of equal area, which show a pole and a plain alike."""
    values = landscape[name]
    levels = np.unique(np.nanquantile(values, np.linspace(0, 1, SHADES + 1)))
    if len(levels) > 1:
        norm = BoundaryNorm(levels, MAP.N)
        axes.contourf(landscape["abscissa"], landscape["ordinate"], values, levels=levels, cmap=MAP, norm=norm)


def _orbits(axes: Axes, landscape: xr.Dataset, predictor: str) -> None:
    """Draw level lines of a predictor, and the slice of zero charge."""
    x, y = landscape["abscissa"], landscape["ordinate"]
    values = landscape["landscape_predictor"].sel(predictor=predictor)
    levels = np.unique(np.quantile(values, np.linspace(EDGE, 1 - EDGE, ORBITS)))
    axes.contour(x, y, values, levels=levels, colors="0.35", linewidths=0.8, linestyles="solid")
    axes.plot([], [], color="0.35", linewidth=0.8, label=f"orbits, {short(predictor)} = const")
    charges = landscape.get("landscape_charge")
    if charges is not None:
        moving = charges.isel(charge=int(charges.std(("ordinate", "abscissa")).argmax("charge")))
        axes.contour(x, y, moving, levels=[0.0], colors=COLOURS[4], linewidths=1.8, linestyles="dashed")
        axes.plot([], [], color=COLOURS[4], linewidth=1.8, linestyle="--", label="slice of zero charge")


def _paths(
    axes: Axes, landscape: xr.Dataset, ensemble: xr.Dataset, label: str, colour: str, marker: str, number: int
) -> None:
    """Draw trajectories in the plane of the two parameters, with their starts and their ends."""
    ends = [landscape.attrs[name] for name in ("abscissa", "ordinate")]
    known = [] if "theta" not in validate(ensemble, "ensemble") else list(ensemble["parameter"].values)
    if not set(ends) <= set(known):
        raise DataError(message("ensemble", f"theta with {' and '.join(ends)}", known or "none", "save theta"))
    one = survivors(one_replicate(ensemble)[0])
    theta = one["theta"].sel(parameter=ends).transpose("trajectory", "step", "parameter").values
    for path in theta[:number]:
        axes.plot(*path.T, color=colour, linewidth=1.1)
        axes.plot(*path[0], "x", color=colour, markersize=7)
        axes.plot(*path[-1], marker, color=colour, markersize=7, markeredgecolor="white")
    axes.plot([], [], marker + "-", color=colour, linewidth=1.1, label=f"{short(label)}: from × to {_name(marker)}")


def _name(marker: str) -> str:
    return {"o": "●", "s": "■", "D": "◆", "^": "▲"}[marker]
