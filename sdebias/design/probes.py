"""What a sample can show: fresh samples around it, and the directions that gradients see at a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problems.base import Problem
from ..symmetry import DiscoveredSymmetry
from .view import SearchView

# Fields with a root mean square of ∇ℓ_i·X/(‖∇ℓ_i‖‖X‖) above this on fresh samples hold for the given ones only.
BROKEN = 1e-8
# Singular values of normalised gradients below this share of the largest are rounding.
RANK_TOLERANCE = 1e-9
# Points at which ranks are measured: units that are off on every sample hide directions, but not at all points.
POINTS = 32


def fresh_samples(problem: Problem, count: int, seed: int) -> Problem:
    """Return the problem on other samples like the given ones, but in general position.

    Samples are redrawn with replacement, each array by itself; to floating arrays but ``y`` independent normal noise is
    added, of the standard deviation of the array (1 where that is 0), so that they leave any subspace; whole numbers
    are drawn entry by entry from the values that occur.

    Parameters
    ----------
    problem : Problem
    count : int
        Number of fresh samples, of each replicate.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = {}
    for name, (dims, _) in problem.data.items():
        if "sample" not in dims:
            continue
        tensor = problem.samples[name].cpu()
        axis = tensor.ndim - len(dims) + dims.index("sample")
        rows = tensor.index_select(axis, torch.randint(tensor.shape[axis], (count,), generator=generator))
        if not tensor.is_floating_point():
            values = tensor.unique()
            rows = values[torch.randint(len(values), rows.shape, generator=generator)]
        elif name != "y":
            spread = tensor.std(correction=0)
            noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
            rows = rows + torch.where(spread > 0, spread, 1.0) * noise
        fresh[name] = rows.to(problem.device)
    return problem.at(fresh)


@dataclass(frozen=True)
class Excitation:
    """Directions that per-sample gradients span at a generic point.

    Attributes
    ----------
    sample, probe : int
        Number of directions that the given and the fresh samples see: the largest over random points.
    broken : Tensor or None, shape=(dim,)
        Which fields change a loss of a fresh sample; None where gradients of these are not finite.
    """

    sample: int
    probe: int
    broken: Tensor | None


def measure(view: SearchView, probes: SearchView, found: DiscoveredSymmetry, seed: int) -> Excitation:
    """Measure which directions given and fresh samples see, and whether the fields hold on the latter."""
    theta = torch.randn(POINTS, view.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sample = int(gradient_ranks(view, theta).max())
    gradients = probes.per_sample_gradient(theta)
    if not bool(torch.isfinite(gradients).all()):
        return Excitation(sample, sample, None)
    rows = torch.nn.functional.normalize(gradients, dim=-1)
    fields = torch.nn.functional.normalize(found.fundamental_vector_fields(theta), dim=-1)
    sizes = (rows @ fields.mT).square().mean((0, 1)).sqrt()
    return Excitation(sample, int(gradient_ranks(probes, theta).max()), sizes > BROKEN)


def gradient_ranks(view: SearchView, theta: Tensor) -> Tensor:
    """Return the rank of the per-sample gradients at each point, shape (point,)."""
    rows = torch.nn.functional.normalize(view.per_sample_gradient(theta), dim=-1)
    return torch.linalg.matrix_rank(rows, rtol=RANK_TOLERANCE)


def hidden_directions(view: SearchView, found: DiscoveredSymmetry, seed: int) -> dict[str, int]:
    """Return how many directions within one tensor no gradient sees and no field explains, by tensor.

    Measured at one generic point, that at which gradients see most.
    """
    theta = torch.randn(POINTS, view.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = theta[gradient_ranks(view, theta).argmax()]
    rows = torch.nn.functional.normalize(view.per_sample_gradient(theta[None])[0], dim=-1)
    fields = found.fundamental_vector_fields(theta)
    hidden = {}
    for name, place in view.layout.slices.items():
        width = place.stop - place.start
        unseen = width - int(torch.linalg.matrix_rank(rows[:, place], rtol=RANK_TOLERANCE))
        outside = torch.ones(view.layout.size, dtype=torch.bool)
        outside[place] = False
        # Combinations of fields that move this tensor only: dim of the span, less that of its part elsewhere.
        inside = int(_rank(fields)) - int(_rank(fields[:, outside]))
        if unseen > inside:
            hidden[name] = unseen - inside
    return hidden


def _rank(rows: Tensor) -> Tensor:
    return torch.linalg.matrix_rank(rows, rtol=RANK_TOLERANCE) if rows.numel() else torch.zeros((), dtype=torch.int64)


def outside_span(fields: Tensor, others: Tensor) -> Tensor:
    """Return orthonormal fields that with `others` span all `fields`, orthogonal to `others`."""
    if not len(others):
        return fields
    basis = torch.linalg.qr(others.flatten(1).mT).Q
    rest = fields.flatten(1) - fields.flatten(1) @ basis @ basis.mT
    _, sizes, rows = torch.linalg.svd(rest, full_matrices=False)
    return rows[sizes > 1e-6 * max(1.0, float(sizes.max()))].reshape(-1, *fields.shape[1:])
