"""Find the affine symmetries of a problem from its per-sample gradients alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import scipy.linalg
import torch
from torch import Tensor

from ..errors import InputError, SymmetryError, check_choice, check_finite, message
from ..layout import ParameterLayout
from . import lie_algebra
from .discovered import DiscoveredSymmetry
from .invariance import HasPerSampleLoss, check_invariance

# Up to this many parameters, fields with any d×d matrix are searched.
DENSE_LIMIT = 64
# Unknowns of the null-space problem at that size; a structured search takes as rich a set as fits.
UNKNOWN_LIMIT = DENSE_LIMIT * (DENSE_LIMIT + 1)
# A field is an array of (d + 1)² numbers.
PARAMETER_LIMIT = 512
# Root mean square of ∇ℓ_i·X/‖∇ℓ_i‖: fields below the first are examined on fresh points, below the second accepted,
# and refused ones must be larger than accepted ones by the third.
CANDIDATE, ACCEPTED, CLEAR = 1e-4, 1e-9, 1e3
# Gradients smaller than this, relative to the largest at the same point, have lost digits to cancellation; they are not
# blown up to norm 1.
FAINT = 1e-4
# Numbers in one block of gradients or rows (64 MiB).
BLOCK = 2**23


class HasPerSampleGradient(HasPerSampleLoss, Protocol):
    """What `discover` needs of a problem."""

    n_samples: int

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i(θ), shape (..., sample, parameter)."""
        ...

    def to(self, *, dtype: torch.dtype) -> Self:
        """Return the problem in another dtype."""
        ...


def discover(
    problem: HasPerSampleGradient,
    *,
    ansatz: Literal["auto", "dense", "structured"] = "auto",
    seed: int = 0,
    verify: bool = True,
) -> DiscoveredSymmetry:
    """Find the affine fields X(θ) = Aθ + b that leave every per-sample loss unchanged.

    The fields with ∇ℓ_i(θ)ᵀ(Aθ + b) = 0 for all samples and random θ ~ N(0, I) are a null space, found in float64
    from normalised gradients: eigenvectors of RᵀR (R the rows of the equations, columns equilibrated) with small
    eigenvalues are candidates; singular values of the equations on fresh points decide among them, so that the
    decision sees residuals of 1e-15, not their squares. All affine fields that annihilate given functions form a Lie
    algebra. From it, functions times translations are removed (`lie_algebra.without_multiples`); translations
    include every direction that the losses ignore. What is returned is the closed algebra that is left, in a basis
    that is split into symmetric and antisymmetric parts where possible, and then as sparse as possible. Its fields
    have the same span at every point as all affine symmetries together.

    Parameters
    ----------
    problem : Problem
        Anything with a layout, per-sample losses and their gradients, and no replicates; it is evaluated in float64.
    ansatz : {"auto", "dense", "structured"}
        The fields that are searched. ``dense``: all d×d matrices and shifts, for d <= 64. ``structured``: a matrix on
        each axis of each parameter tensor (for U of shape (n, m): BU and UC; a vector is one axis) and all shifts,
        each tensor with its own matrices; axes get diagonal matrices, longest first, while the unknowns exceed 4160.
        ``auto``: dense where it is possible.
    seed : int
        Seed of the random points.
    verify : bool
        Whether to try finite group elements on fresh points with `check_invariance`.

    Returns
    -------
    DiscoveredSymmetry
        Bound to the problem; its `dim` is 0 when there is no symmetry.

    Raises
    ------
    InputError
        If the problem has replicates or too many parameters.
    DataError
        If a gradient is not finite.
    SymmetryError
        If symmetries cannot be told from near-symmetries, or finite group elements change a loss.
    """
    check_choice("ansatz", ansatz, ("auto", "dense", "structured"))
    if problem.replicates is not None:
        got = f"{problem.replicates} replicates"
        raise InputError(message("problem", "one without replicates", got, "discover on one of its data sets"))
    size = problem.layout.size
    limit = DENSE_LIMIT if ansatz == "dense" else PARAMETER_LIMIT
    if size > limit:
        remedy = "use a smaller instance of the architecture" + ", or ansatz='structured'" * (ansatz == "dense")
        raise InputError(message("problem", f"at most {limit} parameters", size, remedy))
    problem = problem.to(dtype=torch.float64)
    dense = ansatz == "dense" or (ansatz == "auto" and size <= DENSE_LIMIT)
    search = Ansatz.of(ParameterLayout({"theta": (size,)}) if dense else problem.layout)
    equations = _Equations(problem, search, torch.Generator().manual_seed(seed))

    residuals, vectors = equations.residuals()
    accepted = residuals <= ACCEPTED
    accepted_largest = float(residuals[accepted].amax()) if bool(accepted.any()) else 0.0
    refused_smallest = float(residuals[~accepted].amin()) if bool((~accepted).any()) else math.inf
    if refused_smallest < CLEAR * accepted_largest:
        raise SymmetryError(
            f"discover: expected a clear gap between symmetries and other fields, got residuals {accepted_largest:.2g} "
            f"and {refused_smallest:.2g}; scale the parameters so that typical values are of order 1"
        )
    translations, rest = lie_algebra.without_multiples(search.fields(vectors[accepted]))
    symmetric, others = lie_algebra.symmetric_first(rest)
    fields = torch.cat([lie_algebra.sparse_basis(translations), symmetric, others])
    points = equations.points(4)
    found = DiscoveredSymmetry(
        fields, problem.layout, 0, null_residual=accepted_largest, next_residual=refused_smallest
    ).bind(problem)
    ranks = torch.linalg.matrix_rank(found.fundamental_vector_fields(points), rtol=lie_algebra.TOLERANCE)
    found = dataclasses.replace(found, orbit_dimension=int(ranks.max()))
    if verify and found.dim:
        violation = check_invariance(problem, found, seed=seed + 1)
        found = dataclasses.replace(found, violation=violation)
    return found.bind(problem)


