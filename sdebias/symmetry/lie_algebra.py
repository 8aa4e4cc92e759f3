"""Lie algebras of affine vector fields: spans, readable bases, structure constants, names.

A field X(θ) = Aθ + b on R^d is held as its homogeneous matrix H = [[A, b], [0, 0]], so that X(θ) is the head of
H (θ, 1), the bracket is the commutator, and the flow is the matrix exponential. A list of fields has shape
(field, d + 1, d + 1).
"""

from __future__ import annotations

import math
from collections import Counter

import scipy.linalg
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import SymmetryError, message
from ..layout import ParameterLayout

# Fields come with errors near 1e-12 and entries near 1: what is smaller than this is zero. Its square, the tolerance
# of eigenvalues of Gram matrices, is well above rounding.
TOLERANCE = 1e-6
# Entries of a basis vector of unit norm below this are set to zero; real ones may be much smaller than 1.
ROUNDING = 1e-10
# Number of eliminations from which the sparsest basis vectors are taken.
ELIMINATIONS = 16


def null_combinations(images: Tensor) -> Tensor:
    """Return an orthonormal basis, shape (null, k), of the c with Σ_a c_a image_a = 0; images have shape (k, ...)."""
    flat = images.flatten(1)
    values, vectors = torch.linalg.eigh(flat @ flat.mT)
    return vectors[:, values <= TOLERANCE**2].mT


def span(fields: Tensor) -> Tensor:
    """Return an orthonormal basis (Frobenius) of the span of fields, leaving out dependent ones."""
    flat = fields.flatten(1)
    if flat.shape[0] == 0:
        return fields
    values, vectors = torch.linalg.eigh(flat @ flat.mT)
    kept = values > TOLERANCE**2 * values[-1].clamp_min(1.0)
    basis = torch.linalg.qr((vectors[:, kept].mT @ flat).mT).Q.mT
    return basis.reshape(-1, *fields.shape[1:])


def combine(combinations: Tensor, fields: Tensor) -> Tensor:
    """Return the fields Σ_a c_a H_a, one for each row c."""
    return torch.tensordot(combinations, fields, dims=1)


