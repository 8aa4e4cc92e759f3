"""What the figures on balancing share: ratios of norms, conservation with growth, and orbit drift over seeds.

Two factors of norms a and b that a rescaling acts on have the charge C = ½(a² − b²) and the product m = ab, and so the
ratio ln(b/a) = −asinh(C/m). Gradient flow conserves C: where m grows, the ratio goes to 1 without any noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.plotting import COLOURS, MARKERS

from .common import Datasets, Record, Settings, band, published, record, spread

# Name, colour and line of each run, in all figures.
RUNS = {
    "sgd": ("SGD", COLOURS[0], "-"),
    "sde": ("minibatch SDE", COLOURS[1], ":"),
    "descent": ("no noise", COLOURS[2], "--"),
    "rounding": ("SGD in float32", COLOURS[3], "-."),
}
STATISTICS = {"max": "largest over units", "median": "median over units"}


@dataclass(frozen=True, kw_only=True)
class BalanceSettings(Settings):
    """Updates of SGD, and between its saves; `learning_rate` is the paper's."""

    learning_rate: float
    steps: int
    save_every: int


@dataclass(frozen=True)
class Run:
    """One run of a figure.

    Parameters
    ----------
    problem : Problem
    dynamics : Dynamics
    stride : int
        Updates of SGD in the time ηk of one update of this run.
    drift_saves : int
        Of how many saves one serves to compare its orbit drift with the prediction; 0 for no comparison.
    """

    problem: sb.Problem
    dynamics: Dynamics
    stride: int = 1
    drift_saves: int = 1


def simulate_runs(
    runs: Mapping[str, Run],
    symmetry: sb.symmetry.Symmetry,
    start: Tensor,
    settings: BalanceSettings,
    observe: Callable[[xr.Dataset, sb.Problem], Mapping[str, tuple[tuple[str, ...], np.ndarray]]] | None = None,
) -> Datasets:
    """Simulate runs from the same starts, shape (seed, 1, parameter); add what `observe` returns, and orbit drift."""
    datasets = {}
    for name, run in runs.items():
        ensemble = sb.simulate(
            run.problem,
            run.dynamics,
            symmetry=symmetry,
            trajectories=1,
            steps=settings.steps // run.stride,
            save_every=settings.save_every // run.stride,
            seed=settings.seed,
            initial=start,
            save=["theta", "charge_value"],
            block_size=1,
        )
        balance = with_balance(ensemble, run.problem, symmetry)
        datasets[name] = balance if observe is None else balance.assign(observe(ensemble, run.problem))
        if run.drift_saves:
            kept = ensemble.isel(step=slice(None, None, run.drift_saves))
            datasets[f"drift_{name}"] = drift_comparison(kept, run.problem, symmetry)
    return datasets


def runs_of(datasets: Datasets) -> dict[str, xr.Dataset]:
    """Return the datasets of runs."""
    return {name: datasets[name] for name in RUNS if name in datasets}


def drifts_of(datasets: Datasets) -> dict[str, xr.Dataset]:
    """Return the comparisons of orbit drift, by run."""
    return {name: datasets[f"drift_{name}"] for name in RUNS if f"drift_{name}" in datasets}


def with_balance(ensemble: xr.Dataset, problem: sb.Problem, symmetry: sb.symmetry.Symmetry) -> xr.Dataset:
    """Return an ensemble with ``log_ratio`` = ln(b/a), ``product`` = ab and charges by unit in place of ``theta``.

    Evaluated in float64: for a ratio far from 1, ab is what is left of two almost equal numbers.
    """
    bound = symmetry.bind(problem.to(dtype=torch.float64), validate=False)
    theta = torch.as_tensor(ensemble["theta"].values, dtype=torch.float64)
    charge, half = bound.charge(theta), bound.gram_eigenvalues(theta) / 2
    first, second = half + charge, half - charge
    dims = ("replicate", "trajectory", "step", "charge")
    values = {
        "log_ratio": (second.log() - first.log()) / 2,
        "product": (first * second).sqrt(),
        "charge_value": charge,
    }
    kept = ensemble.drop_dims("parameter").assign_coords(charge=bound.charge_labels)
    return kept.assign({name: (dims, value.numpy()) for name, value in values.items()})


