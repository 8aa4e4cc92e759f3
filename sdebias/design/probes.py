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
    theta : Tensor, shape=(parameter,)
        The point at which gradients see most.
    rows : Tensor, shape=(sample, parameter)
        Normalised gradients there: of fresh samples, or of the given ones where these are not finite.
    """

    sample: int
    probe: int
    broken: Tensor | None
    theta: Tensor
    rows: Tensor


def measure(view: SearchView, probes: SearchView, found: DiscoveredSymmetry, seed: int) -> Excitation:
    """Measure which directions given and fresh samples see, and whether the fields hold on the latter."""
    theta = torch.randn(POINTS, view.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    given, fresh = _normalised_gradients(view, theta), _normalised_gradients(probes, theta)
    broken = None
    if bool(torch.isfinite(fresh).all()):
        fields = torch.nn.functional.normalize(found.fundamental_vector_fields(theta), dim=-1)
        broken = (fresh @ fields.mT).square().mean((0, 1)).sqrt() > BROKEN
    else:
        fresh = given
    seen, best = torch.linalg.matrix_rank(fresh, rtol=RANK_TOLERANCE).max(0)
    sample = int(torch.linalg.matrix_rank(given, rtol=RANK_TOLERANCE).max())
    return Excitation(sample, int(seen), broken, theta[best], fresh[best])


def _normalised_gradients(view: SearchView, theta: Tensor) -> Tensor:
    return torch.nn.functional.normalize(view.per_sample_gradient(theta.to(view.device)).cpu(), dim=-1)


def hidden_directions(view: SearchView, found: DiscoveredSymmetry, excitation: Excitation) -> dict[str, int]:
    """Return how many directions within one tensor no gradient sees and no field explains, by tensor of the view."""
    fields = found.fundamental_vector_fields(excitation.theta)
    hidden = {}
    for name, place in view.layout.slices.items():
        unseen = place.stop - place.start - _rank(excitation.rows[:, place])
        outside = torch.ones(view.layout.size, dtype=torch.bool)
        outside[place] = False
        # Combinations of fields that move this tensor only: dimension of the span, less that of its part elsewhere.
        inside = _rank(fields) - _rank(fields[:, outside])
        if unseen > inside:
            hidden[name] = unseen - inside
    return hidden


def _rank(rows: Tensor) -> int:
    return int(torch.linalg.matrix_rank(rows, rtol=RANK_TOLERANCE)) if rows.numel() else 0


def outside_span(fields: Tensor, others: Tensor) -> Tensor:
    """Return orthonormal fields that with `others` span all `fields`, orthogonal to `others`."""
    if not len(others):
        return fields
    basis = torch.linalg.qr(others.flatten(1).mT).Q
    rest = fields.flatten(1) - fields.flatten(1) @ basis @ basis.mT
    _, sizes, rows = torch.linalg.svd(rest, full_matrices=False)
    return rows[sizes > 1e-6 * max(1.0, float(sizes.max()))].reshape(-1, *fields.shape[1:])
