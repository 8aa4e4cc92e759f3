"""How an SDE's orbit drift converges to the Itô row as its solver's step shrinks.

``python -m experiments.ito_convergence`` solves the SDE of the main job at 1, 4 and 16 substeps per update, prints the
deviation from the Itô row, and draws it. At one substep an Euler solution has the drift of SGD, so agreement with SGD
there says nothing about the SDE.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import scipy.optimize
import torch
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

import sdebias as sb
from sdebias.plotting import COLOURS, STYLE

ROOT = Path(__file__).parents[1]
SUBSTEPS = (1, 4, 16)


def deviations(
    problem: sb.Problem,
    symmetry: sb.symmetry.Symmetry,
    *,
    learning_rate: float,
    trajectories: int,
    steps: int,
    save_every: int,
    seed: int,
    substeps: tuple[int, ...] = SUBSTEPS,
) -> xr.Dataset:
    """Return, for each step size, the drift's deviation from the Itô row, summed over charges and relative to that row.

    Variables ``deviation`` and ``error`` (standard error over trajectories, and the error of integrating the row on the
    save grid, in quadrature) over dim ``substeps``.
    """
    values, errors = [], []
    for number in substeps:
        sde = sb.SGDSDE(learning_rate=learning_rate, substeps=number)
        ens = sb.simulate(
            problem, sde, symmetry=symmetry, trajectories=trajectories, steps=steps, save_every=save_every, seed=seed
        )
        pred = sb.predict_orbit_drift(ens, problem, symmetry).isel(step=-1)
        change = ens["charge_value"].isel(step=-1) - ens["charge_value"].isel(step=0)
        row = float(pred["predicted_drift"].mean("trajectory").sum())
        difference = (change - pred["predicted_drift"]).sum("charge")
        values.append(float(difference.mean()) / row)
        standard = float(difference.std(ddof=1)) / trajectories**0.5
        errors.append(np.hypot(standard, float(pred["integration_error"].sum())) / abs(row))
    coords = {"substeps": list(substeps)}
    return xr.Dataset({"deviation": ("substeps", values), "error": ("substeps", errors)}, coords=coords)


def fit_order(found: xr.Dataset) -> tuple[float, float]:
    """Return the order of convergence and its standard error: weighted least squares on log |deviation|."""
    size = np.abs(found["deviation"].values)
    order, covariance = scipy.optimize.curve_fit(
        lambda x, slope, offset: slope * x + offset,
        -np.log(found["substeps"].values),
        np.log(size),
        sigma=found["error"].values / size,
        absolute_sigma=True,
    )
    return float(order[0]), float(covariance[0, 0] ** 0.5)


def draw(found: xr.Dataset, order: float, error: float) -> Figure:
    """Draw the deviation against the step, with the fitted order."""
    steps = 1 / found["substeps"].values
    size = 100 * np.abs(found["deviation"].values)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        axes = figure.subplots()
        bars = 1.96 * 100 * found["error"].values
        axes.errorbar(steps, size, yerr=bars, fmt="o", color=COLOURS[0], capsize=3, label="SDE (Euler), 95 % intervals")
        axes.plot(steps, size[0] * steps, color="0.5", linewidth=1, label="order 1 from dt = 1")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(steps, [f"1/{number}" if number > 1 else "1" for number in found["substeps"].values])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set_yticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if size.min() / 2 < tick < 2 * size.max()])
        axes.set_xlabel("solver step dt [updates]")
        axes.set_ylabel("deviation from the Itô row [%]")
        axes.set_title(f"Orbit drift of the SDE: order {order:.2f} ± {1.96 * error:.2f}")
        axes.legend(loc="upper left")
    return figure


def main() -> None:
    """Run on the diabetes data and write the figure of the documentation."""
    with xr.open_dataset(ROOT / "data" / "diabetes.nc") as data:
        X, y = torch.tensor(data["X"].values), torch.tensor(data["y"].values)
    problem = sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": 0.2})
    symmetry = sb.symmetry.Rescaling("p", "q")
    found = deviations(problem, symmetry, learning_rate=5e-3, trajectories=2048, steps=100, save_every=4, seed=0)
    order, error = fit_order(found)
    for number in SUBSTEPS:
        row = found.sel(substeps=number)
        print(f"substeps {number:>2}: deviation {100 * float(row.deviation):.3f} % ± {196 * float(row.error):.3f} %")
    print(f"order {order:.3f} ± {1.96 * error:.3f} (95 %)")
    file = ROOT / "docs" / "figures" / "ito_convergence.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(found, order, error).savefig(file)
    print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
