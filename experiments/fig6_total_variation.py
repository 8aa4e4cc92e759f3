"""Figure 6: a piecewise-constant signal from 60 projections, by the plain model and the design w = cumsum(p∘q).

``python -m experiments.fig6_total_variation all``. The run of the paper is gradient descent on the whole data, in its
published result files extended to three times its length; the design is also run with one sample an update, as SGD and
as its SDE, and held against the interpolator of least total variation, a linear programme.

The loss of the paper is the mean of (a·w − y)², here it is half of that (see `Regression`): its rate η is 2η here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linprog

import sdebias as sb
from sdebias.plotting import COLOURS, LINES

from .common import Datasets, Experiment, Record, Settings, band, published, record, spread, styled
from .design_recovery import PlainRegression

NAME = "fig6_total_variation"
DYNAMICS = {"gd": "gradient descent (paper)", "sgd": "SGD, 1 sample", "sde": "its SDE"}
RECONSTRUCTION, VARIATION = "mean squared error of w", "total variation of w"


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Settings):
    """The setting of the paper; learning rates are those of its loss without the factor ½."""

    seeds: int = 16
    levels: tuple[float, ...] = (1.0, -1.5, 0.5, 2.0)
    lengths: tuple[int, ...] = (50, 70, 40, 40)
    samples: int = 60
    label_noise: float = 0.1
    plain_start: float = 1e-4
    plain_rate: float = 1e-2
    designed_start: float = 0.3
    designed_rate: float = 1e-3
    batch_size: int = 1
    steps: int = 500_000
    extended_steps: int = 1_500_000
    save_every: int = 5_000
    compile: bool = True

    @property
    def signal(self) -> np.ndarray:
        """w*, shape (entry,)."""
        return np.repeat(self.levels, self.lengths)


def instances(settings: TotalVariation) -> tuple[np.ndarray, np.ndarray]:
    """Return A (seed, sample, entry) ~ N(0, 1/samples) and y (seed, sample)."""
    rng = np.random.default_rng(settings.seed)
    A = rng.standard_normal((settings.seeds, settings.samples, len(settings.signal))) / settings.samples**0.5
    return A, A @ settings.signal + settings.label_noise * rng.standard_normal(A.shape[:2])


def least_variation(A: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the w with Aw = y of least Σ_{j ≥ 1} |w_j − w_{j−1}|, shape (seed, entry), by linear programming."""
    found = []
    for matrix, targets in zip(A, y, strict=True):
        # Aw = Z d in the increments d, of which the first is w_0 and costs nothing; d = d₊ − d₋ with both at least 0.
        Z = np.cumsum(matrix[:, ::-1], axis=1)[:, ::-1]
        cost = np.ones(Z.shape[1])
        cost[0] = 0
        solution = linprog(np.tile(cost, 2), A_eq=np.hstack([Z, -Z]), b_eq=targets).x
        found.append(np.cumsum(solution[: len(cost)] - solution[len(cost) :]))
    return np.stack(found)


def simulate(settings: TotalVariation) -> Datasets:
    """Run the plain model by gradient descent, and the design by gradient descent, SGD and SDE from one start."""
    A, y = instances(settings)
    plain = PlainRegression(A, y, initial_std={"w": settings.plain_start})
    designed = sb.problems.CumulativeSumRegression(
        A, y, initial=dict.fromkeys("pq", 0.0), initial_std=dict.fromkeys("pq", settings.designed_start)
    )
    rate = 2 * settings.designed_rate
    descent = functools.partial(sb.SGD, batch_size=settings.samples, replacement=False)
    runs: dict[str, tuple[sb.Problem, sb.SGD | sb.SGDSDE, int]] = {
        "vanilla_gd": (plain, descent(learning_rate=2 * settings.plain_rate), settings.steps),
        "designed_gd": (designed, descent(learning_rate=rate), settings.extended_steps),
        "designed_sgd": (designed, sb.SGD(learning_rate=rate, batch_size=settings.batch_size), settings.steps),
        "designed_sde": (
            designed,
            sb.SGDSDE(learning_rate=rate, batch_size=settings.batch_size, substeps=1, increments="rademacher"),
            settings.steps,
        ),
    }
    least = least_variation(A, y)
    return {
        name: sb.simulate(
            problem.to(dtype=torch.float32),
            dynamics,
            trajectories=1,
            block_size=1,
            steps=steps,
            save_every=settings.save_every,
            seed=settings.seed,
            save=["predictor_value", "loss"],
            compile=settings.compile,
        ).assign(least_variation=(("replicate", "predictor"), least))
        for name, (problem, dynamics, steps) in runs.items()
    }


