"""Hadamard regression: a linear model whose weights are a product of two parameters, w = p∘q."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], features: Sequence[str] | None = None) -> ParameterLayout:
        """Return p and q, one entry for each feature."""
        return cls.vectors(["p", "q"], input_shape[0], features)
