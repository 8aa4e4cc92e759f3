"""Designed biases against the explicit penalties that they stand for, over the whole path and over seeds.

``python -m experiments.design_tasks`` writes the tables of docs/design/practice.md and draws its figures; with
``--scale smoke`` it prints those of few seeds and writes nothing there. It needs scikit-learn:
``pip install sdebias[peers]``. The tasks:

- spectrum: the sparse spectrum of arXiv:2601.06597, Fig. 5, against the Lasso;
- signal: its piecewise-constant signal, Fig. 6, against total variation;
- nile: the flow of the Nile over a century, against total variation;
- digits: images from half of their pixels, against the nuclear norm.

Every knob is set on validation data, seed by seed, and judged on test data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Literal

import matplotlib as mpl
import numpy as np
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdebias.design import Sparse
from sdebias.plotting import COLOURS, LINES, STYLE

from .design_completion import digits, nuclear_path, product_path
from .design_paths import PENALTY, TIME, Path, contrast, flow_path, l1_path, plain_path, sgd_path, table, tv_path
from .design_regression import Splits, chosen, lasso_path

ROOT = File(__file__).parents[1]
SEEDS = {"smoke": 6, "full": 32}
PARTS = ("train", "validation", "test")
PENALTIES = np.geomspace(1, 1e-4, 81)

SAMPLES, FREQUENCIES = 32, 64
MEASUREMENTS = 60
LEVELS, LENGTHS = (1.0, -1.5, 0.5, 2.0), (50, 70, 40, 40)
LABEL_NOISE = 0.1
# 0.1 ‖w‖₁ beside a squared loss without the factor ½.
PAPER_PENALTY = 0.05
YEARS = {"train": 60, "validation": 20, "test": 20}

Scale = Literal["smoke", "full"]


@dataclass(frozen=True)
class Task:
    """Data with the models that are trained on them.

    Attributes
    ----------
    title, error : str
        What the task is, and what its test error is.
    splits : callable
        Number of seeds to data.
    paths : callable
        Data and scale to paths by name.
    explicit : str
        Name of the path of the explicit penalty.
    contrasts : sequence of tuple of str
        Pairs of other paths to compare, seed by seed.
    scale : {"log", "linear"}
        Of the errors in the figure.
    """

    title: str
    error: str
    splits: Callable[[int], Splits]
    paths: Callable[[Splits, Scale], dict[str, Path]]
    explicit: str
    contrasts: Sequence[tuple[str, str]] = ()
    scale: Literal["log", "linear"] = "log"


# -- data --------------------------------------------------------------------------------------------------------------


def stacked(draws: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Splits:
    """Return the splits of all seeds, each a mapping of parts to inputs (sample, feature) and targets (sample,)."""
    inputs, targets = ({part: np.stack([draw[part][i] for draw in draws]) for part in PARTS} for i in (0, 1))
    return Splits(inputs, targets)


def cosines(t: np.ndarray) -> np.ndarray:
    """Return cos(2πkt) for k = 0 … 63, shape (*t.shape, 64)."""
    return np.cos(2 * np.pi * np.arange(FREQUENCIES) * t[..., None])


def spectrum(seeds: int) -> Splits:
    """Return 32 noisy samples of three cosines each for training and validation; the test has no noise.

    The mean over 128 midpoints is that over all t: products of the cosines have frequencies below 128.
    """
    draws = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        truth = np.zeros(FREQUENCIES)
        support = 1 + rng.choice(FREQUENCIES - 1, 3, replace=False)
        truth[support] = rng.choice([-1, 1], 3) * rng.uniform(1, 2, 3)
        test = cosines((np.arange(128) + 0.5) / 128)
        X = cosines(rng.random((2, SAMPLES)))
        y = X @ truth + LABEL_NOISE * rng.standard_normal((2, SAMPLES))
        draws.append({"train": (X[0], y[0]), "validation": (X[1], y[1]), "test": (test, test @ truth)})
    return stacked(draws)


def piecewise_constant() -> np.ndarray:
    """Return the signal of 200 entries with three jumps."""
    return np.repeat(np.array(LEVELS), np.array(LENGTHS))


def signal(seeds: int) -> Splits:
    """Return 60 noisy projections of the signal each for training and validation; the test is the signal itself."""
    truth = piecewise_constant()
    draws = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((2, MEASUREMENTS, len(truth))) / MEASUREMENTS**0.5
        y = A @ truth + LABEL_NOISE * rng.standard_normal((2, MEASUREMENTS))
        draws.append({"train": (A[0], y[0]), "validation": (A[1], y[1]), "test": (np.eye(len(truth)), truth)})
    return stacked(draws)


def nile(seeds: int) -> Splits:
    """Return random splits of the years into training, validation and test, standardised by the training years.

    The features are the flows of the training years, so that the training inputs are the identity; the others
    interpolate linearly between them, and repeat the first and the last beyond.
    """
    with xr.open_dataset(ROOT / "data" / "nile.nc") as record:
        years, flow = record["year"].values, record["flow"].values
    draws = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(years))
        parts = dict(zip(YEARS, np.split(order, np.cumsum(list(YEARS.values()))[:-1]), strict=True))
        train = parts["train"] = np.sort(parts["train"])
        y = (flow - flow[train].mean()) / flow[train].std()
        draws.append({part: (interpolation(years[where], years[train]), y[where]) for part, where in parts.items()})
    return stacked(draws)


def interpolation(at: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the matrix (point, known) that takes values at increasing known points to others, linearly."""
    return np.stack([np.interp(at, known, one) for one in np.eye(len(known))], axis=1)