def weights(dataset: xr.Dataset) -> np.ndarray:
    """Return w, shape (seed, step, entry)."""
    return dataset["predictor_value"].isel(trajectory=0).transpose("replicate", "step", "predictor").values


def variation(found: np.ndarray) -> np.ndarray:
    """Return Σ_{j ≥ 1} |w_j − w_{j−1}| of weights (..., entry)."""
    total: np.ndarray = np.abs(np.diff(found, axis=-1)).sum(-1)
    return total


def reconstruction(settings: TotalVariation, found: np.ndarray) -> np.ndarray:
    """Return mean_j (w_j − w*_j)² of weights (..., entry)."""
    error: np.ndarray = ((found - settings.signal) ** 2).mean(-1)
    return error


def _signals(axes: Axes, settings: TotalVariation, datasets: Datasets) -> None:
    """Draw the weights of the seed whose designed error is the median."""
    last = weights(datasets["designed_gd"])[:, -1]
    error = reconstruction(settings, last)
    seed = int(np.argsort(error)[len(error) // 2])
    drawn = {
        "vanilla": (weights(datasets["vanilla_gd"])[seed, -1], COLOURS[0], 0.8),
        "designed": (last[seed], COLOURS[2], 1.8),
        "least variation (linear programme)": (
            datasets["designed_gd"]["least_variation"].values[seed],
            COLOURS[1],
            1.4,
        ),
    }
    axes.plot(settings.signal, color="0.75", linewidth=5, label="truth")
    for label, (values, colour, width) in drawn.items():
        axes.plot(values, color=colour, linewidth=width, label=label)
    axes.set(xlabel="entry j", ylabel="weight $w_j$")
    axes.set_title(f"a  signal found, seed {seed} (of median error)", loc="left", fontsize="medium")


def draw(settings: TotalVariation, datasets: Datasets) -> Figure:
    """Draw the signals of one seed, and total variation and error over updates."""
    figure = styled(6.2)
    grid = figure.add_gridspec(2, 2)
    above, left, right = (figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    _signals(above, settings, datasets)
    least = datasets["designed_gd"]["least_variation"].values
    panels = ((left, variation, "tv"), (right, functools.partial(reconstruction, settings), "recon_mse"))
    for axes, measure, key in panels:
        for name, run in datasets.items():
            model, dynamics = name.split("_")
            place = list(DYNAMICS).index(dynamics)
            colour = COLOURS[0 if model == "vanilla" else 2]
            steps, values = run["step"].values[1:], measure(weights(run)[:, 1:])
            if dynamics == "gd":
                band(axes, steps, values, color=colour)
                axes.plot(steps[-1], published(NAME, model, key), "x", color="black", markersize=7, zorder=4)
            else:
                axes.plot(steps, spread(values)[1], color=colour, linestyle=LINES[place])
        axes.axhline(float(np.median(measure(least))), color=COLOURS[1], linewidth=1.4)
        axes.set(xscale="log", yscale="log", xlabel="updates")
    left.axhline(float(variation(settings.signal)), color="0.75", linewidth=3, zorder=0)
    left.set_title(f"b  {VARIATION}", loc="left", fontsize="medium")
    right.set_title(f"c  {RECONSTRUCTION}", loc="left", fontsize="medium")
    for place, label in enumerate(DYNAMICS.values()):
        right.plot([], [], color="0.4", linestyle=LINES[place], label=label)
    right.plot([], [], "x", color="black", markersize=7, label="published, 1 seed")
    above.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.12), borderaxespad=0, columnspacing=1.2)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def noise_ratios(settings: TotalVariation, datasets: Datasets, dynamics: str) -> dict[str, np.ndarray]:
    """Return what the design has after as many updates with noise over what it has without, by seed."""
    noisy, quiet = (weights(datasets[f"designed_{name}"].sel(step=[settings.steps]))[:, 0] for name in (dynamics, "gd"))
    return {
        RECONSTRUCTION: reconstruction(settings, noisy) / reconstruction(settings, quiet),
        VARIATION: variation(noisy) / variation(quiet),
    }


def caption(settings: TotalVariation, datasets: Datasets) -> str:
    """Return what the figure shows."""
    start, end = (spread(variation(weights(datasets["designed_gd"])[:, step]))[1] for step in (0, -1))
    ratios = noise_ratios(settings, datasets, "sgd")
    added = ", ".join(f"{spread(ratio)[1] - 1:+.1%} of the {label}" for label, ratio in ratios.items())
    return (
        f"**Figure 6: piecewise-constant signal.** {len(settings.signal)} entries from {settings.samples} noisy "
        "projections. (a) Signals found by gradient descent, the run of the paper, and the interpolator of the same "
        "data of least total variation. (b) Total variation and (c) mean squared error over updates: gradient descent "
        f"with its band, SGD with {settings.batch_size} sample an update and its SDE for the design (medians), the "
        "least-variation interpolator (orange), the truth (grey), published numbers of one seed. From its start at "
        f"{start:.3g} the design's total variation goes to {end:.3g}: below that of the plain model, but far from the "
        "least. Gradient descent has no noise: the bias is that of parameterisation, start and gradient flow. What "
        f"noise adds after {settings.steps:,} updates of SGD: {added}, in the median over seeds. Learning rates listed "
        "are the paper's, for a loss without our factor ½: here they are doubled."
    )


def records(settings: TotalVariation, datasets: Datasets) -> list[Record]:
    """Return error, total variation and fit by model, and what noise changes, seed by seed."""
    found = []
    ends = {"vanilla": weights(datasets["vanilla_gd"])[:, -1], "designed": weights(datasets["designed_gd"])[:, -1]}
    for model, last in ends.items():
        fit = 2 * datasets[f"{model}_gd"]["loss"].isel(trajectory=0, step=-1).values
        found += [
            record(f"{model}: {RECONSTRUCTION}", reconstruction(settings, last), published(NAME, model, "recon_mse")),
            record(f"{model}: {VARIATION}", variation(last), published(NAME, model, "tv")),
            record(f"{model}: mean squared residual", fit, published(NAME, model, "fit_mse")),
        ]
    least = datasets["designed_gd"]["least_variation"].values
    found += [
        record(
            f"least variation: {RECONSTRUCTION}",
            reconstruction(settings, least),
            published(NAME, "minimum_tv", "recon_mse"),
        ),
        record(f"least variation: {VARIATION}", variation(least), published(NAME, "minimum_tv", "tv")),
    ]
    whole = weights(datasets["designed_gd"].sel(step=[0, settings.steps]))
    found.append(record(f"designed, at the start: {VARIATION}", variation(whole[:, 0])))
    found.append(
        record(f"designed, {settings.steps:,} updates: {RECONSTRUCTION}", reconstruction(settings, whole[:, 1]))
    )
    found.append(record(f"designed, {settings.steps:,} updates: {VARIATION}", variation(whole[:, 1])))
    for name in ("sgd", "sde"):
        for label, ratio in noise_ratios(settings, datasets, name).items():
            found.append(record(f"designed, {settings.steps:,} updates: {label}, {name.upper()} over no noise", ratio))
    return found


EXPERIMENT = Experiment(
    name=NAME,
    scales={
        "smoke": TotalVariation(seeds=8, steps=4_000, extended_steps=8_000, save_every=200, compile=False),
        "paper": TotalVariation(),
    },
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
