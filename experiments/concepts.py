"""The figures of docs/concepts: one idea each, on models small enough to see it.

``python -m experiments.concepts`` draws them and prints the numbers that the pages quote: about a minute on one core.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.plotting import COLOURS, LINES, MARKERS, STYLE

from .common import ROOT, styled

FOLDER = ROOT / "docs" / "figures" / "concepts"
RESCALING = sb.symmetry.Rescaling("p", "q")


def toy(spread: float = 0.0) -> sb.problems.HadamardRegression:
    """Return w = pq with L = ½(w − 1)² up to a constant: two samples of x = 1 with the targets 1 ± spread."""
    return sb.problems.HadamardRegression(np.ones((2, 1)), np.array([1 + spread, 1 - spread]))


def regression(features: int = 16, samples: int = 32) -> sb.problems.HadamardRegression:
    """Return w = p∘q on Gaussian inputs with noisy targets; p = 1 and q = 0.2 at the start."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, features))
    y = X @ rng.standard_normal(features) + 0.5 * rng.standard_normal(samples)
    return sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": 0.2})


def points(*pairs: tuple[float, float]) -> torch.Tensor:
    """Return θ = (p, q) of shape (point, 2)."""
    return torch.tensor(pairs, dtype=torch.float64)


def _plane(axes: Axes, limit: float, levels: tuple[float, ...]) -> None:
    """Draw the orbits pq = w in the plane of p and q."""
    p = np.linspace(limit / 1000, limit, 2000)
    for level in levels:
        axes.plot(p, level / p, color="0.75", linewidth=1.2, zorder=1)
    axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="p", ylabel="q", aspect="equal")


def orbit() -> Figure:
    """Draw orbits with their tangents and the loss's gradients, and the orbit volume on and off the balanced slice."""
    problem = toy()
    symmetry = RESCALING.bind(problem)
    figure = styled(3.3)
    left, right = figure.subplots(1, 2)
    _plane(left, 3, (0.25, 1.0, 2.25, 4.0))
    at = points((0.35, 0.25 / 0.35), (0.55, 1 / 0.55), (1.5, 1.5), (2.4, 1 / 2.4), (2.5, 0.9))
    along = symmetry.fundamental_vector_fields(at)[:, 0]
    across = -problem.gradient(at)
    for arrows, colour, label in ((along, COLOURS[0], "along: X, loss constant"), (across, COLOURS[1], "across: −∇L")):
        unit = 0.55 * arrows / arrows.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        left.quiver(*at.T, *unit.T, angles="xy", scale_units="xy", scale=1, width=0.012, color=colour, zorder=3)
        left.plot([], [], color=colour, linewidth=2, label=label)
    left.plot(*at.T, "o", color="black", markersize=4, zorder=4)
    left.set_title("a  orbits pq = w")
    left.legend(loc="upper right", fontsize="small")
    w = torch.linspace(0.02, 2, 200, dtype=torch.float64)
    for charge, colour, line in zip((0.0, 0.5, 2.0), COLOURS, LINES, strict=False):
        # p² and q² have the product w² and the difference 2C.
        p = (charge + (charge**2 + w**2).sqrt()).sqrt()
        volume = symmetry.log_orbit_volume(torch.stack([p, w / p], -1))
        right.plot(w, volume, color=colour, linestyle=line, label=f"charge {charge:g}")
    right.set(xlabel="predictor w", ylabel="½ log det G", title="b  orbit volume density")
    right.legend(loc="lower right")
    return figure


