"""Linear regression whose weights a design parameterises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..layout import ParameterLayout
from ..problems.linear import LinearRegression
from ..symmetry import Symmetry

if TYPE_CHECKING:
    from .base import Design


class DesignedRegression(LinearRegression):
    """Squared loss ℓ_i = ½ (x_i·w − y_i)² with w = F(θ) as a design has it; made by `Design.problem`.

    The class belongs to one design, so that all that a model does with its class alone, such as
    `Regression.teacher_student`, works here too.

    Parameters
    ----------
    X, y, features, initial, initial_std
        See `LinearRegression`; the initial law is by default the design's own start.

    Raises
    ------
    DataError
        If shapes do not match, or entries are not finite.
    InputError
        If the design does not fit the number of features.
    """

    model: ClassVar[str] = "DesignedRegression"
    design: ClassVar[Design]

    @classmethod
    def layout_for(cls, input_shape: tuple[int, ...], features: Sequence[str] | None = None) -> ParameterLayout:
        """Return the factors of the design for one weight per feature."""
        labelled = cls.vectors(["w"], input_shape[0], features)
        shapes = cls.design.shapes((input_shape[0],))
        labels = {name: labelled.axis_labels["w"] for name, shape in shapes.items() if shape == labelled.shape("w")}
        return ParameterLayout(shapes, labels)

    @classmethod
    def default_law(cls, layout: ParameterLayout) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the start of the design, without spread."""
        return dict(cls.design.start(layout.shapes)), {}

    @classmethod
    def weights(cls, named: Mapping[str, Tensor]) -> Tensor:
        """Return w = F(θ), shape (..., feature)."""
        return cls.design.weight(named)

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Return J_Fᵀ s, shape (..., parameter)."""
        return self.layout.flatten(self.design.pull_back(named, slope))

    def per_sample_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ℓ_i = r_i J_Fᵀ x_i, shape (..., sample, parameter)."""
        slopes = self._residual(theta).unsqueeze(-1) * self.samples["X"]
        return self.pull_back(self.layout.unflatten(theta.unsqueeze(-2)), slopes)

    def symmetry(self) -> Symmetry:
        """Return the symmetry of the design."""
        return self.design.symmetry

    def spec(self) -> dict[str, Any]:
        """Return the declaration, without the data, as plain data."""
        return {**super().spec(), "design": self.design.spec()}

    @property
    def features(self) -> list[str]:
        """Name of each column of X."""
        given = self.sizes.get("features")
        return [str(name) for name in (range(self.data["X"][1].shape[-1]) if given is None else given)]

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        return self.layout.unflatten(self.check_theta(theta))
