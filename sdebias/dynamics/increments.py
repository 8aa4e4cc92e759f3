"""Increments of unit variance for the weak approximation of Brownian motion: what is drawn, and how it is read.

What is drawn for a window of steps (`draw`) is compact; `read` expands one step of it, so that bits become numbers only
where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

INCREMENTS = ("gaussian", "rademacher", "three-point")

# Steps that one word of random bits serves.
WORD_STEPS = 32

# A 16-bit number gives one of the two outer values of the three-point law with probability 2·OUTER/65536, close to 1/3;
# their size is such that the variance is 1 exactly.
OUTER = 10_923
SIZE = math.sqrt(65_536 / (2 * OUTER))

# Normals in one draw, from which on `FastNormals` makes them itself: its source takes 10 μs to start.
MANY = 2**15


def box_muller(words: Tensor, out: Tensor) -> Tensor:
    """Write float32 normals √(−2 ln u) (cos 2πv, sin 2πv), with 31 random bits for u and 32 for v.

    Parameters
    ----------
    words : Tensor, shape=(2, pair), dtype=int32
    out : Tensor, shape=(2, pair), dtype=float32

    Returns
    -------
    Tensor, shape=(2, pair)
        `out`.
    """
    u, v = words.to(torch.float32).unbind()
    radius = torch.sqrt(torch.log((u + 0.5).abs() * 2.0**-31) * -2)  # u + ½ is never zero
    angle = v * (math.pi * 2.0**-31)
    return out.copy_(torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)]))


class FastNormals(torch.Generator):
    """RNG on the host whose normals come, where their making is compiled, in half of torch's time.

    Random bits of Chris Doty-Humphrey's SFC64, which a word of this RNG seeds for each draw, become normals by Box and
    Muller's transform: the state of this RNG is all that there is to keep.

    Attributes
    ----------
    transform : callable
        `box_muller`, or a faster function of the same result.
    """

    transform: Callable[[Tensor, Tensor], Tensor] = staticmethod(box_muller)

    def normals(self, count: int) -> Tensor:
        """Draw float32 normals, shape (count,)."""
        source = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_(generator=self)))
        pairs = -(-count // 2)
        words = torch.from_numpy(source.random_raw(pairs).view(np.int32)).view(2, pairs)
        return self.transform(words, torch.empty(2, pairs)).view(-1)[:count]


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
    Tensor
        For `read`: shape (steps, *shape), or (⌈steps/32⌉, *shape) for words of bits.
    """
    device = generator.device
    if kind == "gaussian":
        count = steps * math.prod(shape)
        if isinstance(generator, FastNormals) and count >= MANY:
            return generator.normals(count).view(steps, *shape)
        return torch.empty(steps, *shape, device=device).normal_(generator=generator)
    numbers, bits = (-(-steps // WORD_STEPS), torch.int32) if kind == "rademacher" else (steps, torch.int16)
    count, per_word = numbers * math.prod(shape), 64 // torch.iinfo(bits).bits
    words = torch.empty(-(-count // per_word), dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(bits)[:count].view(numbers, *shape)


def read(kind: str, drawn: Tensor, step: int, dtype: torch.dtype) -> Tensor:
    """Return the increment of one step of what was drawn, of mean 0 and variance 1, shape as drawn.

    Moments that agree with those of a normal: all (gaussian); up to the third (rademacher, whose fourth is 1); up to
    the fifth (three-point, whose fourth is 3 up to 1e-4).
    """
    if kind == "gaussian":
        return drawn[step].to(dtype)
    if kind == "rademacher":
        # The bit of the step becomes the sign bit of 1.0.
        sign = (drawn[step // WORD_STEPS] << (WORD_STEPS - 1 - step % WORD_STEPS)) & -(2**31)
        return (sign | 0x3F800000).view(torch.float32).to(dtype)
    number = drawn[step]
    above, below = number >= 2**15 - OUTER, number < -(2**15) + OUTER
    return (above.to(dtype) - below.to(dtype)) * SIZE
