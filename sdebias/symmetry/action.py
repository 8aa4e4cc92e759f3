"""How a group acts on parameter space: binding to a layout, finite and infinitesimal action."""

from __future__ import annotations

import copy
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, SymmetryError, check_finite
from ..layout import ParameterLayout

Element: TypeAlias = Any
"""A group element: a tensor with leading batch dims, or a tuple of elements (see `Product`)."""


# torch counts the levels of forward mode for the process, not for each thread.
_forward_mode = threading.RLock()


def forward_derivative(function: Callable[[Tensor], Tensor], point: Tensor, tangent: Tensor) -> Tensor:
    """Return d/ds function(point + s·tangent) at s = 0, by forward-mode differentiation, one thread at a time."""
    with _forward_mode, warnings.catch_warnings():
        # torch's first use of forward mode compiles its own rules with a call that it has itself deprecated.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        return torch.func.jvp(function, (point,), (tangent,))[1]


class HasLayout(Protocol):
    """What a symmetry needs to know of a problem: the names and shapes of its parameters."""

    @property
    def layout(self) -> ParameterLayout:
        """Parameter layout."""
        ...


class Action(ABC):
    """A Lie group that acts on the parameters of a problem.

    A subclass states `act` and `exp`; the infinitesimal action follows by forward- and reverse-mode differentiation,
    and a subclass that knows it in closed form overrides it. Points and tangent vectors have shape (..., parameter),
    coefficients in the Lie algebra (..., dim); leading dims broadcast.
    """

    _layout: ParameterLayout | None = None
    _validate: bool = True

    def bind(self, problem: HasLayout, *, validate: bool = True) -> Self:
        """Return a copy tied to the parameters of `problem`.

        Parameters
        ----------
        problem : Problem
            Anything with a `layout`.
        validate : bool
            Whether operations refuse points that are not finite and warn of ill-conditioned Gram matrices. Without it
            nothing waits for the device and a point that is not finite gives NaN in its own row, as the inner loop of
            a simulation needs it.

        Raises
        ------
        SymmetryError
            If a parameter that it acts on does not exist or has an unfit shape.
        """
        bound = copy.copy(self)
        for name in [key for key in vars(bound) if isinstance(getattr(type(bound), key, None), cached_property)]:
            del bound.__dict__[name]
        # Subclasses may be frozen dataclasses.
        object.__setattr__(bound, "_layout", problem.layout)
        object.__setattr__(bound, "_validate", validate)
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

    def check_point(self, theta: Tensor) -> Tensor:
        """Return `theta` if it is a point of parameter space.

        Raises
        ------
        InputError
            If its last axis has not the length of the parameter axis, or, unless bound with ``validate=False``, if an
            entry is not finite.
        """
        self.layout.check(theta)
        return check_finite("theta", theta, InputError) if self._validate else theta

    @abstractmethod
    def _check_layout(self) -> None:
        """Raise SymmetryError if the layout has not the parameters that the group acts on."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that the group may change; all of them unless a subclass knows better."""
        return tuple(self.layout.shapes)

    @property
    def moved_entries(self) -> Tensor:
        """Which entries the group may change, a bool tensor (parameter,)."""
        moved = torch.zeros(self.layout.size, dtype=torch.bool)
        for name in self.parameter_names:
            moved[self.layout.slices[name]] = True
        return moved

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the group."""

    @property
    def direction_labels(self) -> list[str]:
        """Label of each direction of the Lie algebra."""
        return [f"direction {a}" for a in range(self.dim)]

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data, from which a configuration can build it again."""

    @abstractmethod
    def act(self, element: Element, theta: Tensor) -> Tensor:
        """Return g·θ, shape (..., parameter); leading dims of element and point broadcast."""

    @abstractmethod
    def exp(self, coefficients: Tensor) -> Element:
        """Return the group element exp(Σ_a ξ_a e_a) for Lie-algebra coefficients ξ of shape (..., dim)."""

    def compose(self, first: Element, second: Element) -> Element:
        """Return the element gh with (gh)·θ = g·(h·θ), for g = `first` and h = `second`.

        Raises
        ------
        SymmetryError
            If the elements of this group have no composition law.
        """
        raise SymmetryError(f"{self!r} has no composition law in its coordinates; call act twice instead")

    def infinitesimal_action(self, coefficients: Tensor, base_point: Tensor) -> Tensor:
        """Return X(θ) ξ = d/ds exp(sξ)·θ at s = 0, shape (..., parameter), without forming X."""
        start = torch.zeros_like(coefficients)
        return forward_derivative(lambda xi: self.act(self.exp(xi), base_point), start, coefficients)

    def infinitesimal_action_adjoint(self, tangent_vec: Tensor, base_point: Tensor) -> Tensor:
        """Return X(θ)ᵀ v = (⟨X_a, v⟩)_a, shape (..., dim), without forming X."""
        lead = np.broadcast_shapes(tangent_vec.shape[:-1], base_point.shape[:-1])
        start = base_point.new_zeros(*lead, self.dim)
        pull_back = torch.func.vjp(lambda xi: self.act(self.exp(xi), base_point), start)[1]
        return pull_back(tangent_vec.expand(*lead, tangent_vec.shape[-1]))[0]

    def fundamental_vector_fields(self, theta: Tensor) -> Tensor:
        """Return X_a(θ) = d/ds exp(s e_a)·θ at s = 0, shape (..., dim, parameter). Dense: dim·d numbers a point."""
        eye = torch.eye(self.dim, dtype=theta.dtype, device=theta.device)
        return self.infinitesimal_action(eye, theta.unsqueeze(-2))

    def _assemble(self, pieces: Mapping[str, Tensor], background: Tensor | None = None) -> Tensor:
        """Join flat (..., entries) pieces by name on the parameter axis; elsewhere `background`, or zero."""
        leads = [piece.shape[:-1] for piece in pieces.values()]
        lead = np.broadcast_shapes(*leads, *([] if background is None else [background.shape[:-1]]))
        like = next(iter(pieces.values()))
        parts = []
        for name, span in self.layout.slices.items():
            if name in pieces:
                part = pieces[name]
            elif background is not None:
                part = background[..., span]
            else:
                part = like.new_zeros(span.stop - span.start)
            parts.append(part.expand(*lead, part.shape[-1]))
        return torch.cat(parts, dim=-1)
