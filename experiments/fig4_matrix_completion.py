"""Figure 4: matrix completion by a product of square factors: its singular values, and the balance of the factors.

``python -m experiments.fig4_matrix_completion all`` runs SGD with a random mask in each update as in the paper, the SDE
that models it, and gradient descent with the mean mask, in which there is no noise.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sdebias as sb
from sdebias.layout import ParameterLayout
from sdebias.problems.stream import Stream

from .balance import (
    RUNS,
    BalanceSettings,
    Run,
    balance_caption,
    balance_records,
    draw_balance,
    runs_of,
    simulate_runs,
    updates,
)
from .common import Datasets, Experiment, Record, band, published, record, spread, styled

NAME = "fig4_matrix_completion"
# Singular values that are drawn, and the runs whose difference is noise.
SHOWN = 3
TOLD_APART = ("sgd", "descent")


@dataclass(frozen=True, kw_only=True)
class Completion(BalanceSettings):
    """The paper's matrix, mask and start, in float64: in float32 rounding moves the charges more than noise does.

    SDE and gradient descent depend on the time ηk, the SDE besides on η/B alone: both run at `stride` times the rate
    for as many steps fewer, the SDE with B = `stride`. The census is gradient descent on more seeds, at a higher rate.
    """

    seeds: int = 16
    size: int = 20
    singular_values: tuple[float, ...] = (15.0, 5.0)
    observed: float = 0.2
    start_std: tuple[float, float] = (0.11, 0.10)
    learning_rate: float = 1e-3
    steps: int = 500_000
    save_every: int = 1000
    stride: int = 20
    census: int = 128
    census_stride: int = 100


class MaskedCompletion(sb.Problem):
    """Loss ℓ_s = Σ_ij mask_s,ij ((PQ)_ij − M_ij)² / (rows · columns): a sample is a mask of the observed entries.

    Parameters
    ----------
    M, observed : Tensor, shape=(replicate, row, column)
        The matrix, and 1 where it is observed, else 0.

    Notes
    -----
    Its data are one sample, the mean of the masks, whose entries are ½; `stochastic` draws masks of fair coins.
    """

    model: ClassVar[str] = "MaskedCompletion"

    def __init__(self, M: Tensor, observed: Tensor) -> None:
        entries = ("replicate", "row", "column")
        mean = torch.full_like(M, 0.5).unsqueeze(1)
        data = {
            "M": (entries, M),
            "observed": (entries, observed),
            "mask": (("replicate", "sample", "row", "column"), mean),
        }
        super().__init__(ParameterLayout({"P": tuple(M.shape[1:]), "Q": tuple(M.shape[1:])}), data)

    def stochastic(self) -> MaskedCompletion:
        """Return the problem whose updates draw masks: each entry independently, 1 with probability ½, else 0."""
        sides = self.layout.shape("P")

        def sampler(shape: tuple[int, ...], generator: torch.Generator, *, like: Tensor) -> dict[str, Tensor]:
            count = math.prod((*shape, *sides))
            # The sign of a random byte is a fair coin, and much cheaper than a uniform number.
            words = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device)
            coins = words.random_(-(2**63), None, generator=generator).view(torch.int8)[:count] < 0
            return {"mask": coins.view(*shape, *sides).to(like.dtype)}

        stream = Stream(sampler, {"like": self.data["mask"][1]}, {"law": "fair coins"})
        return self.with_stream(stream)

    def symmetry(self) -> sb.symmetry.Symmetry:
        """Return the rescaling of each column of P against the row of Q."""
        return sb.symmetry.Rescaling("P:1", "Q:0")

    def _errors(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return P, Q and the observed entries of PQ − M."""
        named = self.layout.unflatten(theta)
        product = named["P"] @ named["Q"]
        return named["P"], named["Q"], (product - self.samples["M"]) * self.samples["observed"]

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_s, shape (..., sample)."""
        _, _, errors = self._errors(theta)
        return (self.samples["mask"] * errors.square().unsqueeze(-3)).mean((-2, -1))

    def _gradient(self, left: Tensor, right: Tensor, errors: Tensor) -> Tensor:
        errors = errors * (2 / (errors.shape[-2] * errors.shape[-1]))
        return torch.cat([(errors @ right.mT).flatten(-2), (left.mT @ errors).flatten(-2)], dim=-1)

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return (E Qᵀ, Pᵀ E), E the errors under the weighted sum of the masks."""
        left, right, errors = self._errors(theta)
        masks = (weights[..., None, None] * self.samples["mask"]).sum(-3)
        return self._gradient(left, right, errors * masks)

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient under each mask, shape (..., sample, parameter)."""
        left, right, errors = self._errors(theta)
        masked = errors.unsqueeze(-3) * self.samples["mask"]
        return self._gradient(left.unsqueeze(-3), right.unsqueeze(-3), masked)

    def predictor(self, theta: Tensor) -> Tensor:
        """Return the entries of PQ, shape (..., row · column)."""
        named = self.layout.unflatten(theta)
        return (named["P"] @ named["Q"]).flatten(-2)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``M[row,column]``."""
        rows, columns = (range(size) for size in self.layout.shape("P"))
        return [f"M[{i},{j}]" for i in rows for j in columns]