@dataclass(frozen=True)
class Ansatz:
    """The affine fields that are searched: a matrix on each axis of each tensor, and all shifts.

    Parameters
    ----------
    layout : ParameterLayout
    diagonal : frozenset of int
        Lengths of axes on which only diagonal matrices act.
    """

    layout: ParameterLayout
    diagonal: frozenset[int] = frozenset()

    @classmethod
    def of(cls, layout: ParameterLayout) -> Self:
        """Return the richest ansatz whose unknowns stay within `UNKNOWN_LIMIT`."""
        lengths = sorted({n for shape in layout.shapes.values() for n in shape}, reverse=True)
        choices = [cls(layout, frozenset(lengths[:k])) for k in range(len(lengths) + 1)]
        return next((c for c in choices if c.unknowns <= UNKNOWN_LIMIT), choices[-1])

    @property
    def axes(self) -> Iterator[tuple[slice, tuple[int, ...], int]]:
        """Place and shape of a tensor, and one of its axes; axes of length 1 add nothing to the others."""
        for name, place in self.layout.slices.items():
            shape = self.layout.shape(name) or (1,)
            for axis in [i for i, n in enumerate(shape) if n > 1] or [0]:
                yield place, shape, axis

    @property
    def widths(self) -> list[int]:
        """Number of unknowns of each axis."""
        lengths = [shape[axis] for _, shape, axis in self.axes]
        return [n if n in self.diagonal else n * n for n in lengths]

    @property
    def unknowns(self) -> int:
        """Number of unknowns: entries of all matrices, and shifts."""
        return sum(self.widths) + self.layout.size

    def equations(self, gradients: Tensor, theta: Tensor) -> Tensor:
        """Return the coefficients of ∇ℓᵀ(Aθ + b) in the unknowns, shape (..., row, unknown).

        Parameters
        ----------
        gradients : Tensor, shape=(..., row, parameter)
        theta : Tensor, shape=(..., parameter)
        """
        blocks = []
        for place, shape, axis in self.axes:
            g, x = (_unfold(t[..., place], shape, axis) for t in (gradients, theta.unsqueeze(-2)))
            blocks.append((g * x).sum(-2) if shape[axis] in self.diagonal else (g.mT @ x).flatten(-2))
        return torch.cat([*blocks, gradients], dim=-1)

    def fields(self, vectors: Tensor) -> Tensor:
        """Return the homogeneous matrices (k, d + 1, d + 1) of vectors of unknowns (k, unknown)."""
        size = self.layout.size
        fields = vectors.new_zeros(len(vectors), size + 1, size + 1)
        *blocks, shifts = vectors.split([*self.widths, size], dim=-1)
        fields[:, :-1, -1] = shifts
        for block, (place, shape, axis) in zip(blocks, self.axes, strict=True):
            n = shape[axis]
            matrix = block.diag_embed() if n in self.diagonal else block.unflatten(-1, (n, n))
            at = _unfold(torch.arange(place.start, place.stop), shape, axis)
            fields[:, at[:, :, None], at[:, None, :]] += matrix[:, None]
        return fields


