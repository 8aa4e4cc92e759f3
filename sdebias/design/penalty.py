"""Any one-dimensional penalty: w = h(p∘q), or w = A⁻¹h(p∘q), whose stationary law is e^{−L/T − ψ(w)} dw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, check_choice, check_flag, check_positive, message
from ..symmetry import Rescaling
from .base import LAWS, Design, DesignNoise
from .operators import Operator, as_operator
from .penalties import Penalty, named_penalty
from .slices import Diagonal, GaugedHyperbola, Hyperbola, Slice
from .uniform import UniformCoordinate, check_proper, uniform_coordinate

# A charge held by κ = STIFFNESS T/c² has the law of the slice up to terms of order 1/STIFFNESS where |z| ≲ c.
STIFFNESS = 50.0


@dataclass(frozen=True, eq=False)
class PenaltyDesign(Design):
    """w = h(p∘q), elementwise, with h = w(s) ∘ s(z): s(z) is uniform under the noise, w(s) inverts ∫ e^{−ψ} dw.

    Made by `penalty`. With an operator A, w = A⁻¹h(p∘q) and the law is e^{−L/T − Σψ((A w)_j)} dw.

    Attributes
    ----------
    psi : callable
        ψ, from tensors to tensors of the same shape.
    coordinate : UniformCoordinate
        w(s) with its interval and measured error.
    slice : Slice
        Where the noise keeps (p, q).
    """

    psi: Callable[[Tensor], Tensor]
    noise: DesignNoise
    coordinate: UniformCoordinate
    slice: Slice
    operator: Any = None
    declaration: Mapping[str, Any] = field(default_factory=dict)
    factors = ("p", "q")
    _operators: dict[int, Operator] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in self.spec().items() if key != "design")
        return f"{type(self).__name__}({values})"

    @property
    def symmetry(self) -> Rescaling:
        """The rescaling of p against q; its level is the charge of the slice."""
        return Rescaling(*self.factors, level=self.slice.level)

    def h(self, z: Tensor) -> Tensor:
        """Return h(z), shape as `z`, differentiable."""
        return self.coordinate.w(self.slice.s(z)[0])[0]

    def slope(self, z: Tensor) -> Tensor:
        """Return h'(z), shape as `z`, differentiable."""
        s, rate = self.slice.s(z)
        return self.coordinate.w(s)[1] * rate

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return p and q, of the shape of w.

        Raises
        ------
        InputError
            If the operator does not fit the last axis of w.
        """
        if self.operator is not None:
            self._operator(shape[-1])
        return dict.fromkeys(self.factors, shape)

    def weight(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return w = A⁻¹h(p∘q)."""
        p, q = named.values()
        values = self.h(p * q)
        return values if self.operator is None else self._operator(values.shape[-1]).synthesis(values)

    def factorize(self, weight: Tensor) -> dict[str, Tensor]:
        """Return (p, q) on the slice with w = A⁻¹h(p∘q); coefficients beyond the domain are clipped to it."""
        coefficients = self._coefficients(weight)
        point = self.slice.factors(self.coordinate.s(coefficients))
        return {name: part.contiguous() for name, part in zip(self.factors, point, strict=True)}

    def pull_back(self, named: Mapping[str, Tensor], slope: Tensor) -> dict[str, Tensor]:
        """Return the gradient in p and q of a gradient in w."""
        p, q = named.values()
        if self.operator is not None:
            synthesis = self._operator(slope.shape[-1]).synthesis
            (slope,) = torch.func.vjp(synthesis, torch.zeros_like(slope))[1](slope)
        slope = slope * self.slope(p * q)
        return dict(zip(self.factors, (slope * q, slope * p), strict=True))

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return z = 0 on a hyperbola, which is the anchor of w; off the centre of the cross on the diagonal."""
        ends = (abs(self.coordinate.s_lower), abs(self.coordinate.s_upper))
        s = 0.0 if self.slice.level else 0.5 * min(max(ends), 1.0)
        return dict(
            zip(self.factors, map(float, self.slice.factors(torch.tensor(s, dtype=torch.float64))), strict=True)
        )

    def penalty(self, weight: Tensor) -> Tensor:
        """Return Σ_j ψ((A w)_j), shape (...)."""
        return self.psi(self._coefficients(weight)).sum(-1)

    @property
    def interval(self) -> tuple[float, float]:
        """Where w may lie: the domain, its infinite ends cut."""
        return self.coordinate.lower, self.coordinate.upper

    @property
    def walls(self) -> tuple[float, ...]:
        """Ends of the interval that are ends of the domain: there w is reflected."""
        return tuple(end for end in self.declaration["domain"] if end in self.interval)

    def prior(self, w: np.ndarray) -> np.ndarray:
        """Return ∫ e^{−ψ} dw between neighbours of increasing w, shape (point − 1,)."""
        return np.abs(np.diff(self.coordinate.s(torch.from_numpy(w)).numpy()))

    def gauge_stiffness(self, temperature: float) -> float | None:
        """Return κ = 50 T/c² on a hyperbola, which noise would leave; None on the diagonal."""
        return (
            STIFFNESS * check_positive("temperature", temperature) / self.slice.level**2 if self.slice.level else None
        )

    def spec(self) -> dict[str, Any]:
        """Return the declaration as plain data; functions are named only."""
        return {"design": "penalty", **self.declaration}

    def _coefficients(self, weight: Tensor) -> Tensor:
        return weight if self.operator is None else self._operator(weight.shape[-1]).analysis(weight)

    def _operator(self, size: int) -> Operator:
        if size not in self._operators:
            self._operators[size] = as_operator(self.operator, size)
        return self._operators[size]


def penalty(
    psi: str | Mapping[str, Any] | Callable[[Any], Any],
    noise: DesignNoise = "horizontal",
    domain: tuple[float, float] = (-math.inf, math.inf),
    operator: Any = None,
    *,
    width: float = 1.0,
    level: float | None = None,
    proper: bool = False,
    **parameters: float,
) -> PenaltyDesign:
    """Design w = h(p∘q) whose stationary law is e^{−L/T − ψ(w)} dw, for any one-dimensional penalty ψ.

    On the whole line (p, q) lives on a hyperbola p² − q² = 2c, which a stiff potential holds. A domain with an end is
    entered from that end, w = end at z = 0: under horizontal noise the diagonal p = q needs no potential. Ends are
    walls that reflect. Where an end is infinite, the table ends where e^{−ψ} is negligible, or 100 widths away.

    Parameters
    ----------
    psi : str, mapping or callable
        Name of a penalty, see `sdebias.design.PENALTIES`, with its parameters as keywords or as plain data
        ``{"name": ..., "strength": ...}``; or ψ itself, a continuous function of one number (arrays and tensors are
        tried first). Kinks are fine.
    noise : {"horizontal", "isotropic-gauged"}
        Noise of the dynamics: projected on the horizontal directions, or on all parameters with charges held.
    domain : tuple of float
        Where w lives; infinite ends are allowed.
    operator : optional
        Analysis operator A of `w = A⁻¹h(p∘q)`, see `sdebias.design.operators.as_operator`.
    width : float
        Typical size of w.
    level : float, optional
        Charge c of the slice; by default 0 where that is possible, else the square of ∫ e^{−ψ} from −width to width.
    proper : bool
        Whether e^{−ψ} must have a finite integral, for a law that exists without a loss. Else a loss has to confine w.
    **parameters
        Of a named penalty: ``strength`` and others.

    Returns
    -------
    PenaltyDesign

    Raises
    ------
    InputError
        If the law cannot be had: ψ jumps or is not finite inside the domain, e^{−ψ} has no integral down to an end, the
        noise does not reach all of the domain, or lets the parameters escape.
    """
    check_choice("noise", noise, list(LAWS))
    check_positive("width", width)
    lower, upper = _check_domain(domain)
    function = _as_penalty(psi, parameters, (lower, upper), width)
    if check_flag("proper", proper):
        check_proper(function, (lower, upper), width)
    anchor = min((end for end in (lower, upper) if math.isfinite(end)), key=abs, default=0.0)
    walls = math.isfinite(lower) + math.isfinite(upper)
    _check_level(level, noise, walls)
    closed = function.closed if isinstance(function, Penalty) and anchor == 0 else None
    coordinate = uniform_coordinate(function, (lower, upper), anchor, width, closed)
    if level is None and (not walls or noise == "isotropic-gauged"):
        level = _length(coordinate, anchor, width) ** 2
    curve: Slice = Diagonal()
    if level:
        curve = Hyperbola(level)
        if noise == "isotropic-gauged":
            curve = GaugedHyperbola(level, _length(coordinate, anchor, width))
    declaration = {
        "psi": function.spec() if isinstance(function, Penalty) else "given in the call",
        "noise": noise,
        "domain": [lower, upper],
        "width": float(width),
        "level": curve.level,
        **({} if operator is None else {"operator": operator if isinstance(operator, str) else "given in the call"}),
    }
    return PenaltyDesign(function, noise, coordinate, curve, operator, declaration)


def _length(coordinate: UniformCoordinate, anchor: float, width: float) -> float:
    """Return twice the mean of ∫ e^{−ψ} over a width to each side of the anchor that the interval has.

    Twice, for slices that are nearly straight there: a curved one makes the stiff potential stiffer at its ends.
    """
    places = torch.tensor([anchor - width, anchor + width], dtype=torch.float64)
    lengths = coordinate.s(places).abs()
    return 2 * float(lengths[lengths > 0].mean())


def _check_domain(domain: tuple[float, float]) -> tuple[float, float]:
    """Return two increasing ends as numbers."""
    try:
        lower, upper = map(float, domain)
    except (TypeError, ValueError):
        lower = upper = math.nan
    if not lower < upper:
        raise InputError(message("domain", "two increasing ends (a, b)", repr(domain), "for instance (0, math.inf)"))
    return lower, upper


def _check_level(level: float | None, noise: str, walls: int) -> None:
    """Raise InputError for slices on which the noise does not have the wanted law."""
    if level is not None and not (math.isfinite(level) and level >= 0):
        raise InputError(message("level", "a finite number >= 0", level, "leave it out"))
    if noise == "isotropic-gauged" and level == 0:
        reason = (
            "on charge 0 this noise has the law dz/2|z|, which has no integral down to z = 0: all would collapse there"
        )
        raise InputError(message("level", "c > 0 with isotropic-gauged noise", "0", reason))
    if noise == "isotropic-gauged" and walls == 2:
        reason = "between two walls no loss holds p and q, which walk to infinity; use horizontal noise or open an end"
        raise InputError(message("domain", "an infinite end with isotropic-gauged noise", "two walls", reason))
    if level == 0 and not walls:
        reason = (
            "on charge 0 no trajectory passes from pq > 0 to pq < 0; leave level out, or end the domain on one side"
        )
        raise InputError(message("level", "c > 0 on the whole line", "0", reason))


def _as_penalty(
    psi: str | Mapping[str, Any] | Callable[[Any], Any],
    parameters: Mapping[str, float],
    domain: tuple[float, float],
    width: float,
) -> Callable[[Tensor], Tensor]:
    """Return ψ as a function of tensors."""
    if isinstance(psi, Mapping | str):
        declared = {"name": psi} if isinstance(psi, str) else dict(psi)
        return named_penalty(**{**declared, **parameters})
    if not callable(psi) or parameters:
        got = f"parameters {sorted(parameters)} of a function" if callable(psi) else repr(psi)
        remedy = "parameters belong to penalties by name"
        raise InputError(message("psi", "the name of a penalty with its parameters, or a function", got, remedy))
    if isinstance(psi, Penalty):
        return psi
    return _elementwise(psi, domain, width)


def _elementwise(psi: Callable[[Any], Any], domain: tuple[float, float], width: float) -> Callable[[Tensor], Tensor]:
    """Return a user's function as one of tensors, by tensors, arrays or single numbers, whichever it takes."""
    lower, upper = domain
    places = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64) * width
    if math.isfinite(upper):
        places = upper - places if not math.isfinite(lower) else lower + (upper - lower) * places / width
    elif math.isfinite(lower):
        places = lower + places

    def by_number(w: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            return torch.tensor([_number(psi, x) for x in w.flatten().tolist()], dtype=w.dtype).reshape(w.shape)

    def by_array(w: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.asarray(psi(w.detach().numpy()), float)).to(w)

    def by_tensor(w: Tensor) -> Tensor:
        values = psi(w)
        return values if isinstance(values, Tensor) else torch.full((), math.nan)

    reference = by_number(places)
    for function in (by_tensor, by_array):
        try:
            values = function(places)
        except Exception:  # whatever a user's function does with what it does not take
            continue
        if values.dtype == places.dtype and values.shape == places.shape and torch.equal(values, reference):
            return function
    return by_number


def _number(psi: Callable[[Any], Any], x: float) -> float:
    """Return ψ at a number."""
    try:
        value = psi(x)
        if isinstance(value, complex) or (isinstance(value, np.ndarray | Tensor) and value.ndim):
            raise TypeError(f"it returns {type(value).__name__}")
        return float(value)
    except Exception as error:  # whatever a user's function raises
        remedy = "psi(x) takes one float and returns one"
        raise InputError(
            message("psi", "a function of one number", f"{type(error).__name__}: {error}", remedy)
        ) from None
