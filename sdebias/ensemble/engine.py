"""Faster functions for a chunk of steps: traced once, then compiled for the CPU or captured as a CUDA graph.

`torch.fx` traces the steps of a chunk, autograd included, to one flat graph of tensor operations, which the backend of
`torch.compile` fuses. On CUDA, where launches cost more than small operations, the chunk is captured and replayed as
one graph instead. Random numbers are drawn outside, for the whole chunk: neither sees a random-number generator.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dynamics.base import Dynamics
from ..dynamics.increments import FastBits, box_muller
from ..dynamics.walk import Draws, advance

if TYPE_CHECKING:
    from .compiling import Chunk

log = logging.getLogger("sdebias")

# Compiled chunks of each problem, so that a second call with the same dynamics and shapes compiles nothing.
_compiled: weakref.WeakKeyDictionary[Any, dict[Hashable, Chunk]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Engine:
    """Chunks of steps of given dynamics, as fast as the device allows; the `advance` of a `Walk`.

    Parameters
    ----------
    dynamics : Dynamics
        Bound.

    Attributes
    ----------
    seconds : float
        Time spent on tracing and compiling so far.
    failure : str
        Why steps are taken one by one after all; empty where they are not.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        self.seconds = 0.0
        self.failure = ""
        # Without the problem, which the cache must not keep alive.
        unbound = dataclasses.replace(dynamics, problem=None, symmetry=None)
        self._settings = (unbound, repr(dynamics.symmetry))
        self._chunks: dict[Hashable, Chunk] = {}

    def __call__(self, theta: Tensor, draws: Draws, rates: Tensor | None, count: int, every: bool) -> list[Tensor]:
        """Return the states after a chunk of steps; see `advance`."""
        names = tuple(draws)

        def steps(theta: Tensor, *others: Tensor) -> list[Tensor]:
            draws = dict(zip(names, others, strict=False))
            rates = others[len(names)] if len(others) > len(names) else None
            return advance(self.dynamics, theta, draws, rates, count, every)

        inputs = [theta, *draws.values(), *([] if rates is None else [rates])]
        # How many windows were drawn at once shows in the strides of the draws.
        key = (theta.shape, count, every, *(drawn.stride() for drawn in draws.values()))
        return self._call(f"{count} steps of {type(self.dynamics).__name__}", key, steps, inputs)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return an RNG whose normals are made in a compiled function, too, where that is faster."""
        if device.type != "cpu":
            return torch.Generator(device)
        rng = FastBits(device)
        rng.transform = self._normals
        return rng

    def _normals(self, first: Tensor, second: Tensor) -> None:
        def make(first: Tensor, second: Tensor) -> list[Tensor]:
            box_muller(first, second)
            return []

        self._call("making normals", first.shape, make, [first, second], contracted=True)

    def _call(
        self, what: str, key: Hashable, plain: Chunk, inputs: list[Tensor], contracted: bool = False
    ) -> list[Tensor]:
        """Return what a function gives for the inputs, from its faster form, which is made where there is none yet."""
        if key not in self._chunks:
            with _lock:
                known = _compiled.setdefault(self.dynamics.bound_problem, {})
                full = (self._settings, key)
                if full in known:
                    self._chunks[key] = known[full]
                else:
                    self._chunks[key] = self._build(what, plain, inputs, contracted)
                    if not self.failure:
                        known[full] = self._chunks[key]
        return self._chunks[key](*inputs)

    def _build(self, what: str, plain: Chunk, inputs: list[Tensor], contracted: bool) -> Chunk:
        start = time.perf_counter()
        if self.failure:
            return plain
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                from . import compiling  # here, since it loads the compiler: most commands need none

                if inputs[0].is_cuda:
                    chunk = compiling.captured(plain, inputs)
                else:
                    chunk = compiling.compiled(plain, inputs, contracted)
        except Exception as error:  # whatever a compiler or tracer raises, the plain steps are right
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning("steps are not compiled (%s); they are taken one by one", self.failure)
            return plain
        self.seconds += time.perf_counter() - start
        log.info("%s compiled in %.1f s", what, time.perf_counter() - start)
        return chunk
