"""Rows of the table of orbit drifts: the rate at which a dynamics moves each charge, in the mean.

Of a law, `unit` is the step in updates at whose starts the rate acts; 0 means that it acts all the time. `solver_step`
is the step of a solver that adds a drift of its own, else 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import DataError, check_choice, message
from ..problems.base import Problem
from ..symmetry import Symmetry
from ..symmetry.gauge import Matrices, quadratic_form
from .noise_traces import Covariance, NoiseTrace


@dataclass(frozen=True)
class Potential:
    """V = (γ/2)‖θ‖² + (κ/2)‖C − level‖², in the drift beside the loss; ∇C_a·∇V = 2γ C_a + κ Σ_b ∇C_a·∇C_b C_b."""

    weight_decay: float = 0.0
    gauge_stiffness: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.weight_decay or self.gauge_stiffness)

    @property
    def symbol(self) -> str:
        """V as written in an equation."""
        decay = "gamma/2 |theta|^2" if self.weight_decay else ""
        gauge = "kappa/2 |C - level|^2" if self.gauge_stiffness else ""
        return " + ".join(part for part in (decay, gauge) if part)

    def force(self, symmetry: Symmetry, theta: Tensor) -> Tensor:
        """Return ∇V, shape (..., parameter); differentiable where θ is."""
        force = self.weight_decay * theta
        if self.gauge_stiffness:
            with torch.enable_grad():
                point = theta if theta.requires_grad else theta.detach().requires_grad_(True)
                total = symmetry.gauge_potential(point, self.gauge_stiffness).sum()
                force = force + torch.autograd.grad(total, point, create_graph=theta.requires_grad)[0]
        return force

    def curvature(self, symmetry: Symmetry, theta: Tensor, vector: Tensor) -> Tensor:
        """Return ∇²V v, shape (..., parameter)."""
        if not self:
            return torch.zeros_like(theta)
        point = theta.detach().requires_grad_(True)
        return torch.autograd.grad((self.force(symmetry, point) * vector.detach()).sum(), point)[0]


def along_charges(symmetry: Symmetry, theta: Tensor, vector: Tensor) -> Tensor:
    """Return ∇C_a·v, shape (..., charge)."""
    return symmetry.infinitesimal_action_adjoint(vector, theta) @ symmetry.charge_basis(theta).mT


@dataclass(frozen=True)
class SGDLaw:
    """Exact: C_a(θ − ηu) − C_a(θ) = −η X_a·u + (η²/2) uᵀA_a u with u = g + ∇V, and X_a·g = 0 for a batch gradient g.

    With weight decay alone, −η X_a·∇V + (η²/2) ∇Vᵀ A_a ∇V = −(2ηγ − η²γ²) C_a.
    """

    batch_size: int
    replacement: bool
    potential: Potential
    unit: float = 1.0
    solver_step: float = 0.0

    @property
    def equation(self) -> str:
        """The row."""
        total = "L" if not self.potential else "U"
        row = f"eta^2/2 [{_share(self.replacement)} tr(Sigma A_a) + grad {total}^T A_a grad {total}]"
        more = f" - eta grad C_a . grad V, U = L + V, V = {self.potential.symbol}" if self.potential else ""
        return f"dC_a/dk = {row}{more}"

    def fresh_samples(self, problem: Problem) -> int:
        """Return how many samples of a stream an update sees: a batch."""
        return self.batch_size

    def on_fresh_samples(self) -> SGDLaw:
        """Return the law given the batch itself: it is all of its samples, and no other noise is left."""
        return replace(self, replacement=False)

    def rates(
        self,
        problem: Problem,
        symmetry: Symmetry,
        theta: Tensor,
        matrices: Matrices,
        rate: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the exact drift of each charge in an update, and zero."""
        share = sampling_share(self.batch_size, problem.n_samples, self.replacement)
        trace, gradient = problem.gradient_noise_trace(theta, matrices), problem.gradient(theta)
        drift = torch.zeros_like(trace)
        if self.potential:
            force = self.potential.force(symmetry, theta)
            gradient, drift = gradient + force, -rate * along_charges(symmetry, theta, force)
        drift = drift + rate**2 / 2 * (share * trace + quadratic_form(matrices, gradient))
        return drift, torch.zeros_like(drift)


