"""Brownian motion for fixed-step solvers that ask for one increment after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError


class SequentialBrownian:
    """Increments W(t_b) − W(t_a) over consecutive intervals, drawn as they are asked for.

    It stores nothing, so it costs only the draw of the normals. It serves fixed-step `torchsde.sdeint`; adaptive
    steps, adjoints and coupled refinement ask for the same interval twice and need
    ``torchsde.BrownianInterval(entropy=...)`` instead.

    Parameters
    ----------
    shape : tuple of int
        (rows, noise channels).
    dtype : torch.dtype
    generator : torch.Generator
        Its device is the device of the increments.
    """

    levy_area_approximation = "none"

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> None:
        self.shape = shape
        self._dtype = dtype
        self._generator = generator
        self._now = -math.inf

    def __call__(self, ta: float | Tensor, tb: float | Tensor) -> Tensor:
        """Return an increment of variance t_b − t_a, shape (rows, noise channels).

        Raises
        ------
        InputError
            If the interval starts before the end of the last one.
        """
        start, end = float(ta), float(tb)
        if start < self._now:
            raise InputError(
                f"SequentialBrownian: expected an interval that starts at {self._now} or later, got [{start}, {end}]; "
                "use torchsde.BrownianInterval for adaptive steps, adjoints or coupled refinement"
            )
        self._now = end
        normals = torch.randn(self.shape, dtype=self._dtype, device=self._generator.device, generator=self._generator)
        return normals.mul_(math.sqrt(end - start))