def without_multiples(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Split an algebra into translations T and the rest S, without T's multiples by functions.

    Let V be the space of the constant fields in the algebra 𝔫 and P its projector. If b is in V, so is f(θ) b for
    every affine f, as a field that the losses cannot see; these multiples move no point anywhere new. They form an
    ideal, and since 𝔫 preserves V, H ↦ (I − P) H (I − P) maps 𝔫 onto a closed algebra S that commutes with T, keeps
    T's coordinates fixed, and spans, with T, the same directions at every point. Among affine fields there are no
    other multiples of a single field: if X and fX are both affine and f is not constant, X is a function times a
    constant.

    Parameters
    ----------
    fields : Tensor, shape=(field, d + 1, d + 1)
        A basis of a Lie algebra of affine fields.

    Returns
    -------
    translations, rest : Tensor, shape=(·, d + 1, d + 1)
        Orthonormal bases of T and S.
    """
    fields = span(fields)
    translations = combine(null_combinations(fields[:, :, :-1]), fields)
    translations[:, :, :-1] = 0
    translations = span(translations)
    shifts = translations[:, :, -1]
    keep = torch.eye(fields.shape[-1], dtype=fields.dtype) - shifts.mT @ shifts
    return translations, span(keep @ fields @ keep)


def sparse_basis(fields: Tensor) -> Tensor:
    """Return a basis of the same span with as few entries as elimination finds, each scaled to 1.

    The size of a field is the spectral norm of A, and the norm of b where A = 0. The fields given are orthonormal.

    A row of a reduced echelon form has minimal support: it is the only vector of the span that vanishes at the other
    pivots. Rows of several forms, with pivots preferred in different places, are collected, and the sparsest
    independent ones are kept.
    """
    flat = fields.flatten(1)
    used = (flat.abs() > ROUNDING).any(0)
    vectors = flat[:, used]
    count, width = vectors.shape
    if count == 0:
        return fields
    generator = torch.Generator().manual_seed(0)
    order = torch.linspace(0, 1, width, dtype=torch.float64)
    orders = [order, order.flip(0)]
    orders += [torch.rand(width, generator=generator, dtype=torch.float64) for _ in range(ELIMINATIONS - 2)]
    rows = []
    for preference in orders:
        weighted = vectors * 10 ** (-2 * preference)
        pivots = torch.as_tensor(scipy.linalg.qr(weighted.numpy(), mode="r", pivoting=True)[1][:count])
        rows.append(torch.linalg.solve(vectors[:, pivots], vectors))
    # The given basis comes last, so that there always are enough rows well away from the span of those before.
    candidates = torch.nn.functional.normalize(torch.cat([*rows, vectors]), dim=1)
    candidates = torch.where(candidates.abs() > ROUNDING, candidates, 0.0)
    chosen: list[Tensor] = []
    orthonormal = vectors.new_zeros(0, width)
    for row in candidates[(candidates != 0).sum(1).argsort(stable=True)]:
        rest = row - orthonormal.mT @ (orthonormal @ row)
        if rest.norm() > 1e-3:
            chosen.append(row)
            rest = rest - orthonormal.mT @ (orthonormal @ rest)
            orthonormal = torch.cat([orthonormal, torch.nn.functional.normalize(rest, dim=0)[None]])
        if len(chosen) == count:
            break
    first = [int(row.nonzero()[0]) for row in chosen]
    chosen = [chosen[i] * chosen[i][first[i]].sign() for i in sorted(range(count), key=first.__getitem__)]
    basis = torch.zeros_like(flat)
    basis[:, used] = torch.stack(chosen)
    basis = basis.reshape(fields.shape)
    sizes = torch.linalg.matrix_norm(basis[:, :-1, :-1], ord=2, keepdim=True)
    return basis / torch.where(sizes > 0, sizes, torch.linalg.matrix_norm(basis, keepdim=True))


def symmetric_first(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sparse basis of fields with symmetric A, and one of the others, antisymmetric A before mixed.

    When the algebra is closed under transpose the two are its non-compact and its compact part, and nothing is mixed.
    """
    linear = fields[:, :-1, :-1]
    symmetric = combine(null_combinations(linear - linear.mT), fields)
    antisymmetric = combine(null_combinations(linear + linear.mT), fields)
    split = torch.cat([symmetric, antisymmetric])
    remainder = combine(null_combinations(fields.flatten(1) @ split.flatten(1).mT), fields)
    return sparse_basis(symmetric), torch.cat([sparse_basis(antisymmetric), sparse_basis(remainder)])


def structure_constants(fields: Tensor) -> Tensor:
    """Return c_abc with [H_a, H_b] = Σ_c c_abc H_c, shape (field, field, field).

    Raises
    ------
    SymmetryError
        If a bracket leaves the span: the fields are not a Lie algebra.
    """
    count = fields.shape[0]
    flat = fields.flatten(1)
    inverse = torch.linalg.pinv(flat)
    constants = fields.new_zeros(count, count, count)
    for a, field in enumerate(fields):
        brackets = (field @ fields - fields @ field).flatten(1)
        constants[a] = brackets @ inverse
        outside = float((brackets - constants[a] @ flat).abs().max())
        if outside > TOLERANCE:
            got = f"a part of size {outside:.2g} outside"
            raise SymmetryError(
                message("bracket of fields", "one in their span", got, "give all fields of the algebra")
            )
    return constants


def compact_dim(fields: Tensor) -> int:
    """Return the dimension of the compact part of a reductive algebra: where the form tr(AB) is negative.

    A and B are the linear parts. In coordinates where the algebra is closed under transpose tr(AB) is −⟨A, B⟩ on the
    antisymmetric part and ⟨A, B⟩ on the symmetric one; its signature does not depend on the coordinates.
    """
    linear = fields[:, :-1, :-1]
    values = torch.linalg.eigvalsh(torch.einsum("aij,bji->ab", linear, linear))
    return int((values < -TOLERANCE).sum())


def algebra_name(fields: Tensor) -> str | None:
    """Return the name of an algebra of dimension above 1, such as ``gl(3)``, or None.

    It is recognised by dimension, rank, dimension of the centre, and dimension of the compact part; algebras that
    agree in all four get the first fitting name of gl, so, so(p,q), sl. An algebra that is not reductive has no name:
    its Killing form vanishes on more than the centre, as for rotations with the shifts that they turn.
    """
    constants = structure_constants(fields)
    dim, compact = fields.shape[0], compact_dim(fields)
    centre = null_combinations(constants).shape[0]
    killing = torch.linalg.eigvalsh(torch.einsum("acd,bdc->ab", constants, constants)).abs()
    if int((killing > TOLERANCE * killing.max()).sum()) < dim - centre:
        return None
    weights = torch.randn(dim, generator=torch.Generator().manual_seed(0), dtype=fields.dtype)
    adjoint = torch.linalg.eigvals(torch.einsum("a,abc->bc", weights, constants)).abs()
    rank = int((adjoint <= 1e-4 * adjoint.max()).sum())
    known: dict[tuple[int, int, int, int], str] = {}
    sizes = range(2, math.isqrt(2 * dim) + 2)
    for n in sizes:
        known.setdefault((n * n, n, 1, math.comb(n, 2)), f"gl({n})")
    for n in sizes[1:]:
        for q in range(n // 2 + 1):
            rotations = math.comb(n - q, 2) + math.comb(q, 2)
            known.setdefault((math.comb(n, 2), n // 2, 0, rotations), f"so({n - q},{q})" if q else f"so({n})")
    for n in sizes:
        known.setdefault((n * n - 1, n - 1, 0, math.comb(n, 2)), f"sl({n})")
    return known.get((dim, rank, centre, compact))


def describe(fields: Tensor, layout: ParameterLayout) -> str:
    """Return a readable description, such as ``gl(3) on U, V`` or ``rescaling of 8 pairs p:q``.

    Fields that do not commute belong together; each such part is named on its own, and equal parts are counted.
    """
    constant = (fields[:, :, :-1] == 0).flatten(1).all(1)
    parts: Counter[tuple[str, str]] = Counter()
    if bool(constant.any()):
        parts["translation", ", ".join(_touched(fields[constant], layout))] = int(constant.sum())
    moving = fields[~constant]
    if len(moving):
        linked = structure_constants(moving).abs() > TOLERANCE
        adjacent = linked.any(0) | linked.any(1) | linked.any(2)
        count, labels = connected_components(adjacent.numpy(), directed=False)
        for part in (moving[torch.as_tensor(labels == label)] for label in range(count)):
            parts[_kind(part), ", ".join(_touched(part, layout))] += 1
    return "; ".join(_phrase(kind, names, count) for (kind, names), count in parts.items()) or "no affine symmetry"


def _touched(fields: Tensor, layout: ParameterLayout) -> list[str]:
    """Return the names of the parameters that the fields move."""
    moved = fields[:, :-1].abs().amax((0, 2)) > 0
    return [name for name, place in layout.slices.items() if bool(moved[place].any())]


def _kind(part: Tensor) -> str:
    if len(part) > 1:
        return algebra_name(part) or f"algebra of dimension {len(part)} ({compact_dim(part)} compact)"
    if compact_dim(part):
        return "so(2)"
    linear = part[0, :-1, :-1]
    diagonal = linear.diagonal()
    if not torch.equal(linear, diagonal.diag()):
        return "one-parameter group"
    return "rescaling" if bool((diagonal > 0).any() and (diagonal < 0).any()) else "scaling"


def _phrase(kind: str, names: str, count: int) -> str:
    if kind == "translation":
        return f"translation of {names} in {count} direction{'s' * (count > 1)}"
    if kind == "rescaling":
        unit = "pair" if names.count(",") == 1 else "unit"
        return f"rescaling of {count} {unit}{'s' * (count > 1)} {names.replace(', ', ':')}"
    times = f"{count} × " if count > 1 else ""
    return f"{times}{kind} {'of' if kind == 'scaling' else 'on'} {names}"