def completion(settings: Completion) -> tuple[MaskedCompletion, Tensor]:
    """Return the problem with its mean mask, and the start."""
    generator = torch.Generator().manual_seed(settings.seed)
    seeds, size, rank = settings.seeds, settings.size, len(settings.singular_values)

    def normals(*shape: int) -> Tensor:
        return torch.randn(seeds, *shape, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(normals(size, rank)).Q for _ in range(2))
    matrix = left * torch.tensor(settings.singular_values, dtype=torch.float64) @ right.mT
    observed = (torch.rand(seeds, size, size, generator=generator) < settings.observed).to(matrix.dtype)
    start = torch.cat([std * normals(size * size) for std in settings.start_std], dim=-1)
    return MaskedCompletion(matrix, observed), start.unsqueeze(1)


def simulate(settings: Completion) -> Datasets:
    """Run the three dynamics from the same starts, SGD also in float32 on the same masks, and compare orbit drift."""
    problem, start = completion(settings)
    rate, stride = settings.learning_rate, settings.stride
    # A coin is ½ and half a sign, and gradients are linear in masks: its noise is that of targets, of deviation ½.
    coins = sb.noise.label(0.5, target="mask")
    sde = sb.SGDSDE(learning_rate=rate * stride, batch_size=stride, noise=coins, substeps=1)
    descent = sb.SGD(learning_rate=rate * stride, replacement=False)
    random, sgd = problem.stochastic(), sb.SGD(learning_rate=rate)
    runs = {
        "sgd": Run(random, sgd),
        "sde": Run(problem, sde, stride, drift_saves=0),
        "descent": Run(problem, descent, stride),
        "rounding": Run(random.to(dtype=torch.float32), sgd, drift_saves=0),
    }
    return {**simulate_runs(runs, problem.symmetry(), start, settings, _spectrum), "census": census(settings)}


def census(settings: Completion) -> xr.Dataset:
    """Return the spectra that gradient descent ends with on more and other seeds; noise hardly changes them."""
    problem, start = completion(dataclasses.replace(settings, seeds=settings.census, seed=settings.seed + 1))
    stride = settings.census_stride
    ensemble = sb.simulate(
        problem,
        sb.SGD(learning_rate=settings.learning_rate * stride, replacement=False),
        trajectories=1,
        steps=settings.steps // stride,
        save_every=settings.steps // stride,
        initial=start,
        save=["theta"],
        block_size=1,
    )
    return ensemble.drop_dims("parameter").assign(_spectrum(ensemble, problem))


