"""Shallow ReLU network with one output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import check_count
from ..layout import ParameterLayout
from ..symmetry import Rescaling, Symmetry
from .arrays import fan_in_law, linear_map
from .regression import Regression


class ShallowReLU(Regression):
    """Regression by f(x) = Σ_j v_j max(0, W_j·x), without biases.

    Its symmetry is ``Rescaling.relu("W", "v")``: W_j → c_j W_j, v_j → v_j / c_j. Its predictor coordinates are v_j W_j,
    which with the signs of v determine f. The orbit volume is ½ Σ log(v_j² + ‖W_j‖²), on the balanced slice that of the
    path norm (arXiv:2601.06597, Fig. 2; Neyshabur et al. 2015 for the rescaling).

    Parameters
    ----------
    X : array, shape=(sample, feature) or (replicate, sample, feature)
    y : array, shape=(sample,) or (replicate, sample)
    units : int
    initial, initial_std : mapping, optional
        Initial law, by default N(0, 1/fan-in).

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    InputError
        If `units` is not a positive whole number.

    Examples
    --------
    The teacher and student of the paper, before its student is unbalanced (its loss has no ½: its η is 2η here):

    >>> problem = ShallowReLU.teacher_student(
    ...     3, units=16, teacher=1.5, label_noise=0.1, initial_std={"W": 0.05, "v": 0.05}
    ... )
    """

    model: ClassVar[str] = "ShallowReLU"

    def __init__(
        self,
        X: Any,
        y: Any,
        *,
        units: int = 16,
        initial: Mapping[str, Any] | None = None,
        initial_std: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(X, y, initial=initial, initial_std=initial_std, units=units)

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], units: int = 16) -> ParameterLayout:
        """Return W (unit, feature) and v (unit,)."""
        check_count("units", units)
        return ParameterLayout({"W": (units, *input_shape), "v": (units,)})

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return N(0, 1/fan-in)."""
        return {}, fan_in_law(layout)

    def symmetry(self) -> Symmetry:
        """Return the rescaling of each unit."""
        return Rescaling.relu("W", "v")

    @classmethod
    def output(cls, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return Σ_j v_j max(0, W_j·x), shape (..., sample)."""
        hidden = linear_map(inputs, named["W"]).relu()
        return (hidden @ named["v"].unsqueeze(-1)).squeeze(-1)

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return ∇ Σ_i c_i ℓ_i in closed form: Σ_i e_i v_j 1[W_j·x_i > 0] x_i and Σ_i e_i max(0, W_j·x_i)."""
        named, inputs = self._named(theta), self.samples["X"]
        hidden = linear_map(inputs, named["W"]).relu()
        outgoing = named["v"].unsqueeze(-1)
        errors = weights.unsqueeze(-1) * ((hidden @ outgoing) - self.samples["y"].unsqueeze(-1))
        slopes = errors * (hidden > 0) * outgoing.mT
        incoming = linear_map(inputs.mT, slopes.mT).mT.flatten(-2)
        return torch.cat([incoming, (hidden * errors).sum(-2)], dim=-1)

    @property
    def predictor_labels(self) -> list[str]:
        """Labels ``vW[unit,feature]``."""
        return [f"vW[{entry}]" for entry in self.layout.entry_labels("W")]

    def predictor(self, theta: Tensor) -> Tensor:
        """Return v_j W_j, shape (..., unit · feature)."""
        named = self._named(theta)
        return (named["v"].unsqueeze(-1) * named["W"]).flatten(-2)
