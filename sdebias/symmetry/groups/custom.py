"""The user's own group, from its action or from its fundamental vector fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, SymmetryError, check_count, message
from ...imports import import_function, import_path
from ..action import forward_derivative
from ..bundle import Symmetry

# Extrapolation of the modified midpoint rule with these numbers of substeps: order 16 in the step.
SUBSTEPS = (2, 4, 6, 8, 10, 12, 14, 16)
FLOW_STEPS = 4


@dataclass(frozen=True)
class _AffineParts:
    """Which directions have affine fields A x + b, with A symmetric (`charges`) or antisymmetric (`compact`)."""

    charges: Tensor  # (charge, dim), orthonormal rows
    compact: Tensor  # (compact_dim, dim), orthonormal rows
    matrices: Tensor  # (dim, entry, entry), the Jacobians at one point
    constants: Tensor  # (dim, entry)
    complete: bool  # whether all directions are affine


class CustomGroup(Symmetry):
    """A group of functions given by the user, each for one point: tensors of the named parameters, without batch dims.

    Elements are Lie-algebra coefficients ξ of shape (..., dim), standing for exp(ξ). Directions with affine fields
    A x + b are analysed once, by their Jacobians: A symmetric gives a charge ½ xᵀA x + bᵀx, A antisymmetric and not
    zero a compact direction. dim · n² numbers for n entries of the named parameters.
    """

    parameters: tuple[str, ...]

    def _check_layout(self) -> None:
        try:
            for name in self.parameters:
                self.layout.shape(name)
        except InputError as error:
            raise SymmetryError(f"{type(self).__name__}: {error}") from None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that the group changes."""
        return self.parameters

    def _read(self, theta: Tensor) -> Tensor:
        """Return the entries of the named parameters, shape (..., entry)."""
        self.layout.check(theta)
        return torch.cat([theta[..., self.layout.slices[name]] for name in self.parameters], dim=-1)

    def _write(self, entries: Tensor, background: Tensor | None = None) -> Tensor:
        spans = [self.layout.slices[name] for name in self.parameters]
        parts = entries.split([span.stop - span.start for span in spans], dim=-1)
        return self._assemble(dict(zip(self.parameters, parts, strict=True)), background)

    def _call(self, function: Callable[..., Any], entries: Tensor, *first: Tensor) -> Tensor:
        """Call a user's function on one point given by its entries, and return the entries of the result."""
        shapes = [self.layout.shape(name) for name in self.parameters]
        parts = entries.split([shape.numel() for shape in map(torch.Size, shapes)])
        given = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        result = function(*first, *given)
        tensors = (result,) if isinstance(result, Tensor) else tuple(result)
        if [tuple(t.shape) for t in tensors] != shapes:
            got = [tuple(t.shape) for t in tensors]
            raise SymmetryError(
                message(import_path(function), f"tensors of shapes {shapes}", got, "return one for each parameter")
            )
        return torch.cat([t.reshape(-1) for t in tensors])

    @staticmethod
    def _batched(function: Callable[[Tensor, Tensor], Tensor], first: Tensor, entries: Tensor) -> Tensor:
        """Map a function of one (k,) and one (entry,) tensor over leading dims that broadcast."""
        lead = np.broadcast_shapes(first.shape[:-1], entries.shape[:-1])
        rows = (t.expand(*lead, t.shape[-1]).reshape(-1, t.shape[-1]) for t in (first, entries))
        return torch.func.vmap(function)(*rows).unflatten(0, lead) if lead else function(first, entries)

    def exp(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients: they are the coordinates of the element."""
        return coefficients

    @abstractmethod
    def _move(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        """Return exp(ξ)·x for one point."""

    @abstractmethod
    def _velocity(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        """Return Σ_a ξ_a X_a(x) for one point."""

    def act(self, element: Tensor, theta: Tensor) -> Tensor:
        """Return exp(ξ)·θ.

        Raises
        ------
        SymmetryError
            If the element has not `dim` entries or one is not finite, or the user's function returns other shapes.
        """
        if element.shape[-1:] != (self.dim,):
            got, remedy = tuple(element.shape), "give one coefficient a direction"
            raise SymmetryError(message("group element", f"shape (..., {self.dim})", got, remedy))
        if not bool(torch.isfinite(element).all()):
            raise SymmetryError(message("group element", "finite entries only", "others", "use finite coefficients"))
        return self._write(self._batched(self._move, element, self._read(theta)), theta)

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return X ξ, shape (..., parameter)."""
        return self._write(self._batched(self._velocity, coefficients, self._read(base_point)))

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return Xᵀ v, shape (..., dim), by reverse-mode differentiation of X ξ in ξ."""

        def pull_back(vector: Tensor, entries: Tensor) -> Tensor:
            start = vector.new_zeros(self.dim)
            return torch.func.vjp(lambda xi: self._velocity(xi, entries), start)[1](vector)[0]

        return self._batched(pull_back, self._read(tangent_vec), self._read(base_point))

    # -- charges ---------------------------------------------------------------------------------------------------

    @cached_property
    def _affine(self) -> _AffineParts:
        generator = torch.Generator().manual_seed(0)
        size = sum(torch.Size(self.layout.shape(name)).numel() for name in self.parameters)
        points = torch.randn(2, size, generator=generator, dtype=torch.float64)
        eye = torch.eye(self.dim, dtype=torch.float64)

        def fields(point: Tensor) -> Tensor:
            return self._batched(self._velocity, eye, point)

        here, there = (torch.func.jacrev(fields)(point) for point in points)
        change, skew, even = (m.flatten(1) for m in (here - there, here - here.mT, here + here.mT))
        charges = _null_space(torch.cat([change, skew], dim=1))
        constant = _null_space(torch.cat([here.flatten(1), change], dim=1))
        compact = _null_space(torch.cat([change, even, constant.mT], dim=1))
        if charges.shape[0] == self.dim:
            charges = eye
        complete = _null_space(change).shape[0] == self.dim
        return _AffineParts(charges, compact, here, fields(points[0]) - here @ points[0], complete)

    @property
    def charge_labels(self) -> list[str]:
        """The directions' labels if all have a charge, else ``charge 0`` and so on."""
        count = self._affine.charges.shape[0]
        return self.direction_labels if count == self.dim else [f"charge {a}" for a in range(count)]

    def _linear_and_constant(self, like: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._affine
        matrices = torch.einsum("ca,aij->cij", parts.charges, parts.matrices)
        return matrices.to(like), (parts.charges @ parts.constants).to(like)

    def charge(self, theta: Tensor) -> Tensor:
        """Return C_a = ½ xᵀA_a x + b_a·x of the named parameters' entries x, shape (..., charge)."""
        matrices, constants = self._linear_and_constant(theta)
        entries = self._read(theta)
        return 0.5 * torch.einsum("...i,aij,...j->...a", entries, matrices, entries) + entries @ constants.mT

    def charge_matrices(self, like: Tensor) -> Tensor:
        """Return the A_a, shape (charge, parameter, parameter)."""
        matrices, _ = self._linear_and_constant(like)
        return self._write(self._write(matrices).mT).mT

    def charge_basis(self, like: Tensor) -> Tensor:
        """Return the directions whose fields are gradients, shape (charge, dim)."""
        return self._affine.charges.to(like)

    @property
    def compact_dim(self) -> int:
        """Number of independent directions that are isometries and not shifts."""
        return self._affine.compact.shape[0]

    def compact_basis(self, like: Tensor) -> Tensor:
        """Return those directions, orthonormal, shape (compact_dim, dim)."""
        return self._affine.compact.to(like)


class FromAction(CustomGroup):
    """A group given by its action; fields follow by forward-mode differentiation (`torch.func.jvp`).

    Parameters
    ----------
    action : callable or str
        (ξ, *tensors) to exp(ξ)·(tensors): the coefficients (dim,) and the named parameters of one point to as many
        tensors of the same shapes. A string ``"module:function"`` is imported.
    dim : int
        Number of coefficients.
    parameters : sequence of str
        Names of the parameters that are passed, in order.

    Raises
    ------
    SymmetryError
        In `bind`, if ξ = 0 moves a point or exp(ξ)·exp(ξ) is not exp(2ξ).

    Examples
    --------
    >>> import torch
    >>> boost = from_action(lambda xi, p, q: (p * xi.exp(), q * (-xi).exp()), dim=1, parameters=["p", "q"])
    """

    def __init__(self, action: Callable[..., Any] | str, dim: int, parameters: Sequence[str]) -> None:
        self.action = import_function(action, SymmetryError) if isinstance(action, str) else action
        self._dim = check_count("dim", dim)
        self.parameters = tuple(parameters)

    def __repr__(self) -> str:
        return f"FromAction({import_path(self.action)!r}, dim={self.dim}, parameters={list(self.parameters)})"

    @property
    def dim(self) -> int:
        """Number of coefficients."""
        return self._dim

    def spec(self) -> dict[str, Any]:
        """Return the declaration; a function that no module holds by name cannot be built again from it."""
        parameters = list(self.parameters)
        return {"group": "FromAction", "action": import_path(self.action), "dim": self.dim, "parameters": parameters}

    def _check_layout(self) -> None:
        super()._check_layout()
        generator = torch.Generator().manual_seed(0)
        xi, theta = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (self.dim, self.layout.size))
        xi = xi / xi.norm()
        for law, moved, wanted in (
            ("exp(0)·θ = θ", self.act(0 * xi, theta), theta),
            ("exp(ξ)·exp(ξ)·θ = exp(2ξ)·θ", self.act(xi, self.act(xi, theta)), self.act(2 * xi, theta)),
        ):
            error = float((moved - wanted).norm() / wanted.norm())
            if not error < 1e-8:
                remedy = "write the action as exp(ξ) of the group"
                raise SymmetryError(message(repr(self), law, f"a relative difference of {error:.2g}", remedy))

    def _move(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        return self._call(self.action, entries, coefficients)

    def _velocity(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        start = torch.zeros_like(coefficients)
        return forward_derivative(lambda xi: self._move(xi, entries), start, coefficients)


class FromFields(CustomGroup):
    """A group given by its fundamental vector fields; its elements are their flows.

    exp(ξ)·θ is the flow of Σ_a ξ_a X_a for time one. For affine fields it is a matrix exponential; others are
    integrated by extrapolation of the modified midpoint rule (order 16, 4 steps): to rounding for |ξ| of order one and
    fields of moderate slope.

    Parameters
    ----------
    fields : sequence of callable or str
        Each maps the named parameters of one point to the components of the field, tensors of the same shapes. A
        string ``"module:function"`` is imported.
    parameters : sequence of str
        Names of the parameters that are passed, in order.

    Raises
    ------
    SymmetryError
        If there is no field.
    """

    def __init__(self, fields: Sequence[Callable[..., Any] | str], parameters: Sequence[str]) -> None:
        self.fields = tuple(
            import_function(field, SymmetryError) if isinstance(field, str) else field for field in fields
        )
        self.parameters = tuple(parameters)
        if not self.fields:
            raise SymmetryError(message("FromFields", "at least one field", "none", "give the fields that span orbits"))

    def __repr__(self) -> str:
        return f"FromFields({[import_path(f) for f in self.fields]}, parameters={list(self.parameters)})"

    @property
    def dim(self) -> int:
        """Number of fields."""
        return len(self.fields)

    def spec(self) -> dict[str, Any]:
        """Return the declaration; functions that no module holds by name cannot be built again from it."""
        paths = [import_path(field) for field in self.fields]
        return {"group": "FromFields", "fields": paths, "parameters": list(self.parameters)}

    def _velocity(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        fields = torch.stack([self._call(field, entries) for field in self.fields])
        return coefficients @ fields

    def _check_layout(self) -> None:
        super()._check_layout()
        _ = self._affine  # here and not in `_move`, which runs inside function transforms

    def _move(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        affine = self._affine
        if affine.complete:
            slope = torch.einsum("a,aij->ij", coefficients, affine.matrices.to(entries))
            shift = coefficients @ affine.constants.to(entries)
            affine_map = torch.cat([slope, shift.unsqueeze(-1)], dim=-1)
            motion = torch.linalg.matrix_exp(torch.nn.functional.pad(affine_map, (0, 0, 0, 1)))
            return motion[:-1, :-1] @ entries + motion[:-1, -1]
        for _ in range(FLOW_STEPS):
            entries = self._extrapolated_step(coefficients / FLOW_STEPS, entries)
        return entries

    def _extrapolated_step(self, coefficients: Tensor, entries: Tensor) -> Tensor:
        """Advance by unit time: Neville's scheme in the squares of the substep sizes (Gragg, Bulirsch, Stoer)."""
        row: list[Tensor] = []
        for k, count in enumerate(SUBSTEPS):
            before, now = entries, entries + self._velocity(coefficients, entries) / count
            for _ in range(count - 1):
                before, now = now, before + 2 / count * self._velocity(coefficients, now)
            smooth = 0.5 * (before + now + self._velocity(coefficients, now) / count)
            new = [smooth]
            for j, old in enumerate(row):
                ratio = (count / SUBSTEPS[k - j - 1]) ** 2
                new.append(new[j] + (new[j] - old) / (ratio - 1))
            row = new
        return row[-1]


def from_action(action: Callable[..., Any] | str, dim: int, parameters: Sequence[str]) -> FromAction:
    """Return the group with the given action; see `FromAction`."""
    return FromAction(action, dim, parameters)


def from_fields(fields: Sequence[Callable[..., Any] | str], parameters: Sequence[str]) -> FromFields:
    """Return the group with the given fundamental vector fields; see `FromFields`."""
    return FromFields(fields, parameters)


def _null_space(rows: Tensor) -> Tensor:
    """Return orthonormal ξ, shape (k, dim), with ξ @ rows = 0 for rows of shape (dim, conditions)."""
    left, values, _ = torch.linalg.svd(rows, full_matrices=True)
    scale = float(values.max()) if values.numel() else 0.0
    rank = int((values > 1e-9 * max(scale, 1.0)).sum())
    return left.mT[rank:]
