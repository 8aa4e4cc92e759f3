"""Piecewise-constant regression: a linear model whose weights are cumulative sums of products, w = cumsum(p∘q)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from .hadamard import HadamardRegression


class CumulativeSumRegression(HadamardRegression):
    """Squared loss ℓ_i = ½ (a_i·w − y_i)² with w_j = Σ_{k ≤ j} p_k q_k: the increments of w are a Hadamard product.

    Its symmetry is ``Rescaling("p", "q")``; its predictor coordinates are w. Sparse increments are a small total
    variation: noise favours piecewise-constant w (arXiv:2601.06597, Fig. 6, where the first increment is w_0 itself).

    Parameters
    ----------
    X, y, features, initial, initial_std
        See `HadamardRegression`.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    model: ClassVar[str] = "CumulativeSumRegression"

    @classmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return cumsum(p∘q), shape (..., feature)."""
        return super().weights(named).cumsum(-1)

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return the gradient in (p, q): that in an increment is the sum of the slopes from its place on."""
        return super().pull_back(named, _reverse_cumsum(slope))

    @property
    def _design(self) -> Tensor:
        return _reverse_cumsum(self.samples["X"])


def _reverse_cumsum(values: Tensor) -> Tensor:
    """Return Σ_{k ≥ j} v_k."""
    return values.flip(-1).cumsum(-1).flip(-1)
