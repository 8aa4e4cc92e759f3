"""Increments of unit variance for the weak approximation of Brownian motion: what is drawn, and how it is read.

What is drawn for a window of steps (`draw`) is compact; `read` expands one step of it, so that bits become numbers only
where they are used. Words of random bits are held as float32 numbers, of whatever value: compiled code loads those as
they are, but copies integers first, which takes longer than all that follows.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

INCREMENTS = ("gaussian", "rademacher", "three-point")

# Steps that one word of 32 random bits serves.
WORD_STEPS = {"rademacher": 32, "three-point": 2}

# A 16-bit number gives one of the two outer values of the three-point law with probability 2·OUTER/65536, close to 1/3;
# their size is such that the variance is 1 exactly.
OUTER = 10_923
SIZE = math.sqrt(65_536 / (2 * OUTER))

# Words in one draw, from which on `FastBits` makes them itself: its source takes 10 μs to start.
MANY = 2**13

# float32 of √½; its bits as an integer. What is added to bits below those of √½ carries into the exponent.
HALF_ROOT = 0x3F3504F3
MANTISSA = 0x007FFFFF


def _coefficients(
    function: Callable[[np.ndarray], np.ndarray], degree: int, domain: tuple[float, float]
) -> list[float]:
    """Return the coefficients, from the constant on, of a polynomial that is close to a function on a domain."""
    fit = Chebyshev.interpolate(function, degree, domain).convert(kind=Polynomial)
    return [float(value) for value in fit.coef]


# With errors below 6e-8, half the last place of float32: −2 ln(1 + x)/x of x; sin(πx/4)/x and cos(πx/4) of x².
LOGARITHM = _coefficients(lambda x: -2 * np.log1p(x) / x, 8, (math.sqrt(0.5) - 1, math.sqrt(2) - 1))
SINE = _coefficients(lambda z: np.sin(math.pi / 4 * np.sqrt(z)) / np.sqrt(z), 3, (0, 1))
COSINE = _coefficients(lambda z: np.cos(math.pi / 4 * np.sqrt(z)), 3, (0, 1))


def box_muller(first: Tensor, second: Tensor) -> None:
    """Turn words into float32 normals √(−2 ln u) (cos φ, sin φ) of G. E. P. Box and M. E. Muller (1958), in place.

    The first word of a pair gives u, from 31 bits, and a sign; the second gives φ mod π/2, from 31 bits, and whether
    the two are exchanged: together the four quadrants. Logarithm, sine and cosine are polynomials, which a compiler
    turns into a third of the instructions of functions for all arguments.

    Parameters
    ----------
    first, second : Tensor, shape=(pair,), dtype=float32
        Random bits, which become normals: other arrays would not fit into a cache beside them. They are two tensors,
        since a compiler writes halves of one to memory twice.
    """
    signed = first.view(torch.int32).to(torch.float32) + 0.5  # never zero; u = |signed|/2³¹
    # |signed| = (1 + x) 2^exponent with 1 + x from √½ to √2.
    bits = signed.abs().view(torch.int32) - HALF_ROOT
    exponent = (bits & ~MANTISSA).to(torch.float32) * 2.0**-23 - 31
    x = ((bits & MANTISSA) + HALF_ROOT).view(torch.float32) - 1
    radius = torch.sqrt(x * _polynomial(LOGARITHM, x) - 2 * math.log(2) * exponent)
    phase = second.view(torch.int32)
    angle = ((phase & 0x7FFFFFFF) - 2**30).to(torch.float32) * 2.0**-30  # φ in units of π/4, from −1 to 1
    square = angle * angle
    sine = _polynomial(SINE, square) * angle * radius
    cosine = _polynomial(COSINE, square) * radius
    cosine = torch.where(signed < 0, -cosine, cosine)
    exchanged = phase < 0
    first.copy_(torch.where(exchanged, sine, cosine))
    second.copy_(torch.where(exchanged, cosine, sine))


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return Σ_k c_k x^k."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


class FastBits(torch.Generator):
    """RNG on the host that draws random bits in a third of torch's time, and normals in half where they are compiled.

    The bits are those of Chris Doty-Humphrey's SFC64, whose state is drawn from this RNG for each draw: the state of
    this RNG is all that there is to keep.

    Attributes
    ----------
    transform : callable
        `box_muller`, or a faster function that does the same.
    """

    transform: Callable[[Tensor, Tensor], None] = staticmethod(box_muller)

    @functools.cached_property
    def _start(self) -> tuple[Tensor, np.ndarray]:
        """A place for the state from which the source starts, as torch and as numpy see it."""
        state = torch.empty(4, dtype=torch.int64)
        return state, state.numpy().view(np.uint64)

    def words(self, count: int) -> Tensor:
        """Draw words of 32 random bits, shape (count,), held as float32 numbers."""
        start, state = self._start
        start.random_(-(2**63), None, generator=self)
        source = _source()
        source.state = {"bit_generator": "SFC64", "state": {"state": state}, "has_uint32": 0, "uinteger": 0}
        drawn = torch.from_numpy(source.random_raw(-(-count // 2)).view(np.float32))
        return drawn[:count] if count % 2 else drawn

    def normals(self, count: int) -> Tensor:
        """Draw float32 normals, shape (count,)."""
        drawn = self.words(count + count % 2)
        self.transform(*drawn.view(2, -1).unbind())
        return drawn[:count] if count % 2 else drawn


def _source() -> np.random.SFC64:
    """Return the source of random bits of this thread, in any state: making one takes longer than many draws."""
    if not hasattr(_of_thread, "source"):
        _of_thread.source = np.random.SFC64()
    source: np.random.SFC64 = _of_thread.source
    return source


_of_thread = threading.local()


def rows(kind: str, steps: int) -> int:
    """Return the length of the first axis of what `draw` gives for so many steps."""
    return steps if kind == "gaussian" else -(-steps // WORD_STEPS[kind])


def draw(kind: str, steps: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw the increments of `steps` steps.

    Parameters
    ----------
    kind : {"gaussian", "rademacher", "three-point"}
        Normals, in single precision whatever the dtype of the state: they cost a fifth, and rounding at 6e-8 and the
        cut at 5.8 standard deviations (probability 1e-8) are far below every weak error; ±1 from one bit each; or 0,
        ±√3 from 16 bits each.
    steps : int
    shape : tuple of int
        Of one increment.
    generator : torch.Generator
        Its device is that of the result.

    Returns
    -------
    Tensor, dtype=float32
        For `read`: shape (steps, *shape), or (⌈steps/32⌉, *shape) or (⌈steps/2⌉, *shape) for words of bits.
    """
    full = (rows(kind, steps), *shape)
    count = math.prod(full)
    if isinstance(generator, FastBits) and count >= MANY:
        drawn = generator.normals(count) if kind == "gaussian" else generator.words(count)
    elif kind == "gaussian":
        drawn = torch.empty(count, device=generator.device).normal_(generator=generator)
    else:
        pairs = torch.empty(-(-count // 2), dtype=torch.int64, device=generator.device)
        drawn = pairs.random_(-(2**63), None, generator=generator).view(torch.float32)[:count]
    return drawn.view(full)


def piece(kind: str, drawn: Tensor, first: int, count: int) -> Tensor:
    """Return what was drawn for `count` steps from one on; of bits, within one word."""
    if kind == "gaussian":
        return drawn[first : first + count]
    bits = 32 // WORD_STEPS[kind]
    word, place = divmod(first, WORD_STEPS[kind])
    words = drawn[word : word + 1]
    return (words.view(torch.int32) >> (place * bits)).view(torch.float32) if place else words


def read(kind: str, drawn: Tensor, step: int, dtype: torch.dtype) -> Tensor:
    """Return the increment of one step of what was drawn, of mean 0 and variance 1, shape as drawn.

    Moments that agree with those of a normal: all (gaussian); up to the third (rademacher, whose fourth is 1); up to
    the fifth (three-point, whose fourth is 3 up to 1e-4).
    """
    if kind == "gaussian":
        return drawn[step].to(dtype)
    place = step % WORD_STEPS[kind]
    words = drawn[step // WORD_STEPS[kind]].view(torch.int32)
    if kind == "rademacher":
        # The bit of the step becomes the sign bit of 1.0.
        sign = (words << (WORD_STEPS[kind] - 1 - place)) & -(2**31)
        return (sign | 0x3F800000).view(torch.float32).to(dtype)
    # The lower or upper half becomes the upper half, whose order is that of the whole.
    number = words << 16 if place == 0 else words
    above, below = number >= (2**15 - OUTER) * 2**16, number < (OUTER - 2**15) * 2**16
    sign = above.to(torch.float32) - below.to(torch.float32)  # compilers have instructions for this, none for float64
    return sign.to(dtype) * SIZE
