"""Deep diagonal regression: a linear model whose weights are a product of D parameters, w = u_1∘…∘u_D."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import check_count, check_memory
from ..layout import PARAMETER_BYTES, ParameterLayout
from ..symmetry import Rescaling, Symmetry
from .linear import LinearRegression, dot_rows


class DiagonalRegression(LinearRegression):
    """Squared loss ℓ_i = ½ (x_i·(u_1∘…∘u_D) − y_i)² of all the parameters that the layout has.

    Its symmetry is the rescaling between consecutive factors of each coordinate.
    """

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all factors 1 but the last, which is 0: an unbalanced start at the zero predictor."""
        return dict.fromkeys(list(layout.shapes)[:-1], 1.0), {}

    def symmetry(self) -> Symmetry:
        """Return the rescaling of the factors."""
        return Rescaling(*self.layout.shapes)

    @classmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return u_1∘…∘u_D, shape (..., feature)."""
        return functools.reduce(torch.mul, named.values())

    def _partials(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return ∂w_j/∂u_kj, the product of the other factors, one (..., feature) tensor for each factor."""
        factors = list(named.values())
        return [functools.reduce(torch.mul, factors[:k] + factors[k + 1 :]) for k in range(len(factors))]

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return s_j ∂w_j/∂u_kj, shape (..., parameter)."""
        partials = self._partials(named)
        if torch.is_grad_enabled():
            return torch.cat([slope * partial for partial in partials], dim=-1)
        # Written in place: joining the parts afterwards would be a sixth of the cost of a step.
        gradient = slope.new_empty(*slope.shape[:-1], self.layout.size)
        for span, partial in zip(self.layout.slices.values(), partials, strict=True):
            torch.mul(slope, partial, out=gradient[..., span])
        return gradient

    @property
    def _design(self) -> Tensor:
        """The matrix Z for which predictions are Z (u_1∘…∘u_D)."""
        return self.samples["X"]

    def gradient_variance(self, theta: Tensor) -> Tensor:
        """Return the diagonal of Σ: (∂w_j/∂u_kj)² Var_i(r_i x_ij), from two matrix products."""
        residual, rows = self._residual(theta), self._design.mT
        mean = dot_rows(rows, residual) / self.n_samples
        second = dot_rows(rows.square(), residual.square()) / self.n_samples
        variance = (second - mean.square()).clamp_min(0)
        return torch.cat([variance * partial.square() for partial in self._partials(self._named(theta))], dim=-1)


class DeepDiagonalRegression(DiagonalRegression):
    """Squared loss of the deep diagonal linear network w = u_1∘…∘u_D, with parameters u1, …, uD.

    Its symmetry is ``Rescaling("u1", …, "uD")``, D − 1 factors for each feature; its predictor coordinates are w. The
    orbit volume on the balanced slice is Σ_j [(D−1)/D log|w_j| + ½ log D] (arXiv:2601.06597; Woodworth et al. 2020 for
    the gradient flow).

    Parameters
    ----------
    X, y, features
        See `LinearRegression`.
    depth : int
        D >= 2.
    initial, initial_std : mapping, optional
        Initial law, by default 1 for all factors but the last, which is 0.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    InputError
        If the depth is below 2.
    """

    model: ClassVar[str] = "DeepDiagonalRegression"

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        depth: int = 3,
        features: Sequence[str] | None = None,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        # Past the constructor of linear models, which has no sizes beside the features.
        super(LinearRegression, self).__init__(
            X, y, initial=initial, initial_std=initial_std, features=features, depth=depth
        )

    @classmethod
    def layout_for(
        cls, input_shape: tuple[int, ...], depth: int = 3, features: Sequence[str] | None = None
    ) -> ParameterLayout:
        """Return u1, …, uD, one entry for each feature."""
        check_count("depth", depth, minimum=2)
        check_memory("depth", PARAMETER_BYTES * depth * input_shape[0], "make the model less deep")
        return cls.vectors([f"u{k}" for k in range(1, depth + 1)], input_shape[0], features)
