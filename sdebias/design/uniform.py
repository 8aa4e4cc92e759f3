"""The coordinate s = ∫ e^{−ψ} dw in which a wanted law e^{−ψ} dw is uniform, and its inverse w(s)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from ..errors import InputError, message

Potential = Callable[[Tensor], Tensor]
"""ψ: values w of any shape to ψ(w) of the same shape and dtype."""

# A side of a domain ends where e^{−ψ} stays below e^-25 of its largest value, where it has grown e^16-fold, or 100
# widths from the anchor: beyond, neighbouring knots in s would be one number in double precision.
FALL, GROWTH, REACH = 25.0, 16.0, 100.0
# Largest error of w(s) in the middle of an interval of the table, relative to |w − anchor| + width, and of the integral
# over an interval, relative to that over all.
TOLERANCE, INTEGRAL_TOLERANCE = 1e-8, 1e-13
# Shortest interval of the table, relative to the same.
RESOLUTION = 1e-13
# What ψ changes between neighbouring numbers where it jumps.
JUMP = 1e-3
# Monotone cubics have no end slope above three times the mean slope (Fritsch and Carlson 1980).
STEEPEST = 3.0
NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)


class Cubic:
    """Piecewise cubic through values with given slopes at knots (Hermite), in torch and differentiable.

    Parameters
    ----------
    knots, values, slopes : array, shape=(knot,)
        Increasing knots.
    """

    def __init__(self, knots: np.ndarray, values: np.ndarray, slopes: np.ndarray) -> None:
        steps = np.diff(knots)
        secants = np.diff(values) / steps
        second = (3 * secants - 2 * slopes[:-1] - slopes[1:]) / steps
        third = (slopes[:-1] + slopes[1:] - 2 * secants) / steps**2
        rows = np.stack([knots[:-1], values[:-1], slopes[:-1], second, third], axis=-1)
        self.rows, self.inner = torch.from_numpy(rows), torch.from_numpy(knots[1:-1].copy())

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope, each shape as `x`."""
        place = torch.searchsorted(self.inner.to(x), x.detach().contiguous(), right=True)
        start, value, first, second, third = self.rows.to(x)[place].unbind(-1)
        step = x - start
        slope = first + step * (2 * second + 3 * step * third)
        return value + step * (first + step * (second + step * third)), slope


