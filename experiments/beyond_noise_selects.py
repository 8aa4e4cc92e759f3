"""Beyond the paper: noise selects the solution.

``python -m experiments.beyond_noise_selects all`` fits w = p∘q from a large start, with fewer samples than features and
a sparse truth, in the setting of HaoChen, Wei, Lee, Ma (Shape matters, COLT 2021): every dynamics fits the data, and
each ends at another interpolator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
import xarray as xr
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.plotting import COLOURS

from .common import Datasets, Experiment, Record, Settings, band, record, spread, styled

RUNS = {
    "descent": "gradient descent",
    "minibatch": "minibatches",
    "label": "label noise",
    "isotropic": "isotropic noise",
}


@dataclass(frozen=True, kw_only=True)
class Selection(Settings):
    """Sparse regression y = Xw* without noise in the data; p starts at `start`, q at 0."""

    seeds: int = 16
    samples: int = 40
    features: int = 100
    nonzero: int = 5
    start: float = 1.0
    learning_rate: float = 2e-2
    batch_size: int = 4
    label_noise: float = 1.5
    steps: int = 32_000
    isotropic_substeps: int = 4
    saves: int = 40

    @property
    def temperature(self) -> float:
        """T of the isotropic noise with the fluctuation η s²/2B of the label noise about the solutions."""
        return self.learning_rate * self.label_noise**2 / (2 * self.batch_size)


def data(settings: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Return X, shape (seed, sample, feature), and w*, shape (seed, feature)."""
    rng = np.random.default_rng(settings.seed)
    X = rng.standard_normal((settings.seeds, settings.samples, settings.features))
    order = rng.permuted(np.tile(np.arange(settings.features), (settings.seeds, 1)), axis=1)
    signs = rng.choice([-1.0, 1.0], (settings.seeds, settings.features))
    return X, np.where(order < settings.nonzero, signs, 0.0)


