"""The law of a radius under isotropic noise, against a prediction with the volume of orbits and one without.

``python -m experiments.rotation_law`` simulates f(x) = ‖θ‖² x, θ ∈ R³, whose losses rotations leave unchanged, and
draws the stationary law of r = ‖θ‖: e^{−L/T} r² has the volume of the orbit, a sphere; e^{−L/T} forgets it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import sdebias as sb
from sdebias.plotting import plot_law

ROOT = Path(__file__).parents[1]
TEMPERATURE = 0.1


class SquaredNorm(nn.Module):
    """f(x) = ‖θ‖² x with θ in R³."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction for inputs of shape (..., 1)."""
        return x * self.theta.square().sum()


def radii(*, trajectories: int, saves: int, seed: int = 0) -> xr.DataArray:
    """Return r of shape (trajectory, step) after the start is forgotten, saved every 4 updates."""
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = sb.Problem.from_module(SquaredNorm(), lambda output, y: 0.5 * (output - y).square().sum(), one, one)
    sde = sb.SGDSDE(learning_rate=0.02, noise="isotropic", temperature=TEMPERATURE, substeps=4)
    ens = sb.simulate(
        problem,
        sde,
        trajectories=trajectories,
        steps=4 * (saves + 50),
        save_every=4,
        seed=seed,
        initial=torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(trajectories, -1),
        save=["theta"],
    )
    return (ens["theta"].isel(step=slice(51, None)) ** 2).sum("parameter") ** 0.5


def boltzmann(r: np.ndarray) -> np.ndarray:
    """Return e^{−L/T} at a radius."""
    return np.exp(-((r**2 - 1) ** 2) / (2 * TEMPERATURE))


def compared(samples: xr.DataArray) -> list[xr.Dataset]:
    """Return the comparison with the prediction that has the orbit's volume, and with the one that has not."""
    densities = {"with orbit volume": lambda r: boltzmann(r) * r**2, "without orbit volume": boltzmann}
    edges = np.linspace(0.6, 1.4, 41)
    return [
        sb.compare_law(samples, density, interval=(0.6, 1.4), bins=edges, name=name)
        for name, density in densities.items()
    ]


def main() -> None:
    """Write the figure of the documentation and print its numbers."""
    samples = radii(trajectories=1000, saves=100)
    laws = compared(samples)
    for law in laws:
        lower, upper = law["kl_interval"].values
        print(
            f"{law.attrs['prediction']}: KL {float(law.kl):.2g} (95 %: {lower:.2g} to {upper:.2g}), "
            f"p = {float(law.p_value):.2g}, {law.attrs['verdict']}; "
            f"{float(law.effective_samples[0]):.0f} effective of {samples.size} samples"
        )
    file = ROOT / "docs" / "figures" / "rotation_law.png"
    plot_law(laws, label="r = ‖θ‖").savefig(file)
    print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
