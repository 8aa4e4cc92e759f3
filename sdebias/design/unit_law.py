"""Certificate of a structure: the law of the size of one unit, one product of its factors.

A unit is one coefficient, one group, or one rank of a matrix: signals w of the form ρ x, x on a product of two spheres
S^{n−1} × S^{m−1} (m = 1 for a coefficient or a group), whose penalty depends on ρ = ‖w‖ alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.special
import torch
from torch import Tensor

from ..ensemble.simulate import simulate
from ..errors import check_count, check_positive
from ..laws import compare_law
from .verification import Certificate

if TYPE_CHECKING:
    from .structure import Structure

# In units of the target: where the law of ρ is compared. At ρ → 0 many of these laws have no integral.
WINDOW = (0.5, 2.0)
# Time in units of 1/L'' and 1/ρ, in which the start is forgotten, and between saves.
BURN, INTERVAL, SAVES = 5.0, 1.0, 10
LEARNING_RATE, SUBSTEPS = 0.02, 8
ANGLES = 64


@dataclass(frozen=True)
class Unit:
    """One unit of a structure, with loss ½‖w − t x₀‖² for a fixed direction x₀.

    Attributes
    ----------
    design : Structure
        Of this unit alone, without operator.
    sides : tuple of int
        n and m.
    """

    design: Structure
    sides: tuple[int, int]

    def weight(self, size: Tensor) -> Tensor:
        """Return ρ x₀, shape (..., n m), for ρ of shape (...)."""
        weight = size.new_zeros(*size.shape, self.design.size)
        weight[..., 0] = size
        return weight

    def density(self, target: float, temperature: float, penalised: bool) -> Callable[[np.ndarray], np.ndarray]:
        """Return the density of ρ, not normalised: ρ^{n+m−2} e^{−(ρ²+t²)/2T − ψ} ⟨e^{ρ t x·x₀/T}⟩, ψ left out if asked.

        The mean over one sphere is Γ(ν + 1) (2/z)^ν I_ν(z) with ν = n/2 − 1 at z = ρ t |v|/T; that over v, a coordinate
        on the other, is a Gauss–Gegenbauer sum.
        """
        n, m = self.sides
        order = n / 2 - 1
        v, share = (np.array([1.0]), np.array([1.0])) if m == 1 else _latitudes(m)

        def density(size: np.ndarray) -> np.ndarray:
            z = np.abs(size[..., None] * target * v / temperature)
            sphere = z + np.log(scipy.special.ive(order, z)) - order * np.log(z / 2) + scipy.special.gammaln(n / 2)
            logs = scipy.special.logsumexp(sphere, axis=-1, b=share)
            logs = logs + (n + m - 2) * np.log(size) - (size**2 + target**2) / (2 * temperature)
            if penalised:
                logs = logs - self.design.penalty(self.weight(torch.from_numpy(np.asarray(size)))).numpy()
            return np.exp(logs)

        return density


def _latitudes(m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of the coordinate v of a uniform point of S^{m−1}, density ∝ (1 − v²)^{(m−3)/2}."""
    v, weights = scipy.special.roots_jacobi(ANGLES, (m - 3) / 2, (m - 3) / 2)
    return v, weights / weights.sum()


def verify_unit(
    unit: Unit,
    *,
    trajectories: int,
    seed: int,
    target: float,
    temperature: float,
    interval: tuple[float, float] | None = None,
) -> Certificate:
    """Simulate a unit from balanced factors of its target, and compare the law of ρ with and without penalty.

    Parameters
    ----------
    unit : Unit
    trajectories, seed : int
    target, temperature : float
        t and T, both positive.
    interval : tuple of float, optional
        Of ρ, by default ½ t to 2 t.

    Returns
    -------
    Certificate
        Of the laws of ρ, given that it lies in the interval.

    Raises
    ------
    InputError
        If a value is out of range.
    """
    check_count("trajectories", trajectories, 2)
    check_positive("target", target)
    check_positive("temperature", temperature)
    design, size = unit.design, unit.design.size
    center = unit.weight(torch.tensor(float(target), dtype=torch.float64))
    # L = ½ mean_i (x_i·w − y_i)² with x_i = √size e_i.
    X = size**0.5 * torch.eye(size, dtype=torch.float64)
    problem = design.problem(X, X @ center)
    save_every = round(INTERVAL / LEARNING_RATE)
    burn = round(BURN / INTERVAL)
    ensemble = simulate(
        problem,
        design.dynamics(temperature=temperature, learning_rate=LEARNING_RATE, substeps=SUBSTEPS),
        symmetry=design.symmetry,
        trajectories=trajectories,
        steps=(burn + SAVES) * save_every,
        save_every=save_every,
        seed=seed,
        initial=lambda count, _: design.section(center).expand(count, -1),
        save=["predictor_value"],
        block_size=min(trajectories, 4096),
    )
    samples = (ensemble["predictor_value"].isel(step=slice(burn, None)) ** 2).sum("predictor") ** 0.5
    window = interval or (WINDOW[0] * target, WINDOW[1] * target)
    designed, unpenalised = (
        compare_law(samples, unit.density(target, temperature, penalised), interval=window, name=name)
        for name, penalised in (("designed", True), ("without penalty", False))
    )
    settings = {
        "temperature": temperature,
        "target": target,
        "trajectories": trajectories,
        "steps": (burn + SAVES) * save_every,
        "solver step": LEARNING_RATE / SUBSTEPS,
    }
    return Certificate(designed, unpenalised, settings)