def conserved_log_ratio(run: xr.Dataset) -> xr.DataArray:
    """Return −asinh(C(0)/m): the ratio if charges had not moved at all since the start."""
    return xr.apply_ufunc(np.arcsinh, -run["charge_value"].isel(step=0, drop=True) / run["product"])


def imbalance(log_ratio: xr.DataArray, statistic: str) -> np.ndarray:
    """Return the largest or the median |ln ratio| over units, shape (seed, step)."""
    values = abs(log_ratio).isel(trajectory=0)
    return np.asarray((values.max("charge") if statistic == "max" else values.median("charge")).values)


def updates(run: xr.Dataset, runs: Datasets) -> np.ndarray:
    """Return the saved times in updates of SGD: runs at other rates are compared at equal time ηk."""
    return np.rint(np.asarray(run["time"].values / runs["sgd"]["learning_rate"].values))


def drift_comparison(ensemble: xr.Dataset, problem: sb.Problem, symmetry: sb.symmetry.Symmetry) -> xr.Dataset:
    """Return measured against predicted orbit drift, the seeds of the problem taken as the trajectories.

    Seeds differ in data, teacher and start, but measured and predicted drift are paired: it is their differences that
    are compared.
    """
    prediction = sb.predict_orbit_drift(ensemble, problem, symmetry)
    error = prediction["integration_error"].mean("replicate")
    names = ["charge_value", "status", "learning_rate"]
    return sb.compare(_over_seeds(ensemble[names]), _over_seeds(prediction.assign(integration_error=error)))


