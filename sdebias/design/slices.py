"""Curves in the plane of two factors (p, q) on which noise keeps them, by the coordinate s in which it is uniform.

z = pq does not change under (p, q) → (c p, q/c), whose charge is C = ½(p² − q²). Noise with charge C = c explores one
curve of that charge; without a loss its law is ds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .uniform import NODES, WEIGHTS, Cubic, solve_increasing

# The hyperbola is tabulated to z = ½ c e^24, the most that a run in double precision could reach.
TURN, TURN_STEP = 12.0, 0.01


class Slice(ABC):
    """A curve of constant charge, with the coordinate s of its noise."""

    level: float

    @abstractmethod
    def s(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and ds/dz at z = pq, each shape as `z`."""

    @abstractmethod
    def factors(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point (p, q) at s, each shape as `s`; p >= 0."""


@dataclass(frozen=True)
class Diagonal(Slice):
    """p = q, charge 0, under horizontal noise: s = √(2|z|) is the length along it.

    The set p² = q² is a cross. Through its centre a trajectory passes on straight, so that z never changes its sign.
    """

    level: float = 0.0

    def s(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return √(2|z|) and its derivative, 0 at z = 0."""
        s = (2 * z.abs()).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
        return s, z.sign() / s

    def factors(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return (|s|, |s|)/√2."""
        return s.abs() / math.sqrt(2), s.abs() / math.sqrt(2)


@dataclass(frozen=True)
class Hyperbola(Slice):
    """p² − q² = 2c with c > 0: p = √(2c) cosh τ, q = √(2c) sinh τ, z = c sinh 2τ for every real z.

    Under horizontal noise s is the length along it, ds = √(2c cosh 2τ) dτ = dz/√(2√(z² + c²)).

    Attributes
    ----------
    level : float
        c > 0.
    """

    level: float

    def turn(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return τ = ½ asinh(z/c) and dτ/dz."""
        return 0.5 * torch.asinh(z / self.level), 0.5 / torch.sqrt(z.square() + self.level**2)

    def point(self, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) at τ."""
        scale = math.sqrt(2 * self.level)
        return scale * torch.cosh(turn), scale * torch.sinh(turn)

    def s(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the length from z = 0 and its derivative."""
        turn, rate = self.turn(z)
        length, slope = _hyperbola_length()(turn)
        scale = math.sqrt(2 * self.level)
        return scale * length, scale * slope * rate

    def factors(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point at a length."""
        return self.point(solve_increasing(_hyperbola_length(), s / math.sqrt(2 * self.level), -TURN, TURN))


@dataclass(frozen=True)
class GaugedHyperbola(Hyperbola):
    """The same curve under isotropic noise, held there by a stiff potential: s = ℓ τ.

    A potential of one stiffness is narrower where charges grow faster: the law has dz/⟨∇C, ∇C⟩ = dz/(2√(z² + c²)) = dτ.

    Attributes
    ----------
    level, length : float
        c > 0 and ℓ > 0.
    """

    length: float = 1.0

    def s(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ½ ℓ asinh(z/c) and its derivative."""
        turn, rate = self.turn(z)
        return self.length * turn, self.length * rate

    def factors(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point at τ = s/ℓ."""
        return self.point(s / self.length)


@cache
def _hyperbola_length() -> Cubic:
    """Return G(τ) = ∫_0^τ √cosh 2x dx with its derivative."""
    turns = np.linspace(0, TURN, round(TURN / TURN_STEP) + 1)
    middle, half = (turns[1:] + turns[:-1])[:, None] / 2, TURN_STEP / 2
    pieces = np.sqrt(np.cosh(2 * (middle + half * NODES))) @ WEIGHTS * half
    length = np.concatenate([[0.0], np.cumsum(pieces)])
    mirrored = [np.concatenate([sign * values[:0:-1], values]) for values, sign in ((turns, -1), (length, -1))]
    return Cubic(mirrored[0], mirrored[1], np.sqrt(np.cosh(2 * mirrored[0])))