@dataclass(frozen=True)
class SDELaw:
    """Itô's formula X_a·b + ½ tr(g gᵀA_a), b the drift of θ: −η∇U at order 1, less (η²/2) ∇²U∇U at order 2.

    X_a·∇L = 0. Without V, −(η²/2) X_a·∇²L∇L = (η²/2) ∇LᵀA_a∇L: differentiate X_a·∇L = 0 along ∇L.
    """

    noise: NoiseTrace
    batch_size: int
    replacement: bool
    order: int
    potential: Potential
    solver_step: float
    unit: float = 0.0

    @property
    def equation(self) -> str:
        """The row."""
        share = "eta^2/(2B)" if self.replacement else f"eta^2/2 {_share(False)}"
        terms = [f"{'eta T' if self.noise.name == 'isotropic' else share} {self.noise.symbol}"]
        if self.potential:
            second = " - eta^2/2 grad C_a . hess U grad U" if self.order == 2 else ""
            terms.append(f"- eta grad C_a . grad V{second}, U = L + V, V = {self.potential.symbol}")
        elif self.order == 2:
            terms.append("+ eta^2/2 grad L^T A_a grad L")
        return f"dC_a/dk = {' '.join(terms)}"

    def fresh_samples(self, problem: Problem) -> int:
        """Return how many samples of a stream a solver step sees: a pool."""
        return problem.n_samples

    def on_fresh_samples(self) -> SDELaw:
        """Return the law itself: drift and noise of a step are those of its pool."""
        return self

    def rates(
        self,
        problem: Problem,
        symmetry: Symmetry,
        theta: Tensor,
        matrices: Matrices,
        rate: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the drift of each charge per update, and (dt/2) bᵀA_a b per update."""
        trace = self.noise(problem, symmetry, theta, matrices)
        if self.noise.name == "isotropic":
            drift = rate * temperature * trace
        else:
            drift = rate**2 / 2 * sampling_share(self.batch_size, problem.n_samples, self.replacement) * trace
        gradient, vertical = problem.gradient(theta), torch.zeros_like(theta)
        if self.potential:
            force = self.potential.force(symmetry, theta)
            gradient, vertical = gradient + force, -rate * force
        velocity = -rate * gradient
        if self.order == 2:
            curved = problem.hessian_vector_product(theta, gradient)
            second = -(rate**2) / 2 * (curved + self.potential.curvature(symmetry, theta, gradient))
            velocity, vertical = velocity + second, vertical + second
        if self.potential or self.order == 2:
            drift = drift + along_charges(symmetry, theta, vertical)
        return drift, self.solver_step / 2 * quadratic_form(matrices, velocity)


Law: TypeAlias = SGDLaw | SDELaw


def sampling_share(size: int, n: int, replacement: bool) -> float:
    """Return s with Cov of the batch gradient = s Σ: 1/B, or (n−B)/(B(n−1)) without replacement."""
    return 1 / size if replacement else (n - size) / (size * max(n - 1, 1))


def _share(replacement: bool) -> str:
    return "1/B" if replacement else "(n-B)/(B(n-1))"


def law_of(attributes: Mapping[str, Any], covariance: Covariance | None = None) -> Law:
    """Return the law of the dynamics that a dataset's attributes name.

    Raises
    ------
    DataError
        If an attribute is missing or names something unknown.
    """
    try:
        name = check_choice("attribute dynamics", str(attributes["dynamics"]), ("SGD", "SGDSDE"), DataError)
        batch_size = int(attributes["batch_size"])
        potential = Potential(*(float(attributes.get(key, 0.0)) for key in ("weight_decay", "gauge_stiffness")))
        replacement = bool(attributes["replacement"] if name == "SGD" else attributes.get("replacement", 1))
        if name == "SGD":
            return SGDLaw(batch_size, replacement, potential)
        noise = NoiseTrace.of(attributes, covariance)
        # Only the Euler solver's finite step has a closed form.
        step = 1 / int(attributes["substeps"]) if attributes["method"] == "euler" else 0.0
        return SDELaw(noise, batch_size, replacement, int(attributes["order"]), potential, step)
    except KeyError as error:
        remedy = "record the dynamics as simulate does"
        raise DataError(message("ensemble", f"an attribute {error}", "none", remedy)) from None
