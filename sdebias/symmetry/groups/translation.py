"""Shifts along an axis."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...errors import SymmetryError, message
from ..bundle import Part
from .named import NamedGroup


class Translation(NamedGroup):
    """Shift of all rows by one vector, as softmax permits for the rows (classes) of its logits' weights and biases.

    X_a has 1 in each row of column a; the Gram matrix is rows · I, constant: no bias. The fields are constant and hence
    gradients of C_a = Σ_rows θ_a, the linear charges, whose second derivatives A_a are zero. Elements are vectors
    (..., dim) that are added.

    Parameters
    ----------
    *parameters : str
        Names, each with the axis of the rows after a colon, by default 0: ``Translation("W", "b")`` for logits
        W x + b with W (class, feature), b (class,). A layer of an ``nn.Module`` stands for its weight and bias.
    """

    default_axis = 0
    joint = True

    def _check_layout(self) -> None:
        self._check_slots(1, math.inf, "name the parameters that are shifted")
        super()._check_layout()

    @property
    def dim(self) -> int:
        """Number of columns."""
        return self.slots[0].columns

    @property
    def direction_labels(self) -> list[str]:
        """Those of the charges."""
        return self.charge_labels

    @property
    def charge_labels(self) -> list[str]:
        """One a column, such as ``W[:,2]``."""
        return self.slots[0].column_labels

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the shift itself."""
        return coefficients

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the sum."""
        return first + second

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return θ with the shift added to all rows.

        Raises
        ------
        SymmetryError
            If the element has not `dim` entries or one of them is not finite.
        """
        if element.shape[-1:] != (self.dim,):
            got, remedy = tuple(element.shape), "give one number a column"
            raise SymmetryError(message("group element", f"shape (..., {self.dim})", got, remedy))
        if not bool(torch.isfinite(element).all()):
            raise SymmetryError(message("group element", "finite entries only", "others", "use finite coefficients"))
        return theta + self.infinitesimal_action(element, theta)

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return the shift as a tangent vector, shape (..., parameter)."""
        slot = self.slots[0]
        lead = np.broadcast_shapes(coefficients.shape[:-1], self.layout.check(base_point).shape[:-1])
        return self._written(slot.write(coefficients.unsqueeze(-2).expand(*lead, slot.rows, slot.columns)))

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return the sum over rows, shape (..., dim)."""
        return self.slots[0].read(self.layout.check(tangent_vec)).sum(-2)

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return the number of rows, dim times."""
        return theta.new_full((*theta.shape[:-1], self.dim), self.slots[0].rows)

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return c divided by the number of rows."""
        return coefficients / self.slots[0].rows

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        """Return (dim/2) log rows, constant."""
        value = 0.0 if part == "compact" else 0.5 * self.dim * math.log(self.slots[0].rows)
        return theta.new_full(theta.shape[:-1], value)

    def _second_derivative_trace(self, theta: Tensor) -> Tensor:
        """Return 0: orbits are flat."""
        return torch.zeros_like(theta)

    def charge(self, theta: Tensor) -> Tensor:
        """Return C_a = Σ_rows θ_a, shape (..., dim)."""
        return self.infinitesimal_action_adjoint(theta, theta)

    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return zeros, shape (dim, parameter): the charges are linear."""
        return like.new_zeros(self.dim, self.layout.size)

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return θ with the mean over rows subtracted."""
        mean = self.charge(self.check_point(theta)) / self.slots[0].rows
        return theta - self.infinitesimal_action(mean, theta)
