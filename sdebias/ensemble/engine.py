"""Faster functions for a chunk of steps: traced once, then compiled for the CPU or captured as a CUDA graph.

`torch.fx` traces the steps of a chunk, autograd included, to one flat graph of tensor operations, which the backend of
`torch.compile` fuses. On CUDA, where launches cost more than small operations, the chunk is captured and replayed as
one graph instead. Random numbers are drawn outside, for the whole chunk: neither sees a random-number generator.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..dynamics.base import Dynamics
from ..dynamics.walk import Draws, advance

log = logging.getLogger("sdebias")

Chunk = Callable[..., list[Tensor]]  # inputs: θ, draws, and η where it is not constant
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
        inputs = [theta, *draws.values(), *([] if rates is None else [rates])]
        key = (theta.shape, count, every)
        if key not in self._chunks:
            with _lock:
                known = _compiled.setdefault(self.dynamics.bound_problem, {})
                full = (self._settings, *key)
                if full in known:
                    self._chunks[key] = known[full]
                else:
                    self._chunks[key] = self._build(inputs, tuple(draws), count, every)
                    if not self.failure:
                        known[full] = self._chunks[key]
        return self._chunks[key](*inputs)

    def _build(self, inputs: list[Tensor], names: tuple[str, ...], count: int, every: bool) -> Chunk:
        start = time.perf_counter()

        def plain(theta: Tensor, *others: Tensor) -> list[Tensor]:
            draws = dict(zip(names, others, strict=False))
            rates = others[len(names)] if len(others) > len(names) else None
            return advance(self.dynamics, theta, draws, rates, count, every)

        if self.failure:
            return plain
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                chunk = (captured if inputs[0].is_cuda else compiled)(plain, inputs)
        except Exception as error:  # whatever a compiler or tracer raises, the plain steps are right
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning("steps are not compiled (%s); they are taken one by one", self.failure)
            return plain
        self.seconds += time.perf_counter() - start
        log.info("%d steps of %s compiled in %.1f s", count, type(self.dynamics).__name__, self.seconds)
        return chunk


def compiled(chunk: Chunk, inputs: list[Tensor]) -> Chunk:
    """Return a chunk of steps as compiled code for inputs of the same shapes, strides and dtypes."""
    # Without no_grad, models do not write in place, which a compiler would have to undo.
    with torch.enable_grad():
        graph = make_fx(chunk)(*inputs)
    if inputs[0].stride(-1) != 1:
        _pad_instead_of_cat(graph)
    for node in graph.graph.nodes:
        node.meta.clear()
    # Called without the guards of `torch.compile`, which for small steps cost more than the steps.
    function: Chunk = torch._inductor.compile(graph, list(inputs), options={"cpp_wrapper": True})
    function(*inputs)
    return function


def _pad_instead_of_cat(graph: torch.fx.GraphModule) -> None:
    """Write the joining of parts as a sum of padded parts, which is fused with its neighbours where `cat` is not."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        if dim != -1:
            continue
        sizes = [part.meta["val"].shape[-1] for part in parts]
        with graph.graph.inserting_before(node):
            padded = [
                graph.graph.call_function(
                    torch.ops.aten.constant_pad_nd.default, (part, [sum(sizes[:k]), sum(sizes[k + 1 :])], 0.0)
                )
                for k, part in enumerate(parts)
            ]
            total = functools.reduce(lambda a, b: graph.graph.call_function(torch.ops.aten.add.Tensor, (a, b)), padded)
        node.replace_all_uses_with(total)
        graph.graph.erase_node(node)
    graph.recompile()


def captured(chunk: Chunk, inputs: list[Tensor]) -> Chunk:
    """Return a chunk of steps as a CUDA graph, replayed on its own copies of the inputs."""
    held = [value.clone() for value in inputs]
    stream = torch.cuda.Stream(held[0].device)
    stream.wait_stream(torch.cuda.current_stream(held[0].device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # lazy initialisation must not be captured
            chunk(*held)
    torch.cuda.current_stream(held[0].device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = chunk(*held)

    def replay(*inputs: Tensor) -> list[Tensor]:
        for mine, given in zip(held, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return [state.clone() for state in result]

    return replay