# -- models ------------------------------------------------------------------------------------------------------------


def spectrum_paths(data: Splits, scale: Scale) -> dict[str, Path]:
    """Return w = p∘q with and without noise, the linear model, and the Lasso, also at the one λ of the paper."""
    times, design = np.geomspace(0.1, 1e3, 81), Sparse(FREQUENCIES)
    fixed = np.array([PAPER_PENALTY])
    return {
        "w = p∘q, gradient flow": flow_path(data, design, times),
        "w = p∘q, SGD": sgd_path(data, design, learning_rate=2e-3, steps=40_000 if scale == "full" else 4_000),
        "linear, gradient flow": plain_path(data, times),
        "Lasso at λ = 0.05": Path(PENALTY, fixed, lasso_path(data, fixed)),
        "Lasso": l1_path(data, PENALTIES),
    }


def signal_paths(data: Splits, scale: Scale) -> dict[str, Path]:
    """Return cumulative sums of p∘q from two starts, the linear model, and total variation."""
    times = np.geomspace(0.1, 1e4, 81)
    design = Sparse(len(piecewise_constant()), operator="differences")
    return {
        "w = cumsum(p∘q), gradient flow": flow_path(data, design, times),
        "the same from p, q ~ N(0, 0.3²)": flow_path(data, design, times, spread=0.3),
        "linear, gradient flow": plain_path(data, times),
        "TV": tv_path(data, PENALTIES),
    }


def nile_paths(data: Splits, scale: Scale) -> dict[str, Path]:
    """Return cumulative sums of p∘q with and without noise, the linear model, and total variation."""
    times, design = np.geomspace(1, 1e4, 81), Sparse(YEARS["train"], operator="differences")
    return {
        "w = cumsum(p∘q), gradient flow": flow_path(data, design, times),
        "w = cumsum(p∘q), SGD": sgd_path(data, design, learning_rate=1e-2, steps=40_000 if scale == "full" else 4_000),
        "linear, gradient flow": plain_path(data, times),
        "TV": tv_path(data, PENALTIES),
    }


