"""Linear regression whose weights are a function of other parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, message, shown
from ..layout import ParameterLayout
from .arrays import linear_map
from .base import GATHER_SHARE
from .regression import Regression


class LinearRegression(Regression):
    """Regression by a linear function x·w whose weights w = F(θ) are parameterised.

    A subclass states the weights and the pull-back of a gradient from w to θ; everything else is in closed form.

    Parameters
    ----------
    X : array, shape=(sample, feature) or (replicate, sample, feature)
    y : array, shape=(sample,) or (replicate, sample)
    features : sequence of str, optional
        Names of the features; indices where absent.
    initial, initial_std : mapping, optional
        Initial law, see `Regression`.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        features: Sequence[str] | None = None,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(X, y, initial=initial, initial_std=initial_std, features=features)

    @property
    def features(self) -> list[str]:
        """Name of each column of X."""
        return self.layout.entry_labels(next(iter(self.layout.shapes)))

    @staticmethod
    def vectors(names: Sequence[str], width: int, features: Sequence[str] | None) -> ParameterLayout:
        """Return the layout of vectors whose entries belong to the features.

        Raises
        ------
        DataError
            If there is not one different name for each feature.
        """
        if isinstance(features, str | Mapping) or not isinstance(features, Iterable | None):
            raise DataError(message("features", "a list of names", shown(features), "give one name per column of X"))
        labels = [str(i) for i in range(width)] if features is None else [str(name) for name in features]
        if len(labels) != width or len(set(labels)) != width:
            raise DataError(message("features", f"{width} different names", labels, "give one name per column of X"))
        return ParameterLayout(dict.fromkeys(names, (width,)), {name: [labels] for name in names})

    @classmethod
    @abstractmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return w = F(θ), shape (..., feature)."""

    @abstractmethod
    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return J_Fᵀ s, shape (..., parameter), for a gradient s in w, shape (..., feature).

        The leading dims of s include those of the parameters.
        """

    @classmethod
    def output(cls, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return x·w, shape (..., sample)."""
        return dot_rows(inputs, cls.weights(named))

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), "features": self.features}

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``w[feature]``."""
        return [f"w[{name}]" for name in self.features]

    def predictor(self, theta: Tensor) -> Tensor:
        """Return w, shape (..., feature)."""
        return self.weights(self._named(theta))

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        self.check_theta(theta)  # all parameters are vectors: no need to reshape
        return {name: theta[..., span] for name, span in self.layout.slices.items()}

    def _precompute(self) -> None:
        # ‖Xw − y‖² = ‖Rw − Qᵀy‖² + ‖y − QQᵀy‖² with X = QR: the loss and its gradient need min(n, features) rows
        # instead of n, and no difference of large numbers is taken.
        inputs, targets = self.data["X"][1], self.data["y"][1]
        q, r = torch.linalg.qr(inputs)
        projected = (q.mT @ targets.unsqueeze(-1)).squeeze(-1)
        rest = (targets - (q @ projected.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
        if self.replicates is not None:
            r, projected, rest = r.unsqueeze(-3), projected.unsqueeze(-2), rest.unsqueeze(-1)
        self._reduced = r, projected, rest

    def _reduced_residual(self, theta: Tensor) -> Tensor:
        """Return Rw − Qᵀy, shape (..., rows of R)."""
        rows, targets, _ = self._reduced
        return dot_rows(rows, self.predictor(theta)) - targets

    def loss(self, theta: Tensor) -> Tensor:
        """Return L = ½ mean_i (x_i·w − y_i)², shape (...)."""
        if self._samples_per_point:
            return super().loss(theta)
        return 0.5 * (self._reduced_residual(theta).square().sum(-1) + self._reduced[2]) / self.n_samples

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L = J_Fᵀ Xᵀ(Xw − y)/n, shape (..., parameter)."""
        if self._samples_per_point:
            return super().gradient(theta)
        slope = dot_rows(self._reduced[0].mT, self._reduced_residual(theta)) * (1 / self.n_samples)
        return self.pull_back(self._named(theta), slope)

    def _residual(self, theta: Tensor) -> Tensor:
        return self.output(self._named(theta), self.samples["X"]) - self.samples["y"]

    def per_sample_loss(self, theta: Tensor) -> Tensor:
        """Return ½ (x_i·w − y_i)², shape (..., sample)."""
        return 0.5 * self._residual(theta).square()

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇ Σ_i c_i ℓ_i in closed form: two matrix products."""
        return self.pull_back(self._named(theta), dot_rows(self.samples["X"].mT, weights * self._residual(theta)))

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return (1/B) Σ_b ∇ℓ_{i_b}, by gathering rows when the batch is a small part of the data."""
        if indices.shape[-1] > GATHER_SHARE * self.n_samples or self._samples_per_point:
            return super().batch_gradient(theta, indices)
        batch = self._take(indices)
        named = self._named(theta.detach())
        residual = torch.linalg.vecdot(batch["X"], self.weights(named).unsqueeze(-2)) - batch["y"]
        slopes = batch["X"] * residual.unsqueeze(-1)
        return self.pull_back(named, slopes.mean(-2) if indices.shape[-1] > 1 else slopes.squeeze(-2))

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i = r_i J_Fᵀ x_i, shape (..., sample, parameter)."""
        slopes = self._residual(theta).unsqueeze(-1) * self.samples["X"]
        named = {name: values.unsqueeze(-2) for name, values in self._named(theta).items()}
        return self.pull_back(named, slopes)


def dot_rows(rows: Tensor, vector: Tensor) -> Tensor:
    """Return Σ_j rows_ij v_j, shape (..., i), for rows (..., i, j) that trajectories may share and v (..., j)."""
    return linear_map(rows, vector.unsqueeze(-2)).squeeze(-1)
