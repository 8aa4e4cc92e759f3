"""Hadamard regression: a linear model whose weights are a product of two parameters, w = p∘q."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..layout import ParameterLayout
from .diagonal import DiagonalRegression


class HadamardRegression(DiagonalRegression):
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
        super().__init__(X, y, initial=initial, initial_std=initial_std, features=features)

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], features: Sequence[str] | None = None) -> ParameterLayout:
        """Return p and q, one entry for each feature."""
        return cls.vectors(["p", "q"], input_shape[0], features)
