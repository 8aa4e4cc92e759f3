"""Figures of a report: each with a title and a caption, drawn into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from .. import plotting
from ..errors import SdebiasError
from ..prediction import gram_spectrum, split_dynamics
from ..problems import Problem
from ..symmetry import Symmetry

# The split and the spectrum cost a decomposition at each state: these many states show them.
STATES_TRAJECTORIES, STATES_STEPS = 64, 21
# Bands over trajectories are those of at most so many.
BAND_TRAJECTORIES = 2048
SVG_BYTES = 300_000


@dataclass(frozen=True)
class Panel:
    """A figure of the page, or the reason why there is none.

    Parameters
    ----------
    title, caption : str
    image : str
        Data URI; empty where the figure could not be drawn, and `caption` then says why.
    """

    title: str
    caption: str
    image: str = ""


def panel(title: str, caption: str, draw: Callable[[], Figure]) -> Panel:
    """Return a figure as a panel, or a panel that says why it cannot be drawn."""
    try:
        return Panel(title, caption, data_uri(draw()))
    except SdebiasError as error:
        return Panel(title, f"Not drawn: {error}")


def data_uri(figure: Figure) -> str:
    """Return a figure as an image inside a URI: SVG, or PNG where there is much to draw."""
    with mpl.rc_context({"svg.hashsalt": "sdebias"}):
        kind, image = "svg+xml", _saved(figure, format="svg", metadata={"Date": None})
    if len(image) > SVG_BYTES:
        kind, image = "png", _saved(figure, format="png", dpi=150)
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()


def dataset_figures(dataset: xr.Dataset) -> list[Panel]:
    """Return the figure of a dataset that needs nothing else: none where its kind has none."""
    kinds: dict[str, tuple[str, str, Callable[[], Figure]]] = {
        "comparison": (*DRIFT, lambda: plotting.plot_orbit_drift(dataset, stacked=True)),
        "law_comparison": (
            "Law",
            "Histogram of the ensemble with its bootstrap interval, against the predicted density.",
            lambda: plotting.plot_law(dataset),
        ),
        "split": (*MOTION, lambda: plotting.plot_motion(dataset, stacked=True)),
        "landscape": (
            "Landscape",
            "Loss and effective loss over two parameters; lines are orbits.",
            lambda: plotting.plot_landscape(dataset, stacked=True),
        ),
        "spectrum": (*SPECTRUM, lambda: plotting.plot_gram_spectrum(dataset, stacked=True)),
    }
    kind = str(dataset.attrs["kind"])
    return [panel(*kinds[kind])] if kind in kinds else []


def ensemble_figures(
    ensemble: xr.Dataset,
    prediction: xr.Dataset | None,
    model: tuple[Problem, Symmetry | None] | None,
) -> list[Panel]:
    """Return the figures of an ensemble: loss, charges and, where the model is known, motion and Gram spectrum."""
    shown = ensemble.isel(trajectory=slice(BAND_TRAJECTORIES)).load()
    count = f"{shown.sizes['trajectory']} of {ensemble.sizes['trajectory']} trajectories"
    panels = []
    if "loss" in shown:
        caption = f"Loss over all data: median, band of the central 90 %, and single trajectories ({count})."
        panels.append(panel("Loss", caption, lambda: plotting.plot_paths(shown)))
    if "charge_value" in shown:
        few = None if prediction is None else prediction.isel(trajectory=slice(BAND_TRAJECTORIES))
        caption = f"Charges with the smallest and the largest mean change, and evenly ranked ones between ({count})."
        panels.append(panel("Charges", caption, lambda: plotting.plot_charges(shown, few, stacked=True)))
    if model is not None and model[1] is not None and "theta" in shown:
        problem, symmetry = model[0], model[1]
        at = np.unique(np.linspace(0, shown.sizes["step"] - 1, STATES_STEPS).round().astype(int))
        states = shown.isel(trajectory=slice(STATES_TRAJECTORIES), step=at)
        of = f" From {states.sizes['trajectory']} trajectories at {len(at)} steps."
        panels.append(
            panel(
                MOTION[0],
                MOTION[1] + of,
                lambda: plotting.plot_motion(split_dynamics(states, problem, symmetry), stacked=True),
            )
        )
        panels.append(
            panel(
                SPECTRUM[0],
                SPECTRUM[1] + of,
                lambda: plotting.plot_gram_spectrum(gram_spectrum(states, problem, symmetry), stacked=True),
            )
        )
    return panels


DRIFT = (
    "Orbit drift",
    "Above: one point for each charge at the last step, with the interval of the measured mean, on the line of "
    "equality. Below: the drift of some charges over updates, predicted as lines and measured as points.",
)
MOTION = (
    "Along orbits and across them",
    "Length of the drift of the parameters per update, split into the directions along orbits (vertical) and across "
    "them (horizontal), of first and of second order, and the shares of the whole.",
)
SPECTRUM = (
    "Gram spectrum",
    "Eigenvalues of the Gram matrix of the orbits, median and central 90 % of trajectories: how far the group moves "
    "the parameters in each direction.",
)
