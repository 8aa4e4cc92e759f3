"""Hadamard regression: a linear model whose weights are a product of two parameters, w = p∘q."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import DataError, message
from ..layout import ParameterLayout
from .base import Problem, as_data

# Below this share of the samples, gathering the rows of a batch is cheaper than a product with all rows.
GATHER_SHARE = 0.125


class HadamardRegression(Problem):
    """Squared loss ℓ_i = ½ (x_i·(p∘q) − y_i)², invariant under (p_j, q_j) → (c_j p_j, q_j / c_j).

    Its symmetry is ``Rescaling("p", "q")``; its predictor coordinates are w = p∘q. The orbit volume on the balanced
    slice is ½ Σ log 2|w_j|: noise favours sparse w (arXiv:2601.06597).

    Parameters
    ----------
    X : array, shape=(sample, feature) or (replicate, sample, feature)
    y : array, shape=(sample,) or (replicate, sample)
    features : sequence of str, optional
        Names of the features; indices where absent.
    initial, initial_std : mapping, optional
        Initial law, see `Problem`. By default p = 1, q = 0: an unbalanced start at the zero predictor.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    model: ClassVar[str] = "HadamardRegression"

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        features: Sequence[str] | None = None,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        inputs = as_data("X", X, 2)
        targets = as_data("y", y, 1, like=inputs)
        if inputs.shape[:-1] != targets.shape:
            got = f"X {tuple(inputs.shape)} and y {tuple(targets.shape)}"
            raise DataError(message("data", "X (sample, feature) and y (sample,)", got, "match the sample axes"))
        lead = ("replicate",) if inputs.ndim == 3 else ()
        width = inputs.shape[-1]
        names = [str(i) for i in range(width)] if features is None else [str(name) for name in features]
        if len(names) != width or len(set(names)) != width:
            raise DataError(message("features", f"{width} different names", names, "give one name per column of X"))
        layout = ParameterLayout({"p": (width,), "q": (width,)}, {"p": [names], "q": [names]})
        data = {"X": ((*lead, "sample", "feature"), inputs), "y": ((*lead, "sample"), targets)}
        super().__init__(layout, data, {"p": 1.0} if initial is None else initial, initial_std)

    def _precompute(self) -> None:
        # ‖Xw − y‖² = ‖Rw − Qᵀy‖² + ‖y − QQᵀy‖² with X = QR: the loss and its gradient need min(n, features) rows
        # instead of n, and no difference of large numbers is taken.
        q, r = torch.linalg.qr(self._inputs)
        targets = self.data["y"][1]
        projected = (q.mT @ targets.unsqueeze(-1)).squeeze(-1)
        rest = (targets - (q @ projected.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
        if self.replicates is not None:
            targets, projected, rest = targets.unsqueeze(-2), projected.unsqueeze(-2), rest.unsqueeze(-1)
            self._first_row = torch.arange(self.replicates, device=self.device)[:, None, None] * self.n_samples
        self._targets = targets  # ([replicate, 1,] sample), to broadcast against (..., sample)
        self._reduced = r, projected, rest

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``w[feature]``."""
        return [f"w[{name}]" for name in self.layout.entry_labels("p")]

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), "features": self.layout.entry_labels("p")}

    @property
    def _inputs(self) -> Tensor:
        return self.data["X"][1]

    def _pair(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        self.check_theta(theta)
        return theta[..., self.layout.slices["p"]], theta[..., self.layout.slices["q"]]

    def _residual(self, theta: Tensor) -> Tensor:
        p, q = self._pair(theta)
        return (p * q) @ self._inputs.mT - self._targets

    def _pull_back(self, theta: Tensor, slope: Tensor) -> Tensor:
        """Return the gradient in (p, q) from the gradient in w, both (..., feature)."""
        p, q = self._pair(theta)
        return torch.cat([slope * q, slope * p], dim=-1)

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ½ (x_i·(p∘q) − y_i)², shape (..., sample)."""
        return 0.5 * self._residual(theta).square()

    def _reduced_residual(self, theta: Tensor) -> Tensor:
        """Return Rw − Qᵀy, shape (..., rows of R)."""
        p, q = self._pair(theta)
        rows, targets, _ = self._reduced
        return (p * q) @ rows.mT - targets

    def loss(self, theta: Tensor) -> Tensor:
        """Return L = ½ mean_i (x_i·(p∘q) − y_i)², shape (...)."""
        return 0.5 * (self._reduced_residual(theta).square().sum(-1) + self._reduced[2]) / self.n_samples

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L = (g∘q, g∘p) with g = Xᵀ(Xw − y)/n, shape (..., parameter)."""
        return self._pull_back(theta, self._reduced_residual(theta) @ self._reduced[0] / self.n_samples)

    def predictor(self, theta: Tensor) -> Tensor:
        """Return w = p∘q, shape (..., feature)."""
        p, q = self._pair(theta)
        return p * q

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇ Σ_i c_i ℓ_i in closed form: two matrix products."""
        return self._pull_back(theta, (weights * self._residual(theta)) @ self._inputs)

    @torch.no_grad()
    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return (1/B) Σ_b ∇ℓ_{i_b}, by gathering rows when the batch is a small part of the data."""
        if indices.shape[-1] > GATHER_SHARE * self.n_samples:
            return super().batch_gradient(theta, indices)
        inputs, targets = self._inputs.flatten(0, -2), self._targets.flatten()
        flat = (indices if self.replicates is None else indices + self._first_row).flatten()
        rows = inputs.index_select(0, flat).unflatten(0, indices.shape)
        p, q = self._pair(theta)
        predicted = torch.linalg.vecdot(rows, (p * q).unsqueeze(-2))
        residual = predicted - targets.index_select(0, flat).unflatten(0, indices.shape)
        slopes = rows * residual.unsqueeze(-1)
        slope = slopes.mean(-2) if indices.shape[-1] > 1 else slopes.squeeze(-2)
        # Written in place: joining the halves afterwards would be a sixth of the cost of a step.
        gradient = theta.new_empty(*slope.shape[:-1], theta.shape[-1])
        torch.mul(slope, q, out=gradient[..., self.layout.slices["p"]])
        torch.mul(slope, p, out=gradient[..., self.layout.slices["q"]])
        return gradient

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i = r_i (x_i∘q, x_i∘p), shape (..., sample, parameter)."""
        slope = self._residual(theta).unsqueeze(-1) * (
            self._inputs if self.replicates is None else self._inputs.unsqueeze(-3)
        )
        p, q = self._pair(theta)
        return torch.cat([slope * q.unsqueeze(-2), slope * p.unsqueeze(-2)], dim=-1)

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return the diagonal of Σ: (q², p²) ∘ Var_i(r_i x_i), from two matrix products."""
        residual = self._residual(theta)
        mean = residual @ self._inputs / self.n_samples
        second = residual.square() @ self._inputs.square() / self.n_samples
        variance = (second - mean.square()).clamp_min(0)
        p, q = self._pair(theta)
        return torch.cat([variance * q.square(), variance * p.square()], dim=-1)