def digits_paths(data: Splits, scale: Scale) -> dict[str, Path]:
    """Return M = U Vᵀ with and without noise, and the nuclear norm."""
    pixels, steps = data.inputs["train"].shape[1], 4000 if scale == "full" else 800
    return {
        "M = U Vᵀ, gradient descent": product_path(data, pixels, learning_rate=2.0, steps=steps),
        "M = U Vᵀ, SGD": product_path(data, pixels // 10, learning_rate=2.0, steps=steps),
        "nuclear norm": nuclear_path(data, PENALTIES[:61:2]),
    }


TASKS = {
    "spectrum": Task(
        "Sparse spectrum",
        "mean squared error",
        spectrum,
        spectrum_paths,
        "Lasso",
        [
            ("w = p∘q, SGD", "w = p∘q, gradient flow"),
            ("w = p∘q, gradient flow", "Lasso at λ = 0.05"),
        ],
    ),
    "signal": Task("Piecewise-constant signal", "mean squared error", signal, signal_paths, "TV"),
    "nile": Task(
        "Flow of the Nile",
        "mean squared error (variance 1)",
        nile,
        nile_paths,
        "TV",
        [
            ("w = cumsum(p∘q), SGD", "w = cumsum(p∘q), gradient flow"),
            ("w = cumsum(p∘q), gradient flow", "linear, gradient flow"),
        ],
        "linear",
    ),
    "digits": Task(
        "Digits",
        "mean squared error (variance 1)",
        digits,
        digits_paths,
        "nuclear norm",
        [("M = U Vᵀ, SGD", "M = U Vᵀ, gradient descent")],
        "linear",
    ),
}


# -- figures and page --------------------------------------------------------------------------------------------------


def _path(axes: Axes, data: Splits, path: Path, colour: str, line: str) -> None:
    low, middle, high = np.quantile(data.errors("test", path.weights), [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(path.values, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(path.values, middle, color=colour, linestyle=line)


def draw(task: Task, data: Splits, paths: Mapping[str, Path]) -> Figure:
    """Draw test errors over training time and over the explicit penalty, and in units of its own, seed by seed."""
    with mpl.rc_context({**STYLE, "legend.fontsize": "small"}):
        figure = Figure(figsize=(10.5, 4.0), layout="constrained")
        time, penalty, pairs = figure.subplots(1, 3)
        penalty.sharey(time)
        reference = chosen(data, paths[task.explicit].weights)
        for place, ((name, path), colour, line) in enumerate(
            zip(paths.items(), COLOURS, itertools.cycle(LINES), strict=False)
        ):
            if len(path.values) > 1:
                _path(time if path.knob == TIME else penalty, data, path, colour, line)
            if name != task.explicit:
                ratio = chosen(data, path.weights) / reference
                pairs.plot(place + np.linspace(-0.25, 0.25, len(ratio)), ratio, ".", color=colour, markersize=5)
                pairs.hlines(np.median(ratio), place - 0.35, place + 0.35, color=colour)
            pairs.plot([], [], "o", linestyle=line, color=colour, markersize=4, label=name)
        for axes, knob, title in ((time, TIME, "bias by training"), (penalty, PENALTY, "bias by a penalty")):
            axes.set(xscale="log", yscale=task.scale, xlabel=knob)
            axes.set_title(title, fontsize="medium")
        penalty.invert_xaxis()
        time.set_ylabel(f"test {task.error}")
        pairs.axhline(1, color="0.5", linewidth=0.8)
        pairs.set(yscale=task.scale, xticks=[], ylabel=f"test error / that of {task.explicit}")
        pairs.set_title("validation's choice, each seed", fontsize="medium")
        figure.suptitle(task.title)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def insert(page: str, name: str, text: str) -> str:
    """Return a page with the text between the marks of this name renewed.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    place = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    found, count = place.subn(lambda marks: f"{marks[1]}\n{text}\n{marks[2]}", page)
    if count != 1:
        raise ValueError(f"the page has {count} places for {name!r}, not one")
    return found


def main(scale: Scale = "full") -> None:
    """Run all tasks, print their tables, and draw their figures.

    Parameters
    ----------
    scale
        full also renews docs/design/practice.md and its figures; smoke draws into results/design_tasks.
    """
    full = scale == "full"
    figures = ROOT / "docs" / "figures" if full else ROOT / "results" / "design_tasks"
    figures.mkdir(parents=True, exist_ok=True)
    page = ROOT / "docs" / "design" / "practice.md"
    for name, task in TASKS.items():
        data = task.splits(SEEDS[scale])
        paths = task.paths(data, scale)
        contrasts = [contrast(data, paths, *pair) for pair in task.contrasts]
        text = "\n\n".join([table(data, paths, task.explicit), *contrasts])
        print(f"{task.title}\n{text}")
        draw(task, data, paths).savefig(figures / f"design_{name}.png", dpi=150)
        if full:
            page.write_text(insert(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.design_tasks")