def gauge(trajectories: int = 256, steps: int = 800) -> Figure:
    """Draw paths of three dynamics in the plane, and their charges over updates with the prediction for SGD."""
    problem = toy(spread=1.5)
    start = points((2.2, 0.15)).expand(trajectories, -1)
    figure = styled(3.5)
    left, right = figure.subplots(1, 2)
    _plane(left, 2.6, (0.33, 1.0, 2.0))
    left.plot([0, 2.6], [0, 2.6], color="black", linewidth=1, linestyle=":", zorder=1)
    left.annotate("balanced", (1.75, 1.8), rotation=45, rotation_mode="anchor", fontsize="small")
    dynamics = {
        "gradient descent": sb.SGD(learning_rate=0.04, batch_size=2, replacement=False),
        "SGD": sb.SGD(learning_rate=0.04),
        "SGD in a soft gauge": sb.SGD(learning_rate=0.04, gauge_stiffness=0.2),
    }
    for (name, one), colour, line, width in zip(dynamics.items(), COLOURS, LINES, (3, 1, 1), strict=False):
        run = sb.simulate(
            problem, one, symmetry=RESCALING, trajectories=trajectories, steps=steps, save_every=10, initial=start
        )
        left.plot(*run["theta"].isel(trajectory=0).values.T, color=colour, linewidth=width, label=name, zorder=width)
        charge = run["charge_value"].isel(charge=0)
        low, high = charge.quantile([0.05, 0.95], "trajectory").values
        right.fill_between(run["step"], low, high, color=colour, alpha=0.2, linewidth=0)
        right.plot(run["step"], charge.mean("trajectory"), color=colour, linestyle=line, label=name)
        if name == "SGD":
            drift = sb.predict_orbit_drift(run, problem, RESCALING)["predicted_drift"].isel(charge=0)
            predicted = float(charge[0, 0]) + drift.mean("trajectory")
            shown = predicted.isel(step=slice(0, None, 8))
            right.plot(shown["step"], shown, "o", color="black", markersize=4, label="SGD, predicted", zorder=4)
    left.plot(*start[0], "x", color="black", markersize=6, zorder=4)
    left.set_title("a  paths of one trajectory")
    right.set(xlabel="updates", ylabel="charge ½(p² − q²)", title="b  mean of the charge")
    right.legend(fontsize="small")
    return figure


def euler_drifts(
    problem: sb.Problem, *, learning_rate: float, trajectories: int, steps: int, substeps: tuple[int, ...]
) -> xr.Dataset:
    """Return the orbit drift, summed over charges, in units of the Itô row, of SGD and of the SDE in finer steps.

    Variables ``drift`` and ``error`` (standard error) over dim ``run``: SGD, the SDE at each number of substeps, and
    the SDE of order 2 at the largest; ``sgd_row``, the exact row of SGD in the same units.
    """
    runs: dict[str, sb.SGD | sb.SGDSDE] = {"SGD": sb.SGD(learning_rate=learning_rate)}
    runs |= {f"1/{m}" if m > 1 else "1": sb.SGDSDE(learning_rate=learning_rate, substeps=m) for m in substeps}
    runs["order 2"] = sb.SGDSDE(learning_rate=learning_rate, substeps=substeps[-1], order=2)
    drifts, errors, row = [], [], {}
    for name, dynamics in runs.items():
        run = sb.simulate(problem, dynamics, symmetry=RESCALING, trajectories=trajectories, steps=steps)
        change = (run["charge_value"].isel(step=-1) - run["charge_value"].isel(step=0)).sum("charge")
        predicted = sb.predict_orbit_drift(run, problem, RESCALING).isel(step=-1)["predicted_drift"]
        row[name] = float(predicted.mean("trajectory").sum())
        drifts.append(float(change.mean()))
        errors.append(float(change.std(ddof=1)) / trajectories**0.5)
    unit = row[f"1/{substeps[-1]}"]
    coords = {"run": list(runs)}
    values = {"drift": ("run", np.array(drifts) / unit), "error": ("run", np.array(errors) / abs(unit))}
    return xr.Dataset({**values, "sgd_row": row["SGD"] / unit}, coords)


