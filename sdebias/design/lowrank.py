"""Low rank by matrix products, M = U H_1 … H_{D−2} Vᵀ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, InputError, check_count, message
from ..prediction.stationary import log_stationary_density
from ..problems import MatrixFactorization, Problem
from ..symmetry import GeneralLinear, Product, Symmetry
from .base import LAWS, DesignNoise, Parametrization
from .operators import Identity
from .structure import Structure, StructureParametrization, charged_magnitudes
from .unit_law import Unit


class LowRank(Structure):
    """M = A⁻¹(U H_1 … H_{D−2} Vᵀ), a product of D matrices of inner size r. As a vector, w is M flattened by rows.

    At depth 2 and with gauge, in terms of the singular values σ_i of A M,

    ψ(M) = ½ Σ_ij log(σ_i + σ_j) + ½ (n + m − 2r + 1) Σ_i log σ_i,

    with respect to the volume of the matrices of rank r. Deeper products have ψ from the Gram matrix, numerically.
    Weight decay penalises exactly the nuclear norm Σ σ_i at depth 2 and (D/2) Σ σ_i^{2/D}, a Schatten-2/D quasi-norm,
    at depth D. Small starts without noise or decay only tend to low rank: no norm is minimised exactly.

    Parameters
    ----------
    rows, columns : int
        n and m.
    rank : int, optional
        r, by default the smaller side: low rank is then a bias and no constraint. Below it, a given M is replaced by
        its best approximation of rank r.
    depth : int
        D ≥ 2.
    operator, scale, noise
        See `Structure`; A acts on M flattened by rows (`Kronecker` for one on each side). Factors are U (n, r),
        H1, … (r, r) and V (m, r). Horizontal noise needs n = m and D = 2: elsewhere tr(P_H A_a) ≠ 0 at balanced
        factors, and the charges do not stay at 0.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        rank: int | None = None,
        depth: int = 2,
        operator: Any = None,
        scale: float = 0.01,
        noise: DesignNoise = "isotropic-gauged",
    ) -> None:
        self.sides = check_count("rows", rows), check_count("columns", columns)
        self.rank = min(self.sides) if rank is None else check_count("rank", rank)
        self.depth = check_count("depth", depth, minimum=2)
        if self.rank > min(self.sides):
            want = f"at most {min(self.sides)}, the smaller side of the matrix"
            raise InputError(message("rank", want, rank, "leave it out for all ranks"))
        if noise == "horizontal" and (rows != columns or depth > 2):
            want = "a square matrix and depth 2 for horizontal noise, which holds the charges at 0 only there"
            got = f"{rows} × {columns} and depth {depth}"
            raise InputError(message("noise", want, got, 'use "isotropic-gauged"'))

        super().__init__(rows * columns, operator=operator, scale=scale, noise=noise)

    @property
    def symmetry(self) -> Symmetry:
        """GL(r) between each two consecutive factors."""
        ends = [*(f"{name}:0" for name in self.factors[1:-1]), self.factors[-1]]
        pairs = [GeneralLinear(first, second) for first, second in zip(self.factors[:-1], ends, strict=True)]
        return pairs[0] if len(pairs) == 1 else Product(*pairs)

    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return U, H1, …, V."""
        inner = {f"H{k}": (self.rank, self.rank) for k in range(1, self.depth - 1)}
        return {"U": (self.sides[0], self.rank), **inner, "V": (self.sides[1], self.rank)}

    def compose(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return U H_1 … Vᵀ, flattened by rows."""
        left = functools.reduce(torch.matmul, (named[name] for name in self.factors[:-1]))
        return (left @ named["V"].mT).flatten(-2)

    def decompose(self, coefficients: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return W a, a, …, Z b of the singular value decomposition W σ Zᵀ, a and b by `charged_magnitudes`."""
        left, sigma, right = torch.linalg.svd(coefficients.unflatten(-1, self.sides), full_matrices=False)
        scale = 0.0 if balanced else self.scale
        first, last = charged_magnitudes(sigma[..., : self.rank], self.depth, scale)
        inner = {name: torch.diag_embed(first) for name in self.factors[1:-1]}
        U, V = left[..., : self.rank] * first.unsqueeze(-2), right.mT[..., : self.rank] * last.unsqueeze(-2)
        return {"U": U, **inner, "V": V}

    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        """Return ψ in closed form at depth 2; deeper, from the Gram matrix at each point.

        At depth 2 ½ log det(J Jᵀ) = ½ Σ_ij log(σ_i + σ_j) + ½ (n + m − 2r) Σ_i log σ_i. The gauge adds ½ Σ_i log σ_i:
        of its ½ Σ_{i≤j} log(σ_i + σ_j) the pairs i < j are the volume of the orbit of O(r).
        """
        if self.depth > 2:
            return self._numerical_penalty(coefficients)
        sigma = torch.linalg.svdvals(coefficients.unflatten(-1, self.sides))[..., : self.rank]
        sums = (sigma.unsqueeze(-1) + sigma.unsqueeze(-2)).log().sum((-2, -1))
        singles = sum(self.sides) - 2 * self.rank + (0 if self.noise == "horizontal" else 1)
        return 0.5 * sums + 0.5 * singles * sigma.log().sum(-1)

    def _numerical_penalty(self, coefficients: Tensor) -> Tensor:
        nothing = coefficients.new_zeros(1, self.size)
        problem = self.problem(nothing, nothing[:, 0])  # its loss is zero
        theta = self.section(self.operator.synthesis(coefficients).reshape(-1, self.size))
        value = log_stationary_density(
            problem,
            self.symmetry.bind(problem),
            theta,
            noise=LAWS[self.noise],
            temperature=1.0,
            measure="predictor",
        )
        return -value.reshape(coefficients.shape[:-1])

    def unit(self) -> Unit:
        """Return a matrix of rank 1."""
        return Unit(LowRank(*self.sides, rank=1, depth=self.depth, noise=self.noise), self.sides)

    def parametrization(self) -> Parametrization:
        """Return the map to tensors (..., row, column) for `torch.nn.utils.parametrize.register_parametrization`."""
        return StructureParametrization(self, self.sides)

    def completion(self, M: Any, mask: Any = None, **options: Any) -> Problem:
        """Return matrix completion with this product, that is linear regression on observed entries.

        At depth 2 without operator it is the package's `MatrixFactorization`.

        Parameters
        ----------
        M : array, shape=(row, column) or (replicate, row, column)
        mask : bool array, optional
            Which entries are observed, in each replicate the same number; all where absent.
        **options
            ``initial``, ``initial_std``.

        Raises
        ------
        DataError
            As `MatrixFactorization`, and if M has another shape.
        """
        if "initial" not in options and "initial_std" not in options:
            options["initial"] = self.start(self.factor_shapes())
        observed = MatrixFactorization(M, mask)
        sides = observed.layout.shape("U")[0], observed.layout.shape("V")[0]
        if sides != self.sides:
            raise DataError(message("M", f"a matrix {self.sides}", sides, "design it for the shape of M"))
        if self.depth == 2 and isinstance(self.operator, Identity):
            return MatrixFactorization(M, mask, rank=self.rank, **options)
        row, column, value = (observed.data[name][1] for name in ("row", "column", "value"))
        cells = (row * self.sides[1] + column).expand(value.shape)
        return self.problem(torch.nn.functional.one_hot(cells, self.size).to(value), value, **options)
