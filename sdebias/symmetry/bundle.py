"""Geometry of orbits: Gram matrix, rank, projections, lifts, orbit volume, curvature, distance.

Everything is batched over ``(..., parameter)`` and differentiable. A subclass states how its group acts; the
operations here follow from that, and a subclass with a structured Gram matrix overrides them by something cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import SymmetryError, check_choice
from .action import HasLayout as HasLayout
from .action import forward_derivative
from .distance import orbit_distance
from .gauge import Gauge
from .gauge import QuadraticForms as QuadraticForms
from .gauge import matrix_traces as matrix_traces
from .gauge import quadratic_form as quadratic_form
from .linalg import (
    condition_number,
    eigenvalue_cutoff,
    log_pseudo_determinant,
    solve_psd,
    symmetric_eigen,
    symmetric_eigenvalues,
    warn_ill_conditioned,
)

Part: TypeAlias = Literal["all", "compact", "noncompact"]
PARTS: tuple[Part, ...] = ("all", "compact", "noncompact")


class Symmetry(Gauge):
    """A continuous group G that acts on parameter space and leaves every per-sample loss unchanged.

    An instance names the parameters that it acts on; `bind` ties it to a problem, after which the geometry is
    available. Tangent vectors and points have shape (..., parameter); a sits on the axis of the Lie algebra.
    """

    @property
    def accuracy(self) -> float:
        """Relative change of a loss that rounding in the symmetry's own numbers may make: 0 where it is declared."""
        return 0.0

    def gram_matrix(self, theta: Tensor) -> Tensor:
        """Return G_ab = ⟨X_a, X_b⟩, shape (..., dim, dim). Dense."""
        fields = self.fundamental_vector_fields(self.layout.check(theta))
        return fields @ fields.mT

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return the eigenvalues of the Gram matrix, shape (..., dim), in no particular order."""
        return symmetric_eigenvalues(self.gram_matrix(theta))

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return G⁺ c, shape (..., dim), for c in the range of G."""
        gram = self.gram_matrix(base_point)
        values, vectors = symmetric_eigen(gram)
        self._warn(values)
        kept = values > eigenvalue_cutoff(values)
        return solve_psd(gram, coefficients.unsqueeze(-1), kept, values, vectors).squeeze(-1)

    def _warn(self, eigenvalues: Tensor) -> None:
        if self._validate:
            warn_ill_conditioned(eigenvalues, repr(self))

    def rank(self, theta: Tensor) -> Tensor:
        """Return the rank of the Gram matrix, shape (...): the dimension of the orbit through θ."""
        values = self.gram_eigenvalues(self.check_point(theta))
        return (values > eigenvalue_cutoff(values)).sum(-1)

    def stabilizer_dimension(self, theta: Tensor) -> Tensor:
        """Return the dimension of the subgroup that does not move θ, shape (...): dim G − rank."""
        return self.dim - self.rank(theta)

    def condition_number(self, theta: Tensor) -> Tensor:
        """Return the ratio of the largest to the smallest nonzero eigenvalue of the Gram matrix, shape (...)."""
        return condition_number(self.gram_eigenvalues(self.check_point(theta)))

    def log_orbit_volume(self, theta: Tensor, part: Part = "all") -> Tensor:
        """Return ½ log pdet of a Gram matrix, shape (...): the log density of the orbit's volume.

        Zero eigenvalues, those within `eigenvalue_cutoff`, are left out (pseudo-determinant). A point that is not
        finite gives NaN and no error, since this is an observable of runs that may diverge.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        part : {"all", "compact", "noncompact"}
            The whole orbit, G; the orbit of the compact directions (`compact_basis`, orthonormal); or the directions
            of the charges, ⟨∇C_a, ∇C_b⟩. At a balanced point the two parts are orthogonal for GL(r) and their volumes
            multiply to that of the whole, up to a constant that the normalisation of the charges fixes.

        Raises
        ------
        InputError
            If `part` is none of these.
        """
        check_choice("part", part, PARTS)
        return self._log_volume(self.layout.check(theta), part)

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        gram = self.gram_matrix(theta)
        if part != "all":
            basis = self.compact_basis(theta) if part == "compact" else self.charge_basis(theta)
            gram = basis @ gram @ basis.mT
        values, vectors = symmetric_eigen(gram)
        self._warn(values)
        return 0.5 * log_pseudo_determinant(gram, values > eigenvalue_cutoff(values), vectors)

    def vertical_projection(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return P_V v with P_V = X G⁺ Xᵀ: the part of `tangent_vec` along the orbit, shape (..., parameter).

        Raises
        ------
        InputError
            If a shape does not fit or, unless bound with ``validate=False``, an entry of the point is not finite.

        Warns
        -----
        IllConditionedGramWarning
            If the Gram matrix loses most of the digits of the dtype.
        """
        self.layout.check(tangent_vec)
        products = self.infinitesimal_action_adjoint(tangent_vec, self.check_point(base_point))
        return self.infinitesimal_action(self.solve_gram(products, base_point), base_point)

    def horizontal_projection(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return P_H v = v − P_V v: the part of `tangent_vec` orthogonal to the orbit, shape (..., parameter)."""
        return tangent_vec - self.vertical_projection(tangent_vec, base_point)

    def horizontal_lift(
        self, tangent_vec: Tensor, fiber_point: Tensor, predictor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the horizontal vector at θ that the predictor map sends to a given change of predictions.

        It is J⁺ δq = Jᵀ(J Jᵀ)⁺ δq with J = ∂F/∂θ, the shortest vector with J v = δq. J vanishes along orbits, so the
        rows of J, and with them the lift, are horizontal. Where F tells fewer points apart than the orbits do, it is
        also orthogonal to the rest of the fiber of F; where J loses rank, δq is first projected on its range.

        Parameters
        ----------
        tangent_vec : Tensor, shape=(..., predictor)
            δq.
        fiber_point : Tensor, shape=(..., parameter)
            θ.
        predictor : callable
            F, such as `problem.predictor`: (..., parameter) to (..., predictor), invariant under the group.

        Returns
        -------
        Tensor, shape=(..., parameter)

        Raises
        ------
        InputError
            If the point does not fit the layout or has entries that are not finite.
        SymmetryError
            If `tangent_vec` has not the length of the predictor.
        """
        values, pull_back, *_ = torch.func.vjp(predictor, self.check_point(fiber_point))
        if tangent_vec.shape[-1:] != values.shape[-1:]:
            got = f"{tuple(tangent_vec.shape)} for predictions of shape {tuple(values.shape)}"
            raise SymmetryError(f"horizontal_lift: expected one entry a prediction, got {got}; pass δq, not δθ")
        units = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
        rows = units.reshape(-1, *[1] * (values.ndim - 1), values.shape[-1]).expand(-1, *values.shape)
        jacobian = torch.func.vmap(lambda row: pull_back(row)[0])(rows).movedim(0, -2)
        gram = jacobian @ jacobian.mT
        spectrum, vectors = symmetric_eigen(gram)
        kept = spectrum > eigenvalue_cutoff(spectrum)
        multipliers = solve_psd(gram, tangent_vec.unsqueeze(-1), kept, spectrum, vectors)
        return (jacobian.mT @ multipliers).squeeze(-1)

    def mean_curvature_vector(self, theta: Tensor) -> Tensor:
        """Return the trace of the second fundamental form of the orbit, shape (..., parameter).

        H = P_H Σ_ab G⁺_ab D_{X_a} X_b, horizontal, not divided by the dimension. When the group acts by isometries
        H = −∇ log_orbit_volume, the volume of free orbits or of orbits whose stabilizers are conjugate; for others,
        such as rescalings, this equality fails.
        """
        return self.horizontal_projection(self._second_derivative_trace(theta), theta)

    def _second_derivative_trace(self, theta: Tensor) -> Tensor:
        """Return Σ_ab G⁺_ab D_{X_a} X_b, shape (..., parameter)."""
        eye = torch.eye(self.dim, dtype=theta.dtype, device=theta.device)
        points = theta.unsqueeze(-2).repeat_interleave(self.dim, -2)  # forward mode wants its own memory
        inverse = self.solve_gram(eye, points)
        tangents = self.infinitesimal_action(inverse, points)
        return forward_derivative(lambda p: self.infinitesimal_action(eye, p), points, tangents).sum(-2)

    def orbit_distance(self, point: Tensor, other: Tensor, nodes: int = 32) -> Tensor:
        """Return the length, shape (...), of the shortest path within the orbit that is near the straight line.

        See `sdebias.symmetry.distance.orbit_distance` for how and how well.

        Raises
        ------
        SymmetryError
            If the points are not on one orbit.
        """
        point, other = torch.broadcast_tensors(self.check_point(point), self.check_point(other))
        return orbit_distance(self, point, other, nodes)
