"""`check_invariance` measures a violation and names the culprit."""

from __future__ import annotations

import pytest
import torch
from conftest import regression
from torch import Tensor

import sdebias as sb
from sdebias.errors import SymmetryError
from sdebias.symmetry import check_invariance


class WeightDecay(sb.problems.HadamardRegression):
    """Hadamard regression whose sample 4 also penalises p[1]: it has lost the symmetry of that pair only."""

    strength = 1e-6

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        penalty = torch.zeros(self.n_samples, dtype=theta.dtype)
        penalty[4] = self.strength
        return super().per_sample_loss(theta) + penalty * theta[..., 1:2].square()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_symmetry_passes(
    problem: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling, dtype: torch.dtype
) -> None:
    assert check_invariance(problem.to(dtype=dtype), symmetry) < 1e3 * torch.finfo(dtype).eps


def test_replicates_pass(replicated: sb.problems.HadamardRegression, symmetry: sb.symmetry.Rescaling) -> None:
    assert check_invariance(replicated, symmetry) < 1e-12


def test_the_worst_sample_and_subgroup_are_named(symmetry: sb.symmetry.Rescaling) -> None:
    with pytest.raises(SymmetryError, match=r"sample 4, group element exp\(.*\) of p:q\[1\]"):
        check_invariance(WeightDecay(*regression()), symmetry)


def test_a_violation_below_the_tolerance_passes(symmetry: sb.symmetry.Rescaling) -> None:
    assert 1e-8 < check_invariance(WeightDecay(*regression()), symmetry, tolerance=1e-3) < 1e-3


def test_a_loss_that_is_not_finite_does_not_pass(symmetry: sb.symmetry.Rescaling) -> None:
    class Broken(sb.problems.HadamardRegression):
        def per_sample_loss(self, theta: Tensor) -> Tensor:
            return super().per_sample_loss(theta) * torch.nan

    with pytest.raises(SymmetryError, match="relative change inf"):
        check_invariance(Broken(*regression()), symmetry)
