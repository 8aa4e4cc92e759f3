"""Scale-invariant regression: the prediction depends on the direction of the weights only, as under normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..layout import ParameterLayout
from ..symmetry import Scaling, Symmetry
from .linear import LinearRegression


class NormalizedRegression(LinearRegression):
    """Squared loss ℓ_i = ½ (x_i·w/‖w‖ − y_i)², invariant under w → c w, as layers before a normalisation are.

    Its symmetry is ``Scaling("w")``; its predictor coordinates are w/‖w‖. The orbit volume is log‖w‖ (van Laarhoven
    2017 for weight normalisation; arXiv:2601.06597). At w = 0 the loss is NaN.

    Parameters
    ----------
    X, y, features
        See `LinearRegression`.
    initial, initial_std : mapping, optional
        Initial law, by default w = 1.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    """

    model: ClassVar[str] = "NormalizedRegression"

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], features: Sequence[str] | None = None) -> ParameterLayout:
        """Return w, one entry for each feature."""
        return cls.vectors(["w"], input_shape[0], features)

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return w = 1."""
        return {"w": 1.0}, {}

    def symmetry(self) -> Symmetry:
        """Return the scaling of w."""
        return Scaling("w")

    @classmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return w/‖w‖, shape (..., feature)."""
        return named["w"] / named["w"].norm(dim=-1, keepdim=True)

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return (s − u (u·s))/‖w‖ with u = w/‖w‖, shape (..., parameter)."""
        unit = self.weights(named)
        return (slope - unit * (unit * slope).sum(-1, keepdim=True)) / named["w"].norm(dim=-1, keepdim=True)
