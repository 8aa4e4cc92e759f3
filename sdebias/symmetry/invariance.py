"""Measure whether a declared symmetry really leaves every per-sample loss unchanged."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import SymmetryError
from ..layout import ParameterLayout
from .bundle import Symmetry
from .checks import check_symmetry


class HasPerSampleLoss(Protocol):
    """What `check_invariance` needs of a problem."""

    layout: ParameterLayout
    replicates: int | None
    dtype: torch.dtype
    device: torch.device

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_i(θ), shape (..., sample)."""
        ...


def check_invariance(
    problem: HasPerSampleLoss, symmetry: Symmetry, *, points: int = 8, seed: int = 0, tolerance: float | None = None
) -> float:
    """Measure the violation max |ℓ_i(g·θ) − ℓ_i(θ)| / (1 + |ℓ_i(θ)|) on random points and group elements.

    Each one-parameter subgroup is tried on its own, so that the culprit can be named.

    Parameters
    ----------
    problem : Problem
        Anything with a layout and per-sample losses.
    symmetry : Symmetry
        Bound to the problem here.
    points : int
        Number of random points θ ~ N(0, I); elements are exp(s e_a), s ~ ±U(¼, 1).
    seed : int
    tolerance : float, optional
        Largest violation that passes; by default 1e4 · eps of the problem's dtype (2e-12 in float64), or the accuracy
        of the symmetry (1e-8 of a discovered one) where that is more.

    Returns
    -------
    float
        The largest violation.

    Raises
    ------
    InputError
        If `symmetry` is None or none.
    SymmetryError
        If it exceeds the tolerance; the message names the worst sample, subgroup, and element.
    """
    symmetry = check_symmetry(symmetry).bind(problem)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lead = (points,) if problem.replicates is None else (problem.replicates, points)
    theta = draw(*lead, problem.layout.size).to(problem.device, problem.dtype)
    angles = draw(points).sign() * (0.25 + 0.75 * torch.rand(points, generator=generator, dtype=torch.float64))
    before = problem.per_sample_loss(theta)
    worst, where = -1.0, ""
    for a in range(symmetry.dim):
        coefficients = torch.zeros(points, symmetry.dim, dtype=problem.dtype, device=problem.device)
        coefficients[:, a] = angles.to(problem.device, problem.dtype)
        after = problem.per_sample_loss(symmetry.act(symmetry.exp(coefficients), theta))
        violation = (after - before).abs() / (1 + before.abs())
        violation = torch.where(torch.isnan(violation), torch.inf, violation)
        index = np.unravel_index(int(violation.argmax()), violation.shape)
        if float(violation[index]) > worst:
            worst = float(violation[index])
            name = symmetry.direction_labels[a]
            where = f"sample {int(index[-1])}, group element exp({float(angles[int(index[-2])]):.3g}) of {name}"
            where += f", replicate {int(index[0])}" if problem.replicates is not None else ""
    limit = max(1e4 * torch.finfo(problem.dtype).eps, symmetry.accuracy) if tolerance is None else tolerance
    if worst > limit:
        raise SymmetryError(
            f"symmetry {symmetry!r}: the losses are not invariant: relative change {worst:.3g} (limit {limit:.1g}) at "
            f"{where}; declare a symmetry that this loss has, or none"
        )
    return worst
