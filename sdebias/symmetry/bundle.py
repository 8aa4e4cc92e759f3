"""Geometry of orbits: fundamental vector fields, Gram matrix, projections, orbit volume.

Everything is batched over ``(..., parameter)`` and differentiable. A subclass states how its group acts; the
operations here follow from that, and a subclass with a structured Gram matrix overrides them by something cheaper.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..layout import ParameterLayout


class HasLayout(Protocol):
    """What a symmetry needs to know of a problem: the names and shapes of its parameters."""

    layout: ParameterLayout


def quadratic_form(matrices: Tensor, vector: Tensor) -> Tensor:
    """Return vᵀ A_a v for each symmetric matrix A_a.

    Parameters
    ----------
    matrices : Tensor, shape=(charge, parameter) or (charge, parameter, parameter)
        Diagonals of diagonal matrices, or full symmetric matrices.
    vector : Tensor, shape=(..., parameter)

    Returns
    -------
    Tensor, shape=(..., charge)
    """
    if matrices.ndim == 2:
        return vector.square() @ matrices.mT
    return torch.einsum("...i,aij,...j->...a", vector, matrices, vector)


def eigenvalue_cutoff(eigenvalues: Tensor) -> Tensor:
    """Return the size, shape (..., 1), below which an eigenvalue of a Gram matrix counts as zero.

    The tolerance is dim · eps · largest eigenvalue, that of `numpy.linalg.matrix_rank`.
    """
    eps = torch.finfo(eigenvalues.dtype).eps
    return eigenvalues.amax(-1, keepdim=True) * (eps * max(eigenvalues.shape[-1], 1))


class Symmetry(ABC):
    """A continuous group G that acts on parameter space and leaves every per-sample loss unchanged.

    An instance names the parameters that it acts on; `bind` ties it to a problem, after which the geometry is
    available. Tangent vectors and points have shape (..., parameter); a sits on the axis of the Lie algebra.
    """

    _layout: ParameterLayout | None = None

    def bind(self, problem: HasLayout) -> Self:
        """Return a copy tied to the parameters of `problem`.

        Raises
        ------
        SymmetryError
            If a parameter that it acts on does not exist or has an unfit shape.
        """
        bound = copy.copy(self)
        object.__setattr__(bound, "_layout", problem.layout)  # subclasses are frozen dataclasses
        bound._check_layout()
        return bound

    @property
    def layout(self) -> ParameterLayout:
        """Parameter layout of the bound problem.

        Raises
        ------
        SymmetryError
            If the symmetry is not bound yet.
        """
        if self._layout is None:
            raise SymmetryError(f"{self!r} is not bound to a problem; call symmetry.bind(problem) first")
        return self._layout

    @abstractmethod
    def _check_layout(self) -> None:
        """Raise SymmetryError if the layout has not the parameters that the group acts on."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the group."""

    @property
    @abstractmethod
    def charge_labels(self) -> list[str]:
        """Label of each charge, one for each symmetric matrix in `charge_matrices`."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data, from which a configuration can build it again."""

    @abstractmethod
    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return g·θ, shape (..., parameter); leading dims of element and point broadcast."""

    @abstractmethod
    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the group element exp(Σ_a ξ_a e_a) for Lie-algebra coefficients ξ of shape (..., dim)."""

    @abstractmethod
    def fundamental_vector_fields(self, theta: Tensor) -> Tensor:
        """Return X_a(θ) = d/ds exp(s e_a)·θ at s = 0, shape (..., dim, parameter)."""

    @abstractmethod
    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return the symmetric A_a with X_a(θ) = A_a θ, in the dtype and on the device of `like`.

        Shape (charge, parameter) when all are diagonal, else (charge, parameter, parameter).
        """

    def charge(self, theta: Tensor) -> Tensor:
        """Return the moment map C_a = ½ θᵀ A_a θ, shape (..., charge). Gradient flow conserves it."""
        return 0.5 * quadratic_form(self.charge_matrices(theta), self.layout.check(theta))

    def gram_matrix(self, theta: Tensor) -> Tensor:
        """Return G_ab = ⟨X_a, X_b⟩, shape (..., dim, dim)."""
        fields = self.fundamental_vector_fields(theta)
        return fields @ fields.mT

    def rank(self, theta: Tensor) -> Tensor:
        """Return the rank of the Gram matrix, shape (...): the dimension of the orbit through θ."""
        values = torch.linalg.eigvalsh(self.gram_matrix(theta))
        return (values > eigenvalue_cutoff(values)).sum(-1)

    def log_orbit_volume(self, theta: Tensor) -> Tensor:
        """Return ½ log pdet G, shape (...): the log density of the orbit's volume.

        Zero eigenvalues, those within `eigenvalue_cutoff`, are left out (pseudo-determinant).
        """
        values = torch.linalg.eigvalsh(self.gram_matrix(theta))
        kept = values > eigenvalue_cutoff(values)
        return 0.5 * torch.where(kept, values, torch.ones_like(values)).log().sum(-1)

    def vertical_projection(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return P_V v with P_V = X G⁺ Xᵀ: the part of `tangent_vec` along the orbit, shape (..., parameter)."""
        fields = self.fundamental_vector_fields(base_point)
        values, vectors = torch.linalg.eigh(fields @ fields.mT)
        kept = values > eigenvalue_cutoff(values)
        inverse = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
        products = (fields @ tangent_vec.unsqueeze(-1)).squeeze(-1)
        rotated = (vectors.mT @ products.unsqueeze(-1)).squeeze(-1) * inverse
        coefficients = (vectors @ rotated.unsqueeze(-1)).squeeze(-1)
        return (coefficients.unsqueeze(-2) @ fields).squeeze(-2)

    def horizontal_projection(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return P_H v = v − P_V v: the part of `tangent_vec` orthogonal to the orbit, shape (..., parameter)."""
        return tangent_vec - self.vertical_projection(tangent_vec, base_point)
