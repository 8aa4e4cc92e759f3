"""Beyond the paper: one loss, four noises, a law for each.

``python -m experiments.beyond_three_laws all`` holds ensembles of w = uv with L = ½(w − 1)² under four noises against
the stationary law predicted for each of them, and against those of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.plotting import COLOURS, LINES, MARKERS
from sdebias.prediction import PanelQuadrature, fokker_planck_coefficients, label_gradients, minibatch_gradients

from .common import Datasets, Experiment, Record, Settings, record, styled

NAMES = {
    "soft_gauge": "isotropic, soft gauge",
    "horizontal": "horizontal",
    "label": "label noise",
    "minibatch": "minibatch",
}
WINDOW = (0.5, 2.0)
BINS = 20


@dataclass(frozen=True, kw_only=True)
class Laws(Settings):
    """Each seed is an ensemble of `trajectories`; states are taken every `save_every` updates after `warmup`.

    Of the two samples, x² = 1 ± `contrast` and xy = 1, so that the minibatch gradient in w has the deviation
    `contrast` · w. Rate and label noise follow from T: η s² = 2T = η contrast².
    """

    seeds: int = 16
    trajectories: int = 1024
    temperature: float = 0.1
    contrast: float = 0.9
    stiffness: float = 40.0
    substeps: int = 32
    gauge_substeps: int = 128
    warmup: int = 24
    steps: int = 40
    save_every: int = 4

    @property
    def learning_rate(self) -> float:
        """η at which minibatch noise at the minimum has temperature T."""
        return 2 * self.temperature / self.contrast**2


def toy(settings: Laws) -> sb.Problem:
    """Return w = pq with L = ½(w − 1)² up to a constant, on two samples."""
    x = np.sqrt(1 + settings.contrast * np.array([[1.0], [-1.0]]))
    return sb.problems.HadamardRegression(x, 1 / x[:, 0], initial={"p": 1.0, "q": 1.0})


def section(w: Tensor) -> Tensor:
    """Return the balanced factors (√w, √w) of w > 0, where each of the four noises keeps them."""
    return w.sqrt().expand(-1, 2)


def predict(settings: Laws) -> dict[str, xr.Dataset]:
    """Return the four laws on the window."""
    problem, rate, temperature = toy(settings), settings.learning_rate, settings.temperature
    symmetry = sb.symmetry.Rescaling("p", "q")
    nodes = PanelQuadrature({"w": np.linspace(*WINDOW, 31).tolist()})
    laws = {
        noise: sb.stationary_law(
            problem, symmetry, section, nodes, noise=noise, temperature=temperature, measure="predictor"
        )
        for noise in ("soft_gauge", "horizontal")
    }
    rows = {"label": label_gradients(problem, settings.contrast), "minibatch": minibatch_gradients(problem)}
    for noise, gradients in rows.items():
        coefficients = fokker_planck_coefficients(problem, section, gradients, learning_rate=rate)
        laws[noise] = sb.stationary_fokker_planck(*coefficients, nodes, support=(0, math.inf))
    return laws


def simulate(settings: Laws) -> Datasets:
    """Run the SDE with each noise, and gradient descent; store the predicted laws beside them."""
    problem = toy(settings).replicate(settings.seeds)
    symmetry = sb.symmetry.Rescaling("p", "q")
    common: dict[str, Any] = {"learning_rate": settings.learning_rate, "substeps": settings.substeps}
    isotropic = sb.noise.isotropic(settings.temperature)
    dynamics: dict[str, sb.SGD | sb.SGDSDE] = {
        "soft_gauge": sb.SGDSDE(
            noise=isotropic,
            gauge_stiffness=settings.stiffness,
            learning_rate=settings.learning_rate,
            substeps=settings.gauge_substeps,
        ),
        "horizontal": sb.SGDSDE(noise=sb.noise.horizontal(isotropic), **common),
        "label": sb.SGDSDE(noise=sb.noise.label(settings.contrast), **common),
        "minibatch": sb.SGDSDE(noise="minibatch", **common),
        "descent": sb.SGD(learning_rate=settings.learning_rate, batch_size=2, replacement=False),
    }
    runs = {
        name: sb.simulate(
            problem,
            one,
            symmetry=symmetry,
            trajectories=settings.trajectories,
            steps=settings.warmup + settings.steps,
            save_every=settings.save_every,
            seed=settings.seed,
            save=["predictor_value"],
        )
        for name, one in dynamics.items()
    }
    return runs | {f"predicted_{name}": law for name, law in predict(settings).items()}


def samples(settings: Laws, run: xr.Dataset) -> xr.DataArray:
    """Return w after the warm-up, dims replicate, trajectory, step."""
    values = run["predictor_value"].isel(predictor=0).sel(step=slice(settings.warmup, None))
    return values.transpose("replicate", "trajectory", "step")


def density(law: xr.Dataset) -> xr.DataArray:
    """Return the density over its coordinate w."""
    w = law["coordinate_value"].isel(coordinate=0).values
    return xr.DataArray(law["probability_density"].values, dims="w", coords={"w": w})


def pooled(settings: Laws, run: xr.Dataset, law: xr.Dataset) -> xr.Dataset:
    """Return the comparison of all seeds together with a law."""
    values = samples(settings, run)
    together = xr.DataArray(values.values.reshape(-1, values.sizes["step"]), dims=("trajectory", "step"))
    return sb.compare_law(together, density(law), bins=BINS, resamples=2)


def divergences(settings: Laws, run: xr.Dataset, law: xr.Dataset) -> list[float]:
    """Return KL(measured ‖ law) of each seed."""
    return [float(sb.compare_law(one, density(law), bins=BINS, resamples=2)["kl"]) for one in samples(settings, run)]


def draw(settings: Laws, datasets: Datasets) -> Figure:
    """Draw measured and predicted densities, and the divergence of every ensemble from every law."""
    figure = styled(3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    table = np.empty((len(NAMES), len(NAMES)))
    for row, (name, label) in enumerate(NAMES.items()):
        for column, other in enumerate(NAMES):
            law = pooled(settings, datasets[name], datasets[f"predicted_{other}"])
            table[row, column] = float(law["kl"])
            if name == other:
                edges = np.append(law["bin_lower"].values, law["bin_upper"].values[-1])
                measured = law["bin_probability"].values / np.diff(edges)
                left.plot((edges[1:] + edges[:-1]) / 2, measured, MARKERS[row], color=COLOURS[row], markersize=3)
        predicted = density(datasets[f"predicted_{name}"])
        left.plot(predicted["w"], predicted, color=COLOURS[row], linestyle=LINES[row], label=label)
    left.set(xlabel="predictor w = uv", ylabel="density on the window", title="a  the noise decides")
    left.legend()
    shown = np.log10(np.maximum(table, 1e-5))
    right.imshow(shown, cmap="cividis", vmin=-5, vmax=0)
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if shown[row, column] < -2.5 else "black"
        right.text(column, row, f"{value:.0e}", ha="center", va="center", color=colour, fontsize="small")
    short = ["soft\ngauge", "horiz.", "label", "mini-\nbatch"]
    right.set_xticks(range(len(short)), short, fontsize="small")
    right.set_yticks(range(len(short)), short, fontsize="small")
    right.set(xlabel="predicted law", ylabel="ensemble", title="b  KL(measured ‖ predicted)")
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    return figure


def caption(settings: Laws, datasets: Datasets) -> str:
    """Return what the figure shows."""
    still = samples(settings, datasets["descent"]).values
    return (
        f"**One loss, four laws.** w = uv with L = ½(w − 1)², T = {settings.temperature:g} at the minimum. "
        "(a) Lines: predicted stationary laws on [0.5, 2], ∝ e^{−L/T}/w (isotropic noise, charge in a soft gauge), "
        "e^{−L/T} w^{−1/2} (horizontal), w^{−3/2} e^{−(w − ln w)/2T} (label noise), and the stationary Fokker–Planck "
        "equation of minibatches, whose noise grows as w². Points: ensembles. (b) Kullback–Leibler divergence of each "
        "ensemble, all seeds together, from each law, less its sampling bias: small only on the diagonal. What is left "
        "there is the finite stiffness of the gauge, the step of the solver and sampling. Without noise there is no "
        f"law: gradient descent ends at w = {still[..., -1].mean():.6f}, every run alike."
    )


def records(settings: Laws, datasets: Datasets) -> Sequence[Record]:
    """Return the divergence of each ensemble from its law, and from the nearest other."""
    found = []
    for name, label in NAMES.items():
        own = divergences(settings, datasets[name], datasets[f"predicted_{name}"])
        others = [divergences(settings, datasets[name], datasets[f"predicted_{o}"]) for o in NAMES if o != name]
        found.append(record(f"{label}: KL from its own law", own))
        found.append(record(f"{label}: KL from the nearest other law", np.min(others, axis=0)))
    return found


EXPERIMENT = Experiment(
    name="beyond_three_laws",
    scales={"smoke": Laws(seeds=4, trajectories=256, gauge_substeps=64, steps=16), "paper": Laws()},
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
