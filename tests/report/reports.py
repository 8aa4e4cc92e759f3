"""Small datasets of every sort that a report is made of; run, it writes their reports into a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import sdebias as sb
from sdebias.report import html_report
from sdebias.storage import save_dataset

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
SMALL: dict[str, Any] = {"trajectories": 48, "steps": 20, "save_every": 4}


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and noisy targets of a linear model."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((12, 3))
    return X, X @ rng.standard_normal(3) + 0.5 * rng.standard_normal(12)


def hadamard(features: list[str] | None = None) -> sb.problems.HadamardRegression:
    """Return a regression with three charges."""
    return sb.problems.HadamardRegression(*data(), features=features, initial={"p": 1.0, "q": 0.3})


def ensemble(problem: sb.Problem, dynamics: Any = None) -> xr.Dataset:
    """Return a small ensemble with charges."""
    return sb.simulate(problem, dynamics or sb.SGD(learning_rate=0.01), symmetry=problem.symmetry(), **SMALL)


def plain() -> xr.Dataset:
    """Return an ensemble of the usual sort."""
    return ensemble(hadamard(["a", "b", "c"]))


def euler() -> xr.Dataset:
    """Return an ensemble of an SDE, whose comparison accounts for the finite step."""
    return ensemble(hadamard(["a", "b", "c"]), sb.SGDSDE(learning_rate=0.01, substeps=2))


def comparison() -> xr.Dataset:
    """Return a comparison."""
    found: xr.Dataset = plain().sdebias.compare()
    return found


def replicates() -> xr.Dataset:
    """Return an ensemble with three replicates."""
    X, y = (np.stack(arrays) for arrays in zip(*(data(seed) for seed in range(3)), strict=True))
    return ensemble(sb.problems.HadamardRegression(X, y, initial={"p": 1.0, "q": 0.3}))


def flagged() -> xr.Dataset:
    """Return an ensemble, two of whose trajectories are lost."""
    found = plain()
    found["status"][3], found["status"][5] = 1, 2
    for name in ("theta", "loss", "charge_value", "predictor_value", "log_orbit_volume"):
        found[name][5, 2:] = np.nan
    return found


class SquaredNorm(torch.nn.Module):
    """f(x) = ‖θ‖² x, which rotations of θ do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the prediction."""
        return x * self.theta.square().sum()


def rotation() -> tuple[sb.Problem, sb.symmetry.Symmetry]:
    """Return a problem under a compact group, which has orbits and no charge."""
    X = torch.tensor(data()[0][:, :1])
    problem = sb.Problem.from_module(SquaredNorm(), lambda out, y: (out - y).square().sum(), X, X)
    return problem, sb.symmetry.Orthogonal("theta")


def chargeless() -> xr.Dataset:
    """Return an ensemble of it."""
    problem, symmetry = rotation()
    return sb.simulate(problem, sb.SGD(learning_rate=0.01), symmetry=symmetry, **SMALL)


def bare() -> xr.Dataset:
    """Return an ensemble of a module, without symmetry, that keeps the loss alone."""
    X, y = data()
    module = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    problem = sb.Problem.from_module(module, lambda out, target: (out[0] - target) ** 2, torch.tensor(X), y)
    return sb.simulate(problem, sb.SGD(learning_rate=1e-3), save=["loss"], **SMALL)


def hostile() -> xr.Dataset:
    """Return an ensemble with markup in its labels and attributes."""
    found = ensemble(hadamard([HOSTILE, "$\\frac{", "c"]))
    found.attrs["dynamics_note"] = found.attrs["device"] = HOSTILE
    found["loss"].attrs["equation"] = HOSTILE
    return found


def law() -> xr.Dataset:
    """Return a comparison of laws."""
    samples = xr.DataArray(np.random.default_rng(0).standard_normal((200, 4)), dims=("trajectory", "step"))
    return sb.compare_law(samples, lambda x: np.exp(-(x**2) / 2), interval=(-3, 3), bins=12)


SORTS = {
    sort.__name__: sort for sort in (plain, euler, comparison, replicates, flagged, chargeless, bare, hostile, law)
}


def main() -> None:
    """Write a report of each sort into the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, sort in SORTS.items():
        file = save_dataset(sort(), folder / f"{name}.nc")
        with xr.open_dataset(file) as dataset:
            file.with_suffix(".html").write_text(html_report(dataset), encoding="utf-8")


if __name__ == "__main__":
    main()
