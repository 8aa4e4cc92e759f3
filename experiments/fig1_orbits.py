"""Figure 1: the orbits uv = w, the slice u = v through them, and what moves along them.

``python -m experiments.fig1_orbits all`` draws the two panels of the paper, which are closed forms, and a third with
runs on them: gradient descent reaches the orbit of the solution across the orbits and stays where it arrives, SGD then
slides along it to the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.plotting import COLOURS

from .common import Datasets, Experiment, Record, Settings, record, styled

NAME = "fig1_orbits"


@dataclass(frozen=True, kw_only=True)
class Orbits(Settings):
    """Scalar regression f(x) = uvx on `samples` samples; each start is run on every seed."""

    seeds: int = 16
    weights: tuple[float, ...] = (0.45, 0.8, 1.4, 2.3, 3.8, 6.5)
    solution: float = 6.5
    starts: tuple[tuple[float, float], ...] = ((8.0, 0.3), (0.3, 7.0), (5.5, 0.2))
    samples: int = 64
    label_noise: float = 8.0
    learning_rate: float = 2e-3
    steps: int = 10_000
    save_every: int = 50


def simulate(settings: Orbits) -> Datasets:
    """Run gradient descent and SGD with one sample an update from every start, and predict the drift of the charge."""
    rng = np.random.default_rng(settings.seed)
    X = rng.standard_normal((settings.seeds, settings.samples, 1))
    noise = rng.standard_normal((settings.seeds, settings.samples))
    # Orthogonal to the inputs, so that every seed has the same solution.
    noise -= X[..., 0] * ((noise * X[..., 0]).sum(-1) / (X[..., 0] ** 2).sum(-1))[:, None]
    problem = sb.problems.HadamardRegression(X, settings.solution * X[..., 0] + settings.label_noise * noise)
    starts = torch.tensor(settings.starts, dtype=problem.dtype).expand(settings.seeds, -1, -1)
    dynamics = {
        "gradient_descent": sb.SGD(
            learning_rate=settings.learning_rate, batch_size=settings.samples, replacement=False
        ),
        "sgd": sb.SGD(learning_rate=settings.learning_rate, batch_size=1),
    }
    runs = {
        name: sb.simulate(
            problem,
            one,
            symmetry=problem.symmetry(),
            trajectories=len(settings.starts),
            steps=settings.steps,
            save_every=settings.save_every,
            seed=settings.seed,
            initial=starts,
        )
        for name, one in dynamics.items()
    }
    return {**runs, "sgd_prediction": sb.predict_orbit_drift(runs["sgd"], problem, problem.symmetry())}


def _orbits(axes: Axes, weights: Sequence[float], title: str) -> None:
    """Draw uv = w, 0.02 ≤ u, v ≤ 10."""
    u = np.linspace(0.02, 10, 4000)
    for weight in weights:
        kept = u[(weight / u >= 0.02) & (weight / u <= 10)]
        axes.plot(kept, weight / kept, color=COLOURS[0], linewidth=1.2)
    axes.set(xlim=(0, 10), ylim=(0, 10), xlabel="u", ylabel="v", aspect="equal", xticks=(0, 5, 10), yticks=(0, 5, 10))
    axes.set_title(title, fontsize="medium")


def draw(settings: Orbits, datasets: Datasets) -> Figure:
    """Draw the panels of the paper and the runs of the first seed."""
    figure = styled(3.0)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, title in zip(panels, ("a  orbits uv = w", "b  slice u = v", "c  runs on orbits"), strict=True):
        _orbits(axes, settings.weights, title)
    for axes in panels[1:]:
        axes.plot([0, 10], [0, 10], color=COLOURS[1], linestyle="--", linewidth=1.6)
    panels[1].annotate("χ(u, v)", (8.0, 8.0), xytext=(4.6, 8.6), color=COLOURS[1])
    styles = {"sgd": ("0.45", 0.7, "SGD"), "gradient_descent": ("black", 1.6, "gradient descent")}
    for name, (colour, width, label) in styles.items():
        paths = datasets[name]["theta"].isel(replicate=0).values
        for path in paths:
            panels[2].plot(*path.T, color=colour, linewidth=width, zorder=3)
            panels[2].plot(*path[-1], "o", color=colour, markersize=5, zorder=4)
        panels[2].plot([], [], color=colour, linewidth=width, label=label)
    panels[2].plot(*np.transpose(settings.starts), "x", color="black", markersize=5, label="start")
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def caption(settings: Orbits, datasets: Datasets) -> str:
    """Return what the figure shows."""
    return (
        "**Figure 1: orbits.** (a) Orbits uv = w of the rescaling (u, v) → (cu, v/c), for w = "
        f"{', '.join(map(str, settings.weights))}. (b) The slice u = v meets each orbit once. (c) Beyond the paper: "
        "from the same starts, gradient descent crosses the orbits until it meets that of the solution, "
        f"w = {settings.solution:g}, and stays where it arrives; SGD with one sample an update slides along it to the "
        "slice. Paths of seed 0. The charge ½(u² − v²), 0 on the slice, is what gradient flow keeps; how much of it "
        "SGD keeps is predicted from the gradient noise on its path (RESULTS.md)."
    )


def records(settings: Orbits, datasets: Datasets) -> list[Record]:
    """Return how far from the slice runs end, in units of the start's distance, by its charge ½(u² − v²)."""
    found = []
    for name, label in (("gradient_descent", "gradient descent"), ("sgd", "SGD")):
        start, end = _charges(datasets[name]["charge_value"])
        found.append(record(f"share of the charge that {label} keeps", np.median(end / start, axis=-1)))
    drift = _charges(datasets["sgd_prediction"]["predicted_drift"])[1]
    found.append(record("share of the charge that SGD keeps, predicted", np.median(1 + drift / start, axis=-1)))
    return found


def _charges(values: xr.DataArray) -> np.ndarray:
    """Return the only charge at the first and at the last step, shape (2, seed, start)."""
    ends: np.ndarray = values.isel(charge=0, step=[0, -1]).transpose("step", "replicate", "trajectory").values
    return ends


EXPERIMENT = Experiment(
    name=NAME,
    scales={"smoke": Orbits(seeds=4, steps=1_000), "paper": Orbits()},
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