def _over_seeds(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.isel(trajectory=0, drop=True).rename(replicate="trajectory")


def draw_balance(figure: Figure, axes: Sequence[Sequence[Axes]], datasets: Datasets, name: str, ratio: str) -> None:
    """Draw the panels that all these figures have, two by two, and the legend of the figure."""
    runs = runs_of(datasets)
    (largest, median), (charges, drift) = axes
    draw_imbalance(largest, "max", runs, name, ratio)
    draw_imbalance(median, "median", runs, name, ratio)
    draw_charges(charges, runs)
    draw_drift(drift, drifts_of(datasets))
    figure.legend(*largest.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_imbalance(axes: Axes, statistic: str, runs: Datasets, figure: str, ratio: str) -> None:
    """Draw |ln ratio| over updates: measured, by conservation, and as published."""
    for name, run in runs.items():
        if name == "rounding":
            continue
        label, colour, line = RUNS[name]
        x, values = updates(run, runs)[1:], imbalance(run["log_ratio"], statistic)[:, 1:]
        if name == "sgd":
            band(axes, x, values, color=colour, label=label, linestyle=line)
            # Lines that lie on each other: the wide one is drawn first.
            axes.lines[-1].set_linewidth(3)
            conserved = spread(imbalance(conserved_log_ratio(run), statistic)[:, 1:])[1]
            axes.plot(x, conserved, color="k", linewidth=1, label="conserved charge: asinh(C(0)/m)")
        else:
            axes.plot(x, spread(values)[1], color=colour, linestyle=line, label=label)
    steps = _published_steps(figure, updates(runs["sgd"], runs)[-1])
    points = [published(figure, f"step_{step}", f"{statistic}_abs_log") for step in steps]
    axes.plot(steps, points, "kx", label="published, one seed")
    axes.set(xscale="log", yscale="log", xlabel="updates", ylabel=f"|ln({ratio})|", title=STATISTICS[statistic])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _published_steps(figure: str, last: float) -> list[int]:
    steps = (int(name.removeprefix("step_")) for name in published(figure))
    return [step for step in steps if 10 < step <= last]


def draw_charges(axes: Axes, runs: Datasets) -> None:
    """Draw how far the products have grown and the charges moved: medians over the units of a seed, then over seeds."""
    for name, run in runs.items():
        label, colour, line = RUNS[name]
        x = updates(run, runs)[1:]
        growth, change = (part[:, 1:] for part in growth_and_change(run))
        axes.plot(x, spread(growth)[1], color=colour, linestyle=line)
        # The other runs are in the legend of the whole figure.
        axes.plot(x, spread(change)[1], color=colour, linestyle=line, label=label if name == "rounding" else None)
        if name == "sgd":
            for values in (growth, change):
                lower, _, upper = spread(values)
                axes.fill_between(x, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axes.annotate("product m/m(0)", (x[0], 1), xytext=(0, 6), textcoords="offset points", fontsize="small")
            axes.text(0.97, 0.03, "charge |C − C(0)|/|C(0)|", ha="right", fontsize="small", transform=axes.transAxes)
    axes.set(xscale="log", yscale="log", xlabel="updates", ylabel="relative to the start")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("products grow, charges stay")
    if "rounding" in runs:
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0.75), fontsize="x-small")


def growth_and_change(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return medians over units of m/m(0) and |C − C(0)|/|C(0)|, each of shape (seed, step)."""
    product, charge = run["product"].isel(trajectory=0), run["charge_value"].isel(trajectory=0)
    growth = product / product.isel(step=0, drop=True)
    start = charge.isel(step=0, drop=True)
    change = abs(charge - start) / abs(start)
    return growth.median("charge").values, change.median("charge").values


def draw_drift(axes: Axes, comparisons: Datasets) -> None:
    """Draw the measured against the predicted drift of each charge, means over seeds, and the line of equality.

    Each run is drawn in units of its largest prediction, which the legend gives; bars are the paired error, of measured
    less predicted.
    """
    for (name, one), marker in zip(comparisons.items(), MARKERS, strict=False):
        last, (label, colour, _) = one.isel(step=-1), RUNS[name]
        predicted = last["predicted"] + last.get("finite_step", 0)
        unit = float(abs(predicted).max())
        axes.errorbar(
            predicted / unit,
            last["empirical"] / unit,
            yerr=1.96 * last["deviation_error"] / unit,
            fmt=marker,
            color=colour,
            markersize=4,
            linewidth=1,
            label=f"{label}, {unit:.1e}: {one.attrs['verdict']}",
        )
    axes.axline((0, 0), slope=1, color="0.5", linewidth=1, zorder=0)
    axes.set(xlabel="predicted / largest", ylabel="measured / largest", title="orbit drift of each charge C")
    axes.legend(loc="upper left", fontsize="x-small")


def balance_caption(ratio: str, charge: str, product: str, stride: int, datasets: Datasets) -> str:
    """Return what the shared panels show."""
    tests = "; ".join(
        f"{RUNS[name][0]} {float(one['p_value']):.2g} ({float(one['p_value_scaled']):.2g})"
        for name, one in drifts_of(datasets).items()
    )
    return (
        f"Panels of |ln({ratio})|: largest and median over units, whose decay the article reads as balancing by noise. "
        f"SGD, its SDE and gradient descent without noise (both in Euler steps of {stride} updates) take the same "
        f"course, and so does the ratio that follows from the charges at the start, C = {charge}, and the products "
        f"m = {product} alone. Panel of products and charges: products grow while charges hardly move; balance is here "
        "conservation and growth, not noise. Panel of orbit drift: the small change that the charges do make, mean "
        "over seeds, against its prediction; bars are 95 % errors of measured less predicted, units are in the legend, "
        "and the prediction for an SDE includes its finite step; p-value of the comparison, in brackets that of a "
        f"prediction 10 % larger: {tests}."
    )


def balance_records(figure: str, datasets: Datasets, steps: list[int]) -> list[Record]:
    """Return |ln ratio| at published steps beside what was published, and what tells noise from flow."""
    runs = runs_of(datasets)
    sgd = runs["sgd"]
    times = updates(sgd, runs).tolist()
    records = [
        record(
            f"|ln ratio| at step {step}, {text}",
            imbalance(sgd["log_ratio"], statistic)[:, times.index(step)],
            published(figure, f"step_{step}", f"{statistic}_abs_log"),
        )
        for step in steps
        if step in times
        for statistic, text in STATISTICS.items()
    ]
    for name in ("sde", "descent"):
        for statistic, text in STATISTICS.items():
            values = imbalance(runs[name]["log_ratio"], statistic)[:, -1]
            records.append(record(f"|ln ratio| at the end, {text}, {RUNS[name][0]}", values))
    miss = imbalance(sgd["log_ratio"] - conserved_log_ratio(sgd), "max")[:, -1]
    records.append(record("ln ratio at the end less that of conserved charges, largest over units", miss))
    for name, run in runs.items():
        growth, change = (part[:, -1] for part in growth_and_change(run))
        if name == "sgd":
            records.append(record("growth of the product, median over units", growth))
        records.append(record(f"relative change of the charge, median over units, {RUNS[name][0]}", change))
    return records
