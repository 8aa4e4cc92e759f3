"""Problems with known laws, shared by the tests of predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import sdebias as sb
from sdebias.layout import ParameterLayout

FLOAT = torch.float64


def toy() -> tuple[sb.Problem, sb.symmetry.Symmetry]:
    """Return L = ½ (uv − 1)² with its rescaling."""
    problem = sb.problems.HadamardRegression(np.ones((1, 1)), np.ones(1))
    return problem, sb.symmetry.Rescaling("p", "q").bind(problem)


def toy_section(w: Tensor) -> Tensor:
    """Return the balanced (√w, √w) for w > 0."""
    return w.sqrt().expand(-1, 2)


class Radial(sb.Problem):
    """L = ½ (‖x‖ − 1)², predictor ‖x‖, invariant under SO(m)."""

    model = "Radial"

    def __init__(self, m: int) -> None:
        super().__init__(ParameterLayout({"x": (m,)}), {"radius": (("sample",), torch.ones(1, dtype=FLOAT))})

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        return 0.5 * (theta.norm(dim=-1, keepdim=True) - self.samples["radius"]).square()

    def predictor(self, theta: Tensor) -> Tensor:
        return theta.norm(dim=-1, keepdim=True)

    @property
    def predictor_labels(self) -> list[str]:
        return ["r"]


class SpectralWell(sb.Problem):
    """L = ¼ ‖M Mᵀ − diag(1.5)‖², M = U Vᵀ 2×2: a function of the singular values of M alone."""

    model = "SpectralWell"

    def __init__(self) -> None:
        data = {"level": (("sample",), torch.full((1,), 1.5, dtype=FLOAT))}
        super().__init__(ParameterLayout({"U": (2, 2), "V": (2, 2)}), data)

    def predictor(self, theta: Tensor) -> Tensor:
        named = self.layout.unflatten(theta)
        return (named["U"] @ named["V"].mT).flatten(-2)

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        matrix = self.predictor(theta).unflatten(-1, (2, 2))
        gap = matrix @ matrix.mT - self.samples["level"] * torch.eye(2, dtype=theta.dtype)
        return 0.25 * gap.square().sum((-2, -1)).unsqueeze(-1)

    @property
    def predictor_labels(self) -> list[str]:
        return ["a", "b", "c", "d"]


def balanced_factors(entries: Tensor) -> Tensor:
    """Return (A √S, B √S) for the 2×2 matrix A S Bᵀ with the given entries (..., 4)."""
    left, values, right = torch.linalg.svd(entries.unflatten(-1, (2, 2)))
    roots = values.sqrt().unsqueeze(-2)
    return torch.cat([(left * roots).flatten(-2), (right.mT * roots).flatten(-2)], -1)
