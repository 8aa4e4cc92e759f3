"""Tune a family of designs until the predicted bias has a wanted strength."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ..errors import InputError, check_positive, message, nearest

Objective: TypeAlias = Callable[..., Tensor | float]
Family: TypeAlias = Callable[..., Mapping[str, Any]]
# Below this share of the target, misses are measured linearly and no longer by ratio.
LINEAR_SHARE = 1e-3
# Whole numbers next to the relaxed optimum that are tried for each variable, and in all.
NEIGHBOURS, LATTICE = 64, 1024
# Distance from a bound, as a share of the range, that counts as being there.
AT_BOUND = 1e-6


@dataclass(frozen=True)
class Optimum:
    """What was found, and how well.

    Attributes
    ----------
    values : dict
        The tuned variables; those that must be whole are ints.
    predicted, target : float
        The prediction there, and what was wanted.
    reached : bool
        Whether they agree within the tolerance; if not, `predicted` is the nearest that was found.
    relative_error : float
        |predicted − target| / |target|, or the absolute error where the target is 0.
    at_bounds : dict
        "lower" or "upper" for each variable that sits on a bound of its range.
    relaxed_values, relaxed_predicted
        The optimum with whole numbers allowed to be real, and the prediction there; the same where none must be whole.
    gradient : dict
        ∂ prediction/∂ variable at the optimum, whole numbers taken as real; NaN where it is not differentiable.
    free_directions : int
        Dimension of the set of real variables, off their bounds, with the same prediction: 0 where the optimum is
        isolated. Of such a set, the point nearest to the start is returned.
    exhaustive : bool
        Whether all whole numbers in the bounds were tried, or the first that reached the target.
    evaluations : int
        Number of predictions.
    converged : bool
        Whether the last local search reports convergence.
    message : str
        What it reports.
    """

    values: dict[str, float]
    predicted: float
    target: float
    reached: bool
    relative_error: float
    at_bounds: dict[str, str]
    relaxed_values: dict[str, float]
    relaxed_predicted: float
    gradient: dict[str, float]
    free_directions: int
    exhaustive: bool
    evaluations: int
    converged: bool
    message: str = field(repr=False)

    def __str__(self) -> str:
        names = ", ".join(f"{name} = {value:.6g}" for name, value in self.values.items())
        verdict = "reached" if self.reached else f"NOT reached, off by {self.relative_error:.2g}"
        lines = [f"target {self.target:.6g} {verdict}: predicted {self.predicted:.6g} at {names}"]
        if self.relaxed_values != self.values:
            relaxed = ", ".join(f"{name} = {value:.6g}" for name, value in self.relaxed_values.items())
            lines.append(f"with real numbers: {self.relaxed_predicted:.6g} at {relaxed}")
        if self.at_bounds:
            lines.append("at bounds: " + ", ".join(f"{name} ({side})" for name, side in self.at_bounds.items()))
        if self.free_directions:
            lines.append(f"not unique: {self.free_directions} free direction(s); nearest to the start")
        return "\n".join([*lines, f"{self.evaluations} evaluations; {self.message}"])


def optimize(
    objective: Objective,
    family: Family | None,
    bounds: Mapping[str, tuple[float, float]],
    *,
    target: float,
    integers: Collection[str] = (),
    start: Mapping[str, float] | None = None,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Optimum:
    """Find the member of a family whose predicted bias has the wanted strength.

    First as if all variables were real: sequential quadratic programming (scipy's SLSQP) finds the point nearest to the
    start at which the prediction is the target, with gradients by autograd where the prediction is differentiable and
    by differences where not; if that fails, differential evolution and L-BFGS-B find the nearest prediction in the
    bounds. Then, where variables must be whole, whole numbers are tried in the order of their distance from that
    optimum, the real variables being solved for again, until the target is reached; if it never is, the best is
    returned. Variables with positive bounds are measured by logarithm, others linearly, in units of their range.

    Parameters
    ----------
    objective : callable
        Keyword arguments, as tensors, to the predicted strength, a scalar: `PenaltyExponent`, `OrbitDrift`,
        `StationaryMean`, or one's own.
    family : callable, optional
        The tuned variables, as float64 tensors by keyword, to the objective's arguments; without it they are these.
    bounds : mapping of str to (float, float)
        Lower and upper end of each variable.
    target : float
        In units of the prediction.
    integers : collection of str
        Variables that must be whole, such as ``depth`` and ``batch_size``.
    start : mapping of str to float, optional
        By default the middle of the bounds.
    tolerance : float
        Relative error at which the target counts as reached, absolute where it is 0.
    seed : int
        Of differential evolution.

    Returns
    -------
    Optimum

    Raises
    ------
    InputError
        If bounds are empty, not finite, in wrong order or without a whole number where one must be, a name is unknown,
        the start is outside, or a prediction is no finite number.
    """
    if not math.isfinite(target):
        raise InputError(message("target", "a finite number", target, "state the strength that is wanted"))
    check_positive("tolerance", tolerance)
    box = _Box.of(bounds, integers, start)
    search = _Search(objective, family, box, float(target), tolerance, seed)
    relaxed = search.solve(box.start, np.zeros(len(box.names), bool))
    best, exhaustive = search.whole_numbers(relaxed) if box.whole.any() else (relaxed, True)
    value, slope = search.predict(best.place)
    values = box.values(best.place)
    sides = {name: _side(place) for name, place in zip(box.names, best.place, strict=True) if _side(place)}
    inside = sum(not (whole or name in sides) for name, whole in zip(box.names, box.whole, strict=True))
    error = search.error(value)
    return Optimum(
        values={n: round(v) if w else v for (n, v), w in zip(values.items(), box.whole, strict=True)},
        predicted=value,
        target=float(target),
        reached=error <= tolerance,
        relative_error=error,
        at_bounds=sides,
        relaxed_values=box.values(relaxed.place),
        relaxed_predicted=search.predict(relaxed.place)[0],
        gradient=dict(zip(box.names, slope.tolist(), strict=True)),
        free_directions=max(inside - 1, 0),
        exhaustive=exhaustive,
        evaluations=search.evaluations,
        converged=best.converged,
        message=best.message,
    )


def _side(place: float) -> str:
    return "lower" if place <= AT_BOUND else "upper" if place >= 1 - AT_BOUND else ""


@dataclass(frozen=True)
class _Box:
    """The variables on the unit cube: by logarithm where bounds are positive."""

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray
    logarithmic: np.ndarray
    start: np.ndarray

    @classmethod
    def of(
        cls, bounds: Mapping[str, tuple[float, float]], integers: Collection[str], start: Mapping[str, float] | None
    ) -> _Box:
        if not bounds:
            raise InputError(message("bounds", "one variable or more", "none", "name what shall be tuned"))
        names = tuple(bounds)
        for given in (*integers, *(start or {})):
            if given not in bounds:
                raise InputError(message("variable", "one that has bounds", repr(given), nearest(given, names)))
        low, high = np.empty(len(names)), np.empty(len(names))
        whole = np.array([name in integers for name in names])
        for i, (name, pair) in enumerate(bounds.items()):
            try:
                low[i], high[i] = map(float, pair)
            except (TypeError, ValueError):
                remedy = "give (lower, upper)"
                raise InputError(message(f"bounds of {name!r}", "two numbers", repr(pair), remedy)) from None
            if not (math.isfinite(low[i]) and math.isfinite(high[i]) and low[i] < high[i]):
                raise InputError(message(f"bounds of {name!r}", "finite lower < upper", pair, "order them"))
            if whole[i]:
                low[i], high[i] = math.ceil(low[i]), math.floor(high[i])
                if low[i] > high[i]:
                    raise InputError(message(f"bounds of {name!r}", "a whole number between them", pair, "widen them"))
        box = cls(names, low, high, whole, low > 0, np.full(len(names), 0.5))
        if start:
            places = box.start.copy()
            for name, value in start.items():
                i = names.index(name)
                if not low[i] <= value <= high[i]:
                    want = f"a value from {low[i]:g} to {high[i]:g}"
                    raise InputError(message(f"start of {name!r}", want, value, "start within the bounds"))
                places[i] = box.place(i, value)
            box.start[:] = places
        return box

    def place(self, i: int, value: float) -> float:
        """Return where on the unit interval a value of variable i lies."""
        low, high = self.low[i], self.high[i]
        if low == high:
            return 0.0
        return math.log(value / low) / math.log(high / low) if self.logarithmic[i] else (value - low) / (high - low)

    def tensors(self, place: Tensor) -> dict[str, Tensor]:
        """Return the variables at a point of the unit cube, differentiable."""
        out = {}
        for i, name in enumerate(self.names):
            low, high = float(self.low[i]), float(self.high[i])
            out[name] = low * (high / low) ** place[i] if self.logarithmic[i] else low + (high - low) * place[i]
        return out

    def values(self, place: np.ndarray) -> dict[str, float]:
        """Return the variables at a point of the unit cube."""
        return {name: float(value) for name, value in self.tensors(torch.as_tensor(place)).items()}

    def near(self, i: int, place: float) -> list[float]:
        """Return places of whole numbers of variable i, the nearest first."""
        centre = self.values(np.full(len(self.names), place))[self.names[i]]
        first = max(self.low[i], math.floor(centre) - NEIGHBOURS // 2)
        numbers = np.arange(first, min(self.high[i], first + NEIGHBOURS) + 1)
        return sorted((self.place(i, number) for number in numbers), key=lambda p: abs(p - place))


@dataclass(frozen=True)
class _Found:
    place: np.ndarray
    miss: float
    converged: bool
    message: str


class _Search:
    """Predictions on the unit cube, and the searches for the target."""

    def __init__(
        self, objective: Objective, family: Family | None, box: _Box, target: float, tolerance: float, seed: int
    ) -> None:
        self.objective, self.family, self.box = objective, family, box
        self.target, self.tolerance, self.seed = target, tolerance, seed
        self.scale = LINEAR_SHARE * abs(target) or 1.0
        self.evaluations, self.differentiable = 0, True

    def predict(self, place: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the prediction, and its derivatives with respect to the variables (NaN if there are none)."""
        return self._evaluate(place)[:2]

    def _evaluate(self, place: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the prediction and its derivatives with respect to the variables and to places on the cube."""
        self.evaluations += 1
        point = torch.tensor(np.clip(place, 0, 1), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            variables = self.box.tensors(point)
            arguments = variables if self.family is None else self.family(**variables)
            value = self.objective(**arguments)
        at = ", ".join(f"{name} = {float(v.detach()):.6g}" for name, v in variables.items())
        value = torch.as_tensor(value)
        if value.numel() != 1:
            remedy = "return the one strength that is wanted"
            raise InputError(message(f"objective at {at}", "a scalar", f"shape {tuple(value.shape)}", remedy))
        number = float(value.detach())
        slopes, cube = [torch.full((), torch.nan)] * len(place), torch.full((len(place),), torch.nan)
        self.differentiable = value.requires_grad
        if value.requires_grad:
            inputs = [point, *variables.values()]
            cube, *slopes = torch.autograd.grad(value.reshape(()), inputs, allow_unused=True, materialize_grads=True)
        if not math.isfinite(number) or (value.requires_grad and not bool(torch.isfinite(cube).all())):
            got = number if not math.isfinite(number) else "a derivative that is not finite"
            remedy = "narrow the bounds to where it is defined and smooth"
            raise InputError(message(f"objective at {at}", "a finite number", got, remedy))
        return number, np.array([float(slope) for slope in slopes]), cube.numpy()

    def error(self, value: float) -> float:
        """Return the relative error of a prediction, absolute where the target is 0."""
        return abs(value - self.target) / (abs(self.target) or 1.0)

    def _miss(self, place: np.ndarray) -> tuple[float, np.ndarray]:
        """Return asinh(value/s) − asinh(target/s), near the target the relative error, and its derivatives."""
        value, _, slope = self._evaluate(place)
        return math.asinh(value / self.scale) - math.asinh(self.target / self.scale), slope / math.hypot(
            value, self.scale
        )

    def reached(self, found: _Found) -> bool:
        """Return whether the target is met."""
        return self.error(self.predict(found.place)[0]) <= self.tolerance

    def solve(self, begin: np.ndarray, fixed: np.ndarray) -> _Found:
        """Return the point nearest to the start at which the target is met, or nearly; fixed variables stay."""
        nearby = self._nearest(begin, fixed)
        if self.reached(nearby):
            return nearby
        found = self._anywhere(begin, fixed)
        if not self.reached(found):
            return found
        again = self._nearest(found.place, fixed)
        return again if self.reached(again) else found

    def _nearest(self, begin: np.ndarray, fixed: np.ndarray) -> _Found:
        """Return the point nearest to the start at which the target is met, by a local search from `begin`."""
        if fixed.all():
            return _Found(begin, self._miss(begin)[0], True, "no real variable is left")
        full, anchor = self._completed(begin, fixed), self.box.start[~fixed]
        self._miss(begin)
        constraint: dict[str, Any] = {"type": "eq", "fun": lambda z: self._miss(full(z))[0]}
        if self.differentiable:
            constraint["jac"] = lambda z: self._miss(full(z))[1][~fixed]
        result = scipy.optimize.minimize(
            lambda z: 0.5 * float(((z - anchor) ** 2).sum()),
            begin[~fixed],
            jac=lambda z: z - anchor,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(anchor),
            constraints=[constraint],
            options={"maxiter": 200, "ftol": 1e-14},
        )
        place = full(result.x)
        return _Found(place, self._miss(place)[0], bool(result.success), f"SLSQP: {result.message}")

    def _anywhere(self, begin: np.ndarray, fixed: np.ndarray) -> _Found:
        """Return the point whose prediction is nearest to the target, by a global search."""
        if fixed.all():
            return _Found(begin, self._miss(begin)[0], True, "no real variable is left")
        full, cube = self._completed(begin, fixed), [(0.0, 1.0)] * int((~fixed).sum())

        def square(z: np.ndarray) -> float:
            return self._miss(full(z))[0] ** 2

        def square_and_slope(z: np.ndarray) -> tuple[float, np.ndarray]:
            miss, slope = self._miss(full(z))
            return miss**2, 2 * miss * slope[~fixed]

        evolved = scipy.optimize.differential_evolution(square, cube, seed=self.seed, polish=False, tol=1e-8)
        polished = scipy.optimize.minimize(
            square_and_slope if self.differentiable else square,
            evolved.x,
            jac=self.differentiable,
            method="L-BFGS-B",
            bounds=cube,
            options={"ftol": 0.0, "gtol": 1e-12},
        )
        place = full(polished.x if polished.fun <= evolved.fun else evolved.x)
        success = bool(polished.success or evolved.success)
        return _Found(place, self._miss(place)[0], success, f"differential evolution: {evolved.message}")

    @staticmethod
    def _completed(begin: np.ndarray, fixed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def full(z: np.ndarray) -> np.ndarray:
            place = begin.copy()
            place[~fixed] = np.clip(z, 0, 1)
            return place

        return full

    def whole_numbers(self, relaxed: _Found) -> tuple[_Found, bool]:
        """Return the best with whole numbers, and whether all of them, or the first to meet the target, were tried."""
        box = self.box
        axes: Sequence[int] = np.flatnonzero(box.whole).tolist()
        near = [box.near(i, float(relaxed.place[i])) for i in axes]

        def distance(places: tuple[float, ...]) -> float:
            return sum((p - relaxed.place[i]) ** 2 for p, i in zip(places, axes, strict=True))

        lattice = sorted(itertools.product(*near), key=distance)[:LATTICE]
        tried: list[_Found] = []
        for places in lattice:
            begin = relaxed.place.copy()
            begin[axes] = places
            tried.append(self._nearest(begin, box.whole))
            if self.reached(tried[-1]):
                return tried[-1], True
        best = min(tried, key=lambda found: abs(found.miss))
        whole = [int(box.high[i] - box.low[i]) + 1 for i in axes]
        return self.solve(best.place, box.whole), len(lattice) == math.prod(whole)
