"""Weight decay as a part of every per-sample loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import check_positive_number
from .base import Problem


class WeightDecay(Problem):
    """Any problem with (γ/2)‖θ‖² added to each ℓ_i.

    Of the problem's symmetry only isometries remain, so none is declared: of rescalings nothing, of GL(r) the
    rotations. The gradient noise stays what it was.

    Parameters
    ----------
    problem : Problem
    weight_decay : float
        γ > 0.

    Raises
    ------
    InputError
        If γ is not a positive finite number.
    """

    def __init__(self, problem: Problem, weight_decay: float) -> None:
        self.problem, self.weight_decay = problem, check_positive_number("weight_decay", weight_decay)
        super().__init__(problem.layout, problem.data, problem.initial, problem.initial_std, problem.dtype)
        self.stream = problem.stream

    def spec(self) -> dict[str, Any]:
        """Return the declaration of the problem with the key ``weight_decay``."""
        return {**self.problem.spec(), "weight_decay": self.weight_decay}

    def arrays(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Return those of the problem."""
        return self.problem.arrays()

    def _with_data(self, data: Mapping[str, tuple[tuple[str, ...], Tensor]], dtype: torch.dtype | None = None) -> Self:
        clone = super()._with_data(data, dtype)
        clone.problem = self.problem._with_data(data, dtype)
        return clone

    def at(self, samples: Mapping[str, Tensor]) -> Self:
        """Return the same losses on other samples; see `Problem.at`."""
        view = super().at(samples)
        view.problem = self.problem.at(samples)
        return view

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ℓ_i + (γ/2)‖θ‖², shape (..., sample)."""
        return self.problem.per_sample_loss(theta) + 0.5 * self.weight_decay * theta.square().sum(-1, keepdim=True)

    def predictor(self, theta: Tensor) -> Tensor:
        """Return the predictor coordinates of the problem."""
        return self.problem.predictor(theta)

    @property
    def predictor_labels(self) -> list[str]:
        """Those of the problem."""
        return self.problem.predictor_labels

    def loss(self, theta: Tensor) -> Tensor:
        """Return L + (γ/2)‖θ‖², shape (...)."""
        return self.problem.loss(theta) + 0.5 * self.weight_decay * theta.square().sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L + γ θ, shape (..., parameter)."""
        return self.problem.gradient(theta) + self.weight_decay * theta

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇ Σ_i c_i ℓ_i + (Σ_i c_i) γ θ."""
        decay = self.weight_decay * weights.sum(-1, keepdim=True) * theta
        return self.problem.weighted_gradient(theta, weights) + decay

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return (1/B) Σ_b ∇ℓ_{i_b} + γ θ."""
        return self.problem.batch_gradient(theta, indices) + self.weight_decay * theta.detach()

    def hessian_vector_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²L v + γ v, shape (..., parameter)."""
        return self.problem.hessian_vector_product(theta, vector) + self.weight_decay * vector

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i + γ θ, shape (..., sample, parameter)."""
        return self.problem.per_sample_gradient(theta) + self.weight_decay * theta.unsqueeze(-2)

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return that of the problem."""
        return self.problem.gradient_variance(theta)
