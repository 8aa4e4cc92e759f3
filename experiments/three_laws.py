"""One loss, three noises, three laws; and where label noise takes a ReLU unit.

``python -m experiments.three_laws`` draws the figures of docs/laws.md and prints the numbers beside them.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.plotting import COLOURS, STYLE
from sdebias.prediction import PanelQuadrature, fokker_planck_coefficients, label_gradients

ROOT = Path(__file__).parents[1]
TEMPERATURE = 0.1
NAMES = {
    "soft_gauge": "isotropic, soft gauge",
    "horizontal": "horizontal",
    "label": "label noise",
}


def section(w: Tensor) -> Tensor:
    """Return the balanced factors (√w, √w) of w > 0."""
    return w.sqrt().expand(-1, 2)


def toy_laws(temperature: float = TEMPERATURE) -> dict[str, xr.Dataset]:
    """Return the laws of w = uv with L = ½(w − 1)² on [0.05, 2.5], by noise."""
    problem = sb.problems.HadamardRegression(np.ones((1, 1)), np.ones(1))
    symmetry = sb.symmetry.Rescaling("p", "q")
    nodes = PanelQuadrature({"w": np.linspace(0.05, 2.5, 50).tolist()})
    laws = {}
    for noise in ("soft_gauge", "horizontal"):
        laws[noise] = sb.stationary_law(
            problem, symmetry, section, nodes, noise=noise, temperature=temperature, measure="predictor"
        )
    rate = 1e-3  # any: the law depends on η s²/B = 2T alone
    noise_gradients = label_gradients(problem, math.sqrt(2 * temperature / rate))
    coefficients = fokker_planck_coefficients(problem, section, noise_gradients, learning_rate=rate)
    laws["label"] = sb.stationary_fokker_planck(*coefficients, nodes, support=(0, math.inf))
    return laws


def relaxation(inputs: int, steps: range, learning_rate: float = 0.01, label_noise: float = 0.5) -> xr.Dataset:
    """Return the ratio |v|/‖w‖ of a ReLU unit from balance along its relaxation, and where it ends."""
    axes = math.sqrt(inputs) * np.concatenate([np.eye(inputs), -np.eye(inputs)])
    weights = 0.8 * torch.ones(inputs, dtype=torch.float64)
    theta = torch.cat([weights, weights.norm()[None]])
    targets = float(theta[-1]) * np.maximum(axes @ weights.numpy(), 0)
    problem, symmetry = sb.problems.ShallowReLU(axes, targets, units=1), sb.symmetry.Rescaling.relu("W", "v")
    noise = label_gradients(problem, label_noise)
    path = sb.predict_relaxation(problem, symmetry, theta, steps, learning_rate=learning_rate, noise_gradients=noise)
    end = sb.noise_equilibrium(problem, symmetry, theta, learning_rate=learning_rate, noise_gradients=noise)
    ratio = [
        abs(t[..., -1]) / np.linalg.norm(t[..., :-1], axis=-1)
        for t in (path["predicted_theta"].values, end["equilibrium_theta"].values)
    ]
    return xr.Dataset({"ratio": ("step", ratio[0]), "equilibrium": ratio[1]}, coords={"step": list(steps)})


def draw_laws(laws: dict[str, xr.Dataset]) -> Figure:
    """Draw the three densities."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for colour, (name, law) in zip(COLOURS, laws.items(), strict=False):
            w = law["coordinate_value"].isel(coordinate=0)
            axes.plot(w, law["probability_density"], color=colour, label=NAMES[name])
        axes.set_xlabel("predictor w = uv")
        axes.set_ylabel("stationary density")
        axes.set_title(f"L = ½(w − 1)², T = {TEMPERATURE:g}: the noise decides")
        axes.legend()
    return figure


def draw_relaxation(curves: dict[int, xr.Dataset]) -> Figure:
    """Draw |v|/‖w‖ against updates for each number of inputs, and the equilibria."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for colour, (inputs, curve) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(curve["step"] / 1000, curve["ratio"], color=colour, label=f"{inputs} inputs")
            axes.axhline(float(curve["equilibrium"]), color=colour, linewidth=0.8, linestyle="--")
        axes.set_xlabel("updates [1000]")
        axes.set_ylabel("|v| / ‖w‖")
        axes.set_title("A ReLU unit leaves balance under label noise")
        axes.legend()
    return figure


def main() -> None:
    """Write the figures and print the numbers of the documentation."""
    laws = toy_laws()
    for name, law in laws.items():
        mean = float((law["probability"] * law["coordinate_value"].isel(coordinate=0)).sum())
        print(f"{NAMES[name]:<22} mean of w on [0.05, 2.5]: {mean:.4f}")
    curves = {inputs: relaxation(inputs, range(0, 300_001, 5_000)) for inputs in (2, 3, 5)}
    for inputs, curve in curves.items():
        print(f"{inputs} inputs: |v|/|w| from 1 to {float(curve['equilibrium']):.4f}")
    folder = ROOT / "docs" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("three_laws", draw_laws(laws)), ("noise_equilibrium", draw_relaxation(curves))):
        figure.savefig(folder / f"{name}.png")
        print((folder / f"{name}.png").relative_to(ROOT))


if __name__ == "__main__":
    main()
