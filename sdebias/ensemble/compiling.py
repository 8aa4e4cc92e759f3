"""How a chunk of steps becomes compiled code or a CUDA graph. Loads the compiler, which takes seconds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

# Results that one loop over the trajectories computes, of some dozens of operations each. Each step waits for the one
# before it: a processor works on several trajectories at once only where it sees the end of a loop's body ahead.
FUSED = 8

Chunk = Callable[..., list[Tensor]]  # inputs: θ, draws, and η where it is not constant


def compiled(chunk: Chunk, inputs: list[Tensor], contracted: bool = False) -> Chunk:
    """Return a chunk of steps as compiled code for inputs of the same shapes, strides and dtypes.

    With `contracted`, a product and the sum that it goes into are one instruction of one rounding: a fifth faster where
    polynomials are all there is. Elsewhere it would let the rounding depend on what else of the steps is wanted.
    """
    # Tracing runs the function, which may write to what it is given.
    inputs = [torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value) for value in inputs]
    interleaved = inputs[0].stride(-1) == 1
    # Without no_grad, models do not write in place, which a compiler would have to undo.
    with torch.enable_grad():
        graph = make_fx(chunk)(*inputs)
    graph = make_fx(_ByParts(graph, interleaved).run)(*inputs)
    for node in graph.graph.nodes:
        node.meta.clear()
    # Called without the guards of `torch.compile`, which for small steps cost more than the steps.
    # The compiler keeps what it made for the next process only where it may ask a `ShapeEnv` what it took for granted.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    examples: list[Any] = [mode.from_tensor(value, static_shapes=True) for value in inputs]
    # Of few parameters, results are so small that each allocation counts: one for all of them. Large ones reuse memory
    # that is still in a cache.
    options = {
        "cpp_wrapper": True,
        "max_fusion_size": FUSED,
        "memory_planning": not interleaved,
        "cpp.simdlen": _register_bits(),
        "cpp.enable_floating_point_contract_flag": "fast" if contracted else "off",
    }
    function: Chunk = torch._inductor.compile(graph, examples, options=options)
    # Without the wrapper that keeps dynamo from compiling it again: a quarter of what a call costs.
    function = getattr(function, "_torchdynamo_orig_callable", function)
    function(*inputs)
    return function


def _register_bits() -> int | None:
    """Return the width of the registers that compiled code shall use; None leaves it to the compiler.

    Where bits are read as numbers, the code for 512 bits stores halves and loads the whole, for which the processor
    waits: it took three times as long as that for 256 bits, and matrix products, a library's, are the same with both.
    """
    return 256 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else None


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Tensors that are to be joined along their last axis."""

    parts: tuple[Tensor, ...]
    interleaved: bool

    @functools.cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of each part."""
        return list(itertools.pairwise(itertools.accumulate((part.shape[-1] for part in self.parts), initial=0)))

    @functools.cached_property
    def whole(self) -> Tensor:
        """The parts, joined; stored row by row, or each part in one piece."""
        if self.interleaved:
            return torch.cat(self.parts, -1)
        return torch.cat([part.mT for part in self.parts], -2).mT


class _ByParts(torch.fx.Interpreter):
    """Runs a graph so that what is joined is not, up to where the whole is needed.

    The compiler does not fuse `cat` with what follows it: either it writes all parts to memory, or it computes each of
    them for every entry of the whole.
    """

    def __init__(self, graph: torch.fx.GraphModule, interleaved: bool) -> None:
        super().__init__(graph)
        self._interleaved = interleaved

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation, in parts where one of its arguments is."""
        call = super().call_function
        if target is torch.ops.aten.cat.default and args[1:] == (-1,):
            return _Joined(tuple(_wholes(args[0])), self._interleaved)
        joined = [value for value in args if isinstance(value, _Joined)]
        spans = joined[0].spans if joined else []
        if joined and torch.Tag.pointwise in target.tags and all(value.spans == spans for value in joined):
            pieces = [tuple(_part(value, k, spans) for value in args) for k in range(len(spans))]
            return _Joined(tuple(call(target, piece, kwargs) for piece in pieces), self._interleaved)
        if joined and target is torch.ops.aten.slice.Tensor and len(args) == 4:
            axis, span = args[1] % joined[0].parts[0].ndim, (args[2], min(args[3], spans[-1][1]))
            if axis == joined[0].parts[0].ndim - 1 and span in spans:
                return joined[0].parts[spans.index(span)]
        return call(target, _wholes(args), _wholes(kwargs))

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the results as tensors."""
        return super().output(target, _wholes(args), kwargs)


def _part(value: Any, k: int, spans: list[tuple[int, int]]) -> Any:
    """Return what an elementwise operation takes of an argument for part k."""
    if isinstance(value, _Joined):
        return value.parts[k]
    # An axis of length 1 broadcasts to every part.
    wide = isinstance(value, Tensor) and value.ndim > 0 and value.shape[-1] == spans[-1][1]
    return value[..., slice(*spans[k])] if wide else value


def _wholes(arguments: Any) -> Any:
    """Return arguments with all that is in parts joined."""
    return torch.fx.node.map_aggregate(arguments, lambda value: value.whole if isinstance(value, _Joined) else value)


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