def draw_euler(found: xr.Dataset) -> Figure:
    """Draw the drifts on the two rows."""
    figure = styled(3.4)
    axes = figure.subplots()
    axes.axhline(float(found["sgd_row"]), color=COLOURS[1], linestyle="--", label="predicted for SGD: both terms")
    axes.axhline(1, color=COLOURS[0], label="predicted for the SDE: (η²/2B) tr(ΣA)")
    axes.errorbar(
        range(found.sizes["run"]),
        found["drift"],
        yerr=1.96 * found["error"],
        fmt="o",
        color="black",
        capsize=3,
        label="measured, 95 % intervals",
    )
    axes.set_xticks(
        range(found.sizes["run"]),
        [
            name if name == "SGD" else f"SDE\n{name}" if "order" in name else f"SDE\ndt = {name}"
            for name in found["run"].values
        ],
    )
    axes.set_ylabel("orbit drift / that of the SDE")
    axes.set_ylim(bottom=0.96)
    axes.legend(loc="lower left", fontsize="small")
    axes.set_title("Euler with one step an update has the drift of SGD")
    return figure


def split(trajectories: int = 1024, steps: int = 80) -> Figure:
    """Draw the parts of the charges' drift under three dynamics, and their sum against what is measured."""
    problem = regression(features=4, samples=12)
    dynamics = {
        "minibatch SDE": sb.SGDSDE(learning_rate=5e-3, substeps=8),
        "SGD": sb.SGD(learning_rate=5e-3),
        "with weight decay": sb.SGDSDE(learning_rate=5e-3, substeps=8, weight_decay=0.02),
    }
    parts = {"vertical": "vertical: P_V b", "ito_vertical": "second order: ½ tr(D A)"}
    figure = styled(3.5)
    left, right = figure.subplots(1, 2)
    for place, (name, one) in enumerate(dynamics.items()):
        run = sb.simulate(problem, one, symmetry=RESCALING, trajectories=trajectories, steps=steps, save_every=4)
        rates = sb.split_dynamics(run, problem, RESCALING)["charge_rate"].mean("trajectory").sum("charge")
        for number, (part, label) in enumerate(parts.items()):
            value = 1e4 * float(rates.isel(step=0).sel(component=part))
            left.bar(
                place + 0.38 * (number - 0.5),
                value,
                0.36,
                color=COLOURS[number],
                hatch=("//", "")[number],
                label=label if place == 0 else None,
            )
        if name == "with weight decay":
            measured = (run["charge_value"] - run["charge_value"].isel(step=0)).sum("charge")
            error = 1.96 * measured.std("trajectory", ddof=1) / trajectories**0.5
            right.errorbar(
                run["step"],
                measured.mean("trajectory"),
                yerr=error,
                fmt="o",
                color="black",
                markersize=4,
                capsize=2,
                label="measured",
            )
            for chosen, colour, line, label in (
                (rates.sum("component"), COLOURS[2], "-", "all parts"),
                (rates.sel(component="vertical"), COLOURS[0], "--", "projected drift alone"),
            ):
                total = chosen.cumulative_integrate("step")
                right.plot(total["step"], total, color=colour, linestyle=line, label=label)
    left.axhline(0, color="0.5", linewidth=1)
    left.set_xticks(range(len(dynamics)), ["minibatch\nSDE", "SGD", "SDE with\nweight decay"])
    left.set(ylabel="drift per update [10⁻⁴]", title="a  parts of the charges' drift", ylim=(-5.2, 0.2))
    left.legend(fontsize="small")
    right.set(xlabel="updates", ylabel="change of the charges", title="b  SDE with weight decay")
    right.legend(fontsize="small")
    return figure


def unit(samples: int = 96) -> sb.problems.ShallowReLU:
    """Return one ReLU unit on three isotropic inputs, with the outputs of a unit of the same kind as targets."""
    X = np.random.default_rng(1).standard_normal((samples, 3))
    return sb.problems.ShallowReLU(X, np.maximum(X @ np.array([1.0, 0.0, 0.0]), 0), units=1)


