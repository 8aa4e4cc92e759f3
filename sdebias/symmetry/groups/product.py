"""Several groups at once, such as one for each pair of consecutive layers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import SymmetryError, message
from ..bundle import Part, Symmetry
from ..checks import check_symmetry
from ..gauge import GaugeCoordinates, Matrices, QuadraticForms, quadratic_form
from ..gauge import matrix_traces as traces_of

# Balancing one factor after the other converges linearly, slower the longer the chain of layers.
MAX_SWEEPS = 5000


class Product(Symmetry):
    """The product G_1 × … × G_k of groups whose actions commute. Elements are tuples, one entry a factor.

    Factors on different parameters are orthogonal and keep their structured cost. Factors that share parameters, such
    as GL between consecutive pairs of layers, are treated together by a dense Gram matrix: (Σ dim) · d numbers a point.

    Parameters
    ----------
    *factors : Symmetry

    Raises
    ------
    InputError
        If a factor is no symmetry.
    SymmetryError
        If there is none or, in `bind`, two factors that share parameters do not commute.
    """

    def __init__(self, *factors: Symmetry) -> None:
        if not factors:
            raise SymmetryError(message("Product", "at least one factor", "none", "give the groups to combine"))
        self.factors = tuple(map(check_symmetry, factors))

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.factors))})"

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""
        return {"group": "Product", "factors": [factor.spec() for factor in self.factors]}

    def _check_layout(self) -> None:
        self.factors = tuple(factor.bind(self, validate=self._validate) for factor in self.factors)
        for k, first in enumerate(self.factors):
            for second in self.factors[k + 1 :]:
                if bool((first.moved_entries & second.moved_entries).any()):
                    self._check_commute(first, second)

    def _check_commute(self, first: Symmetry, second: Symmetry) -> None:
        generator = torch.Generator().manual_seed(0)
        point, *coefficients = (
            torch.randn(n, generator=generator, dtype=torch.float64) for n in (self.layout.size, first.dim, second.dim)
        )
        g, h = (group.exp(xi / xi.norm()) for group, xi in zip((first, second), coefficients, strict=True))
        one = first.act(g, second.act(h, point))
        difference = float((one - second.act(h, first.act(g, point))).norm() / one.norm())
        if difference > 1e-8:
            got = f"{first!r} and {second!r}, which differ by {difference:.2g} with their order"
            remedy = "declare the group that both generate with from_fields"
            raise SymmetryError(message("Product", "factors that commute", got, remedy))

    @cached_property
    def _components(self) -> list[Symmetry]:
        """Factors joined where they share entries of parameters."""
        groups: list[tuple[Tensor, list[Symmetry]]] = []
        for factor in self.factors:
            moved, members = factor.moved_entries, [factor]
            for group in [g for g in groups if bool((g[0] & moved).any())]:
                groups = [g for g in groups if g is not group]
                moved, members = group[0] | moved, group[1] + members
            groups.append((moved, members))
        if len(groups) == 1 and len(self.factors) > 1:
            return [self]
        return [m[0] if len(m) == 1 else Product(*m).bind(self, validate=self._validate) for _, m in groups]

    @property
    def accuracy(self) -> float:
        """That of the least accurate factor."""
        return max(factor.accuracy for factor in self.factors)

    @property
    def _coupled(self) -> bool:
        return self._components == [self]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that a factor changes."""
        return tuple(dict.fromkeys(name for factor in self.factors for name in factor.parameter_names))

    @property
    def moved_entries(self) -> Tensor:
        """Which entries a factor changes, a bool tensor (parameter,)."""
        return torch.stack([factor.moved_entries for factor in self.factors]).any(0)

    @property
    def dim(self) -> int:
        """Sum over the factors."""
        return sum(factor.dim for factor in self.factors)

    @property
    def direction_labels(self) -> list[str]:
        """Those of the factors, one after the other."""
        return [label for factor in self.factors for label in factor.direction_labels]

    @property
    def charge_labels(self) -> list[str]:
        """Those of the factors, one after the other."""
        return [label for factor in self.factors for label in factor.charge_labels]

    def _split(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        return coefficients.split([factor.dim for factor in self.factors], dim=-1)

    def exp(self, coefficients: Tensor) -> tuple[Any, ...]:
        """Return the tuple of the factors' elements."""
        return tuple(factor.exp(xi) for factor, xi in zip(self.factors, self._split(coefficients), strict=True))

    def compose(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the composition factor by factor."""
        return tuple(factor.compose(g, h) for factor, g, h in zip(self.factors, first, second, strict=True))

    def act(self, element: tuple[Any, ...], theta: Tensor) -> Tensor:
        """Return the point moved by each factor in turn.

        Raises
        ------
        SymmetryError
            If the element is not a tuple with one entry a factor, or a factor refuses its entry.
        """
        if not isinstance(element, tuple) or len(element) != len(self.factors):
            want = f"a tuple of {len(self.factors)} elements"
            remedy = "use symmetry.exp(coefficients) to build elements"
            raise SymmetryError(message("group element", want, type(element).__name__, remedy))
        for factor, part in zip(self.factors, element, strict=True):
            theta = factor.act(part, theta)
        return theta

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return the sum of the factors' X ξ, shape (..., parameter)."""
        parts = zip(self.factors, self._split(coefficients), strict=True)
        first, *rest = (factor.infinitesimal_action(xi, base_point) for factor, xi in parts)
        return sum(rest, start=first)

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return the factors' Xᵀ v one after the other, shape (..., dim)."""
        parts = [factor.infinitesimal_action_adjoint(tangent_vec, base_point) for factor in self.factors]
        return torch.cat(parts, dim=-1)

    def gram_eigenvalues(self, theta: Tensor) -> Tensor:
        """Return the eigenvalues of all components, shape (..., dim)."""
        if self._coupled:
            return super().gram_eigenvalues(theta)
        return torch.cat([component.gram_eigenvalues(theta) for component in self._components], dim=-1)

    def rank(self, theta: Tensor) -> Tensor:
        """Return the sum of the components' ranks, shape (...)."""
        if self._coupled:
            return super().rank(theta)
        return torch.stack([component.rank(theta) for component in self._components]).sum(0)

    def solve_gram(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return G⁺ c, shape (..., dim)."""
        if self._coupled:
            return super().solve_gram(coefficients, base_point)
        parts = dict(zip(self.factors, self._split(coefficients), strict=True))
        solved: dict[Symmetry, Tensor] = {}
        for component in self._components:
            members = component.factors if isinstance(component, Product) and component not in parts else (component,)
            joined = torch.cat([parts[member] for member in members], dim=-1)
            pieces = component.solve_gram(joined, base_point).split([member.dim for member in members], dim=-1)
            solved.update(zip(members, pieces, strict=True))
        return torch.cat([solved[factor] for factor in self.factors], dim=-1)

    def _log_volume(self, theta: Tensor, part: Part) -> Tensor:
        if self._coupled:
            return super()._log_volume(theta, part)
        return torch.stack([component.log_orbit_volume(theta, part) for component in self._components]).sum(0)

    def _second_derivative_trace(self, theta: Tensor) -> Tensor:
        if self._coupled:
            return super()._second_derivative_trace(theta)
        return torch.stack([component._second_derivative_trace(theta) for component in self._components]).sum(0)

    # -- gauge -----------------------------------------------------------------------------------------------------

    def charge(self, theta: Tensor) -> Tensor:
        """Return the factors' charges one after the other."""
        return torch.cat([factor.charge(theta) for factor in self.factors], dim=-1)

    def charge_matrices(self, like: Tensor) -> Matrices:
        """Return those of the factors: diagonals if all are diagonal, else operators."""
        parts = [factor.charge_matrices(like) for factor in self.factors]
        tensors = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2]
        if len(tensors) == len(parts):
            return torch.cat(tensors)
        return QuadraticForms(
            lambda v: torch.cat([quadratic_form(part, v) for part in parts], dim=-1),
            torch.cat([traces_of(part) for part in parts]),
        )

    def charge_basis(self, like: Tensor) -> Tensor:
        """Return the factors' bases as blocks, shape (charge, dim)."""
        return torch.block_diag(*(factor.charge_basis(like) for factor in self.factors))

    @property
    def compact_dim(self) -> int:
        """Sum over the factors."""
        return sum(factor.compact_dim for factor in self.factors)

    def compact_basis(self, like: Tensor) -> Tensor:
        """Return the factors' bases as blocks, shape (compact_dim, dim)."""
        return torch.block_diag(*(factor.compact_basis(like) for factor in self.factors))

    def gauge_level(self, like: Tensor) -> Tensor:
        """Return the factors' levels one after the other."""
        return torch.cat([factor.gauge_level(like) for factor in self.factors])

    def gauge_potential(self, theta: Tensor, stiffness: float) -> Tensor:
        """Return the sum of the factors' potentials, shape (...)."""
        return torch.stack([factor.gauge_potential(theta, stiffness) for factor in self.factors]).sum(0)

    def balance(self, theta: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the balanced point, by balancing one factor after the other.

        Each such step is the exact minimum of ½‖g·θ‖² over a factor, a function that is convex along the product: the
        sweeps over factors that share parameters converge. Others need one pass.

        Parameters
        ----------
        theta : Tensor, shape=(..., parameter)
        tolerance : float, optional
            Largest |C_a − level| that passes, relative to ½‖θ‖²; by default 100 eps.

        Raises
        ------
        InputError
            If the charges do not get there in 5000 sweeps.
        """
        theta = self.check_point(theta)
        if not self._coupled:
            for component in self._components:
                theta = component.balance(theta, tolerance)
            return theta
        limit, level = self._charge_tolerance(theta, tolerance), self.gauge_level(theta)
        for _ in range(MAX_SWEEPS):
            for factor in self.factors:
                theta = factor.balance(theta, tolerance)
            if self._within(self.charge(theta) - level, limit, theta):
                return theta
        raise self._unbalanced(self.charge(theta) - level, MAX_SWEEPS)

    def from_gauge_coordinates(self, coordinates: GaugeCoordinates, tolerance: float | None = None) -> Tensor:
        """Return the point with the given coordinates; see `Gauge.from_gauge_coordinates`.

        Raises
        ------
        SymmetryError
            If factors with compact parts share parameters: the sweeps of `balance` then turn the point by some
            element of the compact part, and the frame in which the charges were taken is lost.
        """
        if self._coupled and self.compact_dim:
            want, got = "abelian factors, or factors on different parameters", repr(self)
            raise SymmetryError(message("from_gauge_coordinates", want, got, "keep the point itself"))
        return super().from_gauge_coordinates(coordinates, tolerance)
