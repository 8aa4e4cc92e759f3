"""Gauge: charges (moment map), the balanced point of an orbit, the soft gauge potential."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError, check_positive, message
from .action import Action, forward_derivative
from .linalg import eigenvalue_cutoff, solve_psd, symmetric_eigen

# Newton's method on a convex function doubles its digits each time once it is close; this many say that it is not.
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class QuadraticForms:
    """Symmetric matrices A_a that are never formed: only what they do.

    Parameters
    ----------
    form : callable
        v of shape (..., parameter) to (vᵀ A_a v)_a of shape (..., charge).
    traces : Tensor, shape=(charge,)
        tr A_a.
    """

    form: Callable[[Tensor], Tensor]
    traces: Tensor
    ndim = 3  # Whoever asks a tensor of matrices whether they are diagonal hears that these are not.


Matrices: TypeAlias = "Tensor | QuadraticForms"
"""Diagonals (charge, parameter), full matrices (charge, parameter, parameter), or operators."""


def quadratic_form(matrices: Matrices, vector: Tensor) -> Tensor:
    """Return vᵀ A_a v for each symmetric matrix A_a.

    Parameters
    ----------
    matrices : Tensor or QuadraticForms, shape=(charge, parameter) or (charge, parameter, parameter)
        Diagonals of diagonal matrices, full symmetric matrices, or operators.
    vector : Tensor, shape=(..., parameter)

    Returns
    -------
    Tensor, shape=(..., charge)
    """
    if isinstance(matrices, QuadraticForms):
        return matrices.form(vector)
    if matrices.ndim == 2:
        return vector.square() @ matrices.mT
    return torch.einsum("...i,aij,...j->...a", vector, matrices, vector)


def matrix_traces(matrices: Matrices) -> Tensor:
    """Return tr A_a for each symmetric matrix A_a, shape (charge,)."""
    if isinstance(matrices, QuadraticForms):
        return matrices.traces
    return (matrices if matrices.ndim == 2 else matrices.diagonal(dim1=-2, dim2=-1)).sum(-1)


class GaugeCoordinates(NamedTuple):
    """Coordinates of a point adapted to its orbit.

    Attributes
    ----------
    charge : Tensor, shape=(..., charge)
        Where along the non-compact directions of the orbit it lies; gradient flow does not change it.
    balanced : Tensor, shape=(..., parameter)
        The balanced point that the non-compact directions lead to.
    """

    charge: Tensor
    balanced: Tensor


def _shortened(step: Tensor) -> Tensor:
    """Return a Newton step of length at most 1: far from the solution its model is poor beyond one e-fold."""
    return step / step.norm(dim=-1, keepdim=True).clamp_min(1.0)


class Gauge(Action):
    """The moment map of an action, and the slice of balanced points on which it vanishes.

    A direction of the Lie algebra is non-compact when its field is a gradient, X = ∇C: the symmetric A of X = Aθ, and
    constant fields. The others are compact when they are isometries (A antisymmetric).
    """

    @property
    @abstractmethod
    def charge_labels(self) -> list[str]:
        """Label of each charge, one for each symmetric matrix in `charge_matrices`."""

    @abstractmethod
    def charge_matrices(self, like: Tensor) -> Matrices:
        """Return the second derivatives A_a of the charges, in the dtype and on the device of `like`.

        Shape (charge, parameter) when all are diagonal, else (charge, parameter, parameter) or `QuadraticForms`.
        """

    def charge(self, theta: Tensor) -> Tensor:
        """Return the moment map C_a = ½ θᵀ A_a θ, shape (..., charge). Gradient flow conserves it."""
        return 0.5 * quadratic_form(self.charge_matrices(theta), self.layout.check(theta))

    def charge_basis(self, like: Tensor) -> Tensor:
        """Return the coefficients c with ∇C_a = Σ_b c_ab X_b, shape (charge, dim); by default the first directions."""
        return torch.eye(len(self.charge_labels), self.dim, dtype=like.dtype, device=like.device)

    @property
    def compact_dim(self) -> int:
        """Dimension of the compact part of the group: by default all directions that have no charge."""
        return self.dim - len(self.charge_labels)

    def compact_basis(self, like: Tensor) -> Tensor:
        """Return coefficients of orthonormal compact directions, shape (compact_dim, dim).

        By default the orthogonal complement of `charge_basis`.
        """
        charges = self.charge_basis(like)
        if not self.compact_dim:
            return charges.new_zeros(0, self.dim)
        return torch.linalg.svd(charges, full_matrices=True)[2][charges.shape[0] :]

    def gauge_level(self, like: Tensor) -> Tensor:
        """Return the charges on the balanced slice, shape (charge,): 0 where generic orbits have balanced points."""
        return like.new_zeros(len(self.charge_labels))

    def gauge_potential(self, theta: Tensor, stiffness: float) -> Tensor:
        """Return the soft gauge fixing (κ/2) ‖C(θ) − level‖², shape (...), for stiffness κ > 0.

        Added to a loss that the group leaves invariant it holds the charges near the balanced slice; its gradient is
        vertical.
        """
        check_positive("stiffness", stiffness)
        return 0.5 * stiffness * (self.charge(theta) - self.gauge_level(theta)).square().sum(-1)

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the point of the orbit where the charges vanish (equal `gauge_level`), shape (..., parameter).

        ½‖exp(ξ)·θ‖² is convex along the non-compact directions and its critical points have zero charge (Kempf and
        Ness), so that damped Newton steps −⟨∇C, ∇C⟩⁺ C along the orbit find it. It is unique up to the compact part
        of the group.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        tolerance : float, optional
            Largest |C_a − level| that passes, relative to ½‖θ‖²; by default 100 eps. Groups with a closed form do not
            use it.

        Raises
        ------
        InputError
            If the iteration does not get there: the orbit is not closed and has no balanced point.
        """
        theta = self.check_point(theta)
        limit, level, basis = self._charge_tolerance(theta, tolerance), self.gauge_level(theta), self.charge_basis(theta)
        for _ in range(MAX_ITERATIONS):
            missing = self.charge(theta) - level
            if self._within(missing, limit, theta):
                return theta
            fields = basis @ self.fundamental_vector_fields(theta)
            gram = fields @ fields.mT
            values, vectors = symmetric_eigen(gram)
            step = solve_psd(gram, missing.unsqueeze(-1), values > eigenvalue_cutoff(values), values, vectors)
            theta = self.act(self.exp(-_shortened(step.squeeze(-1)) @ basis), theta)
        raise self._unbalanced(self.charge(theta) - level, MAX_ITERATIONS)

    def gauge_coordinates(self, theta: Tensor) -> GaugeCoordinates:
        """Return the charges of a point and its balanced representative; see `from_gauge_coordinates`."""
        return GaugeCoordinates(self.charge(theta), self.balance(theta))

    def from_gauge_coordinates(self, coordinates: GaugeCoordinates, tolerance: float | None = None) -> Tensor:
        """Return the point exp(ξ)·balanced, ξ non-compact, whose charges are those given.

        Inverse of `gauge_coordinates` where the balanced point lies on the orbit, by Newton's method in ξ with the
        derivative of the charges column by column; see `balance` for the tolerance.

        Raises
        ------
        InputError
            If no such point is found.
        """
        balanced = self.check_point(coordinates.balanced)
        limit, basis = self._charge_tolerance(balanced, tolerance), self.charge_basis(balanced)
        xi = balanced.new_zeros(*balanced.shape[:-1], basis.shape[0])

        def charges(coefficients: Tensor) -> Tensor:
            return self.charge(self.act(self.exp(coefficients @ basis), balanced))

        for _ in range(MAX_ITERATIONS):
            theta = self.act(self.exp(xi @ basis), balanced)
            missing = self.charge(theta) - coordinates.charge
            if self._within(missing, limit, theta):
                return theta
            units = torch.eye(basis.shape[0], dtype=xi.dtype, device=xi.device)
            columns = [forward_derivative(charges, xi, unit.expand(xi.shape).clone()) for unit in units]
            step = torch.linalg.lstsq(torch.stack(columns, dim=-1), missing.unsqueeze(-1)).solution.squeeze(-1)
            xi = xi - _shortened(step)
        raise self._unbalanced(missing, MAX_ITERATIONS)

    @staticmethod
    def _charge_tolerance(theta: Tensor, tolerance: float | None) -> float:
        return 100 * torch.finfo(theta.dtype).eps if tolerance is None else check_positive("tolerance", tolerance)

    @staticmethod
    def _within(missing: Tensor, limit: float, theta: Tensor) -> bool:
        return bool((missing.abs() <= 0.5 * limit * theta.square().sum(-1, keepdim=True)).all())

    @staticmethod
    def _unbalanced(missing: Tensor, iterations: int) -> InputError:
        got = f"a charge {float(missing.abs().max()):.2g} off after {iterations} iterations"
        return InputError(message("balance", "an orbit with a balanced point", got, "check for units that are zero"))
