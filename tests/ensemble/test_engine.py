"""The engine: compiled chunks are the plain steps, compiled once, and failures are said and survived."""

from __future__ import annotations

import contextlib
import logging
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import regression
from torch._dynamo.utils import counters

import sdebias as sb
from sdebias.dynamics.base import Dynamics
from sdebias.dynamics.increments import MANY, FastBits, draw
from sdebias.dynamics.walk import advance
from sdebias.ensemble import compiling
from sdebias.ensemble.engine import Engine


def run(problem: sb.Problem, dynamics: Dynamics, **arguments: Any) -> xr.Dataset:
    defaults = {"trajectories": 24, "steps": 12, "save_every": 3, "block_size": 16, "progress": False}
    return sb.simulate(problem, dynamics, **(defaults | arguments))


def toy() -> sb.problems.HadamardRegression:
    return sb.problems.HadamardRegression([[1.0]], [1.0], initial_std={"p": 0.3, "q": 0.3})


def network() -> sb.Problem:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).double()
    X, y = regression()
    return sb.Problem.from_module(net, lambda out, target: (out.squeeze(-1) - target) ** 2, X, y)


CASES = {
    "toy, isotropic": (toy, sb.SGDSDE(learning_rate=0.05, noise="isotropic", temperature=0.1, substeps=4)),
    "toy, bits": (
        toy,
        sb.SGDSDE(learning_rate=0.05, noise="isotropic", temperature=0.1, substeps=4, increments="rademacher"),
    ),
    "toy, three points": (
        toy,
        sb.SGDSDE(learning_rate=0.05, noise="isotropic", temperature=0.1, substeps=4, increments="three-point"),
    ),
    "regression, schedule": (
        lambda: sb.problems.HadamardRegression(*regression()),
        sb.SGDSDE(learning_rate=sb.schedule.cosine(0.1, 0.01, 12), substeps=2),
    ),
    "regression, SGD": (lambda: sb.problems.HadamardRegression(*regression()), sb.SGD(learning_rate=0.05)),
    "module": (network, sb.SGDSDE(learning_rate=0.05, batch_size=2, substeps=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_steps_are_the_plain_ones(case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, dynamics = CASES[case]
    problem = make()
    plain = run(problem, dynamics, compile=False)
    with caplog.at_level(logging.INFO, logger="sdebias"):
        compiled = run(problem, dynamics, compile=True)
    assert "compiled in" in caplog.text
    assert "not compiled" not in caplog.text
    assert (plain.attrs["compile"], compiled.attrs["compile"]) == (0, 1)
    assert compiled.attrs["compile_seconds"] > 0
    np.testing.assert_allclose(compiled["theta"], plain["theta"], rtol=1e-9, atol=1e-12)
    again = run(problem, dynamics, compile=True)
    assert again.attrs["compile_seconds"] == 0
    np.testing.assert_array_equal(again["theta"], compiled["theta"])


@pytest.mark.slow
def test_what_was_compiled_for_other_data_of_the_same_shape_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    """The compiler finds the second problem in its cache, and the result is that of the second problem's data."""
    dynamics = sb.SGDSDE(learning_rate=0.05, substeps=2)
    problems = [sb.problems.HadamardRegression(X, y) for X, y in (regression(seed=seed) for seed in (0, 1))]
    run(problems[0], dynamics, compile=True)
    before = counters["inductor"]["fxgraph_cache_hit"]
    compiled = run(problems[1], dynamics, compile=True)
    assert counters["inductor"]["fxgraph_cache_hit"] > before
    plain = run(problems[1], dynamics, compile=False)
    np.testing.assert_allclose(compiled["theta"], plain["theta"], rtol=1e-9, atol=1e-12)
    other = run(problems[0], dynamics, compile=False)
    assert not np.allclose(compiled["theta"], other["theta"])


@pytest.mark.slow
def test_normals_that_a_compiled_function_makes_are_those_of_the_plain_one() -> None:
    """Enough trajectories that a chunk's normals are many; the same seed gives the same ensemble again."""
    problem, dynamics = CASES["toy, isotropic"][0](), CASES["toy, isotropic"][1]
    rng, plain = Engine(dynamics.bind(problem)).generator(problem.device), FastBits()
    many = [draw("gaussian", 2, (MANY,), one.manual_seed(1)) for one in (rng, plain)]
    torch.testing.assert_close(*many, rtol=1e-5, atol=1e-6)
    ends = torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    words = torch.cartesian_prod(ends, ends).mT.contiguous().view(torch.float32)
    extremes = [words.clone(), words.clone()]
    assert isinstance(rng, FastBits)
    for one, pairs in zip((rng, plain), extremes, strict=True):
        one.transform(*pairs)
    torch.testing.assert_close(*extremes, rtol=1e-5, atol=1e-6)
    first, again = (run(problem, dynamics, trajectories=2048, block_size=2048, compile=True) for _ in range(2))
    np.testing.assert_array_equal(first["theta"], again["theta"])


@pytest.mark.parametrize(("capability", "bits"), [("AVX512", 256), ("AVX2", None), ("DEFAULT", None)])
def test_registers_of_512_bits_are_not_used(capability: str, bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the compiler decides: a width that the processor does not have would be no vector code at all."""
    given = []

    def compiler(graph: Any, examples: Any, options: dict[str, Any]) -> compiling.Chunk:
        given.append(options["cpp.simdlen"])
        return lambda *inputs: list(inputs)

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch._inductor, "compile", compiler)
    compiling.compiled(lambda theta: [theta * 2], [torch.ones(3)])
    assert given == [bits]


def test_a_failure_is_logged_and_survived(
    problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(compiling, "make_fx", fail)
    dynamics = sb.SGD(learning_rate=0.05)
    ens = run(problem, dynamics, compile=True)
    assert "RuntimeError: no compiler here" in caplog.text
    assert caplog.text.count("not compiled") == 1
    assert ens.attrs["compile_failure"] == "RuntimeError: no compiler here"
    np.testing.assert_array_equal(ens["theta"], run(problem, dynamics, compile=False)["theta"])


@pytest.mark.parametrize("interleaved", [True, False])
def test_joined_parts_are_joined_where_the_whole_is_needed(interleaved: bool) -> None:
    """Of three steps, only what is returned and what a matrix is applied to is joined; both are stored as θ is."""

    def steps(theta: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
        for row in noise:
            change = torch.cat([theta[..., :1].sin(), theta[..., 1:].cos() * theta[..., :1]], -1)
            theta = theta + 0.1 * change + row * 2 + row.sum(-1, keepdim=True)
        return [theta, theta @ torch.eye(3)]

    theta, noise = (torch.randn(*lead, 3, 5).mT if not interleaved else torch.randn(*lead, 5, 3) for lead in ((), (3,)))
    graph = compiling.make_fx(steps)(theta, noise)
    parted = compiling.make_fx(compiling._ByParts(graph, interleaved).run)(theta, noise)
    nodes = [len(g.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)) for g in (graph, parted)]
    assert nodes == [3, 1]
    for found, wanted in zip(parted(theta, noise), steps(theta, noise), strict=True):
        torch.testing.assert_close(found, wanted)
    assert parted(theta, noise)[0].stride() == theta.stride()


def test_a_chunk_of_another_shape_is_another_function(problem: sb.problems.HadamardRegression) -> None:
    built = []

    class Counting(Engine):
        def _build(self, what: str, plain: compiling.Chunk, inputs: list[torch.Tensor], contracted: bool) -> Any:
            built.append((what, inputs[0].shape[0]))
            self.failure = "not wanted"
            return super()._build(what, plain, inputs, contracted)

    bound = sb.SGD(learning_rate=0.05).bind(problem)
    steps = Counting(bound)
    for rows, count, every in ((4, 3, True), (4, 3, True), (5, 3, True), (4, 2, True), (4, 3, False)):
        draws = bound.draw(count, (rows,), torch.Generator())
        states = steps(problem.draw_initial(rows, torch.Generator()), draws, None, count, every)
        assert len(states) == (count if every else 1)
    three = "3 steps of SGD"
    assert built == [(three, 4), (three, 5), ("2 steps of SGD", 4), (three, 4)]
    # Draws that are a part of those of several windows.
    apart = {
        name: torch.stack([drawn, drawn], 1)[:, 0] for name, drawn in bound.draw(3, (4,), torch.Generator()).items()
    }
    steps(problem.draw_initial(4, torch.Generator()), apart, None, 3, True)
    assert len(built) == 5


class Recorder:
    """A chunk that remembers what it was last called with and what it returned: the buffers of a CUDA graph."""

    def __init__(self, chunk: compiling.Chunk) -> None:
        self.chunk = chunk

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        self.inputs, self.outputs = inputs, self.chunk(*inputs)
        return self.outputs

    def replay(self) -> None:
        for output, value in zip(self.outputs, self.chunk(*self.inputs), strict=True):
            output.copy_(value)


@pytest.mark.parametrize("every", [True, False])
def test_a_captured_chunk_reads_its_inputs_anew(
    every: bool, problem: sb.problems.HadamardRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of a GPU is played by a recorder of the chunk's buffers: what is tested is what goes in and out."""
    bound = sb.SGDSDE(learning_rate=sb.schedule.cosine(0.1, 0.01, 12), substeps=2).bind(problem)
    recorder = Recorder(lambda theta, v, rates: advance(bound, theta, {"increment": v}, rates, 3, every))
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda argument: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recorder)

    def inputs(seed: int) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        rates = bound.rates(seed, 0, 3)
        assert rates is not None
        return [problem.draw_initial(4, rng), bound.draw(3, (4,), rng)["increment"], rates]

    replay = compiling.captured(recorder, inputs(0))
    found = [replay(*inputs(seed)) for seed in (1, 2)]
    for states, seed in zip(found, (1, 2), strict=True):
        torch.testing.assert_close(states, recorder.chunk(*inputs(seed)))
