"""Learning rates that change in the course of a run, as plain data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import scipy.integrate

from ..errors import check_positive_number
from ..specs import from_named


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate η(k) > 0 in iteration time k. SGD takes η(k) in update k, the SDE η(t) at time t."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check that all parameters are positive."""
        for key, value in asdict(self).items():
            object.__setattr__(self, key, check_positive_number(key, value))

    @abstractmethod
    def __call__(self, k: float) -> float:
        """Return η(k)."""

    def spec(self) -> dict[str, Any]:
        """Return the schedule as plain data; see `from_spec`."""
        return {"schedule": self.name, **asdict(self)}

    def sums(self, steps: Sequence[int]) -> np.ndarray:
        """Return Σ_{j<k} η(j) at each k of `steps`: the time that SGD has covered."""
        totals = np.concatenate([[0.0], np.cumsum([self(j) for j in range(max(steps))])])
        return totals[list(steps)]

    def integrals(self, steps: Sequence[int]) -> np.ndarray:
        """Return ∫_0^k η at each k of the increasing `steps`, the first of which is 0: the time of the SDE."""
        parts = [scipy.integrate.quad(self, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in pairwise(steps)]
        return np.concatenate([[0.0], np.cumsum(parts)])


@dataclass(frozen=True)
class Linear(Schedule):
    """η(k) from `initial` to `final` along a straight line over `steps` updates, constant after them."""

    name: ClassVar[str] = "linear"
    initial: float
    final: float
    steps: float

    def __call__(self, k: float) -> float:
        """Return η(k)."""
        return self.initial + (self.final - self.initial) * min(k / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """η(k) = final + (initial − final)(1 + cos(π k/steps))/2, constant after `steps` updates (Loshchilov 2017)."""

    name: ClassVar[str] = "cosine"
    initial: float
    final: float
    steps: float

    def __call__(self, k: float) -> float:
        """Return η(k)."""
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * min(k / self.steps, 1.0))) / 2


@dataclass(frozen=True)
class Power(Schedule):
    """η(k) = initial (1 + k/scale)^(−exponent) (Robbins and Monro 1951)."""

    name: ClassVar[str] = "power"
    initial: float
    exponent: float
    scale: float = 1.0

    def __call__(self, k: float) -> float:
        """Return η(k)."""
        return self.initial * (1 + k / self.scale) ** -self.exponent


linear, cosine, power = Linear, Cosine, Power
SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in (Linear, Cosine, Power)}


def from_spec(spec: Mapping[str, Any]) -> Schedule:
    """Return a schedule from plain data such as ``{"schedule": "cosine", "initial": 0.1, "final": 0.01, "steps": 9}``.

    Raises
    ------
    InputError
        If the name or a parameter is wrong.
    """
    return from_named("schedule", SCHEDULES, spec)
