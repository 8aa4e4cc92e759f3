"""Planted structure from too few measurements: designed parameterisations against the plain model.

``python -m experiments.design_recovery`` prints the table of docs/design/structure.md and draws its figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binomtest
from torch import Tensor

import sdebias as sb
from sdebias.design import Fourier, GroupSparse, LowRank, Sparse, Structure
from sdebias.layout import ParameterLayout
from sdebias.plotting import COLOURS, STYLE
from sdebias.problems.linear import LinearRegression

ROOT = Path(__file__).parents[1]
SEEDS = range(32)
TOLERANCE = 0.05
MODELS = {"designed": "designed", "sparse": "sparse entries", "plain": "plain"}
LABEL_NOISE = 0.02
SIDE = 16

Signal = Callable[[torch.Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """A planted structure, its measurements, the design that is made for it, and how both models are trained."""

    title: str
    signal: Signal
    samples: int
    design: Structure
    learning_rate: float
    steps: int
    batch_size: int = 8
    entries: bool = False  # measurements are entries of the signal, else Gaussian projections

    def instance(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return w* (feature,), X (sample, feature) and y (sample,) of one seed."""
        generator = torch.Generator().manual_seed(seed)
        signal = self.signal(generator)
        if self.entries:
            seen = torch.randperm(len(signal), generator=generator)[: self.samples]
            X = torch.eye(len(signal), dtype=torch.float64)[seen]
        else:
            X = torch.randn(self.samples, len(signal), generator=generator, dtype=torch.float64)
        noise = LABEL_NOISE * torch.randn(self.samples, generator=generator, dtype=torch.float64)
        return signal, X, X @ signal + noise


class PlainRegression(LinearRegression):
    """Squared loss ℓ_i = ½ (x_i·w − y_i)² in w itself, from w = 0."""

    model: ClassVar[str] = "PlainRegression"

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], features: Sequence[str] | None = None) -> ParameterLayout:
        """Return w."""
        return cls.vectors(["w"], input_shape[0], features)

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return w = 0."""
        return {}, {}

    @classmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return w."""
        return named["w"]

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return the gradient in w."""
        return slope


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What training found on all seeds.

    Attributes
    ----------
    signal : Tensor, shape=(seed, feature)
    found : dict of str to Tensor, shape=(seed, feature)
        By model, as in `MODELS`.
    loss : dict of str to Tensor, shape=(seed,)
        Last training loss.
    """

    signal: Tensor
    found: dict[str, Tensor]
    loss: dict[str, Tensor]

    def errors(self, model: str) -> Tensor:
        """Return ‖w − w*‖/‖w*‖, shape (seed,)."""
        return (self.found[model] - self.signal).norm(dim=-1) / self.signal.norm(dim=-1)

    def recovered(self, model: str) -> int:
        """Return the number of seeds with a relative error of at most 5 %."""
        return int((self.errors(model) <= TOLERANCE).sum())


def piecewise_constant(generator: torch.Generator) -> Tensor:
    """Return 64 entries with 3 jumps, at places at least 4 apart; levels ~ N(0, 1), jumps of at least ½."""
    while True:
        jumps = torch.randperm(57, generator=generator)[:3].sort().values + 4
        levels = torch.randn(4, generator=generator, dtype=torch.float64)
        if bool((jumps.diff() >= 4).all()) and bool((levels.diff().abs() >= 0.5).all()):
            return levels.repeat_interleave(torch.diff(jumps, prepend=torch.tensor([0]), append=torch.tensor([64])))


def few_waves(generator: torch.Generator) -> Tensor:
    """Return 64 entries with 3 real Fourier coefficients of size 1 to 2, of either sign."""
    return Fourier(64)(_sparse(64, 3, generator))


def few_groups(generator: torch.Generator) -> Tensor:
    """Return 64 entries in 16 groups of 4, of which 2 are not zero, each ~ N(0, 1)⁴ rescaled to norm 1 to 2."""
    rows = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return (_sparse(16, 2, generator).unsqueeze(-1) * rows / rows.norm(dim=-1, keepdim=True)).flatten()


def two_factors(generator: torch.Generator) -> Tensor:
    """Return a 16 × 16 matrix of rank 2, U Vᵀ/√2 with standard normal factors, flattened by rows."""
    left, right = torch.randn(2, SIDE, 2, generator=generator, dtype=torch.float64)
    return (left @ right.mT / 2**0.5).flatten()


def _sparse(size: int, count: int, generator: torch.Generator) -> Tensor:
    values = torch.zeros(size, dtype=torch.float64)
    signs = torch.randint(2, (count,), generator=generator) * 2 - 1
    sizes = 1 + torch.rand(count, generator=generator, dtype=torch.float64)
    values[torch.randperm(size, generator=generator)[:count]] = signs * sizes
    return values