@dataclass(frozen=True)
class UniformCoordinate:
    """s(w) = ∫_anchor^w e^{−ψ} and its inverse on an interval of w, differentiable in torch.

    w(s) is a monotone piecewise cubic with the exact slopes e^{ψ} at its knots, or a closed form. Beyond the interval s
    is reflected, so that every s has a w.

    Attributes
    ----------
    lower, upper : float
        Ends of the interval of w.
    s_lower, s_upper : float
        Their s; s(anchor) = 0.
    quantile : callable
        s inside the interval to w(s) and dw/ds.
    error : float
        Largest error of w(s) measured inside the intervals of the table, relative to |w − anchor| + width.
    knots : array
        The w of the knots; the ends for closed forms.
    """

    lower: float
    upper: float
    s_lower: float
    s_upper: float
    quantile: Callable[[Tensor], tuple[Tensor, Tensor]]
    error: float
    knots: np.ndarray

    def w(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return w(s) and dw/ds for any s, reflected into the interval, each shape as `s`."""
        length = self.s_upper - self.s_lower
        phase = torch.remainder(s - self.s_lower, 2 * length)
        back = phase > length
        w, slope = self.quantile(self.s_lower + torch.where(back, 2 * length - phase, phase))
        return w, torch.where(back, -slope, slope)

    def s(self, w: Tensor) -> Tensor:
        """Return s(w), shape as `w`, by solving w(s) = w, clipped to the interval; differentiable twice."""
        return solve_increasing(self.quantile, w.clamp(self.lower, self.upper), self.s_lower, self.s_upper)


def solve_increasing(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], value: Tensor, low: float, high: float
) -> Tensor:
    """Return x in [low, high] with f(x) = value, shape as `value`, differentiable twice.

    Parameters
    ----------
    function : callable
        x to f(x), increasing, and f'(x).
    value : Tensor
    low, high : float
    """
    with torch.no_grad():
        left, right = torch.full_like(value, low), torch.full_like(value, high)
        for _ in range(round(-math.log2(torch.finfo(value.dtype).eps))):
            middle = (left + right) / 2
            below = function(middle)[0] < value
            left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    x = (left + right) / 2
    for _ in range(2):  # each step of Newton's method makes one more derivative that of the inverse
        found, slope = function(x)
        x = x + (value - found) / slope.clamp_min(torch.finfo(value.dtype).tiny)
    return x


def uniform_coordinate(
    psi: Potential,
    domain: tuple[float, float],
    anchor: float,
    width: float,
    closed: Callable[[Tensor], Tensor] | None = None,
) -> UniformCoordinate:
    """Build s(w) and w(s) by adaptive Gauss–Legendre quadrature.

    Intervals are halved until the integral over both halves agrees with that over the whole, and the cubic with the
    true w(s) in the middle: kinks of ψ need not be known.

    Parameters
    ----------
    psi : callable
        ψ, continuous and finite inside the domain; −∞ at a finite end where e^{−ψ} can be integrated.
    domain : tuple of float
        Where the law lives; ends are cut where e^{−ψ} is negligible or far away.
    anchor : float
        Where s = 0, in the closed domain.
    width : float
        Typical size of w.
    closed : callable, optional
        w(s) in closed form, for anchor 0.

    Raises
    ------
    InputError
        If ψ is not finite inside the domain, jumps, cannot be integrated down to an end, or spans too much.
    """
    lower, upper = (_end(psi, anchor, end, width) for end in domain)
    for end, inner in ((lower, upper), (upper, lower)):
        if end in (*domain, anchor):
            _check_end(psi, end, inner)
    w, s, error = _table(psi, _grid(lower, upper, anchor, width), anchor, width)
    if closed is None:
        return UniformCoordinate(lower, upper, s[0], s[-1], Cubic(s, w, np.exp(_values(psi, w))), error, w)
    function = closed

    def quantile(inside: Tensor) -> tuple[Tensor, Tensor]:
        image = function(inside)
        return image, psi(image).exp()

    return UniformCoordinate(lower, upper, s[0], s[-1], quantile, float(np.finfo(float).eps), w[[0, -1]])


def _values(psi: Potential, w: np.ndarray) -> np.ndarray:
    """Return ψ(w)."""
    return psi(torch.from_numpy(w)).numpy()


def _finite_values(psi: Potential, w: np.ndarray) -> np.ndarray:
    """Return ψ(w), or raise InputError where it is not finite."""
    values = _values(psi, w)
    bad = ~np.isfinite(values)
    if bad.any():
        got = f"{values[bad][0]:g} at w = {w[bad][0]:.6g}"
        raise InputError(message("psi", "finite values inside the domain", got, "choose a domain that ends there"))
    return values


def _end(psi: Potential, anchor: float, end: float, width: float) -> float:
    """Return where a side of the domain ends: at its own end, or before, where e^{−ψ} is negligible or far away."""
    if end == anchor:
        return end
    far = min(abs(end - anchor), REACH * width)
    offsets = far * np.geomspace(1e-6, 1, 601)
    closed = far == abs(end - anchor)
    places = anchor + math.copysign(1.0, end - anchor) * offsets
    if closed:
        places[-1] = end
    values = _finite_values(psi, places[:-1])
    if closed:
        values = np.append(values, _values(psi, places[-1:]))
    low = np.minimum.accumulate(values)
    if values.max() == np.inf and closed:
        values[-1] = low[-2]  # `_check_end` says what is wrong with it
    fallen = np.flatnonzero(low <= values[0] - GROWTH)
    last = int(fallen[0]) if len(fallen) and math.isfinite(low[-1]) else len(values) - 1
    kept = np.flatnonzero(values[: last + 1] <= low[min(last, len(low) - 2)] + FALL)
    return float(places[kept[-1]])


def _check_end(psi: Potential, end: float, inner: float) -> None:
    """Raise InputError if e^{−ψ} vanishes at an end, or has no integral down to it."""
    value = _values(psi, np.array([end]))[0]
    if math.isnan(value) or value == math.inf:
        remedy = "move the end inside: h would be infinitely steep there"
        raise InputError(message("psi", f"e^-psi > 0 at the end w = {end:g} of the domain", f"psi = {value:g}", remedy))
    if value == -math.inf:
        # f·d of f = e^{−ψ} at distances d falls as d^{1−a} where f grows as d^{−a}.
        distances = abs(inner - end) * 2.0 ** -np.arange(20, 41)
        values = _values(psi, end + math.copysign(1.0, inner - end) * distances)
        growth = -np.diff(values).mean() / math.log(2)
        if not growth < 1 - 1e-3:
            got = f"e^-psi that grows as |w - {end:g}|^-{growth:.3g}"
            remedy = "weaken the penalty or move the end: all probability would collapse onto it"
            raise InputError(message("psi", f"e^-psi with an integral down to w = {end:g}", got, remedy))


def check_proper(psi: Potential, domain: tuple[float, float], width: float) -> None:
    """Raise InputError if e^{−ψ} has no integral out to an infinite end of a domain.

    Parameters
    ----------
    psi : callable
    domain : tuple of float
    width : float
        Typical size of w.
    """
    for end in domain:
        if math.isfinite(end):
            continue
        values = _values(psi, math.copysign(width, end) * 2.0 ** np.arange(10, 31))
        if values[-1] > 700:  # e^{−ψ} is 0 in double precision
            continue
        growth = -np.diff(values).mean() / math.log(2)
        if not growth < -1 - 1e-3:
            got = f"e^-psi that falls only as |w|^{growth:.3g} towards {end:g}"
            remedy = "without a loss there is no such law: strengthen the penalty or end the domain"
            raise InputError(message("psi", "e^-psi with a finite integral over the domain", got, remedy))


def _grid(lower: float, upper: float, anchor: float, width: float) -> np.ndarray:
    """Return the first knots: anchor, ends, and points at distances that grow geometrically."""
    sides = [np.array([anchor])]
    for end in (lower, upper):
        if end != anchor:
            length = end - anchor
            sides.append(anchor + length * np.geomspace(min(1e-3 * width / abs(length), 0.1), 1, 48))
            sides[-1][-1] = end
    return np.unique(np.concatenate(sides))


def _integrals(psi: Potential, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ∫ e^{−ψ} over intervals by one Gauss–Legendre rule each, or adaptively at an end where ψ = −∞."""
    places = (left + right)[:, None] / 2 + (right - left)[:, None] / 2 * NODES
    total = np.exp(-_finite_values(psi, places)) @ WEIGHTS * (right - left) / 2
    singular = np.flatnonzero(_values(psi, np.stack([left, right])).min(0) == -math.inf)
    for k in singular:
        total[k] = scipy.integrate.quad(lambda x: math.exp(-_values(psi, np.array([x]))[0]), left[k], right[k])[0]
    return total


def _table(psi: Potential, grid: np.ndarray, anchor: float, width: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return knots w, their s, and the largest error of the cubic in the intervals."""
    values = _values(psi, grid)
    finite = values[np.isfinite(values)]
    if np.ptp(finite) > GROWTH + FALL:
        got = f"{np.ptp(finite):.3g}"
        raise InputError(
            message("psi", f"a range of at most {GROWTH + FALL:g} on the domain", got, "narrow the domain")
        )
    _finite_values(psi, grid[1:-1])
    left, right, whole = grid[:-1], grid[1:], _integrals(psi, grid[:-1], grid[1:])
    everything = whole.sum()
    done: list[np.ndarray] = []
    while len(left):
        middle = (left + right) / 2
        first, second = _integrals(psi, left, middle), _integrals(psi, middle, right)
        total, length = first + second, right - left
        start, end = (np.exp(_values(psi, w)) for w in (left, right))
        t = first / total
        cubic = left + length * t**2 * (3 - 2 * t) + total * t * (1 - t) * ((1 - t) * start - t * end)
        size = np.abs(middle - anchor) + width
        error = np.abs(cubic - middle) / size
        fine = (error <= TOLERANCE) & (np.abs(total - whole) <= INTEGRAL_TOLERANCE * everything)
        fine &= np.maximum(start, end) * total <= STEEPEST * length
        fine |= length <= RESOLUTION * size
        done.append(np.stack([left, right, total, error])[:, fine])
        left, middle, right, first, second = (v[~fine] for v in (left, middle, right, first, second))
        left, right, whole = (np.concatenate(pair) for pair in ((left, middle), (middle, right), (first, second)))
    left, right, total, error = np.concatenate(done, axis=1)[:, np.argsort(np.concatenate(done, axis=1)[0])]
    _check_jumps(psi, left, right)
    w = np.append(left, right[-1])
    s = np.concatenate([[0.0], np.cumsum(total)])
    return w, s - s[np.searchsorted(w, anchor)], float(error.max())


def _check_jumps(psi: Potential, left: np.ndarray, right: np.ndarray) -> None:
    """Raise InputError where ψ changes between neighbouring numbers, following the larger change into halves."""
    changes = np.abs(_values(psi, right) - _values(psi, left))
    inside = np.flatnonzero(np.isfinite(changes))  # at an end ψ may be −∞
    for k in inside[np.argsort(changes[inside])[-16:]]:
        low, high = left[k], right[k]
        while np.nextafter(low, high) < high:
            middle = (low + high) / 2
            halves = np.diff(_finite_values(psi, np.array([low, middle, high])))
            if np.abs(halves).max() <= JUMP:
                break
            low, high = (low, middle) if abs(halves[0]) > abs(halves[1]) else (middle, high)
        else:
            jump = abs(float(np.diff(_values(psi, np.array([low, high])))[0]))
            if jump > JUMP:
                got = f"a change by {jump:.3g} between neighbouring numbers at w = {low:.6g}"
                remedy = "smooth it: kinks can be had, jumps need a force of infinite strength"
                raise InputError(message("psi", "a continuous function", got, remedy))
