"""Linear algebra of positive semidefinite matrices that may be singular, with derivatives that stay finite.

The derivative of an eigenvector divides by differences of eigenvalues and is NaN where two agree, which Gram matrices
of symmetric points do all the time. Here eigenvectors are therefore constants, and derivatives come from the equation
that is solved (`refined`) or from Schur complements (`log_pseudo_determinant`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


class IllConditionedGramWarning(UserWarning):
    """A Gram matrix is so ill-conditioned that projections and volumes lose most of their digits."""


def eigenvalue_cutoff(eigenvalues: Tensor) -> Tensor:
    """Return the size, shape (..., 1), below which an eigenvalue of a Gram matrix counts as zero.

    The tolerance is dim · eps · largest eigenvalue, that of `numpy.linalg.matrix_rank`.
    """
    if eigenvalues.shape[-1] == 0:
        return eigenvalues.new_zeros(*eigenvalues.shape[:-1], 1)
    eps = torch.finfo(eigenvalues.dtype).eps
    return eigenvalues.amax(-1, keepdim=True) * (eps * eigenvalues.shape[-1])


def condition_number(eigenvalues: Tensor) -> Tensor:
    """Return the ratio of the largest to the smallest eigenvalue that is not zero, shape (...); 1 where all are."""
    if eigenvalues.shape[-1] == 0:
        return eigenvalues.new_ones(eigenvalues.shape[:-1])
    kept = eigenvalues > eigenvalue_cutoff(eigenvalues)
    largest = eigenvalues.amax(-1)
    smallest = torch.where(kept, eigenvalues, torch.inf).amin(-1)
    return torch.where(kept.any(-1), largest / smallest, torch.ones_like(largest))


def warn_ill_conditioned(eigenvalues: Tensor, what: str) -> None:
    """Warn if the condition number exceeds eps^(−3/4): 5e11 in float64, 2e5 in float32."""
    if eigenvalues.numel() == 0:
        return
    worst = float(condition_number(eigenvalues.detach()).amax())
    if worst > torch.finfo(eigenvalues.dtype).eps ** -0.75:
        warnings.warn(
            f"{what}: the Gram matrix has condition number {worst:.2g}; small directions of the orbit are lost to "
            "rounding, use float64 or a better balanced point (symmetry.balance)",
            IllConditionedGramWarning,
            stacklevel=3,
        )


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., k) and eigenvectors (..., k, k) as constants; NaN where an entry is not finite."""
    matrix = matrix.detach()
    if matrix.shape[-1] == 1:
        return matrix[..., 0], torch.ones_like(matrix)
    finite = torch.isfinite(matrix).all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, 0.0))
    return torch.where(finite[..., 0], values, torch.nan), vectors


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Return eigenvalues (..., k), differentiable once; NaN where an entry is not finite."""
    if matrix.shape[-1] == 1:
        return matrix[..., 0]
    finite = torch.isfinite(matrix).all(-1).all(-1)[..., None, None]
    values = torch.linalg.eigvalsh(torch.where(finite, matrix, 0.0))
    return torch.where(finite[..., 0], values, torch.nan)


def reciprocal(values: Tensor, kept: Tensor) -> Tensor:
    """Return 1/value where it is kept and 0 elsewhere."""
    return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)


def log_sum(values: Tensor) -> Tensor:
    """Return Σ log value over those that are not zero (`eigenvalue_cutoff`), shape (...); NaN stays NaN."""
    dropped = values <= eigenvalue_cutoff(values)
    return torch.where(dropped, 1.0, values).log().sum(-1)


def refined(inverse: Callable[[Tensor], Tensor], operator: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
    """Solve operator(x) = rhs from an approximate or constant inverse, with the exact first derivative.

    x₀ = inverse(rhs) as a constant, then one step of refinement x = x₀ + inverse(rhs − operator(x₀)). Its derivative
    inverse(d rhs − d operator(x₀)) is that of the solution, on the range of the operator.
    """
    start = inverse(rhs.detach())
    return start + inverse(rhs - operator(start))


def solve_psd(matrix: Tensor, rhs: Tensor, kept: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Return matrix⁺ rhs for rhs of shape (..., k, columns), given the eigenpairs and which of them are not zero."""
    weights = reciprocal(values, kept)
    if matrix.shape[-1] == 1:
        return rhs * reciprocal(matrix[..., 0], kept).unsqueeze(-1)
    return refined(lambda r: vectors @ (weights.unsqueeze(-1) * (vectors.mT @ r)), lambda x: matrix @ x, rhs)


def log_pseudo_determinant(matrix: Tensor, kept: Tensor, vectors: Tensor) -> Tensor:
    """Return log of the product of the eigenvalues that are not zero, shape (...), differentiable to any order.

    In the basis of the eigenvectors at the point, the matrix near it is [[A, B], [Bᵀ, BᵀA⁻¹B]] as long as its rank is
    constant, and its pseudo-determinant is det A · det(I + C Cᵀ) with C = A⁻¹B.
    """
    if matrix.shape[-1] == 1:
        return torch.where(kept, matrix[..., 0], 1.0).log().sum(-1)
    rotated = vectors.mT @ matrix @ vectors
    keep = kept.to(matrix.dtype)
    row, column = keep.unsqueeze(-1), keep.unsqueeze(-2)
    block = row * rotated * column + torch.diag_embed(1 - keep)
    cross = torch.linalg.solve_ex(block, row * rotated * (1 - column))[0]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.slogdet(block)[1] + torch.linalg.slogdet(identity + cross @ cross.mT)[1]


class Sylvester:
    """The operator T ↦ A T + T B for positive semidefinite A (..., r, r) and B (..., s, s), and its pseudo-inverse.

    Two eigendecompositions; the r·s × r·s matrix of the operator, a Kronecker sum, is never formed. `values` are its
    eigenvalues a_i + b_j, shape (..., r, s).
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right
        a, self._p = symmetric_eigen(left)
        b, self._q = (a, self._p) if right is left else symmetric_eigen(right)
        self.values = a.unsqueeze(-1) + b.unsqueeze(-2)
        self._weights = reciprocal(self.values, self.values > eigenvalue_cutoff(self.values.flatten(-2)).unsqueeze(-1))

    def _inverse(self, rhs: Tensor) -> Tensor:
        return self._p @ (self._weights * (self._p.mT @ rhs @ self._q)) @ self._q.mT

    def solve(self, rhs: Tensor) -> Tensor:
        """Return the T of least norm with A T + T B = rhs, shape (..., r, s)."""
        return refined(self._inverse, lambda t: self.left @ t + t @ self.right, rhs)
