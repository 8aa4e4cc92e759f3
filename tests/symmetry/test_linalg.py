"""Pseudo-inverse solves and pseudo-determinants against numpy, and their derivatives."""

from __future__ import annotations

import pytest
import torch
from symmetry_laws import randn
from torch import Tensor

from sdebias.symmetry.linalg import (
    Sylvester,
    condition_number,
    eigenvalue_cutoff,
    log_pseudo_determinant,
    solve_psd,
    symmetric_eigen,
)


def log_pdet(factor: Tensor) -> Tensor:
    matrix = factor @ factor.mT
    values, vectors = symmetric_eigen(matrix)
    return log_pseudo_determinant(matrix, values > eigenvalue_cutoff(values), vectors)


def pseudo_solve(factor: Tensor, rhs: Tensor) -> Tensor:
    matrix = factor @ factor.mT
    values, vectors = symmetric_eigen(matrix)
    return solve_psd(matrix, matrix @ rhs, values > eigenvalue_cutoff(values), values, vectors)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_log_pseudo_determinant_to_second_order(rank: int) -> None:
    # For F of full column rank pdet(F Fᵀ) = det(FᵀF): the same function, without a null space.
    factor = randn(0, 3, 4, rank).requires_grad_(True)
    torch.testing.assert_close(log_pdet(factor), torch.linalg.slogdet(factor.mT @ factor)[1])
    assert torch.autograd.gradcheck(log_pdet, (factor,))
    assert torch.autograd.gradgradcheck(log_pdet, (factor,))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_solve_and_its_derivative(rank: int) -> None:
    factor, rhs = randn(1, 3, 4, rank), randn(2, 3, 4, 2)
    matrix = factor @ factor.mT
    torch.testing.assert_close(pseudo_solve(factor, rhs), torch.linalg.pinv(matrix, hermitian=True) @ matrix @ rhs)
    # What enters geometry is factorᵀ G⁺ G rhs, whose derivative does not see the null space.
    assert torch.autograd.gradcheck(
        lambda f, r: f.mT @ pseudo_solve(f, r), (factor.requires_grad_(True), rhs.requires_grad_(True))
    )


def test_sylvester_against_kronecker_sum() -> None:
    left, right = randn(3, 2, 4, 3), randn(4, 2, 5, 2)  # ranks 3 of 4 and 2 of 5
    a, b, rhs = left @ left.mT, right @ right.mT, randn(5, 2, 4, 5)
    operator = Sylvester(a, b)
    full = torch.stack([torch.kron(x, torch.eye(5)) + torch.kron(torch.eye(4), y) for x, y in zip(a, b, strict=True)])
    wanted = torch.linalg.pinv(full, hermitian=True) @ rhs.flatten(-2).unsqueeze(-1)
    in_range = (full @ wanted).reshape(2, 4, 5)
    torch.testing.assert_close(operator.solve(in_range).flatten(-2), wanted.squeeze(-1))
    torch.testing.assert_close(operator.values.flatten(-2).sort(-1).values, torch.linalg.eigvalsh(full))


def test_condition_number_ignores_zeros() -> None:
    values = torch.tensor([[0.0, 1e-30, 2.0, 8.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert condition_number(values).tolist() == [4.0, 1.0]
