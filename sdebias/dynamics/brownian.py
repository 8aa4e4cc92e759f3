"""Brownian motion for fixed-step solvers that ask for one increment after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from .increments import draw, read
from .solvers import LevyArea


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
    levy_area_approximation : {"none", "space-time", "foster"}
        What it draws besides the increments: nothing, the area U = ∫ (W_s − W_a) ds, or also Foster's approximation of
        the Lévy areas A_ij = ½ ∫ W_i dW_j − W_j dW_i.
    increments : {"gaussian", "rademacher", "three-point"}
        Law of the increments, see `sdebias.dynamics.increments`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        generator: torch.Generator,
        levy_area_approximation: LevyArea = "none",
        increments: str = "gaussian",
    ) -> None:
        self.shape = shape
        self.levy_area_approximation = levy_area_approximation
        self._dtype = dtype
        self._generator = generator
        self._increments = increments
        self._now = -math.inf

    def __call__(
        self, ta: float | Tensor, tb: float | Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Return an increment of variance h = t_b − t_a, and the areas that are wanted.

        U = h (W/2 + H) with H ~ N(0, h/12) independent of W. Given W and H, A_ij has the mean H_i W_j − W_i H_j and the
        variance h²/20 + (h/5)(H_i² + H_j²); the approximation is to take it as normal (Foster 2020). torchsde 0.2.6
        has h²/50 in place of h²/20, which leaves A_ij with 0.22 h² instead of its variance h²/4.

        Returns
        -------
        Tensor, shape=(rows, noise channels), or a tuple of it, U of its shape and A, (rows, channels, channels)

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
        h = end - start
        increment = self._draw(self.shape, self._increments) * math.sqrt(h)
        if self.levy_area_approximation == "none":
            return increment
        excess = self._draw(self.shape) * math.sqrt(h / 12)
        results = [increment]
        if return_U:
            results.append(h * (0.5 * increment + excess))
        if return_A:
            mean = excess.unsqueeze(-1) * increment.unsqueeze(-2)
            squares = excess.square()
            std = (h * (h / 20 + (squares.unsqueeze(-1) + squares.unsqueeze(-2)) / 5)).sqrt()
            normals = self._draw((*self.shape, self.shape[-1])).triu(1)
            results.append(mean - mean.mT + std * (normals - normals.mT))
        return tuple(results) if len(results) > 1 else increment

    def _draw(self, shape: tuple[int, ...], kind: str = "gaussian") -> Tensor:
        return read(kind, draw(kind, 1, shape, self._generator), 0, self._dtype)
