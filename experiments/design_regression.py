"""Sparse regression with interactions on the diabetes data: a designed bias against an explicit L1 penalty.

``python -m experiments.design_regression`` draws docs/figures/design_regression.png and prints the table beside it. It
needs scikit-learn: ``pip install sdebias[peers]``. Four paths of models, each with one knob, on the same splits:

- w = p∘q from p = 0.01, q = 0 under SGD with batch 1, over training time: nothing in the loss asks for sparsity;
- the same without noise, all samples in each batch: what the parameterisation and the small start do by themselves;
- the linear model under gradient flow, over training time: the same loss without the parameterisation;
- the Lasso, over its penalty.

The knob is set on validation data, split by split, and judged on test data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import sdebias as sb
from sdebias.plotting import COLOURS, STYLE

ROOT = Path(__file__).parents[1]
TRAIN, VALIDATION = 100, 100
SEEDS = 32


@dataclass(frozen=True)
class Splits:
    """Standardised data of each split: arrays (seed, sample, feature) and (seed, sample) by part."""

    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]

    def errors(self, part: str, weights: np.ndarray) -> np.ndarray:
        """Return the mean squared error, shape (seed, path), of weights of shape (seed, path, feature)."""
        predictions = np.einsum("sif,spf->spi", self.inputs[part], weights)
        return ((predictions - self.targets[part][:, None]) ** 2).mean(-1)


def interactions(inputs: np.ndarray) -> np.ndarray:
    """Return features, squares of those with more than two values, and products: (sample, 64) of (sample, 10)."""
    first, second = np.triu_indices(inputs.shape[1])
    binary = [len(np.unique(column)) == 2 for column in inputs.T]
    kept = [(i, j) for i, j in zip(first, second, strict=True) if i != j or not binary[i]]
    return np.concatenate([inputs, np.stack([inputs[:, i] * inputs[:, j] for i, j in kept], axis=1)], axis=1)


def splits(seeds: int = SEEDS) -> Splits:
    """Return random splits into training, validation and test samples, standardised by the training samples."""
    with xr.open_dataset(ROOT / "data" / "diabetes.nc") as data:
        features, target = interactions(data["X"].values), data["y"].values
    bounds = {
        "train": slice(TRAIN),
        "validation": slice(TRAIN, TRAIN + VALIDATION),
        "test": slice(TRAIN + VALIDATION, None),
    }
    inputs: dict[str, list[np.ndarray]] = {part: [] for part in bounds}
    targets: dict[str, list[np.ndarray]] = {part: [] for part in bounds}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(target))
        X, y = features[order], target[order]
        mean, deviation, centre = X[:TRAIN].mean(0), X[:TRAIN].std(0), y[:TRAIN].mean()
        for part, place in bounds.items():
            inputs[part].append((X[place] - mean) / deviation)
            targets[part].append(y[place] - centre)
    return Splits(
        {part: np.stack(arrays) for part, arrays in inputs.items()},
        {part: np.stack(arrays) for part, arrays in targets.items()},
    )


def product_path(
    data: Splits, batch_size: int, *, steps: int = 20000, save_every: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Return training times η k, and the weights of w = p∘q there, one run of SGD for each split.

    Batches are drawn without replacement, so that one of all samples has no noise.
    """
    problem = sb.problems.HadamardRegression(data.inputs["train"], data.targets["train"], initial={"p": 0.01})
    dynamics = sb.SGD(learning_rate=2e-3, batch_size=batch_size, replacement=False)
    run = sb.simulate(
        problem, dynamics, trajectories=1, steps=steps, save_every=save_every, block_size=1, save=["predictor_value"]
    )
    weights = run["predictor_value"].isel(trajectory=0).transpose("replicate", "step", "predictor")
    return 2e-3 * run["step"].values[1:], weights.values[:, 1:]


def linear_path(data: Splits, times: np.ndarray) -> np.ndarray:
    """Return the weights of the linear model under gradient flow from 0, shape (seed, time, feature), exactly."""
    paths = []
    for X, y in zip(data.inputs["train"], data.targets["train"], strict=True):
        left, sizes, right = np.linalg.svd(X / np.sqrt(len(y)), full_matrices=False)
        reached = -np.expm1(-np.outer(times, sizes**2)) / sizes
        paths.append((reached * (left.T @ y / np.sqrt(len(y)))) @ right)
    return np.stack(paths)


def lasso_path(data: Splits, penalties: np.ndarray) -> np.ndarray:
    """Return the weights of scikit-learn's Lasso, shape (seed, penalty, feature)."""
    from sklearn.linear_model import lasso_path as path

    pairs = zip(data.inputs["train"], data.targets["train"], strict=True)
    return np.stack([path(X, y, alphas=penalties, max_iter=200000)[1].T for X, y in pairs])


def chosen(data: Splits, weights: np.ndarray) -> np.ndarray:
    """Return the test error of each split, shape (seed,), where its validation error is least."""
    best = data.errors("validation", weights).argmin(1)
    return np.take_along_axis(data.errors("test", weights), best[:, None], axis=1)[:, 0]


def draw(data: Splits, paths: Mapping[str, tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Draw the test error along each path: median and quartiles over splits."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 3.0), layout="constrained")
        panels = figure.subplots(1, len(paths), sharey=True)
        for axes, colour, (name, (knob, values, weights)) in zip(panels, COLOURS, paths.items(), strict=False):
            low, middle, high = np.quantile(data.errors("test", weights), [0.25, 0.5, 0.75], axis=0)
            axes.fill_between(values, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(values, middle, color=colour)
            axes.axhline(float(np.median(chosen(data, weights))), color="0.4", linewidth=0.8, linestyle=":")
            axes.set_xscale("log")
            axes.set_ylim(0.45, 1.3)
            axes.set_xlabel(knob)
            axes.set_title(name, fontsize="medium")
        panels[0].set_ylabel("test error (variance 1)")
    return figure


def main() -> None:
    """Run all paths, print errors, draw the figure."""
    data = splits()
    times, penalties = np.geomspace(0.05, 50, 40), np.geomspace(1, 3e-3, 40)
    paths = {
        "w = p∘q, SGD": ("training time ηk", *product_path(data, 1)),
        "w = p∘q, no noise": ("training time ηk", *product_path(data, TRAIN)),
        "linear, gradient flow": ("training time", times, linear_path(data, times)),
        "Lasso": ("penalty", penalties, lasso_path(data, penalties)),
    }
    reference = chosen(data, paths["Lasso"][2])
    for name, (_, _, weights) in paths.items():
        error = chosen(data, weights)
        best, difference = data.errors("test", weights).mean(0).min(), error - reference
        scale = len(error) ** -0.5
        print(
            f"{name}: {error.mean():.3f} ± {error.std(ddof=1) * scale:.3f}, best point of the path {best:.3f}, "
            f"against the Lasso {difference.mean():+.3f} ± {difference.std(ddof=1) * scale:.3f}"
        )
    target = ROOT / "docs" / "figures" / "design_regression.png"
    draw(data, paths).savefig(target, dpi=150)
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