TASKS = {
    "total variation": Task(
        "3 jumps in 64 entries, 40 projections",
        piecewise_constant,
        40,
        Sparse(64, operator="differences"),
        learning_rate=1e-3,
        steps=30_000,
    ),
    "spectral": Task(
        "3 of 64 Fourier coefficients, 32 projections",
        few_waves,
        32,
        Sparse(64, operator="fourier", scale=1e-3),
        learning_rate=2e-2,
        steps=10_000,
    ),
    "group": Task(
        "2 of 16 groups of 4, 32 projections",
        few_groups,
        32,
        GroupSparse(16, 4, scale=1e-3),
        learning_rate=2e-2,
        steps=10_000,
    ),
    "low rank": Task(
        "rank 2 of 16 × 16, 60 % of the entries",
        two_factors,
        154,
        LowRank(SIDE, SIDE, scale=1e-3),
        learning_rate=0.2,
        steps=10_000,
        entries=True,
    ),
}


def recover(task: Task, seeds: Sequence[int] = SEEDS) -> Recovery:
    """Train all models from zero on all seeds at once, each seed a replicate.

    Beside the design and the plain linear model this is w = p∘q, which is sparse in the entries: a bias, but not the
    wanted one.
    """
    signal, X, y = (torch.stack(arrays) for arrays in zip(*map(task.instance, seeds), strict=True))
    problems = {
        "designed": task.design.problem(X, y),
        "sparse": Sparse(X.shape[-1], scale=task.design.scale).problem(X, y),
        "plain": PlainRegression(X, y),
    }
    sgd = sb.SGD(learning_rate=task.learning_rate, batch_size=task.batch_size)
    found, loss = {}, {}
    for name, problem in problems.items():
        ensemble = sb.simulate(
            problem,
            sgd,
            trajectories=1,
            block_size=1,
            steps=task.steps,
            save_every=task.steps,
            save=("predictor_value", "loss"),
        )
        last = ensemble.isel(trajectory=0, step=-1)
        found[name] = torch.from_numpy(last["predictor_value"].values)
        loss[name] = torch.from_numpy(last["loss"].values)
    return Recovery(signal, found, loss)


def table(recoveries: Mapping[str, Recovery]) -> str:
    """Return the numbers of recovered seeds with their exact 95 % intervals, and the errors, as a markdown table."""
    names = [name for label in MODELS.values() for name in (label, "its error")]
    lines = [f"| task | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for name, recovery in recoveries.items():
        cells = []
        for model in MODELS:
            hits, tries = recovery.recovered(model), len(recovery.signal)
            interval = binomtest(hits, tries).proportion_ci(method="exact")
            cells.append(f"{hits}/{tries} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)")
            cells.append(f"{float(recovery.errors(model).median()):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(recoveries: Mapping[str, Recovery]) -> Figure:
    """Draw what was planted and what was found on the first seed, in the coordinates in which it has structure."""
    views: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
        "total variation": ("entry", "signal w", lambda w: w),
        "spectral": ("Fourier coefficient", "A w", Fourier(64).analysis),
        "group": ("entry", "signal w", lambda w: w),
        "low rank": (
            "index",
            "singular value",
            lambda w: torch.linalg.svdvals(w.unflatten(-1, (SIDE, SIDE))),
        ),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.8), layout="constrained")
        for axes, (name, recovery) in zip(figure.subplots(2, 2).flat, recoveries.items(), strict=True):
            across, up, view = views[name]
            entries = np.arange(len(view(recovery.signal[0])))
            style = {"drawstyle": "steps-mid"}  # entries are discrete
            axes.plot(entries, view(recovery.signal[0]), color="0.75", linewidth=5, label="planted", **style)
            for colour, model in zip(COLOURS, ("designed", "plain"), strict=False):
                hits = f"{recovery.recovered(model)}/{len(recovery.signal)}"
                label = f"{MODELS[model]}: {hits} seeds"
                axes.plot(entries, view(recovery.found[model][0]), color=colour, linewidth=1.5, label=label, **style)
            axes.set(title=f"{name}\n{TASKS[name].title}", xlabel=across, ylabel=up)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize="small")
    return figure


def main() -> None:
    """Print the table and write the figure of the documentation."""
    recoveries = {name: recover(task) for name, task in TASKS.items()}
    print(table(recoveries))
    path = ROOT / "docs" / "figures" / "design_recovery.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(recoveries).savefig(path, dpi=200)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