def equilibrium_runs(
    problem: sb.problems.ShallowReLU, ratios: tuple[float, ...], *, std: float, trajectories: int, steps: int
) -> tuple[dict[float, xr.DataArray], dict[float, xr.DataArray], float]:
    """Return |v|/‖W‖ by start: measured under label noise, predicted, and at the noise equilibrium.

    Starts are points of the orbit of the solution.
    """
    symmetry = problem.symmetry()
    rate = 0.01
    sde = sb.SGDSDE(learning_rate=rate, noise=sb.noise.label(std), substeps=1)
    rows = sb.prediction.label_gradients(problem, std)
    measured, predicted = {}, {}
    for ratio in ratios:
        start = torch.tensor([ratio**-0.5, 0.0, 0.0, ratio**0.5], dtype=torch.float64)
        run = sb.simulate(
            problem,
            sde,
            trajectories=trajectories,
            steps=steps,
            save_every=steps // 40,
            initial=start.expand(trajectories, -1),
            save=["theta"],
        )
        measured[ratio] = _ratio(run["theta"])
        path = sb.predict_relaxation(
            problem, symmetry, start, run["step"].values.tolist(), learning_rate=rate, noise_gradients=rows
        )
        predicted[ratio] = _ratio(path["predicted_theta"])
    rest = sb.noise_equilibrium(problem, symmetry, start, learning_rate=rate, noise_gradients=rows)
    return measured, predicted, float(_ratio(rest["equilibrium_theta"]))


def _ratio(theta: xr.DataArray) -> xr.DataArray:
    """Return |v|/‖W‖ of one unit, whose last parameter is v."""
    square = theta**2
    return (square.isel(parameter=-1) / square.isel(parameter=slice(0, -1)).sum("parameter")) ** 0.5


def equilibrium(trajectories: int = 64, steps: int = 12_000) -> Figure:
    """Draw the relaxation of one unit's balance under label noise from three starts."""
    measured, predicted, rest = equilibrium_runs(
        unit(), (2.0, 1.0, 0.3), std=1.5, trajectories=trajectories, steps=steps
    )
    figure = styled(3.5)
    axes = figure.subplots()
    for number, (ratio, values) in enumerate(measured.items()):
        low, middle, high = values.quantile([0.1, 0.5, 0.9], "trajectory").values
        axes.fill_between(values["step"], low, high, color=COLOURS[number], alpha=0.2, linewidth=0)
        axes.plot(
            values["step"],
            middle,
            MARKERS[number],
            color=COLOURS[number],
            markersize=3,
            label=f"measured from {ratio:g}",
        )
        line = predicted[ratio]
        axes.plot(line["step"], line, color=COLOURS[number], label="predicted" if number == 0 else None)
    axes.axhline(1, color="0.5", linestyle=":", linewidth=1.2)
    axes.annotate("balanced", (0.99 * steps, 1.02), ha="right", va="bottom", color="0.3", fontsize="small")
    axes.axhline(rest, color="black", linestyle="--", linewidth=1.2)
    axes.annotate(f"noise equilibrium {rest:.2f}", (0, 1.02 * rest), va="bottom", fontsize="small")
    axes.set(yscale="log", xlabel="updates", ylabel="|v| / ‖w‖", title="One ReLU unit under label noise")
    axes.set_yticks([0.3, 0.5, 1.0, 2.0], ["0.3", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    print(f"equilibrium {rest:.3f}")
    for ratio, values in measured.items():
        print(f"from {ratio:g}: median {float(values.isel(step=-1).median()):.3f} after {steps} updates")
    return figure


def euler() -> Figure:
    """Draw the drift of SGD and of the SDE in ever finer steps."""
    found = euler_drifts(regression(), learning_rate=5e-3, trajectories=2048, steps=100, substeps=(1, 2, 4, 16))
    print(f"SGD predicted {float(found['sgd_row']):.3f}")
    for name in found["run"].values:
        one = found.sel(run=name)
        print(f"{name}: {float(one['drift']):.3f} ± {1.96 * float(one['error']):.3f} of the SDE's drift")
    return draw_euler(found)


def main() -> None:
    """Write the figures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for draw in (orbit, gauge, euler, split, equilibrium):
        with mpl.rc_context(STYLE):
            file = FOLDER / f"{draw.__name__}.png"
            draw().savefig(file, dpi=150, metadata={"Software": None})
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