def _spectrum(ensemble: xr.Dataset, problem: sb.Problem) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return the singular values of PQ and its relative error."""
    matrix = problem.predictor(torch.from_numpy(ensemble["theta"].values)).unflatten(-1, problem.layout.shape("P"))
    truth = problem.samples["M"].unsqueeze(1)
    error = (matrix - truth).norm(dim=(-2, -1)) / truth.norm(dim=(-2, -1))
    path = ("replicate", "trajectory", "step")
    return {
        "singular_value": ((*path, "rank"), torch.linalg.svdvals(matrix).numpy()),
        "relative_error": (path, error.numpy()),
    }


def _draw_spectrum(axes: Axes, runs: Datasets, truth: tuple[float, ...]) -> None:
    """Draw the leading singular values over updates, the true ones, and the published ones, doubled as they are."""
    _, colour, line = RUNS["descent"]
    for rank in range(SHOWN):
        measured, quiet = (runs[name]["singular_value"].isel(trajectory=0, rank=rank).values for name in TOLD_APART)
        x = updates(runs["sgd"], runs) / 1000
        band(axes, x, measured, color=RUNS["sgd"][1])
        axes.plot(updates(runs["descent"], runs) / 1000, spread(quiet)[1], line, color=colour)
        end = spread(measured)[1, -1]
        axes.annotate(rf"$\sigma_{rank + 1}$", (x[-1], end), xytext=(3, -3), textcoords="offset points")
    for value in truth:
        axes.axhline(value, color="0.5", linewidth=1, linestyle=":")
        axes.annotate(f"true {value:g}", (0, value), xytext=(0, 3), textcoords="offset points", color="0.3")
    steps = np.array([int(name.removeprefix("step_")) for name in published(NAME)])
    steps = steps[steps <= 1000 * x[-1]]
    for rank in (1, 2):
        known = [published(NAME, f"step_{step}", f"plotted_2sigma{rank}") for step in steps]
        axes.plot(steps / 1000, known, "kx" if rank == 1 else "k+")
    names = r"published $2\hat\sigma_1$ (×), $2\hat\sigma_2$ (+)"
    axes.annotate(names, (0.98, 0.63), xycoords="axes fraction", ha="right", fontsize="small")
    axes.set(xlabel="updates [1000]", ylabel="singular value of PQ", ylim=(0, 1.15 * max(truth)))
    axes.set_title("singular values, not doubled")


def _draw_final(axes: Axes, runs: Datasets, truth: tuple[float, ...]) -> None:
    """Draw the spectrum at the end against the true one."""
    for shift, name in zip((-0.12, 0.12), TOLD_APART, strict=True):
        label, colour, _ = RUNS[name]
        values = runs[name]["singular_value"].isel(trajectory=0, step=-1).values
        lower, middle, upper = spread(values)
        place = np.arange(1, len(middle) + 1) + shift
        axes.errorbar(place, middle, (middle - lower, upper - middle), fmt="o", color=colour, markersize=3, label=label)
    spectrum = np.zeros(len(middle))
    spectrum[: len(truth)] = truth
    axes.plot(np.arange(1, len(middle) + 1), spectrum, "k_", markersize=9, label="true")
    axes.set(xlabel="rank i", ylabel=r"$\sigma_i$", title="spectrum at the end")
    axes.legend()


def draw(settings: Completion, datasets: Datasets) -> Figure:
    """Draw singular values, ratios, charges and products, and orbit drift."""
    figure = styled(8.6)
    axes = figure.subplots(3, 2)
    runs = runs_of(datasets)
    _draw_spectrum(axes[0, 0], runs, settings.singular_values)
    _draw_final(axes[0, 1], runs, settings.singular_values)
    draw_balance(figure, axes[1:], datasets, NAME, "‖P‖/‖Q‖")
    return figure


def caption(settings: Completion, datasets: Datasets) -> str:
    """Return what the figure shows."""
    shared = balance_caption("‖P‖/‖Q‖", "½(‖P‖² − ‖Q‖²)", "‖P‖‖Q‖", settings.stride, datasets)
    return (
        f"Completion of a {settings.size}×{settings.size} matrix of rank {len(settings.singular_values)} from a share "
        f"{settings.observed:g} of its entries. Above: singular values of PQ; the article draws twice its values "
        "(crosses) against the true ones. Not doubled, the first is less than half the true one; the spectrum has not "
        "rank 2; gradient descent with the mean mask, without noise, finds the same. Units are columns of P with the "
        f"rows of Q. {shared} In float32, the precision of the article, charges move by rounding, far more than by "
        "noise; the other runs are in float64."
    )


def records(settings: Completion, datasets: Datasets) -> list[Record]:
    """Return the headline numbers."""
    counted = datasets["census"].isel(step=-1, trajectory=0)
    everywhere, records = _spectrum_values(counted), []
    for name in (*TOLD_APART, "census"):
        last = datasets[name].isel(step=-1, trajectory=0)
        label = RUNS[name][0] if name in RUNS else "no noise, other seeds"
        for key, value in _spectrum_values(last).items():
            known = published(NAME, f"step_{settings.steps}", key) if settings.steps == 500_000 else None
            share = float((everywhere[key] < known).mean()) if known else math.nan
            why = (
                f"The published {key} is rare, not impossible: {share:.1%} of {settings.census} other seeds, run "
                "without noise, are below it (`census` in fig4_matrix_completion)."
            )
            records.append(record(f"{key} at step {settings.steps}, {label}", value, known, why))
        records.append(record(f"relative error at step {settings.steps}, {label}", last["relative_error"]))
    plain, rounded = (datasets[name]["charge_value"].isel(trajectory=0) for name in ("sgd", "rounding"))
    added = abs(rounded - plain).isel(step=-1) / abs(plain.isel(step=0))
    return [
        *records,
        *balance_records(NAME, datasets, [1000, 100_000, 200_000, 300_000, 500_000]),
        record("relative change of the charge that float32 adds, median over units", added.median("charge")),
    ]


def _spectrum_values(last: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the headline numbers of a spectrum, by their published names."""
    values = {f"sigma{rank + 1}": last["singular_value"].isel(rank=rank) for rank in range(SHOWN)}
    return {**values, "nuclear": last["singular_value"].sum("rank")}


EXPERIMENT = Experiment(
    NAME,
    {"smoke": Completion(seeds=8, steps=20_000), "paper": Completion()},
    simulate,
    draw,
    caption,
    records,
)

if __name__ == "__main__":
    EXPERIMENT.main()