def simulate(settings: Selection) -> Datasets:
    """Run each dynamics from the same start on the same data; the truth is stored beside the weights."""
    X, truth = data(settings)
    problem = sb.problems.HadamardRegression(X, np.einsum("snf,sf->sn", X, truth), initial={"p": settings.start})
    rate, batch, steps = settings.learning_rate, settings.batch_size, settings.steps
    common: dict[str, Any] = {"learning_rate": rate, "batch_size": batch, "increments": "rademacher"}
    isotropic = sb.noise.isotropic(settings.temperature)
    descent = sb.SGD(learning_rate=rate, batch_size=settings.samples, replacement=False)
    runs: dict[str, tuple[sb.SGD | sb.SGDSDE, int]] = {
        "descent": (descent, steps),
        "minibatch": (sb.SGD(learning_rate=rate, batch_size=batch), steps),
        "label": (sb.SGDSDE(noise=sb.noise.label(settings.label_noise), substeps=1, **common), steps),
        # As its factors grow, so does the curvature: a whole step an update would become unstable.
        "isotropic": (sb.SGDSDE(noise=isotropic, substeps=settings.isotropic_substeps, **common), steps // 4),
    }

    def run(dynamics: sb.SGD | sb.SGDSDE, length: int, initial: torch.Tensor | None = None) -> xr.Dataset:
        found = sb.simulate(
            problem,
            dynamics,
            trajectories=1,
            steps=length,
            save_every=steps // settings.saves,
            seed=settings.seed,
            initial=initial,
            save=["theta", "predictor_value", "loss"],
            block_size=1,
        )
        return found.assign(truth=(("replicate", "predictor"), truth))

    found = {name: run(*one) for name, one in runs.items()}
    end = torch.as_tensor(found["label"]["theta"].isel(step=-1).values)
    return found | {"quenched": run(descent, steps // 4, end)}


def lasso_limit(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return argmin Σ_j m_j |w_j| over interpolators, m_j = mean_i x_ij²: least tr ∇²L on balanced factors.

    By a linear programme in the positive and negative parts of w.
    """
    costs = np.tile((X**2).mean(0), 2)
    parts = scipy.optimize.linprog(costs, A_eq=np.hstack([X, -X]), b_eq=y, bounds=(0, None)).x
    return parts[: X.shape[1]] - parts[X.shape[1] :]


def flow_limit(X: np.ndarray, y: np.ndarray, start: float) -> np.ndarray:
    """Return the interpolator that gradient flow from p = a, q = 0 reaches: w = ½ a² sinh(2 Xᵀλ) with Xw = y.

    The charges ½(p² − q²) = ½ a² are conserved, so that p = a cosh z, q = a sinh z with z in the span of the samples.
    """

    def miss(dual: np.ndarray) -> np.ndarray:
        return X @ (0.5 * start**2 * np.sinh(2 * X.T @ dual)) - y

    def slope(dual: np.ndarray) -> np.ndarray:
        return (X * (start**2 * np.cosh(2 * X.T @ dual))) @ X.T

    dual = scipy.optimize.root(miss, np.zeros(len(y)), jac=slope, tol=1e-12).x
    return 0.5 * start**2 * np.sinh(2 * X.T @ dual)


def limits(settings: Selection, run: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the predicted interpolators of gradient descent and of label noise, each of shape (seed, feature)."""
    pairs = list(zip(run["X"].values, run["y"].values, strict=True))
    return {
        "descent": np.stack([flow_limit(X, y, settings.start) for X, y in pairs]),
        "label": np.stack([lasso_limit(X, y) for X, y in pairs]),
    }


def errors(weights: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return ‖w − w*‖/‖w*‖ over the last axis."""
    return np.linalg.norm(weights - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


def _errors(run: xr.Dataset) -> np.ndarray:
    weights = run["predictor_value"].isel(trajectory=0).transpose("replicate", "step", "predictor").values
    return errors(weights, run["truth"].values[:, None])


def sharpness(run: xr.Dataset) -> np.ndarray:
    """Return tr ∇²L = Σ_j m_j (p_j² + q_j²) at interpolators, shape (seed, step)."""
    theta = run["theta"].isel(trajectory=0).transpose("replicate", "step", "parameter").values
    squares = (theta**2).reshape(*theta.shape[:-1], 2, -1).sum(-2)
    return np.einsum("skf,sf->sk", squares, (run["X"].values ** 2).mean(1))


def draw(settings: Selection, datasets: Datasets) -> Figure:
    """Draw the error of the weights, and what label noise adds to the loss, over training."""
    figure = styled(3.8)
    left, right = figure.subplots(1, 2)
    for colour, (name, label) in zip(COLOURS, RUNS.items(), strict=False):
        run = datasets[name]
        band(left, run["step"] / 1000, _errors(run), color=colour, label=label)
        band(right, run["step"] / 1000, sharpness(run), color=colour)
    run = datasets["label"]
    ends, truth = limits(settings, run), run["truth"].values
    left.axhline(
        np.median(errors(ends["descent"], truth)), color="black", linestyle="--", linewidth=1, label="predicted ends"
    )
    off = _errors(datasets["quenched"])
    later = (run["step"].values[-1] + datasets["quenched"]["step"].values) / 1000
    band(left, later, off, color=COLOURS[4], label="label noise turned off")
    least = 2 * (np.abs(ends["label"]) * (run["X"].values ** 2).mean(1)).sum(-1)
    right.axhline(np.median(least), color="black", linestyle="--", linewidth=1)
    steps = datasets["isotropic"]["step"].values
    free = 2 * settings.features - settings.samples
    growth = sharpness(datasets["isotropic"])[:, :1] + 2 * settings.learning_rate * settings.temperature * free * steps
    right.plot(steps / 1000, np.median(growth, 0), color="black", linestyle=":", linewidth=1.4, label="free diffusion")
    right.legend(loc="upper right")
    left.set(xlabel="updates [1000]", ylabel="‖w − w*‖ / ‖w*‖", yscale="log", title="a  error of the weights")
    right.set(xlabel="updates [1000]", ylabel="tr ∇²L", yscale="log", title="b  what noise can lower")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def caption(settings: Selection, datasets: Datasets) -> str:
    """Return what the figure shows."""
    gap = np.median(np.abs(_errors(datasets["descent"])[:, -1] - _errors(datasets["minibatch"])[:, -1]))
    end, off, least = (
        spread(values)[1]
        for values in (
            _errors(datasets["label"])[:, -1],
            _errors(datasets["quenched"])[:, -1],
            errors(limits(settings, datasets["label"])["label"], datasets["label"]["truth"].values),
        )
    )
    weight = settings.learning_rate * settings.label_noise**2 / (4 * settings.batch_size)
    return (
        f"**Noise selects the solution.** w = p∘q from the large start p = {settings.start:g}, q = 0, "
        f"{settings.samples} samples, {settings.features} features, {settings.nonzero} weights of ±1. (a) Label noise "
        f"nears the sparse truth: median error {end:.2g} under its own fluctuation, {off:.2g} when it is turned off, "
        f"where the predicted end, the interpolator of least ℓ1 norm, has {least:.0e}; the others do not. Dashed: "
        "predicted end of gradient flow under conserved charges. Batches of "
        f"{settings.batch_size} end as gradient descent does (median difference {gap:.1g}): their noise dies with the "
        "loss before it has moved the charges. (b) Near interpolators label noise descends "
        f"L + (ηs²/4B) tr ∇²L, here with weight {weight:.2g}: tr ∇²L = Σ m_j (p_j² + q_j²) falls to its least value on "
        "interpolators (dashed), the weighted ℓ1 norm 2 Σ m_j |w_j| that a linear programme finds. For minibatches and "
        "gradient descent nothing is added to L on interpolators. Isotropic noise of the same fluctuation about the "
        "solutions has no stationary law on orbits that are not compact: factors diffuse in "
        f"{2 * settings.features - settings.samples} flat directions, a bit slower than freely (dotted), and "
        "with them the error. "
        "Label noise and isotropic noise are Euler steps of their SDE, without minibatches, "
        f"{settings.isotropic_substeps} an update for isotropic noise, which runs for a quarter of the updates."
    )


def records(settings: Selection, datasets: Datasets) -> Sequence[Record]:
    """Return the errors at the end, and those of the predicted ends."""
    found = [record(f"{label}: error of the weights", _errors(datasets[name])[:, -1]) for name, label in RUNS.items()]
    run = datasets["label"]
    found.append(record("label noise turned off: error of the weights", _errors(datasets["quenched"])[:, -1]))
    for name, end in limits(settings, run).items():
        found.append(record(f"predicted end of {RUNS[name]}: error", errors(end, run["truth"].values)))
    found += [record(f"{label}: tr ∇²L", sharpness(datasets[name])[:, -1]) for name, label in RUNS.items()]
    return found


EXPERIMENT = Experiment(
    name="beyond_noise_selects",
    scales={"smoke": Selection(seeds=4, steps=2_000), "paper": Selection()},
    simulate=simulate,
    draw=draw,
    caption=caption,
    records=records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
