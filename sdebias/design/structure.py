"""Structure by composition: w = A⁻¹ m(θ), sparse, group-sparse or of low rank in the coefficients of an operator A."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_choice, check_count, check_positive, message
from ..problems import CumulativeSumRegression, DeepDiagonalRegression, HadamardRegression
from ..problems.arrays import as_data
from ..problems.linear import LinearRegression
from ..symmetry import Rescaling, Symmetry
from .base import LAWS, Design, DesignNoise, Parametrization
from .operators import Differences, Identity, Operator, as_operator
from .unit_law import Unit, verify_unit
from .verification import Certificate

# Newton's method from above on a convex function; from its start it needs fewer than ten.
NEWTON_STEPS = 40
# Charges spread by √(T/κ): a fifth of what w does under a loss of second derivative 1.
STIFFNESS = 20.0


class Structure(Design):
    """w = A⁻¹ m(θ): a multilinear map m of factors θ, invariant under a group, and an invertible operator A.

    A subclass states the factors of c = A w, the map and its inverse, the group, the penalty, and its smallest part.

    Parameters
    ----------
    size : int
        Length of w, which lies on the last axis.
    operator
        A, see `as_operator`.
    scale : float
        α ≥ 0. Training starts from factors with charges ½ (‖first‖² − ‖last‖²) = ½ α², 0 between others. At w = 0 the
        balanced factors, α = 0, are a saddle point where nothing moves; the smaller α, the stronger the bias of
        gradient descent from w = 0, and the slower its start.
    noise : {"isotropic-gauged", "horizontal"}
        The noise that the penalty is for.

    Raises
    ------
    InputError
        If the operator does not fit, or a value is out of range.
    """

    noise: DesignNoise

    def __init__(self, size: int, *, operator: Any, scale: float, noise: DesignNoise) -> None:
        self.size = check_count("size", size)
        self.operator: Operator = as_operator(operator, size)
        if not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise InputError(message("scale", "a finite number >= 0", repr(scale), "0 is balanced"))
        self.scale = float(scale)
        check_choice("noise", noise, list(LAWS))
        self.noise = noise
        self.factors = tuple(self.factor_shapes())

    # -- what a subclass states ------------------------------------------------------------------------------------

    @abstractmethod
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each factor of one signal."""

    @abstractmethod
    def compose(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return c = m(θ), shape (..., size)."""

    @abstractmethod
    def decompose(self, coefficients: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return factors of c, shape (..., size): balanced, or with charges as `scale` says."""

    @abstractmethod
    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        """Return ψ of coefficients c, shape (...), up to a constant."""

    @abstractmethod
    def unit(self) -> Unit:
        """Return one product of the factors alone, for `verify`."""

    # -- what follows ----------------------------------------------------------------------------------------------

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the factors of signals of a given shape (..., size)."""
        if shape[-1:] != (self.size,):
            want = f"weights of shape (..., {self.size})"
            raise InputError(message("design", want, shape, "design it for the length of the last axis"))
        return {name: (*shape[:-1], *own) for name, own in self.factor_shapes().items()}

    def weight(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return w = A⁻¹ m(θ), shape (..., size)."""
        return self.operator.synthesis(self.compose(named))

    def factorize(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the balanced factors of w: those of smallest norm, on which every charge is zero."""
        return self.decomposed(weight, True)

    def initialize(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the factors of w from which training starts, with charges as `scale` says."""
        return self.decomposed(weight, False)

    def decomposed(self, weight: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return the factors of w, shape (..., size): balanced, or with charges as `scale` says."""
        self.shapes(tuple(weight.shape))
        return self.decompose(self.operator.analysis(weight), balanced)

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return factors of w = 0 with charges as `scale` says."""
        return dict(self.initialize(torch.zeros(self.size, dtype=torch.float64)))

    def parametrization(self) -> Parametrization:
        """Return the map as a module for `torch.nn.utils.parametrize.register_parametrization`."""
        return StructureParametrization(self, (self.size,))

    def penalty(self, weight: Tensor) -> Tensor:
        """Return ψ(w) with the stationary law e^{−L/T − ψ(w)} dw, up to a constant, shape (...).

        ψ = ½ log det(J Jᵀ) with J = ∂w/∂θ, and with the gauge + ½ log det⟨∇C_a, ∇C_b⟩ − log vol(residual compact
        orbit), at balanced θ: a function of A w, since A is linear.
        """
        return self.coefficient_penalty(self.operator.analysis(weight))

    def weight_decay_penalty(self, weight: Tensor) -> Tensor:
        """Return the smallest ½‖θ‖² of all θ with this w, shape (...): γ times it is what weight decay γ penalises.

        The balanced factors have it: ‖A w‖₁, Σ_g ‖(A w)_g‖ or the nuclear norm at depth 2.
        """
        return 0.5 * self.section(weight).square().sum(-1)

    def gauge_stiffness(self, temperature: float) -> float | None:
        """Return κ of the potential that holds the charges at temperature T, or None for horizontal noise."""
        check_positive("temperature", temperature)
        return None if self.noise == "horizontal" else STIFFNESS

    def verify(
        self,
        *,
        trajectories: int = 4096,
        seed: int = 0,
        target: float = 1.0,
        temperature: float = 0.1,
        interval: tuple[float, float] | None = None,
    ) -> Certificate:
        """Simulate one unit with loss ½‖w − t x₀‖² and hold the law of ‖w‖ against the designed one and e^{−L/T} dw.

        A unit is a coefficient, a group, or a matrix of rank 1. See `verify_unit`.

        Parameters
        ----------
        trajectories, seed : int
        target, temperature : float
            t and T.
        interval : tuple of float, optional
            Of ‖w‖, given which laws are compared; by default ½ t to 2 t.

        Raises
        ------
        InputError
            If a value is out of range, or the design is joined of several.
        """
        return verify_unit(
            self.unit(),
            trajectories=trajectories,
            seed=seed,
            target=target,
            temperature=temperature,
            interval=interval,
        )

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data."""
        return {
            "design": type(self).__name__,
            "factors": {name: list(shape) for name, shape in self.factor_shapes().items()},
            "operator": repr(self.operator),
            "scale": self.scale,
            "noise": self.noise,
        }


class StructureParametrization(Parametrization):
    """A structure in the place of a tensor of shape (..., *shape), flattened over the axes of `shape`.

    ``right_inverse`` returns factors with the charges of the design's `scale`, so that a tensor of zeros can be
    trained.
    """

    def __init__(self, design: Structure, shape: Sequence[int]) -> None:
        super().__init__(design)
        self.structure, self.shape = design, tuple(shape)
        self.operator = design.operator  # a submodule: its constants move with those of the module

    def forward(self, *factors: Tensor) -> Tensor:
        """Return w, shape (..., *shape)."""
        return super().forward(*factors).unflatten(-1, self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return factors of a tensor (..., *shape).

        Raises
        ------
        InputError
            If it has another shape.
        """
        axes = len(self.shape)
        if tuple(weight.shape[max(weight.ndim - axes, 0) :]) != self.shape:
            want = f"a tensor of shape (..., {', '.join(map(str, self.shape))})"
            raise InputError(message("parametrization", want, tuple(weight.shape), "design it for this shape"))
        return tuple(self.structure.initialize(weight.flatten(-axes)).values())


def charged_magnitudes(magnitude: Tensor, depth: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return a, b ≥ 0 with a^{D−1} b = x and a² − b² = α²: D − 1 equal factors and the last.

    t = a² is the root t ≥ α² of t^D − α² t^{D−1} = x². Newton's method starts above it and falls monotonically, since
    the left side is convex there.
    """
    if scale == 0:
        root = magnitude ** (1 / depth)
        return root, root
    shift, square = scale**2, magnitude.square()
    t = shift + square ** (1 / depth)
    for _ in range(NEWTON_STEPS):
        power = t ** (depth - 2)
        t = t - (power * t * (t - shift) - square) / (power * (depth * t - (depth - 1) * shift))
    a = t.sqrt()
    return a, magnitude / a ** (depth - 1)


class Sparse(Structure):
    """w = A⁻¹(u_1∘…∘u_D): sparse in the coefficients of A. Factors p and q at depth 2, else u1, …, uD.

    ψ(w) = 2 (D − 1)/D Σ_j log|(A w)_j| with gauge, half of that with horizontal noise; weight decay penalises
    (D/2) Σ_j |(A w)_j|^{2/D}.

    Parameters
    ----------
    size : int
    depth : int
        D ≥ 2.
    operator, scale, noise
        See `Structure`.
    """

    def __init__(
        self,
        size: int,
        *,
        depth: int = 2,
        operator: Any = None,
        scale: float = 0.01,
        noise: DesignNoise = "isotropic-gauged",
    ) -> None:
        self.depth = check_count("depth", depth, minimum=2)
        super().__init__(size, operator=operator, scale=scale, noise=noise)

    @property
    def symmetry(self) -> Symmetry:
        """The rescaling between consecutive factors of each coefficient."""
        return Rescaling(*self.factors)

    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return D vectors."""
        names = ["p", "q"] if self.depth == 2 else [f"u{k}" for k in range(1, self.depth + 1)]
        return dict.fromkeys(names, (self.size,))

    def compose(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return u_1∘…∘u_D."""
        return functools.reduce(torch.mul, (named[name] for name in self.factors))

    def decompose(self, coefficients: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return factors of equal size but the last, which has the sign."""
        first, last = charged_magnitudes(coefficients.abs(), self.depth, 0.0 if balanced else self.scale)
        return {**{name: first.clone() for name in self.factors[:-1]}, self.factors[-1]: coefficients.sign() * last}

    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        """Return 2 (D − 1)/D Σ_j log|c_j|, one half from ½ log det⟨∇C_a, ∇C_b⟩, one from J Jᵀ = D |c_j|^{2(D−1)/D}."""
        halves = 1 if self.noise == "horizontal" else 2
        return halves * (self.depth - 1) / self.depth * coefficients.abs().log().sum(-1)

    def unit(self) -> Unit:
        """Return one coefficient."""
        return Unit(Sparse(1, depth=self.depth, noise=self.noise), (1, 1))

    def problem(self, X: Any, y: Any, **options: Any) -> LinearRegression:
        """Return linear regression with these weights; see `Design.problem`.

        Without operator it is the package's `HadamardRegression` or `DeepDiagonalRegression`, with first differences at
        depth 2 `CumulativeSumRegression`, which start as the design does.
        """
        if "initial" not in options and "initial_std" not in options:
            options["initial"] = self.start(self.factor_shapes())
        X = as_data("X", X, 2)
        self.shapes(tuple(X.shape[-1:]))
        if isinstance(self.operator, Identity):
            if self.depth == 2:
                return HadamardRegression(X, y, **options)
            return DeepDiagonalRegression(X, y, depth=self.depth, **options)
        if isinstance(self.operator, Differences) and self.operator.order == 1 and self.depth == 2:
            return CumulativeSumRegression(X, y, **options)
        return super().problem(X, y, **options)


class GroupSparse(Structure):
    """w = A⁻¹(s_g v_g)_g, a scalar times a vector for each group g of coefficients: whole groups vanish together.

    With k entries a group ψ(w) = (k + 1)/2 Σ_g log ‖(A w)_g‖; weight decay penalises Σ_g ‖(A w)_g‖, the group lasso.
    Horizontal noise does not hold the charges at 0 for k > 1 (tr(P_H A_g) = 1 − k there), so that there is no
    such law.

    Parameters
    ----------
    groups, width : int
        Number of groups and of entries of each; coefficients are ordered by groups. See `grouped` for others.
    operator, scale
        See `Structure`. Factors are s (group,) and v (group, width).
    """

    def __init__(self, groups: int, width: int, *, operator: Any = None, scale: float = 0.01) -> None:
        self.groups, self.width = check_count("groups", groups), check_count("width", width)
        super().__init__(groups * width, operator=operator, scale=scale, noise="isotropic-gauged")

    @property
    def symmetry(self) -> Symmetry:
        """The rescaling between scalar and vector of each group."""
        return Rescaling("s:0", "v:0")

    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return s and v."""
        return {"s": (self.groups,), "v": (self.groups, self.width)}

    def compose(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return s_g v_g, flattened."""
        return (named["s"].unsqueeze(-1) * named["v"]).flatten(-2)

    def _norms(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        rows = coefficients.unflatten(-1, (self.groups, self.width))
        return rows, torch.linalg.vector_norm(rows, dim=-1)

    def decompose(self, coefficients: Tensor, balanced: bool) -> dict[str, Tensor]:
        """Return s_g > 0, and v_g in the direction of the group."""
        rows, norm = self._norms(coefficients)
        first, last = charged_magnitudes(norm, 2, 0.0 if balanced else self.scale)
        zero = norm == 0
        ratio = torch.where(zero, 0.0, last / torch.where(zero, 1.0, norm))
        return {"s": first, "v": rows * ratio.unsqueeze(-1)}

    def coefficient_penalty(self, coefficients: Tensor) -> Tensor:
        """Return (k + 1)/2 Σ_g log ‖c_g‖: |∇C_g|² = 2 ‖c_g‖, and J Jᵀ = s² I + v vᵀ with s² = ‖v‖² = ‖c_g‖."""
        return 0.5 * (self.width + 1) * self._norms(coefficients)[1].log().sum(-1)

    def unit(self) -> Unit:
        """Return one group."""
        return Unit(GroupSparse(1, self.width), (self.width, 1))