def _unfold(values: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """Return a flat tensor (..., entries of `shape`) as (..., others, entries along `axis`)."""
    tensor = values.reshape(*values.shape[:-1], *shape).movedim(axis - len(shape), -1)
    return tensor.reshape(*values.shape[:-1], -1, shape[axis])


class _Equations:
    """Rows ∇ℓ_iᵀ(Aθ + b)/‖∇ℓ_i‖ = 0 in the unknowns of an ansatz, at random points."""

    def __init__(self, problem: HasPerSampleGradient, ansatz: Ansatz, generator: torch.Generator) -> None:
        self.problem, self.ansatz, self.generator = problem, ansatz, generator
        self.rank = self._directions(self.points(4)).shape[-2]

    def points(self, count: int) -> Tensor:
        """Draw points θ ~ N(0, I), shape (count, parameter)."""
        return torch.randn(count, self.problem.layout.size, generator=self.generator, dtype=torch.float64)

    def _directions(self, theta: Tensor) -> Tensor:
        """Return rows with the mean outer product of the normalised gradients, shape (point, rank, parameter).

        As few as their rank needs: many samples see the same few directions of parameter space.
        """
        gradients = self.problem.per_sample_gradient(theta.to(self.problem.device)).cpu()
        check_finite("per-sample gradients at random points", gradients)
        norms = gradients.norm(dim=-1, keepdim=True)
        scale = norms.clamp_min(FAINT * norms.amax(-2, keepdim=True))
        gradients = torch.where(scale > 0, gradients / scale, 0.0)
        _, sizes, directions = torch.linalg.svd(gradients / math.sqrt(self.problem.n_samples), full_matrices=False)
        rank = max(1, int((sizes > ACCEPTED * sizes[:, :1]).sum(-1).max()))
        return sizes[:, :rank, None] * directions[:, :rank]

    def rows(self, unknowns: int) -> Iterator[Tensor]:
        """Yield blocks of rows whose RᵀR sum to a mean over samples and points, enough to determine `unknowns`."""
        count = math.ceil(2 * unknowns / self.rank) + 8
        width = max(self.rank * self.ansatz.unknowns, self.problem.n_samples * self.problem.layout.size)
        for theta in self.points(count).split(max(1, BLOCK // width)):
            yield self.ansatz.equations(self._directions(theta), theta).flatten(0, 1) / math.sqrt(count)

    def candidates(self) -> Tensor:
        """Return orthonormal unknowns (k, unknown): those that nearly solve the equations, and the next one."""
        unknowns = self.ansatz.unknowns
        gram = torch.zeros(unknowns, unknowns, dtype=torch.float64)
        for block in self.rows(unknowns):
            gram.addmm_(block.mT, block)
        # Equilibrated columns make the spectrum independent of the scales of single parameters; columns at the level
        # of rounding belong to ignored parameters and must not be blown up.
        scale = gram.diagonal().sqrt()
        scale = torch.where(scale > ACCEPTED * scale.max(), scale, scale.max().clamp_min(ACCEPTED))
        scaled = (gram / scale / scale[:, None]).numpy()
        small = int((scipy.linalg.eigvalsh(scaled) < CANDIDATE**2).sum())
        vectors = scipy.linalg.eigh(scaled, subset_by_index=[0, min(small, unknowns - 1)])[1]
        return torch.linalg.qr(torch.as_tensor(vectors) / scale[:, None]).Q.mT

    def residuals(self) -> tuple[Tensor, Tensor]:
        """Return residuals (k,) and orthonormal unknowns (k, unknown) of the candidates, measured on fresh points.

        A residual is the root mean square of ∇ℓ_i·X/‖∇ℓ_i‖ over samples and points.
        """
        candidates = self.candidates()
        images = torch.cat([block @ candidates.mT for block in self.rows(len(candidates))])
        _, sizes, combinations = torch.linalg.svd(images, full_matrices=False)
        return sizes, combinations @ candidates
